"""How much fits on the device: row counts from the free memory, and tables that go up piece by piece.

Counts are powers of two, so that a few megabytes more or less in use do not change them: products of another shape may
round differently, and a chunk that follows the free memory to the byte would be another one on every run.
"""

from __future__ import annotations

import numpy as np
import torch

_UPLOAD_ROWS = 262_144
_HEADROOM = 0.5
"""Share of the free memory that one step may take: other worker processes and the allocator's waste have the rest."""


def free_bytes(device: str) -> int | None:
    """Return what this process could allocate on a CUDA device, None for the CPU.

    Memory that the allocator holds and nobody uses counts as free.
    """
    if torch.device(device).type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def rows_that_fit(row_bytes: int, most: int, device: str) -> int:
    """Return how many rows of a step fit into half of the free memory: a power of two, or `most` where that fits.

    Args:
        row_bytes: bytes of all that a row needs at once.
        most: upper bound, at least 1.
        device: torch device; on the CPU `most` is returned.
    """
    free = free_bytes(device)
    if free is None or most * row_bytes <= _HEADROOM * free:
        return most
    fit = int(_HEADROOM * free) // max(1, row_bytes)
    return 1 << max(0, fit.bit_length() - 1) if fit else 1


def fits(num_bytes: int, device: str) -> bool:
    """Tell whether half of the free memory holds so many bytes; always true for the CPU."""
    free = free_bytes(device)
    return free is None or num_bytes <= _HEADROOM * free


def uploaded(rows: np.ndarray, dtype: torch.dtype, device: str, zero_rows: int = 0) -> torch.Tensor:
    """Copy a matrix to a device in another precision: rounded here, so that half the bytes cross, and piece by piece.

    Args:
        rows: float32, shape (S, F).
        dtype: of the copy.
        device: torch device.
        zero_rows: rows of zeros behind the last.
    Returns: shape (S + zero_rows, F).
    """
    table = torch.empty(len(rows) + zero_rows, rows.shape[1], dtype=dtype, device=device)
    for first in range(0, len(rows), _UPLOAD_ROWS):
        piece = torch.from_numpy(np.ascontiguousarray(rows[first : first + _UPLOAD_ROWS])).to(dtype)
        table[first : first + len(piece)] = piece
    table[len(rows) :] = 0
    return table
