from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.jaccard import pair_common, pair_jaccard
from tests.kernels.reference_minhash import jaccard_of

sets_of = st.lists(st.sets(st.integers(0, 40), max_size=30), min_size=1, max_size=6)


def packed(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0] + [len(s) for s in sets]).astype(np.int64)
    return offsets, np.array([x for s in sets for x in sorted(s)], dtype=np.uint32)


def all_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.meshgrid(np.arange(count), np.arange(count))
    return left.ravel(), right.ravel()


@given(sets_of)
def test_similarity_equals_that_of_python_sets(sets):
    left, right = all_pairs(len(sets))
    result = pair_jaccard(*packed(sets), left, right)
    assert result.tolist() == [jaccard_of(sets[i], sets[j]) for i, j in zip(left, right, strict=True)]


@given(sets_of, st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.8, 1 / 3, 2 / 3, 1.0])))
def test_a_minimum_keeps_exactly_the_values_that_reach_it(sets, minimum):
    left, right = all_pairs(len(sets))
    result = pair_jaccard(*packed(sets), left, right, minimum)
    for value, i, j in zip(result.tolist(), left, right, strict=True):
        exact = jaccard_of(sets[i], sets[j])
        assert value == exact if exact >= minimum else math.isnan(value)


@given(sets_of)
def test_similarity_is_symmetric_and_one_with_itself(sets):
    offsets, hashes = packed(sets)
    left, right = all_pairs(len(sets))
    assert np.array_equal(pair_jaccard(offsets, hashes, left, right), pair_jaccard(offsets, hashes, right, left))
    own = np.arange(len(sets))
    assert pair_jaccard(offsets, hashes, own, own).tolist() == [1.0 if s else 0.0 for s in sets]


def test_extreme_values_of_shingles():
    offsets, hashes = packed([{0, 2**32 - 1}, {2**32 - 1}])
    assert pair_jaccard(offsets, hashes, np.array([0]), np.array([1])).tolist() == [0.5]


@pytest.mark.parametrize(
    ("left", "right", "minimum"),
    [([0], [0], 1.5), ([0], [0], -0.1), ([0], [2], 0.5), ([-1], [0], 0.5), ([0, 1], [0], 0)],
)
def test_wrong_arguments_are_refused(left, right, minimum):
    with pytest.raises(ConfigError):
        pair_jaccard(*packed([{1}, {2}]), np.array(left), np.array(right), minimum)


def test_signed_shingles_are_refused():
    offsets, hashes = packed([{1}, {2}])
    with pytest.raises(SchemaError, match="unsigned"):
        pair_jaccard(offsets, hashes.view(np.int32), np.array([0]), np.array([1]))
    with pytest.raises(SchemaError, match="do not fit"):
        pair_jaccard(offsets + 1, hashes, np.array([0]), np.array([1]))


@given(sets_of)
def test_common_shingles_equal_those_of_python_sets(sets):
    left, right = all_pairs(len(sets))
    result = pair_common(*packed(sets), left, right)
    assert result.tolist() == [len(sets[i] & sets[j]) for i, j in zip(left, right, strict=True)]
    with pytest.raises(ConfigError, match="pair index outside"):
        pair_common(*packed(sets), np.array([len(sets)]), np.array([0]))
