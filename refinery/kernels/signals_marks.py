"""What a line is by how it begins: a comment of a program, a turn of a dialogue.

A line (stripped) is a **comment** if it begins with ``//``, with ``#`` before anything but an ASCII letter
(``#include`` is none, ``# text`` and ``#!`` are), with ``--`` before white space or its end, or if it lies in a block
that a line began with ``/*``, ``<!--`` or three equal quotes and that the first ``*/``, ``-->`` or equal quotes after
it close. No language is asked; a string that begins a line with three quotes reads as a docstring.

A line opens a **turn** if it begins with a speaker: a letter, at most 23 further letters, digits, marks, spaces, ``.``,
``_`` or ``-``, and a colon (: or ：) that no ``/`` follows. A turn lasts until the next.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refinery.kernels.char_classes import ALPHA, WORD, class_of, decode
from refinery.kernels.wide import may_hold

MAX_SPEAKER_CHARS = 24
_COLONS = np.uint64(0x3A3A3A3A3A3A3A3A)
NO_BLOCK, STAR_BLOCK, TAG_BLOCK, DOUBLE_BLOCK, SINGLE_BLOCK = 0, 1, 2, 3, 4


@numba.njit(cache=True, inline="always")
def comment_state(data: np.ndarray, first: int, last: int, block: int) -> tuple[bool, int]:
    """Return (whether the line is a comment, the block that is open after it).

    Args:
        data: uint8.
        first: first byte of the stripped line, which is not empty.
        last: one past its last byte.
        block: the block that is open before it.
    """
    if block != NO_BLOCK:
        return True, NO_BLOCK if _closes(data, first, last, block) else block
    lead = data[first]
    if lead != 0x23 and lead != 0x2F and lead != 0x2D and lead != 0x3C and lead != 0x22 and lead != 0x27:  # noqa: PLR1714
        return False, NO_BLOCK
    length = last - first
    second = data[first + 1] if length > 1 else np.uint8(0)
    if lead == 0x23:  # an ASCII letter in either case
        return not 0x61 <= (second | 0x20) <= 0x7A, NO_BLOCK
    if lead == 0x2F and second == 0x2F:
        return True, NO_BLOCK
    if lead == 0x2D and second == 0x2D:
        return length == 2 or data[first + 2] == 0x20 or data[first + 2] == 0x09, NO_BLOCK
    third = data[first + 2] if length > 2 else np.uint8(0)
    opened, width = NO_BLOCK, 3
    if lead == 0x2F and second == 0x2A:
        opened, width = STAR_BLOCK, 2
    elif lead == 0x3C and second == 0x21 and third == 0x2D and length > 3 and data[first + 3] == 0x2D:
        opened, width = TAG_BLOCK, 4
    elif second == lead and third == lead and lead == 0x22:
        opened = DOUBLE_BLOCK
    elif second == lead and third == lead and lead == 0x27:
        opened = SINGLE_BLOCK
    if opened != NO_BLOCK and _closes(data, first + width, last, opened):
        return True, NO_BLOCK
    return opened != NO_BLOCK, opened


@numba.njit(cache=True)
def _closes(data: np.ndarray, first: int, last: int, block: int) -> bool:
    """Whether the span holds what closes the block."""
    if block == STAR_BLOCK:
        for i in range(first, last - 1):  # noqa: SIM110 (a generator is not compiled)
            if data[i] == 0x2A and data[i + 1] == 0x2F:
                return True
        return False
    a, b = (0x2D, 0x3E) if block == TAG_BLOCK else (0x22, 0x22) if block == DOUBLE_BLOCK else (0x27, 0x27)
    for i in range(first, last - 2):  # noqa: SIM110
        if data[i] == a and data[i + 1] == a and data[i + 2] == b:
            return True
    return False


@numba.njit(cache=True, inline="always")
def opens_turn(data: np.ndarray, first: int, last: int, classes: np.ndarray) -> bool:
    """Whether the stripped line ``data[first:last]`` begins with a speaker."""
    code: Any
    # Few lines have a colon so early; to walk their letters took a tenth of all signals' time on lines of 38 bytes.
    if not may_hold(data, first, min(last, first + MAX_SPEAKER_CHARS + 1), _COLONS):
        return False
    i = first
    for place in range(MAX_SPEAKER_CHARS + 1):
        if i >= last:
            return False
        code, width = np.int64(data[i]), 1
        if code >= 0x80:
            code, width = decode(data, i, last)
        i += width
        if place > 0 and (code == 0x3A or code == 0xFF1A):  # noqa: PLR1714
            return i >= last or data[i] != 0x2F
        flags = class_of(classes, code)
        if not flags & (ALPHA if place == 0 else WORD) and (
            place == 0 or (code != 0x20 and code != 0x2E and code != 0x5F and code != 0x2D)  # noqa: PLR1714
        ):
            return False
    return False
