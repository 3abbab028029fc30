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
    """Count lines, their ends and their copies into `row` (float64, indexed by `Count`).

    Scratch: `keys` uint64 and `num_chars` int32 with room for ``end - start + 1`` lines; `integers` int32, shape
    (6, same); `table` int32 as `repetition.table_capacity` says.
    """
    nonempty, block, blank_nonempty = 0, NO_BLOCK, integers[2]
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
        begin = i + 1
    row[Count.NONEMPTY_LINES] = nonempty
    first = integers[0]
    segments, chars = repeated_segments(keys, num_chars, nonempty, table, first, integers[1])
    row[Count.DUP_LINES] = segments
    row[Count.DUP_LINE_CHARS] = chars
    for line in range(nonempty):
        if first[line] != line and blank_nonempty[line] == 1:
            chars -= num_chars[line]
    row[Count.DUP_NONBLANK_LINE_CHARS] = chars


@numba.njit(cache=True, nogil=True)
def scan_paragraphs(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned scratch)
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
    """Count paragraphs and their copies into `row`; scratch as in `scan_lines`."""
    start, end = strip_span(data, start, end, classes)
    paragraphs, chars = 0, 0
    begin, i = start, start
    while i < end:
        if data[i] != 0x0A:
            i, more = next_line_end(data, i, end)
            chars += more
            continue
        stop, stop_chars = i, chars
        if i > begin and data[i - 1] == 0x0D:
            stop, stop_chars = i - 1, chars - 1
        line_ends = 0
        while i < end and (data[i] == 0x0A or (data[i] == 0x0D and i + 1 < end and data[i + 1] == 0x0A)):
            if data[i] == 0x0A:
                line_ends += 1
            chars += 1
            i += 1
        if line_ends >= 2:
            keys[paragraphs] = hash_bytes(data, begin, stop, _SEED)
            num_chars[paragraphs] = stop_chars
            paragraphs += 1
            begin, chars = i, 0
    if end > begin:
        keys[paragraphs] = hash_bytes(data, begin, end, _SEED)
        num_chars[paragraphs] = chars
        paragraphs += 1
    row[Count.PARAGRAPHS] = paragraphs
    segments, chars = repeated_segments(keys, num_chars, paragraphs, table, integers[0], integers[1])
    row[Count.DUP_PARAGRAPHS] = segments
    row[Count.DUP_PARAGRAPH_CHARS] = chars
