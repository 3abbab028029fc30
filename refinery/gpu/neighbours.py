"""Similar pairs inside cells on whichever device is there: torch proposes on CUDA, NumPy on CPU, one verifier decides.

On CUDA the product runs in bfloat16 (twice TF32, eight times float32 on an H200). Rounding a unit vector to bfloat16
moves a cosine by at most 2 * 2^-9 + 2^-18, rounding the product by 2^-9: together under 0.006. Proposals reach 0.008
below the threshold and are verified in float64 on the stored vectors, so the pairs are those of the CPU.
"""

from __future__ import annotations

import numpy as np
import torch

from refinery.gpu.embed import resolve_device
from refinery.kernels.similarity import MARGIN_FLOAT32, SimilarPairs, propose_numpy, similar_pairs

MARGIN_BFLOAT16 = 0.008
"""Bound of the rounding above, with room."""
_CUDA_BLOCK_ROWS = 16_384
_CPU_BLOCK_ROWS = 1024


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
    return similar_pairs(
        vectors, cells_SP, threshold, block_rows=block_rows or _CUDA_BLOCK_ROWS, propose=_propose_cuda,
        margin=MARGIN_BFLOAT16,
    )  # fmt: skip


@torch.inference_mode()
def _propose_cuda(rows: np.ndarray, columns: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    left = torch.from_numpy(rows).to("cuda").bfloat16()
    right = torch.from_numpy(columns).to("cuda").bfloat16()
    found = (left @ right.T >= bound).nonzero().cpu().numpy()
    return found[:, 0], found[:, 1]
