from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.kernels import multiply_shift
from refinery.kernels.minhash import MinHashConfig, hash_family, signatures, signatures_of_text
from refinery.kernels.multiply_shift import LANES, WIDE_LANES, lower_minima, lower_minima_wide, multiplies_wide_lanes
from refinery.kernels.text import views_of
from tests.kernels.reference_minhash import signature_of

edges = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
shingles = st.lists(st.one_of(edges, st.integers(0, 2**32 - 1)), min_size=1, max_size=3 * WIDE_LANES)
multipliers = st.one_of(st.sampled_from([1, 2**32 - 1, 2**32 + 1, 2**63 + 1, 2**64 - 1]), st.integers(0, 2**64 - 1))
families = st.lists(st.tuples(multipliers, multipliers), min_size=4, max_size=4)


def _block(values: list[int]) -> np.ndarray:
    block = np.full(-(-len(values) // WIDE_LANES) * WIDE_LANES, 99, dtype=np.uint32)
    block[: len(values)] = values
    return block


@pytest.mark.parametrize("kernel", [lower_minima, lower_minima_wide])
@given(shingles, families, st.lists(st.one_of(edges, st.integers(0, 2**32 - 1)), min_size=4, max_size=4))
def test_minima_equal_the_formula(kernel, values, family, before):
    minima = np.array(before, dtype=np.uint32)
    kernel(_block(values), len(values), np.array(family, dtype=np.uint64).T.copy(), minima)
    hashed = [[((a * x + b) % 2**64) >> 32 for x in values] for a, b in family]
    assert minima.tolist() == [min(low, *row) for low, row in zip(before, hashed, strict=True)]


@pytest.mark.parametrize("count", [1, LANES - 1, LANES, LANES + 1, WIDE_LANES, 2048])
def test_both_forms_agree(count):
    block = np.random.default_rng(count).integers(0, 2**32, 2048, dtype=np.uint64).astype(np.uint32)
    found = []
    for kernel in (lower_minima, lower_minima_wide):
        minima = np.full(256, 2**32 - 1, dtype=np.uint32)
        kernel(block.copy(), count, hash_family(256, 1), minima)
        found.append(minima)
    assert np.array_equal(*found)


@pytest.mark.parametrize("num_hashes", [1, 3, 5, 112])
@pytest.mark.parametrize("wide", [False, True])
def test_signatures_do_not_depend_on_the_processor(num_hashes, wide, monkeypatch):
    monkeypatch.setattr("refinery.kernels.minhash.multiplies_wide_lanes", lambda: wide)
    values = np.random.default_rng(7).integers(0, 2**32, 3000, dtype=np.uint64).astype(np.uint32)
    row = signatures(np.array([0, 0, 3000]), values, num_hashes, 5)
    assert row[1].tolist() == signature_of(values.tolist(), num_hashes, 5)
    of_text = signatures_of_text(views_of(["a b c d e f", ""]), MinHashConfig(num_hashes=num_hashes)).values
    assert (of_text[0] != 2**32 - 1).all()
    assert (of_text[1] == 2**32 - 1).all()


def test_wide_lanes_are_a_matter_of_the_features_that_numba_compiles_for(monkeypatch):
    monkeypatch.setattr(multiply_shift.numba.config, "CPU_FEATURES", "+avx2,-avx512dq")
    assert not multiplies_wide_lanes()
    monkeypatch.setattr(multiply_shift.numba.config, "CPU_FEATURES", "+avx2,+avx512dq")
    assert multiplies_wide_lanes()


def test_arrays_of_other_types_are_refused():
    with pytest.raises(multiply_shift.numba.core.errors.TypingError):
        lower_minima(np.zeros(32, np.int32), 1, hash_family(4, 1), np.zeros(4, np.uint32))
