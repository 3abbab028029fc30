"""Exact Jaccard similarity of shingle sets: what turns candidate pairs into verified edges.

Shape legend: D documents, S shingles, P pairs.
"""

from __future__ import annotations

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.kernels.shingles import check_shingles


@numba.njit(cache=True, nogil=True)
def _merge_jaccard(
    offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray, minimum: float, out: np.ndarray
) -> None:
    for pair in range(len(left)):
        i, i_end = offsets[left[pair]], offsets[left[pair] + 1]
        j, j_end = offsets[right[pair]], offsets[right[pair] + 1]
        total = (i_end - i) + (j_end - j)
        # J >= m needs |A and B| >= m (|A| + |B|) / (1 + m); a little less, so that rounding never ends a merge early.
        needed = np.int64(np.ceil(minimum * total / (1.0 + minimum) - 1e-6))
        # What may still be missed on either side before `needed` is out of reach.
        spare_left, spare_right = (i_end - i) - needed, (j_end - j) - needed
        common = 0
        while i < i_end and j < j_end and spare_left >= 0 and spare_right >= 0:
            x, y = hashes[i], hashes[j]
            # Without branches on the data: which side is smaller is a coin toss to the processor.
            i += x <= y
            j += y <= x
            common += x == y
            spare_left -= x < y
            spare_right -= y < x
        union = total - common
        value = common / union if union > 0 else 0.0
        reached = spare_left >= 0 and spare_right >= 0 and value >= minimum
        out[pair] = value if reached else np.nan


def pair_jaccard(
    offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray, minimum: float = 0.0
) -> np.ndarray:
    """Return the exact Jaccard similarity of pairs of documents, where it reaches a minimum.

    ``NaN`` stands for "below `minimum`": such a merge stops as soon as the minimum is out of reach, so its value is
    not known, and every comparison with it is false. With `minimum` 0 every value is exact. Two empty sets have
    similarity 0: nothing shows that they are alike.

    Args:
        offsets: int64, shape (D + 1,).
        hashes: uint32, shape (S,): sorted and unique inside a document (``shingles.shingle_sets``).
        left: int64, shape (P,): document indices.
        right: int64, shape (P,).
        minimum: in [0, 1].
    Returns: float64, shape (P,). Cost: O(size of both sets) per pair at most.

    Raises:
        ConfigError: `minimum` is out of bounds, an index is not a document, or left and right differ in length.
        SchemaError: the sets are of other types.
    """
    if not 0.0 <= minimum <= 1.0:
        raise ConfigError(f"minimum Jaccard {minimum} is out of bounds 0..1")
    left, right = _checked_pairs(offsets, hashes, left, right)
    out = np.empty(len(left), dtype=np.float64)
    _merge_jaccard(offsets, hashes, left, right, float(minimum), out)
    return out


def _checked_pairs(
    offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    check_shingles(offsets, hashes)
    if len(left) != len(right):
        raise ConfigError(f"{len(left)} left and {len(right)} right documents differ in number; pass pairs")
    left = np.ascontiguousarray(left, dtype=np.int64)
    right = np.ascontiguousarray(right, dtype=np.int64)
    num_docs = len(offsets) - 1
    for side in (left, right):
        if len(side) and (side.min() < 0 or side.max() >= num_docs):
            raise ConfigError(f"pair index outside 0..{num_docs - 1}; map document ids to rows of the sets first")
    return left, right


@numba.njit(cache=True, nogil=True)
def _merge_common(
    offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:
    for pair in range(len(left)):
        i, i_end = offsets[left[pair]], offsets[left[pair] + 1]
        j, j_end = offsets[right[pair]], offsets[right[pair] + 1]
        common = 0
        while i < i_end and j < j_end:
            x, y = hashes[i], hashes[j]
            i += x <= y
            j += y <= x
            common += x == y
        out[pair] = common


def pair_common(offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return how many shingles pairs of documents have in common; its share of |A| is the containment of A in B.

    Arguments and errors as in `pair_jaccard`. Returns: int64, shape (P,).
    """
    left, right = _checked_pairs(offsets, hashes, left, right)
    out = np.empty(len(left), dtype=np.int64)
    _merge_common(offsets, hashes, left, right, out)
    return out
