from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.ngrams import bucket_counts, bucket_words, weight_sums
from refinery.kernels.preparation import prepare
from refinery.kernels.segmentation import segment_han
from refinery.kernels.text import views_of
from refinery.kernels.word_scan import BLOCK_WORDS
from tests.kernels.reference_minhash import MASK64, M, R, word_hash, words_of

ALPHABET = "aBzÉßİΣЖя12٣中文法々かｱ한ไ😀❤\ufe0f\u0301\u200b\u00ad \t\r\n\0.,，。'_-𠀀"
documents = st.lists(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=60))


def bucket_of(x: int, num_buckets: int) -> int:
    return (((((x ^ (x >> 32)) * R) & MASK64) >> 32) * num_buckets) >> 32


def ngrams_of(text: str) -> list[tuple[str, int]]:
    """(n-gram, hash before bucketing) of one document, words first."""
    words = words_of(text, "words")
    hashes = [word_hash(word) for word in words]
    singles = list(zip(words, hashes, strict=True))
    pairs = [(f"{words[k]} {words[k + 1]}", (hashes[k] * M + hashes[k + 1]) & MASK64) for k in range(len(words) - 1)]
    return singles + pairs


@given(documents, st.sampled_from([2, 97, 10_000]))
def test_counts_equal_the_plain_python_form(texts, num_buckets):
    expected = np.zeros(num_buckets, dtype=np.int64)
    for text in texts:
        for _, x in ngrams_of(text):
            expected[bucket_of(x, num_buckets)] += 1
    assert (bucket_counts(views_of(texts), num_buckets) == expected).all()


@given(documents, st.integers(0, 8))
def test_counts_of_slices_add_up(texts, cut):
    parts = bucket_counts(views_of(texts[:cut]), 50) + bucket_counts(views_of(texts[cut:]), 50)
    assert (bucket_counts(views_of(texts), 50) == parts).all()


@given(documents, st.integers(0, 8))
def test_sums_equal_the_plain_python_form_and_those_of_slices(texts, cut):
    table = np.random.default_rng(5).integers(-1000, 1000, 64).astype(np.float64)  # integers: exact in any order
    result = weight_sums(views_of(texts), table)
    assert result.sums.tolist() == [sum(table[bucket_of(x, 64)] for _, x in ngrams_of(text)) for text in texts]
    assert result.num_words.tolist() == [len(words_of(text, "words")) for text in texts]
    table /= 7.0
    whole = weight_sums(views_of(texts), table).sums
    parts = [weight_sums(views_of(part), table).sums for part in (texts[:cut], texts[cut:])]
    assert whole.tolist() == np.concatenate(parts).tolist()


@pytest.mark.parametrize("num_words", [BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 3 * BLOCK_WORDS])
def test_blocks_of_the_scan_leave_no_seam(num_words):
    text = " ".join(f"w{k % 91}" for k in range(num_words))
    counts = bucket_counts(views_of([text]), 500)
    assert counts.sum() == 2 * num_words - 1
    assert (counts == np.bincount([bucket_of(x, 500) for _, x in ngrams_of(text)], minlength=500)).all()


def test_case_and_punctuation_do_not_matter_but_order_does():
    same = views_of(["The law, the Court"]), views_of(["the LAW the court!"])
    assert (bucket_counts(same[0]) == bucket_counts(same[1])).all()
    assert (bucket_counts(views_of(["a b"])) != bucket_counts(views_of(["b a"]))).any()


def test_values_are_the_same_in_another_process():
    code = (
        "from refinery.kernels.ngrams import bucket_counts; from refinery.kernels.text import views_of;"
        "print(bucket_counts(views_of(['中华人民共和国 civil code'])).nonzero()[0].tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    here = bucket_counts(views_of(["中华人民共和国 civil code"])).nonzero()[0].tolist()
    assert run.stdout.strip() == str(here)


def test_golden_buckets():
    assert bucket_counts(views_of(["the law"])).nonzero()[0].tolist() == [7709, 7717, 9092]
    assert bucket_counts(views_of(["法律"])).nonzero()[0].tolist() == [967, 1081, 7025]


@given(documents)
def test_buckets_are_named_by_what_falls_into_them(texts):
    num_buckets = 40
    named = bucket_words(views_of(texts), np.arange(num_buckets), num_buckets, top=10_000)
    expected: dict[int, Counter[str]] = {bucket: Counter() for bucket in range(num_buckets)}
    for text in texts:
        for ngram, x in ngrams_of(text):
            expected[bucket_of(x, num_buckets)][ngram] += 1
    assert {bucket: dict(rows) for bucket, rows in named.items()} == {k: dict(v) for k, v in expected.items()}


def test_names_come_most_frequent_first():
    (rows,) = bucket_words(views_of(["law law law court"]), np.array([0]), 2, top=2).values()
    assert [count for _, count in rows] == sorted((count for _, count in rows), reverse=True)
    assert len(rows) <= 2


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="num_buckets"):
        bucket_counts(views_of(["a"]), 1)
    with pytest.raises(SchemaError, match="float64"):
        weight_sums(views_of(["a"]), np.zeros(10, dtype=np.float32))


def test_empty_batches_and_empty_documents():
    assert bucket_counts(views_of([])).sum() == 0
    assert weight_sums(views_of(["", "\0\r\n", "..."]), np.ones(10)).sums.tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.text(alphabet=st.sampled_from("aB1 don't,.。中文分词今天法院é\u0301한ไ"), max_size=40), max_size=5))
def test_segmented_words_are_the_words_that_count(texts):
    views = views_of(texts)
    flags = segment_han(views).boundaries
    lines = [line.split() for line in (prepare(views, "segmented", flags).doc(k) for k in range(len(texts)))]
    spoken = [[w for w in words if any(c.isalnum() for c in w)] for words in lines]
    found = weight_sums(views, np.ones(64), flags)
    assert found.num_words.tolist() == [len(words) for words in spoken]
    np.testing.assert_array_equal(bucket_counts(views, 64, np.ones_like(flags)), bucket_counts(views, 64))
    parts = [views_of([t]) for t in texts]
    counts = sum((bucket_counts(v, 64, segment_han(v).boundaries) for v in parts), np.zeros(64, dtype=np.int64))
    np.testing.assert_array_equal(bucket_counts(views, 64, flags), counts)
