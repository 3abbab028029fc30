"""Pairs of similar vectors inside cells, exactly: the NumPy reference and CPU path of near-duplicate sentences.

A blocked matrix product proposes pairs at the threshold minus a margin that bounds its rounding; every proposal is
verified with a float64 dot product of the stored float32 vectors. Which pairs come out therefore does not depend on
block size, order of vectors, or the device that proposed, and no cell is too large: memory is one block squared.

Shape legend: S vectors (sentences), F features, P probed cells, E pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError, DataError
from refinery.kernels.components import GreedyKeep, greedy_keep

MARGIN_FLOAT32 = 1e-4
"""Bounds the rounding of a float32 dot product of unit vectors with up to a few thousand features."""
_VERIFY_ROWS = 8192
"""Pairs verified at a time: with 384 features 75 MB."""


class SimilarPairs(NamedTuple):
    """Pairs of similar vectors, ordered by (left, right)."""

    left: np.ndarray
    """int64, shape (E,): the smaller index."""
    right: np.ndarray
    """int64, shape (E,)."""
    similarity: np.ndarray
    """float64, shape (E,): cosine, at least the threshold."""


Propose = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
"""(rows A, columns B, bound) -> positions (i, j) with A[i] . B[j] >= bound, up to the proposer's rounding."""


def check_vectors(vectors: np.ndarray) -> None:
    """Check embeddings.

    Raises:
        ConfigError: not a float32 matrix.
        DataError: a vector is not finite or not of unit length.
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ConfigError(f"vectors must be a float32 matrix, not {vectors.dtype} of {vectors.ndim} axes; cast them")
    norms = np.einsum("sf,sf->s", vectors, vectors)
    bad = np.flatnonzero(~(np.abs(norms - 1.0) < 1e-2))
    if len(bad):
        raise DataError(
            f"vector {bad[0]} has squared length {norms[bad[0]]}, it must be 1 within 0.01 ({len(bad)} such vectors); "
            "normalise the embeddings, and drop those that are not finite"
        )


def pair_similarity(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosine of paired unit vectors in float64, shape (E,)."""
    out = np.empty(len(left), dtype=np.float64)
    for first in range(0, len(left), _VERIFY_ROWS):
        rows = slice(first, first + _VERIFY_ROWS)
        products = vectors[left[rows]].astype(np.float64) * vectors[right[rows]]
        out[rows] = products.sum(axis=1)
    return out


def propose_numpy(rows: np.ndarray, columns: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (i, j) whose float32 product is at least `bound`."""
    found = np.nonzero(rows @ columns.T >= np.float32(bound))
    return found[0], found[1]


def cell_members(cells_SP: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for every cell its members and its guests, as ascending indices.

    A member has the cell as its first, a guest among its further probed cells.
    """
    cells_SP = cells_SP[:, None] if cells_SP.ndim == 1 else cells_SP
    flat = cells_SP.ravel()
    order = np.argsort(flat, kind="stable")
    bounds = np.flatnonzero(np.diff(flat[order])) + 1
    width = cells_SP.shape[1]
    for group in np.split(order, bounds) if len(order) else []:
        owners, column = group // width, group % width
        yield owners[column == 0], owners[column > 0]


def same_cell(own: np.ndarray) -> np.ndarray:
    """Return cells, int64, shape (S, 2), that put S vectors into one cell: members first, the others as its guests.

    Args:
        own: bool, shape (S,): True for members. A guest meets members, but no other guest.
    """
    cells = np.zeros((len(own), 2), dtype=np.int64)
    cells[:, 0] = np.where(own, 0, -1 - np.arange(len(own)))
    return cells


def similar_pairs(
    vectors: np.ndarray,
    cells_SP: np.ndarray,
    threshold: float,
    *,
    block_rows: int = 1024,
    propose: Propose = propose_numpy,
    margin: float = MARGIN_FLOAT32,
) -> SimilarPairs:
    """Return every pair of vectors that share a cell and have a cosine of at least `threshold`.

    Args:
        vectors: float32, shape (S, F), unit length.
        cells_SP: integers, shape (S,) or (S, P): the cell of each vector, then further cells that it probes (pairs
            across a border; a member meets a guest, two guests meet in their own cells only).
        threshold: cosine in (-1, 1].
        block_rows: rows and columns of one product: memory is 4 * block_rows^2 bytes.
        propose: who multiplies; its proposals are verified here.
        margin: how far below the threshold proposals reach: the proposer's rounding bound.
    Returns: see `SimilarPairs`; each pair once, also where two cells propose it.

    Raises:
        ConfigError: threshold or block out of bounds, cells of another length, vectors of another type.
        DataError: a vector is not of unit length.
    """
    check_cells(vectors, cells_SP, threshold, block_rows)
    found: list[np.ndarray] = [np.empty((2, 0), dtype=np.int64)]
    for members, guests in cell_members(cells_SP):
        partners = np.concatenate([members, guests])
        for first in range(0, len(members), block_rows):
            rows = members[first : first + block_rows]
            for start in range(first, len(partners), block_rows):
                columns = partners[start : start + block_rows]
                i, j = propose(vectors[rows], vectors[columns], threshold - margin)
                above = start + j > first + i  # members meet once, guests (behind all members) always
                found.append(np.stack([rows[i[above]], columns[j[above]]]))
    left, right = np.concatenate(found, axis=1)
    return verified_pairs(vectors, left, right, threshold)


def check_cells(vectors: np.ndarray, cells_SP: np.ndarray, threshold: float, block_rows: int) -> None:
    """Check what a search for pairs is given.

    Raises:
        ConfigError: threshold or block out of bounds, cells of another length, vectors of another type.
        DataError: a vector is not of unit length.
    """
    if not -1.0 < threshold <= 1.0:
        raise ConfigError(f"similarity threshold {threshold} is out of bounds (-1, 1]; 0.95 is usual")
    if block_rows < 1:
        raise ConfigError(f"block_rows {block_rows} is out of bounds, 1 is the least; 1024 is the default")
    if len(cells_SP) != len(vectors):
        raise ConfigError(f"{len(cells_SP)} cells for {len(vectors)} vectors; assign every vector to a cell")
    check_vectors(vectors)


def verified_pairs(vectors: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float) -> SimilarPairs:
    """Return the proposed pairs whose cosine in float64 reaches the threshold, each once.

    Args:
        vectors: float32, shape (S, F), unit length.
        left: int64, shape (E,): in any order; a vector with itself is no pair (it names one cell twice).
        right: int64, shape (E,).
        threshold: cosine.
    """
    other = left != right
    a, b = left[other], right[other]
    keys = np.unique(np.minimum(a, b) * len(vectors) + np.maximum(a, b))
    left, right = keys // max(1, len(vectors)), keys % max(1, len(vectors))
    similarity = pair_similarity(vectors, left, right)
    kept = similarity >= threshold
    return SimilarPairs(left[kept], right[kept], similarity[kept])


def keep_sentences(rank: np.ndarray, pairs: SimilarPairs, vetoed: np.ndarray | None = None) -> GreedyKeep:
    """Walk the sentences from best to worst and cut each that has a verified, not vetoed pair with a kept one.

    Args:
        rank: int64, shape (S,): keep order, 0 is best, distinct (best document, then smallest doc_key, then position).
        pairs: verified pairs.
        vetoed: bool, shape (E,): pairs that `sentence_guard` forbids, if it ran.
    Returns: as `components.greedy_keep`; its edge indices count the pairs that are not vetoed.

    Raises:
        ConfigError: as `components.greedy_keep`.
    """
    allowed = slice(None) if vetoed is None else ~vetoed
    return greedy_keep(rank, pairs.left[allowed], pairs.right[allowed], pairs.similarity[allowed])
