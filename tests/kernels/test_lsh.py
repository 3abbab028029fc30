from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from datasketch import MinHashLSH
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels.lsh import (
    PRESETS,
    Bands,
    band_keys,
    bucket_pairs,
    candidate_pairs,
    choose_bands,
    choose_bands_datasketch,
    collision_probability,
    counted_bucket_pairs,
    counted_pairs,
    parse_bands,
    resolve_bands,
)
from refinery.kernels.minhash import signatures
from tests.kernels.reference_minhash import band_keys_of


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12), max_size=5), st.sampled_from([1, 3, 12]))
def test_keys_equal_the_plain_python_form(rows, num_bands):
    matrix = np.array(rows, dtype=np.uint32).reshape(len(rows), 12)
    assert band_keys(matrix, num_bands).tolist() == [band_keys_of(row, num_bands) for row in rows]


def test_equal_rows_in_different_bands_have_different_keys():
    assert len(np.unique(band_keys(np.full((1, 112), 7, dtype=np.uint32), 14))) == 14


def test_keys_differ_exactly_where_bands_do():
    matrix = np.arange(224, dtype=np.uint32).reshape(2, 112) % 112
    matrix[1, 17] = 99
    same = band_keys(matrix, 14)[0] == band_keys(matrix, 14)[1]
    assert np.flatnonzero(~same).tolist() == [2]


def test_bands_must_divide_the_hashes():
    with pytest.raises(ConfigError, match="do not divide"):
        band_keys(np.zeros((1, 112), dtype=np.uint32), 9)


def test_published_collision_probabilities():
    table = {
        "14x8": (0.564, 0.772, 0.924, 0.988),
        "20x13": (0.177, 0.382, 0.677, 0.924),
        "450x20": (0.302, 0.761, 0.995),
    }
    for name, expected in table.items():
        values = [collision_probability(j, *PRESETS[name]) for j in (0.7, 0.75, 0.8, 0.85)]
        assert values[: len(expected)] == pytest.approx(expected, abs=1e-3)


def test_chosen_bands_are_the_cheapest_and_the_default_is_fineweb():
    assert choose_bands(0.8) == PRESETS["14x8"] == next(iter(PRESETS.values()))
    for target in (0.5, 0.6, 0.7, 0.85, 0.9, 0.95):
        chosen = choose_bands(target)
        feasible = [
            b * r
            for b, r in itertools.product(range(1, 200), range(1, 30))
            if collision_probability(target + 0.05 if target < 0.95 else 0.999, b, r) >= 0.985
            and collision_probability(target - 0.3, b, r) <= 0.06
        ]
        assert chosen.num_hashes == min(feasible)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("num_hashes", [32, 64, 128])
def test_the_other_choice_equals_datasketch(threshold, num_hashes):
    peer = MinHashLSH(threshold=threshold, num_perm=num_hashes)
    assert choose_bands_datasketch(threshold, num_hashes) == Bands(peer.b, peer.r)


def test_bands_by_name():
    assert parse_bands("26x11") == Bands(26, 11)
    for wrong in ("14", "0x8", "14x", "axb", "14x8x2"):
        with pytest.raises(ConfigError):
            parse_bands(wrong)


@pytest.mark.parametrize("call", [lambda: choose_bands(0.2), lambda: choose_bands(0.8, max_hashes=50)])
def test_impossible_choices_are_refused(call):
    with pytest.raises(ConfigError):
        call()


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 8), st.integers(1, 3))
def test_pairs_are_those_of_every_bucket(keys, max_all_pairs, num_representatives):
    keys = sorted(keys)
    docs = np.random.default_rng(len(keys)).permutation(len(keys)) * 1000
    pairs = candidate_pairs(np.array(keys, dtype=np.uint64), docs, max_all_pairs, num_representatives)
    expected = []
    for key in sorted(set(keys)):
        members = [int(d) for k, d in zip(keys, docs, strict=True) if k == key]
        for i, j in itertools.combinations(range(len(members)), 2):
            if len(members) <= max_all_pairs or i < num_representatives:
                expected.append((min(members[i], members[j]), max(members[i], members[j])))
    assert [tuple(p) for p in pairs.tolist()] == expected


def test_a_giant_bucket_stays_linear_and_connected():
    docs = np.arange(100_000, dtype=np.int64)
    pairs = bucket_pairs(docs)
    assert len(pairs) == 4 * (100_000 - 4) + 6
    assert len(bucket_pairs(docs[:64])) == 64 * 63 // 2
    assert set(pairs[:, 0].tolist()) == {0, 1, 2, 3}
    assert len(np.unique(pairs)) == 100_000


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 5)), max_size=30))
def test_counted_pairs_are_the_bag_of_pairs(rows):
    pairs = np.array(rows, dtype=np.int64).reshape(len(rows), 2)
    distinct, counts = counted_pairs(pairs)
    assert dict(zip(map(tuple, distinct.tolist()), counts.tolist(), strict=True)) == dict(Counter(rows))
    assert [tuple(p) for p in distinct.tolist()] == sorted(set(rows))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**62), 2**62)), unique=True, max_size=30))
def test_counted_bucket_pairs_are_those_of_the_buckets(rows):
    keys, docs = np.array(sorted(rows), dtype=np.int64).reshape(len(rows), 2).T
    distinct, counts = counted_bucket_pairs(keys, docs, 3)
    expected = Counter(map(tuple, candidate_pairs(keys, docs, 3).tolist()))
    assert dict(zip(map(tuple, distinct.tolist()), counts.tolist(), strict=True)) == dict(expected)
    assert [tuple(p) for p in distinct.tolist()] == sorted(expected)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=24),
    st.integers(1, 6), st.integers(1, 3),
)  # fmt: skip
def test_scopes_part_buckets_and_held_out_documents_meet_all(rows, most, representatives):
    rows = sorted(rows, key=lambda r: r[:2])
    keys, scopes, held = ([r[k] for r in rows] for k in range(3))
    pairs = candidate_pairs(
        np.array(keys, np.uint64), np.arange(len(rows)), most, representatives, np.array(scopes, np.int64),
        np.array(held, bool),
    )  # fmt: skip
    expected = Counter()
    for key in set(keys):
        bucket = [i for i, k in enumerate(keys) if k == key]
        for scope in {scopes[i] for i in bucket}:
            mine = [i for i in bucket if scopes[i] == scope]
            for x, y in itertools.combinations(range(len(mine)), 2):
                if len(mine) <= most or x < representatives:
                    expected[mine[x], mine[y]] += 1
        out = [i for i in bucket if held[i]][: len(bucket) if len(bucket) <= most else representatives]
        for i, j in itertools.product(out, bucket):
            if scopes[i] != scopes[j] and not held[j]:
                expected[min(i, j), max(i, j)] += 1
    assert Counter(map(tuple, pairs.tolist())) == expected


def test_bands_that_a_recipe_names():
    assert resolve_bands("auto", 0.8) == Bands(14, 8)
    assert resolve_bands("20x13", 0.8) == Bands(20, 13)
    assert resolve_bands("datasketch:128", 0.8) == Bands(9, 13)
    with pytest.raises(ConfigError):
        resolve_bands("datasketch", 0.8)


def test_wrong_bounds_are_refused():
    keys, docs = np.zeros(2, dtype=np.uint64), np.arange(2)
    for call in (lambda: candidate_pairs(keys, docs, 0), lambda: candidate_pairs(keys, docs[:1])):
        with pytest.raises(ConfigError):
            call()


@pytest.mark.parametrize("jaccard", [0.6, 0.7, 0.8, 0.9])
def test_pairs_share_a_band_as_often_as_the_curve_says(jaccard):
    num_pairs, union = 1500, 300
    rng = np.random.default_rng(5)
    common = round(jaccard * union)
    half = common + (union - common) // 2
    values = rng.integers(0, 2**32, (num_pairs, union), dtype=np.uint64).astype(np.uint32)
    left, right = values[:, :half], np.concatenate([values[:, :common], values[:, half:]], axis=1)
    keys = []
    for side in (left, right):
        offsets = np.arange(num_pairs + 1, dtype=np.int64) * side.shape[1]
        keys.append(band_keys(signatures(offsets, np.ascontiguousarray(side).ravel(), 112, 9), 14))
    found = float(np.mean((keys[0] == keys[1]).any(axis=1)))
    expected = collision_probability(common / union, 14, 8)
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / num_pairs) + 1e-3
