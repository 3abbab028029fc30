r"""Chinese word segmentation: the likeliest path through a dictionary, as ``jieba.cut(text, HMM=False)``.

Text is taken in blocks, maximal runs of U+4E00 to U+9FD5, ASCII letters and digits and ``+#&._%-``. Inside a block
every way to cut it into dictionary words (a character that starts no word is one of its own) has the sum of its words'
weights; the highest sum wins, from right to left, ties by the longer first word. Neighbouring letters and digits that
are words of one character then join: *iPhone15* is one word. Every character outside blocks is a word, but for
``\r\n``, which is one.

The result is a flag per byte, what `words.word_spans` and `signals.signals` take; `boundaries` packs it for storage.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from refinery.hashing import load_uint64
from refinery.kernels.char_classes import decode
from refinery.kernels.segmentation_dictionary import FIRST_HAN, LAST_HAN, OUTSIDE, Dictionary, load_dictionary
from refinery.kernels.text import TextViews
from refinery.kernels.wide import HIGH_BITS

ALGORITHM_VERSION = 1
"""Raised whenever a boundary can change: stored boundaries of another version are computed anew."""

_HAN_SHIFT = FIRST_HAN - 0x80
_ALL_ASCII = np.uint64(0)


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
    has_han = np.zeros(views.num_docs, dtype=np.bool_)
    _find_han(views.offsets, views.data, has_han)
    boundaries = np.zeros(len(views.data), dtype=np.uint8)
    if every or has_han.any():
        known = dictionary or load_dictionary()
        longest = int(np.diff(views.offsets).max(initial=0))
        _segment(views.offsets, views.data, known, np.ones_like(has_han) if every else has_han, longest, boundaries)
    else:  # text without Han never waits for the dictionary
        boundaries[views.offsets[0] : views.offsets[-1]] = 1
    return Segmentation(boundaries, has_han)


@numba.njit(cache=True, nogil=True)
def _find_han(offsets: np.ndarray, data: np.ndarray, has_han: np.ndarray) -> None:
    for doc in range(len(offsets) - 1):
        i, last = offsets[doc], offsets[doc + 1] - 2
        while i < last:
            if i + 8 <= len(data) and (load_uint64(data, i) & HIGH_BITS) == _ALL_ASCII:
                i += 8
                continue
            if 0xE4 <= data[i] <= 0xE9:
                code = ((np.int64(data[i]) & 0x0F) << 12) | ((np.int64(data[i + 1]) & 0x3F) << 6) | (data[i + 2] & 0x3F)
                if FIRST_HAN <= code <= LAST_HAN:
                    has_han[doc] = True
                    break
            i += 1


@numba.njit(cache=True, nogil=True)
def _segment(
    offsets: np.ndarray,
    data: np.ndarray,
    known: Dictionary,
    wanted: np.ndarray,
    longest: int,
    boundaries: np.ndarray,
) -> None:
    """Fill `boundaries`, all ones in documents that are not `wanted`.

    Scratch is allocated once for the longest document and touched lazily.
    """
    chars = np.empty(longest + 1, dtype=np.int32)
    places = np.empty(longest + 1, dtype=np.int64)
    best_end = np.empty(longest + 1, dtype=np.int32)
    scores = np.empty(longest + 2, dtype=np.float64)
    for doc in range(len(offsets) - 1):
        start, end = offsets[doc], offsets[doc + 1]
        if not wanted[doc]:
            boundaries[start:end] = 1
            continue
        number: Any
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
