r"""Words as datatrove counts them in English: the tokens of ``spacy.blank("en")``, punctuation marks among them.

Only the presets that reproduce datatrove's decisions use these; everything else counts `kernels.words`. The method is
spaCy's: text is cut at white space; from each piece, marks are taken off the front and the back until nothing changes
or the rest is in a list (`datatrove_specials`); the rest stays whole if it looks like an address, and is cut at infixes
otherwise; at last, neighbours that make up a listed string (``8`` and ``)``) become one token.

Where it leaves spaCy: letters are told by Unicode category instead of by its lists of scripts, units of measurement
are the Latin ones, and rare smileys are missing. `benchmarks/rules_agreement.py` counts what that does to decisions.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refinery.kernels.datatrove_addresses import is_address
from refinery.kernels.datatrove_chars import (
    ALPHA,
    BEFORE_STOP,
    CURRENCY,
    DIGIT,
    ICON,
    LETTER,
    LOWER,
    PREFIX,
    QUOTE,
    SPACE,
    SUFFIX,
    UNIT_CHARS,
    UPPER,
)
from refinery.kernels.datatrove_specials import MAX_SPECIAL_CHARS


@numba.njit(cache=True)
def _lookup(codes: np.ndarray, start: int, end: int, specials: np.ndarray) -> Any:
    """Return the slot of a listed string, or -1."""
    if end - start > MAX_SPECIAL_CHARS or end <= start:
        return -1
    value = np.uint64(0xCBF29CE484222325)
    for i in range(start, end):
        value = (value ^ np.uint64(codes[i])) * np.uint64(0x100000001B3)
    if value == np.uint64(0):
        value = np.uint64(1)
    mask = len(specials) - 1
    slot = np.int64(value & np.uint64(mask))
    while specials[slot, 0] != np.uint64(0):
        if specials[slot, 0] == value:
            return slot
        slot = (slot + 1) & mask
    return -1


@numba.njit(cache=True)
def _prefix_chars(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> int:
    code = codes[start]
    if flags[start] & PREFIX:
        return 1
    if code == 0x2E:
        i = start
        while i < end and codes[i] == 0x2E:
            i += 1
        return i - start if i - start >= 2 else 0
    if code == 0x2B:
        return 0 if start + 1 < end and flags[start + 1] & DIGIT else 1
    if (code == 0x43 or code == 0x41) and start + 1 < end and codes[start + 1] == 0x24:  # noqa: PLR1714
        return 2
    if code == 0x55 and start + 2 < end and codes[start + 1] == 0x53 and codes[start + 2] == 0x24:
        return 3
    return 0


@numba.njit(cache=True)
def _unit_chars(codes: np.ndarray, flags: np.ndarray, start: int, end: int, units: np.ndarray) -> int:
    """Return the length of the longest unit (or currency sign) that ends the string after a digit."""
    if flags[end - 1] & CURRENCY and end - 2 >= start and flags[end - 2] & DIGIT:
        return 1
    for size in range(UNIT_CHARS, 0, -1):
        first = end - size
        if first <= start or not flags[first - 1] & DIGIT:
            continue
        for unit in units:
            if size < UNIT_CHARS and unit[size] != 0:
                continue
            same = True
            for i in range(size):
                same = same and unit[i] == codes[first + i]
            if same:
                return size
    return 0


@numba.njit(cache=True)
def _suffix_chars(codes: np.ndarray, flags: np.ndarray, start: int, end: int, units: np.ndarray) -> int:
    """Return the length of the longest suffix of the string that is a token of its own, or 0."""
    if end <= start:
        return 0
    last = end - 1
    code = codes[last]
    if code == 0x2E:
        i = last
        while i >= start and codes[i] == 0x2E:
            i -= 1
        if last - i >= 2:
            return last - i
        if last == start:
            return 0
        before = flags[last - 1]
        if before & (DIGIT | LOWER | BEFORE_STOP):
            return 1
        if last - 2 < start:
            return 0
        degrees = codes[last - 2] == 0xB0 and (codes[last - 1] | 0x20) in (0x63, 0x66, 0x6B)
        return 1 if degrees or (before & UPPER and flags[last - 2] & UPPER) else 0
    if code == 0x2026 and last > start and codes[last - 1] == 0x2026:
        return 2
    if flags[last] & SUFFIX:
        return 1
    if (code == 0x73 or code == 0x53) and last > start and (codes[last - 1] == 0x27 or codes[last - 1] == 0x2019):  # noqa: PLR1714
        return 2
    if code == 0x2B and last > start and flags[last - 1] & DIGIT:
        return 1
    return _unit_chars(codes, flags, start, end, units)


@numba.njit(cache=True)
def _infix_chars(codes: np.ndarray, flags: np.ndarray, start: int, end: int, i: int) -> int:
    """Return the length of an infix that begins at `i`, or 0."""
    code = codes[i]
    if code == 0x2E:
        stop = i
        while stop < end and codes[stop] == 0x2E:
            stop += 1
        if stop - i >= 2:
            return stop - i
        inside = i > start and i + 1 < end
        return 1 if inside and flags[i - 1] & (LOWER | QUOTE) and flags[i + 1] & (UPPER | QUOTE) else 0
    if code == 0x2026 or flags[i] & ICON:
        return 1
    if i == start or i + 1 >= end:
        return 0
    before, after = flags[i - 1], flags[i + 1]
    if before & DIGIT and (after & DIGIT or codes[i + 1] == 0x2D) and code in (0x2B, 0x2D, 0x2A, 0x5E):
        return 1
    if code == 0x2C:
        return 1 if before & ALPHA and after & ALPHA else 0
    if not before & (ALPHA | DIGIT):
        return 0
    if code == 0x2D or code == 0x2014:  # noqa: PLR1714
        size, most = 1, 3 if code == 0x2D else 2
        while size < most and i + size < end and codes[i + size] == code:
            size += 1
        return size if i + size < end and flags[i + size] & ALPHA else 0
    joins = code in (0x2013, 0x7E, 0x3A, 0x3C, 0x3E, 0x3D, 0x2F)
    return 1 if joins and after & ALPHA else 0


@numba.njit(cache=True)
def _attach(
    codes: np.ndarray, flags: np.ndarray, start: int, end: int, specials: np.ndarray, ends: np.ndarray, count: int
) -> int:
    """Write the ends of the tokens of a string without prefixes and suffixes; return the new number of tokens."""
    slot = _lookup(codes, start, end, specials)
    if slot >= 0:
        parts = specials[slot, 1]
        while parts != np.uint64(0):
            ends[count] = start + np.int64(parts & np.uint64(0xFF))
            parts >>= np.uint64(8)
            count += 1
    elif not is_address(codes, flags, start, end):
        i, begin = start, start
        while i < end:
            size = 0 if flags[i] & LETTER else _infix_chars(codes, flags, start, end, i)
            if size == 0 or i == start:  # an infix at the very start is passed over
                i += max(size, 1)
                continue
            if i > begin:
                ends[count] = i
                count += 1
            i += size
            ends[count] = i
            count += 1
            begin = i
        if begin == end:
            return count
    ends[count] = end
    return count + 1


@numba.njit(cache=True)
def _split_piece(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned arrays)
    codes: np.ndarray, flags: np.ndarray, start: int, end: int, specials: np.ndarray, units: np.ndarray,
    ends: np.ndarray, count: int,
) -> int:  # fmt: skip
    """Write the ends of the tokens of one piece between white space; return the new number of tokens."""
    first, last, size = start, end, -1
    back: int = len(ends)  # suffixes are met from the back: their ends wait at the back of the array
    while last > first and last - first != size and _lookup(codes, first, last, specials) < 0:
        size = last - first
        prefix = _prefix_chars(codes, flags, first, last)
        if prefix and _lookup(codes, first + prefix, last, specials) >= 0:
            ends[count] = first + prefix
            count += 1
            first += prefix
            break
        suffix = _suffix_chars(codes, flags, first + prefix, last, units)
        whole = suffix and _lookup(codes, first, last - suffix, specials) >= 0
        if prefix and not whole:
            ends[count] = first + prefix
            count += 1
            first += prefix
        if suffix:
            back -= 1
            ends[back] = last
            last -= suffix
        if whole:
            break
    if last > first:
        count = _attach(codes, flags, first, last, specials, ends, count)
    for i in range(back, len(ends)):
        ends[count] = ends[i]
        count += 1
    return count


@numba.njit(cache=True)
def _merged(codes: np.ndarray, start: int, specials: np.ndarray, ends: np.ndarray, first: int, count: int) -> int:
    """Join neighbours among ``ends[first:count]`` (a piece from `start` on) that make up a listed string."""
    kept, i, begin = first, first, start
    # one blank is no token, so a run of quotes goes on behind it
    in_run = first > 0 and ends[first - 1] == start - 1 and codes[start - 1] == 0x20
    in_run = in_run and codes[start - 2] == codes[start] and (codes[start] == 0x27 or codes[start] == 0x2019)
    while i < count:
        joined = i
        for j in range(min(i + 5, count) - 1, i, -1):
            slot = _lookup(codes, begin, ends[j], specials) if ends[j] - begin <= 5 else -1
            if slot >= 0 and in_run and codes[ends[j] - 1] == codes[begin]:
                slot = -1  # of a run of quotes spaCy's matcher joins the first two only
            if slot >= 0 and specials[slot, 1] == np.uint64(0):
                joined = j
                break
        quote = ends[joined] - begin <= 2 and (codes[begin] == 0x27 or codes[begin] == 0x2019)
        in_run = quote and (joined > i or ends[joined] - begin == 1)
        begin = ends[joined]
        ends[kept] = begin
        kept += 1
        i = joined + 1
    return kept


@numba.njit(cache=True, nogil=True)
def split_datatrove_words(
    codes: np.ndarray, flags: np.ndarray, num_chars: int, specials: np.ndarray, units: np.ndarray,
    starts: np.ndarray, ends: np.ndarray,
) -> int:  # fmt: skip
    """Split a document into tokens; return their number.

    Args:
        codes: int32, code points, as `decode_document` writes them.
        flags: uint16, their flags.
        num_chars: how many there are.
        specials: `datatrove_specials.special_table`.
        units: `unit_table`.
        starts: int32 output, room for `num_chars` entries: first character of each token.
        ends: int32 output, room for twice as many and one: one past its last character.
    """
    count, i = 0, 0
    while i < num_chars:
        if flags[i] & SPACE:
            i += 1
            continue
        start, marks = i, False
        while i < num_chars and not flags[i] & SPACE:
            marks = marks or not flags[i] & LETTER
            i += 1
        first = count
        if not marks and i - start > MAX_SPECIAL_CHARS:
            ends[count] = i
            count += 1
        else:
            count = _split_piece(codes, flags, start, i, specials, units, ends[: count + 2 * (i - start) + 2], count)
            if count - first > 1:
                count = _merged(codes, start, specials, ends, first, count)
        begin = start
        for token in range(first, count):
            starts[token] = begin
            begin = ends[token]
    return count
