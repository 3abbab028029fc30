"""Text eight bytes at a time: where a line ends, how many characters stand before.

Bytes are looked at as one integer (Lamport, "Multiple byte processing with full-word instructions", CACM 18, 1975).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refinery.hashing import load_uint64

_LOW = np.uint64(0x0101010101010101)
HIGH_BITS = np.uint64(0x8080808080808080)
"""The high bit of each of eight bytes."""
_NEWLINES, BLANKS = np.uint64(0x0A0A0A0A0A0A0A0A), np.uint64(0x2020202020202020)
_ONE, _S7, _S56 = (np.uint64(n) for n in (1, 7, 56))
SEVEN_BITS, _LOWER_BIT = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x2020202020202020)
# added to a byte below 0x80, these set its high bit from "a", from behind "z", from "0" and from behind "9" on
_FROM_A, _BEHIND_Z = np.uint64(0x1F1F1F1F1F1F1F1F), np.uint64(0x0505050505050505)
FROM_0, BEHIND_9 = np.uint64(0x5050505050505050), np.uint64(0x4646464646464646)
_TWO = np.uint64(2)


@numba.njit(cache=True, inline="always")
def equal_bytes(eight: np.uint64, eights: np.uint64) -> np.uint64:
    """Mark by its high bit the lowest byte of `eight` that equals a byte given eight times.

    No high bit is set where none does; above the lowest, and in other bits, the result says nothing.
    """
    other = eight ^ eights
    return (other - _LOW) & ~other


@numba.njit(cache=True, inline="always")
def bytes_below(bits: np.uint64) -> int:
    """Return how many whole bytes lie below the lowest bit that is set; 8 if none is."""
    below = (bits & (~bits + _ONE)) - _ONE
    count: Any = np.int64((((below >> _S7) & _LOW) * _LOW) >> _S56)
    return count


@numba.njit(cache=True, inline="always")
def count_marked(marks: np.uint64) -> int:
    """Return how many of eight bytes have their high bit set; no other bit may be."""
    count: Any = np.int64(((marks >> _S7) * _LOW) >> _S56)
    return count


@numba.njit(cache=True, inline="always")
def next_line_end(data: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    r"""Return (position of the first ``\n`` at or after `begin`, or `end`; characters that start before it)."""
    chars: Any
    i, chars = begin, 0
    while i + 8 <= end:
        eight: np.uint64 = load_uint64(data, i)
        if equal_bytes(eight, _NEWLINES) & HIGH_BITS:
            break
        chars += 8 - count_marked(eight & ~(eight << _ONE) & HIGH_BITS)
        i += 8
    while i < end and data[i] != 0x0A:
        if data[i] & 0xC0 != 0x80:
            chars += 1
        i += 1
    return i, chars


@numba.njit(cache=True, inline="always")
def leading_blanks(data: np.ndarray, begin: int) -> int:
    """Return how many of the eight bytes from `begin` on, which must be there, come before one that is no U+0020."""
    return bytes_below(load_uint64(data, begin) ^ BLANKS)


@numba.njit(cache=True, inline="always")
def may_hold(data: np.ndarray, first: int, last: int, eights: np.uint64) -> bool:
    """Return whether ``data[first:last]`` may hold a byte, given eight times, or one beyond ASCII; never False wrongly.

    Read by eight bytes, so up to seven behind `last` count, too; True where those cannot be read.
    """
    if last + 8 > len(data):
        return True
    found = np.uint64(0)
    for i in range(first, last, 8):
        eight: np.uint64 = load_uint64(data, i)
        found |= (equal_bytes(eight, eights) | eight) & HIGH_BITS
    return found != 0


@numba.njit(cache=True, inline="always")
def short_bytes(data: np.ndarray, first: int, length: int) -> np.uint64:
    """Return ``data[first : first + length]``, 1 to 7 bytes, as one little-endian integer."""
    if first + 8 <= len(data):
        value = load_uint64(data, first) & ((_ONE << np.uint64(8 * length)) - _ONE)
    else:
        value = np.uint64(0)
        for i in range(length):
            value |= np.uint64(data[first + i]) << np.uint64(8 * i)
    return value


@numba.njit(cache=True, inline="always")
def ascii_word_run(data: np.ndarray, begin: int) -> tuple[int, bool, bool, bool]:
    """Look at the eight bytes from `begin` on, which must be there.

    Returns: how many come before the first that is no ASCII letter or digit, and whether a lower-case letter, an
    upper-case letter and a digit are among those.
    """
    eight: np.uint64 = load_uint64(data, begin)
    low7 = eight & SEVEN_BITS
    folded = low7 | _LOWER_BIT
    letters = (folded + _FROM_A) & ~(folded + _BEHIND_Z)
    digits = (low7 + FROM_0) & ~(low7 + BEHIND_9)
    others = (~(letters | digits) | eight) & HIGH_BITS
    before = ((others & (~others + _ONE)) - _ONE) & HIGH_BITS  # high bits below the first other; all if there is none
    letters &= before
    lower = letters & (eight << _TWO)  # the bit that tells the cases apart, moved to the high bit
    run: Any = np.int64(((before >> _S7) * _LOW) >> _S56)
    return run, lower != 0, letters != lower, digits & before != 0
