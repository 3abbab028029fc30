"""Word boundaries as they are stored: one bit per byte of text, document by document.

A flag array (uint8, shape of `TextViews.data`, 1 at the first byte of a word) is what `words.word_spans` and
`signals.signals` read; a bitmap column is what a table keeps, an eighth of the text before compression.
"""

from __future__ import annotations

import numba
import numpy as np
import pyarrow as pa

from refinery.errors import SchemaError
from refinery.kernels.cuts import kept_of
from refinery.kernels.text import TextViews, text_views


def pack_boundaries(views: TextViews, boundaries: np.ndarray, present: np.ndarray | None = None) -> pa.Array:
    """Pack flags into one bit per byte of text, document by document (`numpy.packbits`, high bit first).

    Args:
        views: D documents.
        boundaries: uint8, shape of `views.data`.
        present: bool, shape (D,): documents to store; the others are null. None: all.
    Returns: large_binary, D values; that of a document of n bytes has ceil(n / 8) bytes.
    Raises:
        SchemaError: `boundaries` has another length than the text.
    """
    _check_length(views, boundaries)
    lengths = (np.diff(views.offsets) + 7) // 8
    if present is not None:
        lengths = np.where(present, lengths, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    packed = np.zeros(int(offsets[-1]), dtype=np.uint8)
    _pack(views.offsets, boundaries, offsets, packed)
    mask = None if present is None else pa.array(present).buffers()[1]
    buffers = [mask, pa.py_buffer(offsets), pa.py_buffer(packed)]
    return pa.Array.from_buffers(pa.large_binary(), views.num_docs, buffers)


def unpack_boundaries(views: TextViews, packed: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the flags that `pack_boundaries` packed, 0 or 1.

    Args:
        views: D documents.
        packed: large_binary, D values; a null document has every byte flagged, which is no segmentation.
    Returns: uint8, shape of `views.data`.
    Raises:
        SchemaError: the number of values, or a value's length, does not fit the text.
    """
    bits = text_views(packed)
    nulls = packed.is_null().to_numpy(zero_copy_only=False)
    lengths = np.diff(bits.offsets)
    wanted = (np.diff(views.offsets) + 7) // 8 if len(packed) == views.num_docs else None
    if wanted is None or (lengths[~nulls] != wanted[~nulls]).any():
        raise SchemaError(
            f"{len(packed)} bitmaps of word boundaries do not fit {views.num_docs} documents of these lengths; they "
            "belong to another text: run rules again"
        )
    boundaries = np.zeros(len(views.data), dtype=np.uint8)
    _unpack(views.offsets, bits.offsets, bits.data, nulls, boundaries)
    return boundaries


def cut_boundaries(boundaries: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the flags of the text that cuts leave; the first byte after a cut starts a word.

    Args:
        boundaries: uint8, one per byte of the documents, one behind the other.
        keep: bool, same shape: bytes that stay; whole characters.
    Returns: uint8, shape (keep.sum(),).
    """
    return kept_of(boundaries, keep, behind_cuts=1)


def _check_length(views: TextViews, boundaries: np.ndarray) -> None:
    if boundaries.shape != views.data.shape:
        raise SchemaError(f"word boundaries have shape {boundaries.shape}, the text has {views.data.shape[0]} bytes")


@numba.njit(cache=True, nogil=True)
def _pack(text_offsets: np.ndarray, boundaries: np.ndarray, offsets: np.ndarray, packed: np.ndarray) -> None:
    for doc in range(len(text_offsets) - 1):
        if offsets[doc] == offsets[doc + 1]:
            continue
        start, end, out = text_offsets[doc], text_offsets[doc + 1], offsets[doc]
        for i in range(start, end):
            if boundaries[i]:
                packed[out + ((i - start) >> 3)] |= np.uint8(0x80 >> ((i - start) & 7))


@numba.njit(cache=True, nogil=True)
def _unpack(
    text_offsets: np.ndarray, offsets: np.ndarray, packed: np.ndarray, nulls: np.ndarray, boundaries: np.ndarray
) -> None:
    for doc in range(len(text_offsets) - 1):
        start, end, at = text_offsets[doc], text_offsets[doc + 1], offsets[doc]
        if nulls[doc]:
            boundaries[start:end] = 1
            continue
        for i in range(start, end):
            boundaries[i] = (packed[at + ((i - start) >> 3)] >> (7 - ((i - start) & 7))) & 1
