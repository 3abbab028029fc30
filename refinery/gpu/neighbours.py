"""Similar pairs inside cells on whichever device is there: torch proposes on CUDA, NumPy on CPU, one verifier decides.

On CUDA the product runs in bfloat16 (twice TF32, eight times float32 on an H200). Rounding a unit vector to bfloat16
moves a cosine by at most 2 * 2^-9 + 2^-18, rounding the product by 2^-9: together under 0.006. Proposals reach 0.008
below the threshold and are verified in float64 on the stored vectors, so the pairs are those of the CPU.

The vectors go to the device once; where they do not fit, they stay here and the rows of each product go up. Cells of a
few thousand would leave the device idle between launches, so cells of like size are multiplied together, padded to one
width; of the products only rows whose largest reaches the bound are looked at again, which reads them once instead of
four times, and those in slices, since in a cell of near copies they are all of them. Products shrink with the free
memory; the pairs do not depend on their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from refinery.errors import TransientError
from refinery.gpu.device_memory import fits, rows_that_fit, uploaded
from refinery.gpu.embed import has_bfloat16, resolve_device
from refinery.kernels.similarity import (
    MARGIN_FLOAT32,
    SimilarPairs,
    cell_members,
    check_cells,
    propose_numpy,
    similar_pairs,
    verified_pairs,
)

MARGIN_BFLOAT16 = 0.008
"""Bound of the rounding above, with room."""
_CUDA_BLOCK_ROWS = 32_768  # 2 GB of products: 55 % of the bare product's rate on an H200, 45 % with 16,384
_CPU_BLOCK_ROWS = 1024
_LEAST_BLOCK_ROWS = 256
_HOT_CELLS = 1 << 26  # of products that are looked at again at once: 64 MB as bool, 1 GB as places if all are pairs
_NOTHING = -2.0  # below any cosine


class Tiles(NamedTuple):
    """Products that are made together: G cells, or pieces of large ones, of like size."""

    rows: np.ndarray
    """int64, shape (G, R): vectors, -1 where padded."""
    columns: np.ndarray
    """int64, shape (G, C)."""
    diagonal: bool
    """Whether column k is row k, for k < R: a vector is no pair with itself."""


def pairs_in_cells(
    vectors: np.ndarray,
    cells_SP: np.ndarray,
    threshold: float,
    *,
    device: str = "auto",
    block_rows: int | None = None,
) -> SimilarPairs:
    """Return every pair that shares a cell and has a cosine of at least `threshold`, as `similarity.similar_pairs`.

    Args:
        vectors: float32, shape (S, F), unit length.
        cells_SP: integers, shape (S,) or (S, P).
        threshold: cosine in (-1, 1].
        device: auto, cpu or cuda; the answer does not depend on it.
        block_rows: rows of one product; by device if not given.
    Returns: see `SimilarPairs`.

    Raises:
        ConfigError: CUDA was asked for and is not there, or as `similarity.similar_pairs`.
        DataError: a vector is not of unit length.
    """
    chosen = resolve_device(device)
    if chosen == "cpu":
        return similar_pairs(
            vectors, cells_SP, threshold, block_rows=block_rows or _CPU_BLOCK_ROWS, propose=propose_numpy,
            margin=MARGIN_FLOAT32,
        )  # fmt: skip
    narrow = torch.bfloat16 if has_bfloat16(chosen) else torch.float32
    return torch_pairs(vectors, cells_SP, threshold, chosen, narrow, block_rows or _CUDA_BLOCK_ROWS)


def torch_pairs(
    vectors: np.ndarray, cells_SP: np.ndarray, threshold: float, device: str, dtype: torch.dtype, block_rows: int
) -> SimilarPairs:
    """Return `pairs_in_cells` by way of torch on any device.

    Args:
        vectors: float32, shape (S, F), unit length.
        cells_SP: integers, shape (S,) or (S, P).
        threshold: cosine in (-1, 1].
        device: torch device.
        dtype: of the products: bfloat16, or float32.
        block_rows: memory of the products of one step is 2 or 4 * block_rows^2 bytes; less where that does not fit.

    Raises:
        ConfigError, DataError: as `pairs_in_cells`. TransientError: not even small products fit.
    """
    check_cells(vectors, cells_SP, threshold, block_rows)
    bound = threshold - (MARGIN_FLOAT32 if dtype == torch.float32 else MARGIN_BFLOAT16)
    here = fits(vectors.size * dtype.itemsize, device)
    table = uploaded(vectors, dtype, device if here else "cpu", zero_rows=1)  # the last row is what -1 points at
    rows = _block_rows(block_rows, vectors.shape[1], dtype, device)
    found = [np.empty((0, 2), dtype=np.int64)]
    try:
        found += [propose_tiles(table, tiles, bound, device) for tiles in tiles_of(cells_SP, rows)]
    except torch.OutOfMemoryError:
        found = found[:1]
    else:
        left, right = np.concatenate(found).T
        return verified_pairs(vectors, left, right, threshold)
    # Another process took the memory meanwhile. The exception is gone here, and with it what its frames held.
    del table
    torch.cuda.empty_cache()
    if rows <= _LEAST_BLOCK_ROWS:
        raise TransientError(
            f"{device} has no memory for products of {rows} rows; let fewer processes share it, or set device: cpu"
        )
    return torch_pairs(vectors, cells_SP, threshold, device, dtype, rows // 2)


def _block_rows(wanted: int, features: int, dtype: torch.dtype, device: str) -> int:
    """Return rows and columns of one step's products: the product, what is looked at again, and the rows themselves."""
    rows = wanted
    while rows > _LEAST_BLOCK_ROWS and rows_that_fit(3 * rows * dtype.itemsize + 4 * features, rows, device) < rows:
        rows //= 2
    return rows


def tiles_of(cells_SP: np.ndarray, block_rows: int) -> Iterator[Tiles]:
    """Cut cells into pieces of at most `block_rows` and put pieces of like size together."""
    pieces: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    for members, guests in cell_members(cells_SP):
        partners = np.concatenate([members, guests])
        for first in range(0, len(members), block_rows):
            rows = members[first : first + block_rows]
            for start in range(first, len(partners), block_rows):
                columns = partners[start : start + block_rows]
                if len(columns) > (start == first):  # one vector alone has nobody to meet
                    pieces[start == first].append((rows, columns))
    for diagonal, mine in pieces.items():
        mine.sort(key=lambda piece: (-len(piece[1]), -len(piece[0])))
        at = 0
        while at < len(mine):
            height, width = len(mine[at][0]), len(mine[at][1])
            last = at + 1
            while last < len(mine):
                taller = max(height, len(mine[last][0]))
                if (last + 1 - at) * taller * width > block_rows**2:
                    break
                height, last = taller, last + 1
            rows, columns = zip(*mine[at:last], strict=True)
            yield Tiles(_padded(rows, height), _padded(columns, width), diagonal)
            at = last


def _padded(lists: Sequence[np.ndarray], size: int) -> np.ndarray:
    out = np.full((len(lists), size), -1, dtype=np.int64)
    for row, values in zip(out, lists, strict=True):
        row[: len(values)] = values
    return out


@torch.inference_mode()
def propose_tiles(table: torch.Tensor, tiles: Tiles, bound: float, device: str | None = None) -> np.ndarray:
    """Return the pairs of some tiles whose product reaches a bound.

    Args:
        table: shape (S + 1, F): the vectors, and one of zeros behind them.
        tiles: see `Tiles`.
        bound: the threshold, less what rounding takes.
        device: where to multiply; where the table is if not given.
    Returns: int64, shape (E, 2); on the diagonal each pair comes twice.
    """
    sides = [torch.from_numpy(side).to(table.device) for side in tiles[:2]]
    rows, columns = (side.to(device or table.device) for side in sides)
    left, right = (table[side].to(rows.device) for side in sides)
    products = torch.bmm(left, right.transpose(1, 2))
    if tiles.diagonal:
        torch.diagonal(products, dim1=1, dim2=2).fill_(_NOTHING)
    hot = (products.amax(dim=2) >= bound).nonzero()
    step = max(1, _HOT_CELLS // products.shape[2])
    found = [np.empty((0, 2), dtype=np.int64)]
    for first in range(0, len(hot), step):
        slice_ = hot[first : first + step]
        at, column = (products[slice_[:, 0], slice_[:, 1]] >= bound).nonzero().unbind(1)
        tile, row = slice_[at].unbind(1)
        pairs = torch.stack([rows[tile, row], columns[tile, column]], dim=1)
        found.append(pairs[(pairs >= 0).all(dim=1)].cpu().numpy())
    return np.concatenate(found)
