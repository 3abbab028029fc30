from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refinery.stages.repeats import distinct_pairs


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1) | st.integers(0, 3)), max_size=30))
def test_distinct_pairs_are_those_of_a_set(rows):
    owners = np.array([a for a, _ in rows], dtype=np.int64)
    hashes = np.array([b for _, b in rows], dtype=np.uint64)
    found = distinct_pairs(owners, hashes)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == sorted(set(rows))
    assert (found[0].dtype, found[1].dtype) == (np.int64, np.uint64)
