"""Words: the one splitter that signals, shingles and n-gram features share.

Definition, over the characters of a document (classes: `refinery.kernels.char_classes`):

- **word** = a maximal run of letters, numbers and marks (categories L, N, M) that are not Han or kana. An apostrophe
  (U+0027 or U+2019) between two such characters belongs to the word: *don't*, *l’eau*.
- every **Han or kana** character is a word of its own, together with the marks (variation selectors, combining kana
  marks) that follow it. With a segmentation bitmap, such a character joins the Han or kana word directly before it
  unless the bitmap flags its first byte as the start of a word.
- **symbol token** = a maximal run of one and the same other character that is not white space: ``...``, ``=====``,
  ``,``. Control characters count as symbols. A run is one token so that rulers do not outweigh prose.
- white space (`str.isspace`) separates and is nothing.

Underscores and hyphens split: *snake_case* is two words and a symbol. Scripts without spaces other than Han and kana
(Thai, Lao, Khmer) come out as one word per run. No case folding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from refinery.errors import SchemaError
from refinery.kernels.char_classes import (
    ALPHA,
    DIGIT,
    IDEOGRAPHIC,
    LATIN,
    MARK,
    NUMBER,
    SPACE,
    UPPER,
    WORD,
    class_of,
    class_table,
    decode,
)
from refinery.kernels.text import TextViews
from refinery.kernels.wide import ascii_word_run

_LOWER_FLAGS, _UPPER_FLAGS, _DIGIT_FLAGS = ALPHA | LATIN, ALPHA | LATIN | UPPER, NUMBER | DIGIT
"""Classes of all ASCII letters and digits; no other ASCII character belongs to a word."""


class WordSpans(NamedTuple):
    """Words of a batch; W words over D documents."""

    word_offsets: np.ndarray
    """int64, shape (D + 1,): words of document i are word_offsets[i] : word_offsets[i + 1]."""
    starts: np.ndarray
    """int64, shape (W,): first byte in `TextViews.data`."""
    ends: np.ndarray
    """int64, shape (W,): one past the last byte."""
    num_chars: np.ndarray
    """int32, shape (W,): length in characters."""
    num_symbols: np.ndarray
    """int32, shape (D,): symbol tokens of each document."""


def word_spans(views: TextViews, boundaries: np.ndarray | None = None) -> WordSpans:
    """Return the words of every document.

    Args:
        views: the documents.
        boundaries: optional uint8, shape of `views.data`: non-zero at the first byte of each segmented word. Read
            only at Han and kana characters. None: every such character is a word.

    Raises:
        SchemaError: `boundaries` has another length than the text.
    """
    flags = boundary_flags(views, boundaries)
    classes = class_table()
    counts = _count_words(views.offsets, views.data, classes, flags)
    word_offsets = np.zeros(views.num_docs + 1, dtype=np.int64)
    np.cumsum(counts, out=word_offsets[1:])
    starts, ends, num_chars, num_symbols = _fill_words(views.offsets, views.data, classes, flags, word_offsets)
    return WordSpans(word_offsets, starts, ends, num_chars, num_symbols)


def boundary_flags(views: TextViews, boundaries: np.ndarray | None) -> np.ndarray:
    """Return the segmentation flags in the form that kernels take: read-only uint8, empty for "none".

    Raises:
        SchemaError: `boundaries` has another length than the text.
    """
    if boundaries is None:
        flags = np.empty(0, dtype=np.uint8)
    elif boundaries.shape == views.data.shape:
        flags = boundaries.astype(np.uint8, copy=False).view()
    else:
        raise SchemaError(
            f"word boundaries have shape {boundaries.shape}, the text has {views.data.shape[0]} bytes; "
            "pass one flag per byte of TextViews.data"
        )
    flags.flags.writeable = False
    return flags


@numba.njit(cache=True)
def _is_apostrophe(code: int) -> bool:
    return code == 0x27 or code == 0x2019  # noqa: PLR1714 (a set would be built per call)


@numba.njit(cache=True, inline="always")
def _ascii_body(data: np.ndarray, begin: int, end: int, classes: np.ndarray) -> tuple[int, int]:
    """Return where the ASCII letters and digits from `begin` on end, and the union of their classes."""
    kind: Any
    i, kind, run = begin, 0, 8
    while run == 8 and i + 8 <= end:  # most words end in the first eight bytes
        run, lower, upper, digit = ascii_word_run(data, i)
        kind |= (_LOWER_FLAGS if lower else 0) | (_UPPER_FLAGS if upper else 0) | (_DIGIT_FLAGS if digit else 0)
        i += run
    while i < end and data[i] < 0x80 and classes[data[i]] & WORD:
        kind |= np.int64(classes[data[i]])
        i += 1
    return i, kind


@numba.njit(cache=True, nogil=True)
def split_words(  # noqa: PLR0913, PLR0915, PLR0917 (inner kernel: caller-owned output arrays)
    data: np.ndarray,
    start: int,
    end: int,
    classes: np.ndarray,
    boundaries: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    num_chars: np.ndarray,
    kinds: np.ndarray,
) -> tuple[int, int]:
    """Split ``data[start:end]`` into words; return (number of words, number of symbol tokens).

    Word w is bytes ``start + starts[w] : start + ends[w]`` (int32, relative), ``num_chars[w]`` (int32) characters
    long; ``kinds[w]`` (uint8) is the union of its characters' low class flags (`ALPHA` … `LATIN`). The output arrays
    need room for ``end - start`` entries.
    """
    code: Any
    segmented = len(boundaries) > 0
    words, symbols, last_symbol, i = 0, 0, -1, start
    while i < end:
        code, width = np.int64(data[i]), 1
        if code >= 0x80:  # no call for ASCII
            code, width = decode(data, i, end)
        flags = class_of(classes, code)
        if not flags & WORD:
            if flags & SPACE:
                last_symbol = -1
            elif code != last_symbol:
                symbols += 1
                last_symbol = code
            i += width
            continue
        starts[words] = i - start
        ideographic = flags & IDEOGRAPHIC != 0
        chars, kind, joins = 0, 0, True
        while joins:
            chars += 1
            kind |= flags
            i += width
            if not ideographic:
                body = i
                i, body_kind = _ascii_body(data, i, end, classes)
                kind |= body_kind
                chars += i - body
            if i >= end:
                break
            code, width = np.int64(data[i]), 1
            if code >= 0x80:
                code, width = decode(data, i, end)
            flags = class_of(classes, code)
            if not flags & WORD and code != 0x27 and code != 0x2019:  # noqa: PLR1714 (a set would be built per word)
                break
            if ideographic:
                joins = flags & WORD == MARK or (segmented and flags & IDEOGRAPHIC != 0 and boundaries[i] == 0)
            else:
                if _is_apostrophe(code) and i + width < end:
                    following, _ = decode(data, i + width, end)
                    flags = class_of(classes, following)  # joins if a letter does; its flags count anyway
                joins = flags & WORD != 0 and flags & IDEOGRAPHIC == 0
        ends[words], num_chars[words], kinds[words] = i - start, chars, kind & 0xFF
        words += 1
        last_symbol = -1
    return words, symbols


@numba.njit(cache=True, nogil=True)
def _count_words(offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    counts = np.zeros(len(offsets) - 1, dtype=np.int64)
    starts, ends, num_chars, kinds = _scratch(offsets)
    for doc in range(len(counts)):
        counts[doc] = split_words(
            data, offsets[doc], offsets[doc + 1], classes, boundaries, starts, ends, num_chars, kinds
        )[0]
    return counts


@numba.njit(cache=True)
def _scratch(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    longest = 1
    for doc in range(len(offsets) - 1):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    return (
        np.empty(longest, dtype=np.int32),
        np.empty(longest, dtype=np.int32),
        np.empty(longest, dtype=np.int32),
        np.empty(longest, dtype=np.uint8),
    )


@numba.njit(cache=True, nogil=True)
def _fill_words(
    offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, boundaries: np.ndarray, word_offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    total = word_offsets[-1]
    all_starts, all_ends = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    all_chars = np.empty(total, dtype=np.int32)
    num_symbols = np.zeros(len(offsets) - 1, dtype=np.int32)
    starts, ends, num_chars, kinds = _scratch(offsets)
    for doc in range(len(offsets) - 1):
        begin = offsets[doc]
        words, num_symbols[doc] = split_words(
            data, begin, offsets[doc + 1], classes, boundaries, starts, ends, num_chars, kinds
        )
        first = word_offsets[doc]
        for w in range(words):
            all_starts[first + w] = begin + starts[w]
            all_ends[first + w] = begin + ends[w]
            all_chars[first + w] = num_chars[w]
    return all_starts, all_ends, all_chars, num_symbols
