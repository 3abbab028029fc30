r"""Figures over lines and paragraphs.

A line ends before ``\n`` or ``\r\n``; nothing else ends a line (datatrove's Gopher rules use `str.splitlines`, which
also breaks at form feeds and U+2028). A newline at the very end opens no further line. A paragraph is a piece of the
stripped text between two or more line ends in a row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refinery.hashing import hash_bytes
from refinery.kernels.char_classes import SPACE, TERMINAL, class_of, decode
from refinery.kernels.repetition import repeated_segments
from refinery.kernels.signals_catalog import Count
from refinery.kernels.signals_marks import NO_BLOCK, comment_state, opens_turn
from refinery.kernels.wide import leading_blanks, next_line_end

SHORT_LINE_CHARS = 30
_SEED = np.uint64(0x6C696E65)


@numba.njit(cache=True)
def last_char(data: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return (code point, first byte) of the character that ends at byte `end` > `start`."""
    code: Any
    i = end - 1
    if data[i] < 0x80:  # no call for ASCII
        code = np.int64(data[i])
        return code, i
    while i > start and data[i] & 0xC0 == 0x80:
        i -= 1
    code, _ = decode(data, i, end)
    return code, i


@numba.njit(cache=True)
def strip_span(data: np.ndarray, start: int, end: int, classes: np.ndarray) -> tuple[int, int]:
    """Return the span without white space at its ends (`str.strip`)."""
    code: Any
    while start < end:
        code, width = np.int64(data[start]), 1
        if 0x20 < code < 0x80:  # no look at the table for what most lines begin with
            break
        if code == 0x20 and start + 8 <= len(data):
            start = min(start + leading_blanks(data, start), end)
            continue
        if code >= 0x80:
            code, width = decode(data, start, end)
        if not class_of(classes, code) & SPACE:
            break
        start += width
    while start < end and not 0x20 < data[end - 1] < 0x80:
        code, first = last_char(data, start, end)
        if not class_of(classes, code) & SPACE:
            break
        end = first
    return start, end


@numba.njit(cache=True)
def _is_c4_end(code: int) -> bool:
    """Whether C4 lets a line end here: . ? ! or a straight quote."""
    return code == 0x2E or code == 0x3F or code == 0x21 or code == 0x22 or code == 0x27  # noqa: PLR1714


@numba.njit(cache=True, inline="always")
def _scan_line(
    data: np.ndarray, start: int, end: int, chars: int, block: int, classes: np.ndarray, row: np.ndarray
) -> tuple[bool, int]:
    """Add the figures of one line; return whether it holds more than white space, and the comment open after it."""
    row[Count.LINES] += 1
    row[Count.LINE_CHARS] += chars
    row[Count.MAX_LINE_CHARS] = max(row[Count.MAX_LINE_CHARS], chars)
    first, last = strip_span(data, start, end, classes)
    if first == last:
        return False, block
    row[Count.NONBLANK_LINES] += 1
    opening, _ = decode(data, first, last)
    if opening == 0x2022 or opening == 0x2D:  # noqa: PLR1714
        row[Count.BULLET_LINES] += 1
    closing, _ = last_char(data, first, last)
    dots = last - first >= 3 and data[last - 1] == 0x2E and data[last - 2] == 0x2E and data[last - 3] == 0x2E
    if dots or closing == 0x2026:
        row[Count.ELLIPSIS_LINES] += 1
    if not dots and _is_c4_end(closing):
        row[Count.C4_END_LINES] += 1
    unstripped, _ = last_char(data, start, end)
    if class_of(classes, unstripped) & TERMINAL:
        row[Count.PUNCT_LINES] += 1
    if chars <= SHORT_LINE_CHARS:
        row[Count.SHORT_LINES] += 1
    is_comment, block = comment_state(data, first, last, block)
    if is_comment:
        row[Count.COMMENT_CHARS] += chars
    if opens_turn(data, first, last, classes):
        row[Count.TURNS] += 1
    if row[Count.TURNS] > 0:
        row[Count.TURN_CHARS] += chars
    return True, block


@numba.njit(cache=True, nogil=True)
def scan_lines(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned scratch)
    data: np.ndarray,
    start: int,
    end: int,
    classes: np.ndarray,
    keys: np.ndarray,
    num_chars: np.ndarray,
    integers: np.ndarray,
    table: np.ndarray,
    row: np.ndarray,
) -> None:
    """Count lines and paragraphs, their ends and their copies into `row` (float64, indexed by `Count`).

    Scratch: `keys` uint64 and `num_chars` int32 with room for ``end - start + 1`` lines; `integers` int32, shape
    (6, same); `table` int32 as `repetition.table_capacity` says.
    """
    nonempty, block, blank_nonempty, paragraphs = 0, NO_BLOCK, integers[2], integers[3:]
    first, last = strip_span(data, start, end, classes)
    count, goes_on = 0, False
    begin = start
    while begin < end:
        i, chars = next_line_end(data, begin, end)
        stop = i
        if i < end and stop > begin and data[stop - 1] == 0x0D:
            stop -= 1
            chars -= 1
        filled, block = _scan_line(data, begin, stop, chars, block, classes, row)
        if stop > begin:
            keys[nonempty] = hash_bytes(data, begin, stop, _SEED)
            num_chars[nonempty] = chars
            blank_nonempty[nonempty] = 0 if filled else 1
            nonempty += 1
            if stop > first and begin < last:
                count = _add_to_paragraph(paragraphs, count, goes_on, begin - start, stop - start, chars)
                goes_on = True
        else:
            goes_on = False
        begin = i + 1
    row[Count.NONEMPTY_LINES] = nonempty
    of_line = integers[0]
    segments, chars = repeated_segments(keys, num_chars, nonempty, table, of_line, integers[1])
    row[Count.DUP_LINES] = segments
    row[Count.DUP_LINE_CHARS] = chars
    for line in range(nonempty):
        if of_line[line] != line and blank_nonempty[line] == 1:
            chars -= num_chars[line]
    row[Count.DUP_NONBLANK_LINE_CHARS] = chars
    count = count if first < last else 0
    _strip_paragraphs(data, start, first, last, paragraphs, count)
    _count_paragraphs(data, start, paragraphs, count, keys, num_chars, integers, table, row)


@numba.njit(cache=True, inline="always")
def _add_to_paragraph(paragraphs: np.ndarray, count: int, goes_on: bool, begin: int, stop: int, chars: int) -> int:
    """Add a line to the last of `count` paragraphs (rows: first byte, last + 1, characters), or begin one with it."""
    if goes_on:
        paragraphs[2, count - 1] += chars + begin - paragraphs[1, count - 1]  # and the line end between
        paragraphs[1, count - 1] = stop
        return count
    paragraphs[0, count], paragraphs[1, count], paragraphs[2, count] = begin, stop, chars
    return count + 1


@numba.njit(cache=True)
def _strip_paragraphs(
    data: np.ndarray, start: int, first: int, last: int, paragraphs: np.ndarray, count: int
) -> None:
    """Take white space off the start of the first paragraph and the end of the last: text from `first` to `last`."""
    if count == 0:
        return
    for i in range(start + paragraphs[0, 0], first):
        paragraphs[2, 0] -= data[i] & 0xC0 != 0x80
    for i in range(last, start + paragraphs[1, count - 1]):
        paragraphs[2, count - 1] -= data[i] & 0xC0 != 0x80
    paragraphs[0, 0], paragraphs[1, count - 1] = first - start, last - start


@numba.njit(cache=True)
def _count_paragraphs(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned scratch)
    data: np.ndarray,
    start: int,
    paragraphs: np.ndarray,
    count: int,
    keys: np.ndarray,
    num_chars: np.ndarray,
    integers: np.ndarray,
    table: np.ndarray,
    row: np.ndarray,
) -> None:
    for k in range(count):
        keys[k] = hash_bytes(data, start + paragraphs[0, k], start + paragraphs[1, k], _SEED)
        num_chars[k] = paragraphs[2, k]
    row[Count.PARAGRAPHS] = count
    segments, chars = repeated_segments(keys, num_chars, count, table, integers[0], integers[1])
    row[Count.DUP_PARAGRAPHS] = segments
    row[Count.DUP_PARAGRAPH_CHARS] = chars
