r"""Chinese word segmentation: the likeliest path through a dictionary, as ``jieba.cut(text, HMM=False)``.

Text is taken in blocks, maximal runs of U+4E00 to U+9FD5, ASCII letters and digits and ``+#&._%-``. Inside a block
every way to cut it into dictionary words (a character that starts no word is one of its own) has the sum of its words'
weights; the highest sum wins, from right to left, ties by the longer first word. Neighbouring letters and digits that
are words of one character then join: *iPhone15* is one word. Every character outside blocks is a word, but for
``\r\n``, which is one.

The result is a flag per byte, what `words.word_spans` and `signals.signals` take, and is stored as one bit per byte.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa

from refinery.errors import SchemaError
from refinery.kernels.char_classes import decode
from refinery.kernels.segmentation_dictionary import FIRST_HAN, LAST_HAN, OUTSIDE, Dictionary, load_dictionary
from refinery.kernels.text import TextViews, text_views

ALGORITHM_VERSION = 1
"""Raised whenever a boundary can change: stored boundaries of another version are computed anew."""

_HAN_SHIFT = FIRST_HAN - 0x80


class Segmentation(NamedTuple):
    """Word boundaries of D documents."""

    boundaries: np.ndarray
    """uint8, shape of `TextViews.data`: 1 at the first byte of each word. Bytes outside every document are 0."""
    has_han: np.ndarray
    """bool, shape (D,): whether the document holds an ideograph that the dictionary may know."""


def segment(views: TextViews, dictionary: Dictionary | None = None) -> Segmentation:
    """Segment every document, whatever its script.

    Args:
        views: the documents.
        dictionary: None is jieba's.
    Raises:
        ConfigError: no dictionary is given and the package jieba is not installed.
    """
    return _segmented(views, dictionary, every=True)


def segment_han(views: TextViews, dictionary: Dictionary | None = None) -> Segmentation:
    """Segment the documents that hold Han; in all others every byte is flagged, which is no segmentation.

    Args and errors as in `segment`.
    """
    return _segmented(views, dictionary, every=False)


def _segmented(views: TextViews, dictionary: Dictionary | None, *, every: bool) -> Segmentation:
    known = dictionary or load_dictionary()
    longest = int(np.diff(views.offsets).max(initial=0))
    boundaries = np.zeros(len(views.data), dtype=np.uint8)
    has_han = np.zeros(views.num_docs, dtype=np.bool_)
    _segment(views.offsets, views.data, known, every, longest, boundaries, has_han)
    return Segmentation(boundaries, has_han)


@numba.njit(cache=True, nogil=True)
def _segment(
    offsets: np.ndarray,
    data: np.ndarray,
    known: Dictionary,
    every: bool,
    longest: int,
    boundaries: np.ndarray,
    has_han: np.ndarray,
) -> None:
    """Fill `boundaries` and `has_han`; scratch is allocated once for the longest document and touched lazily."""
    chars = np.empty(longest + 1, dtype=np.int32)
    places = np.empty(longest + 1, dtype=np.int64)
    best_end = np.empty(longest + 1, dtype=np.int32)
    scores = np.empty(longest + 2, dtype=np.float64)
    for doc in range(len(offsets) - 1):
        start, end = offsets[doc], offsets[doc + 1]
        found = _holds_han(data, start, end)
        has_han[doc] = found
        if not (found or every):
            boundaries[start:end] = 1
            continue
        i, count = start, 0
        while i < end:
            lead = np.int64(data[i])
            width, number = 1, OUTSIDE
            if lead < 0x80:
                number = np.int64(known.ids[lead])
            elif 0xE4 <= lead <= 0xE9 and i + 2 < end:
                second, third = np.int64(data[i + 1]), np.int64(data[i + 2])
                code = ((lead & 0x0F) << 12) | ((second & 0x3F) << 6) | (third & 0x3F)
                if second & 0xC0 == 0x80 and third & 0xC0 == 0x80:
                    width = 3
                    if FIRST_HAN <= code <= LAST_HAN:
                        number = np.int64(known.ids[code - _HAN_SHIFT])
            else:
                _, width = decode(data, i, end)
            if number != OUTSIDE:
                chars[count] = number
                places[count] = i
                count += 1
                i += width
                continue
            if count:
                _cut_block(known, data, chars, places, count, scores, best_end, boundaries)
                count = 0
            if lead != 0x0A or i == start or data[i - 1] != 0x0D:
                boundaries[i] = 1
            i += width
        if count:
            _cut_block(known, data, chars, places, count, scores, best_end, boundaries)


@numba.njit(cache=True, inline="always")
def _holds_han(data: np.ndarray, start: int, end: int) -> bool:
    found = False
    for i in range(start, end - 2):
        if data[i] < 0xE4 or data[i] > 0xE9:
            continue
        code = ((np.int64(data[i]) & 0x0F) << 12) | ((np.int64(data[i + 1]) & 0x3F) << 6) | (data[i + 2] & 0x3F)
        if FIRST_HAN <= code <= LAST_HAN:
            found = True
            break
    return found


@numba.njit(cache=True, inline="always")
def _cut_block(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned scratch)
    known: Dictionary,
    data: np.ndarray,
    chars: np.ndarray,
    places: np.ndarray,
    count: int,
    scores: np.ndarray,
    best_end: np.ndarray,
    boundaries: np.ndarray,
) -> None:
    """Flag the words of one block of `count` characters (numbers `chars`, first bytes `places`)."""
    links, weights = known.links, known.weights
    scores[count] = 0.0
    for first in range(count - 1, -1, -1):
        node = np.int64(chars[first])
        best, at = 0.0, -1
        weight = weights[2 * node + 1]
        if weight < 0.0:
            best, at = weight + scores[first + 1], first
        base = np.int64(links[4 * node + 1])
        last = first + 1
        while base >= 0 and last < count:
            child = base + chars[last]
            if links[4 * child] != node:
                break
            node = child
            weight = weights[2 * node + 1]
            last += 1
            if weight < 0.0:
                score = weight + scores[last]
                if at < 0 or score >= best:
                    best, at = score, last - 1
            base = np.int64(links[4 * node + 1])
        if at < 0:
            best, at = known.unknown + scores[first + 1], first
        scores[first] = best
        best_end[first] = at
    k, joins = 0, False
    while k < count:
        letter = best_end[k] == k and _is_alphanumeric(data[places[k]])
        if not (letter and joins):
            boundaries[places[k]] = 1
        joins = letter
        k = best_end[k] + 1


@numba.njit(cache=True, inline="always")
def _is_alphanumeric(byte: int) -> bool:
    return 0x30 <= byte <= 0x39 or 0x41 <= byte <= 0x5A or 0x61 <= byte <= 0x7A


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


def cut_boundaries(views: TextViews, boundaries: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the flags of the text that a cut leaves; the first byte after a cut starts a word.

    Args:
        views: D documents before the cut.
        boundaries: uint8, shape of `views.data`.
        keep: bool, same shape: bytes that stay; whole characters.
    Returns: uint8, shape (keep.sum(),).
    """
    _check_length(views, boundaries)
    after_cut = np.zeros(len(keep), dtype=bool)
    np.logical_and(keep[1:], ~keep[:-1], out=after_cut[1:])
    return (boundaries.astype(bool) | after_cut)[keep].astype(np.uint8)


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
