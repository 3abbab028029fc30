"""Where a pretoken ends: the split patterns of GPT-2, of GPT-4's family and of our recipes, as scanners over UTF-8.

The patterns are a few rules on character classes, read here by hand: no regular-expression engine, no text object per
pretoken, runs of ASCII letters eight bytes at a time. That they cut where the library's engine cuts is tested on
generated and real text; the classes come from that engine itself (`refinery.tokenization.char_classes`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from refinery.hashing import load_uint64

HAN, LETTER, NUMBER, SPACE, NEWLINE = 1, 2, 4, 8, 16
"""Bits of a character's class: Han that is cut into runs of its own; what counts as a letter; category N; white space;
CR or LF."""

GPT2_DIGITS = 0
"""As `max_digits`: the rules of GPT-2's pattern, whose numbers are of any length."""

_MAX_HAN_RUN = 4
_QUOTE, _BLANK = 39, 32
_LONG_S = (0xC5, 0xBF)  # U+017F, which matches "s" when letter case is ignored
_HIGH, _CASE = np.uint64(0x8080808080808080), np.uint64(0x2020202020202020)
_SEVEN = np.uint64(0x7F7F7F7F7F7F7F7F)
_FROM_A, _PAST_Z = np.uint64(0x1F1F1F1F1F1F1F1F), np.uint64(0x0505050505050505)  # 0x80 - "a", 0x80 - "z" - 1
_THREE = np.uint64(3)


@intrinsic
def _trailing_zeros(_context: Any, value: Any) -> Any:
    """Count the zero bits below the lowest set bit of a uint64 that is not 0: one instruction."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(value), codegen


trailing_zeros: Any = _trailing_zeros
"""The above, typed for callers: the compiler passes the context."""


@njit(cache=True)
def char_at(data: np.ndarray, at: int) -> tuple[Any, int]:
    """Return (code point, bytes) of the character that starts at `at`; the text is valid UTF-8."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (data[at + 1] & 0x3F), 2
    second = np.int64(data[at + 1] & 0x3F)
    if first < 0xF0:
        return ((first & 0x0F) << 12) | (second << 6) | (data[at + 2] & 0x3F), 3
    return ((first & 0x07) << 18) | (second << 12) | (np.int64(data[at + 2] & 0x3F) << 6) | (data[at + 3] & 0x3F), 4


@njit(cache=True)
def _run_end(data: np.ndarray, at: int, end: int, classes: np.ndarray, mask: int, value: int, most: int) -> int:
    """Return where a run of at most `most` characters with ``class & mask == value`` ends."""
    while at < end and most > 0:
        code, size = char_at(data, at)
        if classes[code] & mask != value:
            break
        at += size
        most -= 1
    return at


@njit(cache=True)
def _letters_end(data: np.ndarray, at: int, end: int, classes: np.ndarray) -> int:
    """Return where a run of letters, Han left out, ends: ASCII by eight bytes, the rest by characters."""
    while at < end:
        if data[at] >= 0x80:
            code, size = char_at(data, at)
            if classes[code] & (LETTER | HAN) != LETTER:
                break
            at += size
        elif at + 8 <= len(data):
            eight = load_uint64(data, at)
            low = (eight | _CASE) & _SEVEN
            # No carry crosses bytes: both sums stay under 256.
            others = ~((low + _FROM_A) & ~(low + _PAST_Z) & ~eight) & _HIGH
            if others:
                stop = min(at + int(np.int64(trailing_zeros(others) >> _THREE)), end)
                if stop < end and data[stop] >= 0x80:
                    at = stop
                    code, size = char_at(data, at)
                    if classes[code] & (LETTER | HAN) != LETTER:
                        break
                    at += size
                    continue
                return stop
            at += 8
        elif classes[data[at]] & LETTER:
            at += 1
        else:
            break
    return min(at, end)


@njit(cache=True)
def _contraction_end(data: np.ndarray, at: int, end: int, any_case: bool) -> int:
    """Return the end of 's, 'd, 'm, 't, 'll, 've or 're that starts at a quote; `at` if none."""
    if at + 1 >= end:
        return at
    bit = 0x20 if any_case else 0
    first = data[at + 1] | bit
    if data[at + 1] < 0x80 and first in (115, 100, 109, 116):
        return at + 2
    if at + 2 >= end:
        return at
    if any_case and data[at + 1] == _LONG_S[0] and data[at + 2] == _LONG_S[1]:
        return at + 3
    second = data[at + 2] | bit
    if data[at + 1] >= 0x80 or data[at + 2] >= 0x80:
        return at
    if (first == 108 and second == 108) or (first in (118, 114) and second == 101):
        return at + 3
    return at


@njit(cache=True)
def pretoken_end(data: np.ndarray, at: int, end: int, classes: np.ndarray, max_digits: int) -> int:
    """Return where the pretoken that starts at `at` ends.

    Args:
        data: uint8, valid UTF-8.
        at: a pretoken's first byte, under `end`.
        end: where the text ends.
        classes: uint8, shape (0x110000,): bits by code point.
        max_digits: characters of category N in one pretoken, or `GPT2_DIGITS`.
    """
    if max_digits == GPT2_DIGITS:
        return _gpt2_end(data, at, end, classes)
    code, size = char_at(data, at)
    kind = classes[code]
    if kind & HAN:
        return _run_end(data, at, end, classes, HAN, HAN, _MAX_HAN_RUN)
    if code == _QUOTE:
        stop = _contraction_end(data, at, end, any_case=True)
        if stop > at:
            return stop
    # Letters, with one character of another kind before them.
    first = at if kind & LETTER else at + size
    if not kind & (NUMBER | NEWLINE):
        stop = _letters_end(data, first, end, classes)
        if stop > first:
            return stop
    if kind & NUMBER:
        return _run_end(data, at, end, classes, NUMBER, NUMBER, max_digits)
    if code == _BLANK or not kind & SPACE:
        first = at + 1 if code == _BLANK else at
        stop = _run_end(data, first, end, classes, SPACE | LETTER | NUMBER, 0, end - at)
        if stop > first:
            return _run_end(data, stop, end, classes, NEWLINE, NEWLINE, end - at)
    return _white_end(data, at, end, classes, through_lines=True)


@njit(cache=True)
def _gpt2_end(data: np.ndarray, at: int, end: int, classes: np.ndarray) -> int:
    if data[at] == _QUOTE:
        stop = _contraction_end(data, at, end, any_case=False)
        if stop > at:
            return stop
    first = at + 1 if data[at] == _BLANK and at + 1 < end else at
    code, _ = char_at(data, first)
    kind = classes[code]
    if kind & LETTER:
        return _letters_end(data, first, end, classes)
    if kind & NUMBER:
        return _run_end(data, first, end, classes, NUMBER, NUMBER, end - at)
    if not kind & SPACE:
        return _run_end(data, first, end, classes, SPACE | LETTER | NUMBER, 0, end - at)
    return _white_end(data, at, end, classes, through_lines=False)


@njit(cache=True)
def _white_end(data: np.ndarray, at: int, end: int, classes: np.ndarray, through_lines: bool) -> int:
    """Cut white space: through its last line end, if so asked; else all but its last character.

    The last one a word takes along.
    """
    stop, last, through = at, at, at
    while stop < end:
        code, size = char_at(data, stop)
        if not classes[code] & SPACE:
            break
        last = stop
        stop += size
        if classes[code] & NEWLINE:
            through = stop
    if through > at and through_lines:
        return through
    if stop == end or last == at:
        return stop
    return last
