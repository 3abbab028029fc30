from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from refinery.errors import ConfigError, DataError
from refinery.kernels.text import TextViews, text_views, views_of
from refinery.tokenization import engines
from refinery.tokenization.encode import Encoder, id_dtype, open_encoder
from refinery.tokenization.info import adopt_tokenizer, plain_tokenizer

_PIECES = [
    *(
        "the",
        " of",
        "def f(x):",
        "\t\t",
        "  ",
        "\n",
        "\r\n",
        "\n\n\n",
        "1",
        "2026",
        "'ll",
        "'S",
        "¹²",
        "٣",
        "\x00",
        "\x1b",
    ),
    *("合同", "第一条　", "𠜎", "，", "。", "々", "ひらがな", "カタカナ", "한국어", "Привет", "हिन्दी", "ภาษา", "עברית"),
    *(
        "e\u0301",
        "\u0301",
        "\u200d",
        "👩‍👩‍👧",
        "👍🏽",
        "🇨🇳",
        "\ufeff",
        "\u3000",
        "\u00a0",
        "\u2028",
        "ǅ",
        "ſ",
        "İ",
        "K",
    ),
    *("<|endoftext|>", "<|pad|>", "<|reserved_0|>", "<|", "|>", " <|", "endoftext", "<tool_call>"),
]
_TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=4)), max_size=60).map("".join),
)


def _library(folder: Path) -> Tokenizer:
    return plain_tokenizer((folder / "tokenizer.json").read_bytes(), "test")


@pytest.fixture(scope="session")
def library(tokenizer_dir: Path) -> Tokenizer:
    return _library(tokenizer_dir)


@settings(max_examples=300, deadline=None)
@given(text=_TEXT)
def test_ids_equal_the_librarys_and_decode_to_the_text(encoder: Encoder, library: Tokenizer, text: str) -> None:
    ids = encoder.encode_text(text)
    assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
    assert encoder.decode(ids) == text
    assert not set(ids.tolist()) & set(encoder.info.special_ids.values())


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(_TEXT, max_size=8), append_eos=st.booleans(), cut=st.integers(0, 8))
def test_a_batch_is_its_documents_one_after_the_other(
    encoder: Encoder, texts: list[str], append_eos: bool, cut: int
) -> None:
    batch = encoder.encode_batch(views_of(texts), append_eos=append_eos)
    tail = [encoder.info.eos_id] if append_eos else []
    expected = [[*encoder.encode_text(text).tolist(), *tail] for text in texts]
    assert [batch.ids[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)] == expected
    first, last = (encoder.encode_batch(views_of(part), append_eos=append_eos) for part in (texts[:cut], texts[cut:]))
    assert np.array_equal(np.concatenate([first.ids, last.ids]), batch.ids)


@pytest.mark.parametrize("unit", ["a", "ab", "中", "中文字", "=", " ", "\n", "1", "\r\n", "👍🏽", "e\u0301", "xyzw 中"])
def test_200_kb_without_a_break_equal_the_librarys(encoder: Encoder, library: Tokenizer, unit: str) -> None:
    text = unit * (200_000 // len(unit.encode()))
    ids = encoder.encode_text(text)
    assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
    assert encoder.decode(ids) == text


def test_the_end_token_in_a_document_is_text(encoder: Encoder) -> None:
    texts = ["a <|endoftext|> b", "<|endoftext|>", " <|pad|>\n", "x<|reserved_3|>"]
    batch = encoder.encode_batch(views_of(texts))
    assert (batch.ids == encoder.info.eos_id).sum() == len(texts)
    assert (batch.ids[batch.offsets[1:] - 1] == encoder.info.eos_id).all()
    without = encoder.encode_batch(views_of(texts), append_eos=False)
    assert not np.isin(without.ids, list(encoder.info.special_ids.values())).any()


def test_shapes_dtypes_and_inputs(encoder: Encoder) -> None:
    texts = ["one", "", "三", None]
    for column in (pa.array(texts), pa.array(texts, pa.large_string()), pa.chunked_array([texts[:1], texts[1:]])):
        batch = encoder.encode_batch(column)
        assert (batch.offsets.dtype, batch.ids.dtype) == (np.int64, np.uint16)
        assert len(batch.offsets) == 5
        same = encoder.encode_batch(text_views(column))
        assert np.array_equal(batch.ids, same.ids)
        assert np.array_equal(batch.offsets, same.offsets)
    sliced = encoder.encode_batch(text_views(pa.array(["zero", *texts])[1:]))
    assert np.array_equal(sliced.ids, same.ids)
    empty = encoder.encode_batch(views_of([]))
    assert (empty.offsets.tolist(), len(empty.ids), empty.ids.dtype) == ([0], 0, np.uint16)
    nothing = encoder.encode_batch(views_of(["", ""]), append_eos=False)
    assert (nothing.offsets.tolist(), len(nothing.ids)) == ([0, 0, 0], 0)


def test_bad_input_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"document 1 .* not UTF-8"):
        encoder.encode_batch(TextViews(np.array([0, 1, 3]), np.frombuffer(b"a\xff\xfe", np.uint8)))
    with pytest.raises(DataError, match="cast"):
        encoder.encode_batch(pa.array([1, 2]))
    for bad in (encoder.info.vocab_size, -1):
        with pytest.raises(DataError, match=f"id {bad} is outside"):
            encoder.decode([1, bad])
    assert encoder.decode([]) == ""


def test_ids_are_stored_narrow_only_while_they_fit() -> None:
    assert id_dtype(65_499) == np.uint16
    assert id_dtype(65_500) == np.int32
    assert id_dtype(1000, "int32") == np.int32
    assert id_dtype(1000, "uint16") == np.uint16
    for vocab_size, asked, message in ((65_500, "uint16", "65,500 ids"), (1000, "uint8", "'uint8'")):
        with pytest.raises(ConfigError, match=message):
            id_dtype(vocab_size, asked)


def test_a_process_opens_a_vocabulary_once_and_pickles_by_path(encoder: Encoder, tokenizer_dir: Path) -> None:
    assert open_encoder(tokenizer_dir / "tokenizer.json") is encoder
    assert pickle.loads(pickle.dumps(encoder)) is encoder


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _foreign(kind: str, texts: list[str]) -> Tokenizer:
    """Build a small vocabulary in the layout of a published family."""
    ignore_merges = kind == "llama3"
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(_LLAMA3 if kind == "llama3" else _QWEN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    )
    # Published vocabularies keep control tokens above the merges, outside the model's own vocabulary.
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if kind == "qwen":
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


@pytest.fixture(scope="session", params=["gpt2", "llama3", "qwen"])
def foreign_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    _foreign(request.param, texts).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    adopt_tokenizer(folder, folder / "adopted")
    return folder / "adopted"


@settings(max_examples=100, deadline=None)
@given(text=_TEXT.map(lambda text: text.replace("pad", "im_start")))
@example(text="\r'llo")
def test_foreign_vocabularies_give_the_librarys_ids(foreign_dir: Path, text: str) -> None:
    encoder = open_encoder(foreign_dir)
    ids = encoder.encode_text(text)
    assert ids.tolist() == _library_of(foreign_dir).encode(text, add_special_tokens=False).ids
    assert not set(ids.tolist()) & set(encoder.info.special_ids.values())


_OPENED: dict[Path, Tokenizer] = {}


def _library_of(folder: Path) -> Tokenizer:
    if folder not in _OPENED:
        _OPENED[folder] = _library(folder)
    return _OPENED[folder]


def _wrong_kernel(_kernel: object, offsets: np.ndarray, data: np.ndarray, _eos: object, dtype: np.dtype) -> tuple:
    return offsets, data.astype(dtype)


class _WrongKitoken:
    @staticmethod
    def from_tokenizers(_definition: bytes) -> _WrongKitoken:
        return _WrongKitoken()

    def encode(self, text: str) -> list[int]:
        return [ord(char) % 256 for char in text]


@pytest.mark.parametrize("expected", ["kitoken", "tokenizers"])
def test_an_unproven_engine_is_not_used(
    expected: str,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engines.TableEncoder, "encode", _wrong_kernel)
    if expected == "tokenizers":
        monkeypatch.setattr(engines, "Kitoken", _WrongKitoken)
    adopt_tokenizer(tokenizer_dir, tmp_path)
    with caplog.at_level(logging.INFO, logger="refinery"):
        encoder = open_encoder(tmp_path)
    monkeypatch.undo()
    assert encoder.engine == expected
    assert f"engine {expected}, kitoken gives" in caplog.text
    assert "our kernel gives other ids than the library on proof text 0" in caplog.text
    texts = ["one two", "", "三 <|endoftext|>"] * 5
    fast = open_encoder(tokenizer_dir)
    assert fast.engine == "kernel"
    for append_eos in (True, False):
        ours, theirs = (which.encode_batch(views_of(texts), append_eos=append_eos) for which in (encoder, fast))
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.offsets, theirs.offsets)


def test_no_end_token_means_no_appended_end(tokenizer_dir: Path, tmp_path: Path) -> None:
    definition = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    definition["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match="nothing ends documents"):
        adopt_tokenizer(tmp_path, tmp_path / "adopted")


@pytest.mark.skipif("REFINERY_SHARED" not in os.environ, reason="REFINERY_SHARED names no folder of real text")
def test_ids_of_real_text_equal_the_librarys(encoder: Encoder, library: Tokenizer) -> None:
    files = sorted(Path(os.environ["REFINERY_SHARED"]).rglob("*.jsonl.gz"))
    assert files
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line).get("text") or "" for line, _ in zip(lines, range(5), strict=False)]
        batch = encoder.encode_batch(views_of([text[:50_000] for text in texts]), append_eos=False)
        expected = [library.encode(text[:50_000], add_special_tokens=False).ids for text in texts]
        assert batch.ids.tolist() == [index for ids in expected for index in ids], path.name


@pytest.mark.slow
@pytest.mark.skipif("REFINERY_SHARED" not in os.environ, reason="REFINERY_SHARED names no folder of real text")
def test_ids_of_all_real_text_by_the_released_vocabulary() -> None:
    folder = Path(__file__).parent.parent.parent / "tokenizer" / "bpe-32k-zh-en"
    encoder, library = open_encoder(folder), _library(folder)
    for path in sorted(Path(os.environ["REFINERY_SHARED"]).rglob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line).get("text") or "" for line in lines]
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        batch = encoder.encode_batch(views_of(texts), append_eos=False)
        for number, text in enumerate(texts):
            ids = batch.ids[batch.offsets[number] : batch.offsets[number + 1]]
            assert ids.tolist() == library.encode(text, add_special_tokens=False).ids, (path.name, number)


def test_lone_surrogates_as_bytes_are_refused_by_number(encoder: Encoder) -> None:
    text = "好".encode() + b"\xed\xa0\x80"
    views = TextViews(np.array([0, 3, 6]), np.frombuffer(text, np.uint8))
    with pytest.raises(DataError, match=r"document 1 .* not UTF-8"):
        encoder.encode_batch(views)
    # Valid in all, but a document ends inside a character.
    split = TextViews(np.array([0, 2, 3]), np.frombuffer("好".encode(), np.uint8))
    with pytest.raises(DataError, match=r"document 0 .* not UTF-8"):
        encoder.encode_batch(split)
