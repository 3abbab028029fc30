from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import types
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, DataError, IntegrityError, SchemaError
from refinery.kernels import fasttext_model as ft
from refinery.kernels.fasttext_file import check_model_file
from refinery.kernels.fasttext_words import strongest_words
from refinery.kernels.preparation import iterate_lines, prepare, training_line
from refinery.kernels.segmentation import segment_han
from refinery.kernels.text import text_views, views_of
from tests.kernels.reference_minhash import fold, is_unspaced

fasttext = pytest.importorskip("fasttext")

ALPHABET = "aBzÉßİȺΣЖя12٣中文法々かｱー한ไ😀❤\ufe0f\u0301\u200b\u200d\u00ad \t\r\n\v\0\u3000.,,，。'_-=#<$𠀀\U000e0101"
documents = st.lists(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=60))
SETTINGS = ft.TrainSettings(dim=8, bucket=1000, epoch=20, lr=0.5, seed=3)


def prepared_form(text: str) -> str:
    tokens: list[str] = []
    open_token, symbol, run = False, "", 0
    for character in text:
        category, folded = unicodedata.category(character), fold(character)
        if ord(character) >= 0x40000 or (category == "Cf" and character != "\u200b"):
            continue
        if category[0] == "M" and not is_unspaced(character):
            if open_token:
                tokens[-1] += folded
            continue
        if category[0] in "PS":
            run = run + 1 if symbol == folded else 1
            symbol, open_token = folded, False
            if run == 1:
                tokens.append(folded)
            elif run <= 3:
                tokens[-1] += folded
            continue
        symbol, run = "", 0
        if category[0] not in "LNM":
            open_token = False
        elif is_unspaced(character):
            tokens.append(folded)
            open_token = False
        elif open_token:
            tokens[-1] += folded
        else:
            tokens.append(folded)
            open_token = True
    return " ".join(tokens)


def examples(num: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    good = ["court", "law", "article", "contract", "法院", "合同", "judge", "right"]
    bad = ["pizza", "cat", "lol", "win", "中奖", "免费", "click", "now"]
    rows = []
    for k in range(num):
        words = good if k % 2 else bad
        rows.append(("law" if k % 2 else "rest", " ".join(rng.choice(words, 12))))
    return rows


def lines_of(rows: list[tuple[str, str]]) -> list[tuple[str, bytes]]:
    return [(label, training_line(text)) for label, text in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "law.bin"
    return path, ft.train_classifier(lines_of(examples(200, 1)), path, SETTINGS)


@given(documents)
def test_preparation_equals_the_plain_python_form(texts):
    lines = prepare(views_of(texts))
    assert [lines.doc(k) for k in range(len(texts))] == [prepared_form(text) for text in texts]


@given(documents, st.integers(0, 8), st.sampled_from(["words", "one_line"]))
def test_a_batch_gives_what_its_slices_give_and_lines_are_lines(texts, cut, preparation):
    parts = [prepare(views_of(part), preparation) for part in (texts[:cut], texts[cut:])]
    lines = prepare(views_of(texts), preparation)
    assert lines.data.tobytes() == parts[0].data.tobytes() + parts[1].data.tobytes()
    assert not set(lines.data.tobytes()) & set(b"\n\r\v\f\t\0")


def test_preparation_reads_as_documented():
    text = "Don't  PAY!!!!!\r\n第3条\t__label__spam </s> ＡＢ"
    assert training_line(text).decode() == "don ' t pay !!! 第 3 条 __ label __ spam < / s > ａｂ"
    assert training_line(" A\r\n b\0c\n", "one_line") == b"A   b c"
    assert training_line("", "one_line") == training_line(" \n", "words") == b""
    assert prepare(text_views_with_null()).offsets.tolist() == [0, 1, 1]


def text_views_with_null():
    return text_views(pa.array(["a", None]))


@given(documents)
def test_segmented_preparation_joins_the_characters_of_a_word(texts):
    views = views_of(texts)
    flags = segment_han(views).boundaries
    lines = prepare(views, "segmented")
    assert lines.data.tobytes() == prepare(views, "segmented", flags).data.tobytes()
    plain = prepare(views)
    for k in range(len(texts)):
        assert lines.doc(k).replace(" ", "") == plain.doc(k).replace(" ", "")
    assert prepare(views, "segmented", np.ones_like(flags)).data.tobytes() == plain.data.tobytes()


def test_segmented_preparation_reads_as_documented():
    assert training_line("我们今天去公园，Hello 中文分词ＡＢ。", "segmented").decode() == (
        "我们 今天 去 公园 ， hello 中文 分词 ａｂ 。"
    )
    assert training_line("Don't pay!", "segmented") == training_line("Don't pay!", "words")


def test_a_model_tells_its_classes_apart(trained):
    path, card = trained
    classifier = ft.open_classifier(path, "law")
    rows = examples(60, 2)
    scores = ft.score_documents(classifier, views_of([text for _, text in rows]))
    labels = np.array([label == "law" for label, _ in rows])
    assert scores.dtype == np.float32
    assert scores.min() >= 0.0
    assert scores.max() <= 1.0
    assert scores[labels].min() > 0.9
    assert scores[~labels].max() < 0.1
    other = ft.score_documents(ft.open_classifier(path, "__label__rest"), views_of([text for _, text in rows]))
    np.testing.assert_allclose(scores + other, 1.0, atol=1e-4)
    assert card.num_lines == {"law": 100, "rest": 100}
    assert ft.read_card(path) == card


def test_scores_do_not_depend_on_the_batch_and_empty_documents_score_zero(trained):
    classifier = ft.open_classifier(trained[0], "law")
    texts = ["court law", "", "\n \0", "pizza now", "法院 合同"]
    whole = ft.score_documents(classifier, views_of(texts)).tolist()
    assert whole == [ft.score_documents(classifier, views_of([text]))[0] for text in texts]
    assert whole[1] == whole[2] == ft.EMPTY_SCORE


def test_scores_equal_the_librarys_own_prediction(trained):
    path, _ = trained
    texts = [text for _, text in examples(20, 9)]
    lines = prepare(views_of(texts))
    model = fasttext.FastText._FastText(model_path=str(path))
    expected = []
    for _, line in iterate_lines(lines):
        labels, probabilities = model.predict([line.decode().rstrip("\n")], k=2)
        expected.append(dict(zip(labels[0], probabilities[0], strict=True))["__label__law"])
    np.testing.assert_allclose(ft.score(ft.open_classifier(path, "law"), lines), np.clip(expected, 0, 1), rtol=1e-6)


def test_training_is_reproducible_in_any_order_of_lines(trained, tmp_path):
    _, card = trained
    rows = examples(200, 1)
    again = ft.train_classifier(iter(lines_of(rows[::-1])), tmp_path / "again.bin", SETTINGS)
    assert again == card
    assert hashlib.sha256((tmp_path / "again.bin").read_bytes()).hexdigest() == card.sha256
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.bin", "again.bin.json"]
    other_seed = dataclasses.replace(SETTINGS, seed=4)
    assert ft.train_classifier(lines_of(rows), tmp_path / "other.bin", other_seed).sha256 != card.sha256


@pytest.mark.parametrize("field", ["preparation_version", "unicode_digest", "card_version"])
def test_a_model_of_another_preparation_is_refused(trained, tmp_path, field):
    path = copy_of(trained[0], tmp_path)
    card_path = path.with_name(path.name + ".json")
    card = json.loads(card_path.read_text())
    card[field] = "0" * 16 if field == "unicode_digest" else card[field] + 1
    card_path.write_text(json.dumps(card))
    with pytest.raises(IntegrityError, match="version"):
        ft.open_classifier(path, "law")


def test_damaged_files_are_refused(trained, tmp_path):
    path = copy_of(trained[0], tmp_path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="sha256"):
        ft.open_classifier(path, "law")
    path.with_name(path.name + ".json").write_text("{")
    with pytest.raises(IntegrityError, match="not a model card"):
        ft.open_classifier(path, "law")
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(IntegrityError, match="not a fastText model"):
        ft.open_external_classifier(path, "law")


def copy_of(path, folder):
    for name in (path.name, path.name + ".json"):
        (folder / name).write_bytes(path.with_name(name).read_bytes())
    return folder / path.name


def test_a_third_party_model_needs_label_and_preparation(trained, tmp_path):
    path = tmp_path / "theirs.bin"
    path.write_bytes(trained[0].read_bytes())
    with pytest.raises(ConfigError, match="no card"):
        ft.open_classifier(path, "law")
    classifier = ft.open_external_classifier(path, "__label__law", "one_line")
    assert ft.score_documents(classifier, views_of(["court\nlaw judge"]))[0] > 0.9
    with pytest.raises(ConfigError, match="no label 'hq'"):
        ft.open_external_classifier(path, "hq")
    with pytest.raises(ConfigError, match="preparation"):
        ft.open_external_classifier(path, "law", "lower")
    with pytest.raises(IntegrityError, match="expected"):
        ft.open_external_classifier(path, "law", sha256="0" * 64)
    with pytest.raises(ConfigError, match="does not exist"):
        ft.open_external_classifier(tmp_path / "none.bin", "law")


def test_a_card_beside_a_declared_model_must_agree(trained, tmp_path):
    path = copy_of(trained[0], tmp_path)
    assert ft.open_declared(path, "law", "words").sha256 == trained[1].sha256
    with pytest.raises(IntegrityError, match="set preparation: words"):
        ft.open_declared(path, "law", "one_line")
    card_path = path.with_name(path.name + ".json")
    card = json.loads(card_path.read_text())
    card_path.write_text(json.dumps(card | {"preparation_version": 99}))
    with pytest.raises(IntegrityError, match="version 99"):
        ft.open_declared(path, "law", "words")
    card_path.unlink()
    assert ft.open_declared(path, "law", "one_line").preparation == "one_line"


def test_the_expected_label_value_is_a_score(trained, tmp_path):
    path = copy_of(trained[0], tmp_path)
    texts = views_of([text for _, text in examples(20, 5)])
    law = ft.score_documents(ft.open_declared(path, "law", "words"), texts)
    graded = ft.score_documents(ft.open_declared(path, {"law": 1.0, "__label__rest": 0.5}, "words"), texts)
    np.testing.assert_allclose(graded, law + (1 - law) / 2, atol=1e-4)
    others = ft.score_documents(ft.open_declared(path, {"rest": 0.0, "*": 1.0}, "words"), texts)
    np.testing.assert_allclose(others, law, atol=1e-4)
    for values in ({"law": 1.0}, {"law": 2.0, "*": 0.0}, {"hq": 1.0, "*": 0.0}):
        with pytest.raises(ConfigError, match="label_values"):
            ft.open_declared(path, values, "words")


def test_a_quantised_model_has_the_parts_it_promises(trained, tmp_path):
    path = tmp_path / "small.ftz"
    for norms in (False, True):
        model = fasttext.FastText._FastText(model_path=str(trained[0]))
        model.quantize(qnorm=norms, dsub=2, thread=1, verbose=0)
        model.save_model(str(path))
        check_model_file(path)
        assert ft.score_documents(ft.open_declared(path, "law", "words"), views_of(["court law"]))[0] > 0
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(IntegrityError, match="small"):
            check_model_file(path)


@pytest.mark.parametrize("keep", [8, 9, 60, 200, 0.5, 0.99])
def test_a_truncated_model_of_others_is_refused(trained, tmp_path, keep):
    raw = trained[0].read_bytes()
    path = tmp_path / "short.bin"
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    with pytest.raises(IntegrityError, match="short"):
        ft.open_declared(path, "law", "words")


def test_the_words_that_push_are_those_that_tell_the_classes_apart(trained):
    pushes = strongest_words(ft.open_classifier(trained[0], "law"), 8)
    assert {p.word for p in pushes.up} <= {
        "court",
        "law",
        "article",
        "contract",
        "法",
        "院",
        "合",
        "同",
        "judge",
        "right",
    }
    assert {p.word for p in pushes.down} & {"pizza", "cat", "lol", "now"}
    assert all(u.score > 0.5 > d.score for u, d in zip(pushes.up, pushes.down, strict=False))


def test_bad_training_input_has_a_clear_error_and_leaves_nothing(tmp_path):
    path = tmp_path / "m.bin"
    with pytest.raises(DataError, match="two labels"):
        ft.train_classifier([("law", b"a"), ("rest", b"")], path, SETTINGS)
    with pytest.raises(SchemaError, match="white space"):
        ft.train_classifier([("a b", b"a")], path, SETTINGS)
    with pytest.raises(SchemaError, match="line feed"):
        ft.train_classifier([("a", b"a\nb")], path, SETTINGS)
    with pytest.raises(ConfigError, match="dim is 0"):
        ft.train_classifier([], path, dataclasses.replace(SETTINGS, dim=0))
    with pytest.raises(ConfigError, match="lr is -1"):
        ft.train_classifier([], path, dataclasses.replace(SETTINGS, lr=-1.0))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_predict_only_library_is_named(monkeypatch):
    real = builtins.__import__

    def predict_only(name, *rest):
        return types.SimpleNamespace(__file__="x.py") if name == "fasttext" else real(name, *rest)

    def missing(name, *rest):
        if name == "fasttext":
            raise ImportError("No module named 'fasttext'")
        return real(name, *rest)

    for fake, words in ((predict_only, "cannot train"), (missing, "not installed")):
        monkeypatch.setattr(builtins, "__import__", fake)
        with pytest.raises(ConfigError, match=words):
            ft.fasttext_library()
        monkeypatch.undo()
