"""White space in UTF-8: runs as one blank, blanks at line ends, texts of nothing else.

White space is what ``str.split`` takes for it (Unicode White_Space and U+001C to U+001F); blanks are U+0020, tab,
U+00A0 and U+3000.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np

from refinery.hashing import load_uint64, store_uint64

_HIGH, _SEVEN_BITS = np.uint64(0x8080808080808080), np.uint64(0x7F7F7F7F7F7F7F7F)
_SPACES, _S7, _S8, _S56 = np.uint64(0x2020202020202020), np.uint64(7), np.uint64(8), np.uint64(56)
_FIRST_HIGH, _ALL_BITS = np.uint64(0x80), np.uint64(0xFF)
# added to a byte below 0x80, these set its high bit from tab, from behind CR, from U+001C and from behind the blank on
_FROM_TAB, _BEHIND_CR = np.uint64(0x7777777777777777), np.uint64(0x7272727272727272)
_FROM_1C, _BEHIND_SPACE = np.uint64(0x6464646464646464), np.uint64(0x5F5F5F5F5F5F5F5F)
# the same of what is left of 0xC2, and of 0xE1 to 0xE3, without the high bit
_C2, _FROM_E1, _BEHIND_E3 = (np.uint64(n * 0x0101010101010101) for n in (0x42, 0x1F, 0x1C))


def collapse_white_space(offsets: np.ndarray, data: np.ndarray, out: np.ndarray) -> list[int]:
    """Pack documents with every run of white space as one blank, and none at either end.

    Args:
        offsets: int64, shape (docs + 1,).
        data: uint8, read-only: UTF-8.
        out: uint8; has room for all documents: none grows.

    Returns: where each document ends in `out`.
    """
    ends = np.empty(len(offsets) - 1, dtype=np.int64)
    view = offsets.view()
    view.flags.writeable = False
    _collapse(view, data, white_space_kinds(), out, ends)
    return list(ends.tolist())


def without_blanks_at_line_ends(raw: bytes) -> bytes:
    """Return UTF-8 without the blanks before a line feed or the end."""
    out = np.empty(len(raw), dtype=np.uint8)
    return out[: _strip_line_ends(np.frombuffer(raw, dtype=np.uint8), out)].tobytes()


@cache
def white_space_kinds() -> np.ndarray:
    """Return uint8, shape (256,): 1 for white space of one byte, 2 for a byte that longer ones begin with."""
    table = np.zeros(256, dtype=np.uint8)
    table[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = 1
    table[[0xC2, 0xE1, 0xE2, 0xE3]] = 2
    table.flags.writeable = False
    return table


@numba.njit(cache=True, nogil=True)
def is_white_space(data: np.ndarray, table: np.ndarray) -> bool:
    """Tell whether UTF-8 holds white space only; `table` is `white_space_kinds`."""
    i = 0
    while i < len(data):
        kind = table[data[i]]
        width = 1 if kind == 1 else _long_white_space(data, i, len(data)) if kind == 2 else 0
        if not width:
            return False
        i += width
    return True


@numba.njit(cache=True, nogil=True)
def _long_white_space(data: np.ndarray, i: int, end: int) -> int:
    """Return the byte length of a non-ASCII white space at i, or 0."""
    if data[i] == 0xC2:
        return 2 if i + 1 < end and (data[i + 1] == 0x85 or data[i + 1] == 0xA0) else 0
    if i + 2 >= end:
        return 0
    b, c = data[i + 1], data[i + 2]
    if data[i] == 0xE1:
        found = b == 0x9A and c == 0x80
    elif data[i] == 0xE3:
        found = b == 0x80 and c == 0x80
    elif b == 0x80:
        found = c <= 0x8A or c in (0xA8, 0xA9, 0xAF)
    else:
        found = b == 0x81 and c == 0x9F
    return 3 if found else 0


@numba.njit(cache=True, inline="always")
def _plain_eight(eight: np.uint64, behind_space: bool) -> tuple[bool, np.uint64, bool]:
    """Look at eight bytes at once.

    Returns: whether no run of white space and no longer white space can be in them; if so, the bytes with blanks for
    white space, and whether the last is one.
    """
    low7 = eight & _SEVEN_BITS
    longer = ~((low7 ^ _C2) + _SEVEN_BITS) | ((low7 + _FROM_E1) & ~(low7 + _BEHIND_E3))
    spaces = ((low7 + _FROM_TAB) & ~(low7 + _BEHIND_CR)) | ((low7 + _FROM_1C) & ~(low7 + _BEHIND_SPACE))
    spaces &= ~eight & _HIGH
    runs = spaces & ((spaces << _S8) | (_FIRST_HIGH if behind_space else np.uint64(0)))
    covered = (spaces >> _S7) * _ALL_BITS
    return (longer & eight & _HIGH) | runs == 0, (eight & ~covered) | (_SPACES & covered), spaces >> _S56 != 0


@numba.njit(cache=True, nogil=True)
def _collapse(offsets: np.ndarray, data: np.ndarray, table: np.ndarray, out: np.ndarray, ends: np.ndarray) -> None:
    w = 0
    for d in range(len(offsets) - 1):
        start = w
        behind_space = True  # so that white space at the start goes
        i, end = offsets[d], offsets[d + 1]
        while i < end:
            stop = end
            if i + 8 <= end:
                plain, eight, ends_in_space = _plain_eight(load_uint64(data, i), behind_space)
                if plain:
                    store_uint64(out, w, eight)
                    behind_space = ends_in_space
                    i, w = i + 8, w + 8
                    continue
                stop = i + 8
            while i < stop:
                byte = data[i]
                kind = table[byte]
                width = 1
                if kind == 2:
                    width = _long_white_space(data, i, end)
                    kind = 1 if width else 0
                    width = max(width, 1)
                # no jump on what the byte is: a blank comes every six bytes, and none can be foretold
                is_space = kind == 1
                out[w] = 32 if is_space else byte
                w += not (is_space and behind_space)
                behind_space = is_space
                i += width
        if w > start and behind_space:
            w -= 1
        ends[d] = w


@numba.njit(cache=True, nogil=True)
def _strip_line_ends(data: np.ndarray, out: np.ndarray) -> int:
    """Copy `data` without blanks at line ends; return the length."""
    w, kept, i = 0, 0, 0
    while i < len(data):
        byte = data[i]
        width = 0
        if byte in (0x20, 0x09):
            width = 1
        elif byte == 0xC2 and i + 1 < len(data) and data[i + 1] == 0xA0:
            width = 2
        elif byte == 0xE3 and i + 2 < len(data) and data[i + 1] == 0x80 and data[i + 2] == 0x80:
            width = 3
        if byte == 0x0A:
            w = kept
        for k in range(i, i + max(width, 1)):
            out[w] = data[k]
            w += 1
        kept = kept if width else w
        i += max(width, 1)
    return kept
