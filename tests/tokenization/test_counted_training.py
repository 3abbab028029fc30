"""Our trainer against the library's: the same file from the same text, by whatever road the counts came."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers, trainers

from refinery.kernels.bpe_merges import learn_merges
from refinery.kernels.pretokens import PretokenCounter, PretokenCounts, pretoken_bounds
from refinery.kernels.text import views_of
from refinery.tokenization.char_classes import char_classes
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import count_texts, cut_rare, new_tokenizer, smallest_count_kept, train_bpe

_PIECES = (
    *(
        "a",
        "B",
        "é",
        "e\u0301",
        "\u0301",
        "中",
        "文",
        "〇",
        "々",
        "⺀",
        "𠜎",
        "1",
        "２",
        "¹",
        "٣",
        "Ⅷ",
        " ",
        "  ",
        "\n",
    ),
    *(
        "\r",
        "\r\n",
        "\t",
        "\u3000",
        "\u2028",
        "\x85",
        "'",
        "s",
        "S",
        "ſ",
        "ll",
        "'ll",
        "'Ve",
        "'re",
        ".",
        "。",
        "—",
        "👍🏽",
    ),
    *("\u200d", "👩‍👩‍👧", "\ufeff", "\x00", "_", "한국", "हिन्दी", "ภาษา", "<|endoftext|>", "K"),
)
_TEXT = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(_PIECES), max_size=30).map("".join))


def _library_file(texts: list[str], recipe: TokenizerRecipe) -> bytes:
    tokenizer = new_tokenizer(recipe)
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        special_tokens=list(recipe.all_special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=False).encode()


@settings(max_examples=400, deadline=None)
@given(text=_TEXT, pattern=st.sampled_from(["gpt4_digits3", "gpt4_digits1"]))
def test_pretokens_are_the_librarys(text: str, pattern: str) -> None:
    recipe = TokenizerRecipe(name="x", vocab_size=300, num_reserved=0, sample_bytes=1, split_pattern=pattern)
    views = views_of([text])
    ends = pretoken_bounds(views.offsets, views.data, char_classes(), recipe.max_digits).tolist()
    data = text.encode()
    ours = [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=False)]
    splitter = pre_tokenizers.Split(Regex(recipe.pattern), "isolated")
    assert ours == [piece for piece, _ in splitter.pre_tokenize_str(text)]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.one_of(_TEXT, st.text("ab", max_size=80), st.text("aab 中文", max_size=80)), max_size=6),
    vocab_size=st.sampled_from([262, 280, 320]),
    min_frequency=st.integers(1, 3),
)
def test_merges_are_the_librarys(texts: list[str], vocab_size: int, min_frequency: int) -> None:
    recipe = TokenizerRecipe(
        name="x", vocab_size=vocab_size, num_reserved=2, sample_bytes=1, min_frequency=min_frequency
    )
    model = json.loads(_library_file(texts, recipe))["model"]
    counted = count_texts(texts, recipe).pretokens
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*recipe.all_special_tokens, *alphabet]
    by_id = {index: name for name, index in model["vocab"].items()}
    assert [by_id[index] for index in range(len(names))] == names
    byte = {char: ord(char) for char in alphabet if ord(char) < 256}
    byte |= dict(zip(alphabet[len(byte) :], sorted(set(range(256)) - set(byte.values())), strict=True))
    first = [b"" if name.startswith("<|") else bytes([byte[name]]) for name in names]
    merges = learn_merges(counted.offsets, counted.data, counted.counts, first, vocab_size, min_frequency)
    ours = [[by_id[left], by_id[right]] for left, right in zip(merges.left, merges.right, strict=True)]
    assert ours == [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    assert (np.diff(merges.counts) <= 0).all()


@pytest.mark.parametrize("vocab_size", [700, 1500])
@pytest.mark.parametrize("pattern", ["gpt4_digits3", "gpt4_digits1"])
def test_the_file_is_the_librarys(tmp_path: Path, texts: list[str], vocab_size: int, pattern: str) -> None:
    recipe = TokenizerRecipe(
        name="x", vocab_size=vocab_size, num_reserved=4, sample_bytes=4_000_000, split_pattern=pattern
    )
    train_bpe(texts, recipe, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == _library_file(texts, recipe)


@pytest.mark.skipif("REFINERY_SHARED" not in os.environ, reason="REFINERY_SHARED names no folder of real text")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["law/zh-laws", "docs/en-peps", "code/registry-packages"])
def test_the_file_is_the_librarys_on_real_text(tmp_path: Path, name: str) -> None:
    path = Path(os.environ["REFINERY_SHARED"], "data", f"{name}.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(60), strict=False)]
    for vocab_size in (1000, 4000):
        recipe = TokenizerRecipe(name="x", vocab_size=vocab_size, num_reserved=2, sample_bytes=20_000_000)
        train_bpe(texts, recipe, tmp_path)
        assert (tmp_path / "tokenizer.json").read_bytes() == _library_file(texts, recipe)


def _as_dict(counted: PretokenCounts) -> dict[bytes, int]:
    data, bounds = bytes(counted.data), counted.offsets.tolist()
    words = [data[start:end] for start, end in pairwise(bounds)]
    assert len(set(words)) == len(words)
    return dict(zip(words, counted.counts.tolist(), strict=True))


def test_counts_add_up_over_any_batches_and_grow_past_the_first_table() -> None:
    numbers = [number * 7919 % 60_000 for number in range(105_000)]
    texts = [" ".join(f"w{n}" for n in numbers[start : start + 5000]) for start in range(0, 99_000, 3000)]
    texts.append("x" * 700_000)  # longer than the first arena
    whole, pieces = PretokenCounter(char_classes(), 3), PretokenCounter(char_classes(), 3)
    whole.add(views_of(texts))
    for text in texts:
        pieces.add(views_of([text]))
    expected: dict[bytes, int] = {}
    recipe = TokenizerRecipe(name="x", vocab_size=300, num_reserved=0, sample_bytes=1)
    split = pre_tokenizers.Split(Regex(recipe.pattern), "isolated")
    for text in texts[::8]:
        for piece, _ in split.pre_tokenize_str(text):
            expected[piece.encode()] = expected.get(piece.encode(), 0) + 1
    sparse = PretokenCounter(char_classes(), 3)
    sparse.add(views_of(texts[::8]))
    assert _as_dict(sparse.counts()) == expected
    assert _as_dict(whole.counts()) == _as_dict(pieces.counts())
    assert whole.num_bytes == len(whole.counts().data)


def test_the_rarest_pretokens_go_first_and_all_of_one_count_together() -> None:
    assert smallest_count_kept([(1, 50), (2, 30), (9, 20)], 100) == 1
    assert smallest_count_kept([(9, 20), (1, 50), (2, 30)], 99) == 2
    assert smallest_count_kept([(1, 50), (2, 30), (9, 20)], 49) == 9
    assert smallest_count_kept([(1, 50), (2, 30), (9, 20)], 5) == 10
    words = [b"the", b"of", b"rare", b"odd"]
    counted = PretokenCounts(
        np.cumsum([0, *map(len, words)]), np.frombuffer(b"".join(words), np.uint8), np.array([9, 5, 1, 1])
    )
    kept, smallest, num_cut, cut_bytes = cut_rare(counted, 8)
    assert _as_dict(kept) == {b"the": 9, b"of": 5}
    assert (smallest, num_cut, cut_bytes) == (5, 2, 7)
    assert cut_rare(counted, 12)[1:] == (1, 0, 0)


def test_a_cut_is_told_in_the_card(tmp_path: Path, texts: list[str]) -> None:
    recipe = TokenizerRecipe(name="x", vocab_size=500, num_reserved=0, sample_bytes=4_000_000, max_pretoken_bytes=4000)
    origin = train_bpe(texts, recipe, tmp_path).origin
    assert origin["smallest_count_kept"] > 1
    assert origin["num_pretokens_cut"] > 0
    assert 0 < origin["text_bytes_cut"] < origin["sample_bytes"] / 2


def test_counts_above_32_bits_do_not_overflow() -> None:
    words = [b"abc", b"abd"]
    counted = (np.array([0, 3, 6]), np.frombuffer(b"".join(words), np.uint8), np.array([5_000_000_000, 3]))
    merges = learn_merges(*counted, [bytes([byte]) for byte in range(256)], 300, 2)
    assert merges.counts.tolist() == [5_000_000_003, 5_000_000_000, 3]
    assert (merges.left[0], merges.right[0]) == (ord("a"), ord("b"))
    assert merges.ids.tolist() == [256, 257, 258]
