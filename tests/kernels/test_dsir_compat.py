from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels import dsir_compat
from refinery.kernels.text import views_of

letters = st.characters(codec="utf-8")
texts = st.lists(
    st.text(alphabet=st.one_of(st.sampled_from("aB1_ .,!\n中文。İΣσ\u0301😀"), letters), max_size=200), max_size=6
)


def tokens_of(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def plain_counts(text: str, num_buckets: int) -> np.ndarray:
    tokens = tokens_of(text)
    counts = np.zeros(num_buckets, dtype=np.int64)
    for ngram in tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]:
        counts[int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % num_buckets] += 1
    return counts


@given(texts, st.sampled_from([7, 1000, 10_000]))
def test_counts_and_sums_equal_the_plain_python_form(documents, size):
    views = views_of(documents)
    counts = [plain_counts(text, size) for text in documents]
    np.testing.assert_array_equal(dsir_compat.bucket_counts(views, size), np.sum(counts, axis=0, initial=0, dtype=int))
    table = np.linspace(-3, 2, size)
    found = dsir_compat.weight_sums(views, table)
    np.testing.assert_allclose(found.sums, [c @ table for c in counts], rtol=1e-9, atol=1e-9)
    assert found.num_words.tolist() == [len(tokens_of(text)) for text in documents]


@pytest.mark.parametrize("length", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_every_padding_length_of_sha256(length):
    np.testing.assert_array_equal(
        dsir_compat.bucket_counts(views_of(["x" * length + " y"]), 10_000), plain_counts("x" * length + " y", 10_000)
    )


def test_kinds_are_those_of_the_regular_expression():
    kinds = dsir_compat.token_kinds()
    for code in [*range(0, 0x3000), *range(0x3000, 0x110000, 977)]:
        if 0xD800 <= code < 0xE000:
            continue
        expected = 1 if re.match(r"\w", chr(code)) else 0 if re.match(r"\s", chr(code)) else 2
        assert kinds[code] == expected


def test_bounds_are_told():
    with pytest.raises(ConfigError, match="num_buckets"):
        dsir_compat.bucket_counts(views_of([]), 1)
    with pytest.raises(SchemaError, match="float64"):
        dsir_compat.weight_sums(views_of([]), np.zeros(5, dtype=np.float32))
