r"""Words as datatrove counts them in English: the tokens of ``spacy.blank("en")``, punctuation marks among them.

Only the presets that reproduce datatrove's decisions use these; everything else counts `kernels.words`. The method is
spaCy's: text is cut at white space; from each piece, marks are taken off the front and the back until nothing changes
or the rest is in a list (`datatrove_specials`); the rest stays whole if it looks like an address, and is cut at infixes
otherwise; at last, neighbours that make up a listed string (``8`` and ``)``) become one token.

Where it leaves spaCy: letters are told by Unicode category instead of by its lists of scripts, units of measurement
are the Latin ones, and rare smileys are missing. `benchmarks/rules_agreement.py` counts what that does to decisions.
"""

from __future__ import annotations

import functools
import unicodedata

import numba
import numpy as np

from refinery.kernels.char_classes import decode
from refinery.kernels.datatrove_specials import MAX_SPECIAL_CHARS

SPACE, PREFIX, SUFFIX, ALPHA, LOWER, UPPER, QUOTE, BEFORE_STOP = (1 << bit for bit in range(8))
ICON, CURRENCY, DIGIT, HOST, LETTER, MARK = (1 << bit for bit in range(8, 14))
"""Flags of a code point; LETTER is ``str.isalpha``, MARK is in datatrove's PUNCTUATION_SET."""

_PUNCT = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼₴₿" + "".join(map(chr, range(0x20A0, 0x20BF)))
_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
"""datatrove's PUNCTUATION, whose further members are control characters and terminal punctuation of all scripts."""
_NUM_CODES = 0x20000
_UNITS = (
    "km m dm cm mm ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % "
    "km² km³ m² m³ dm² dm³ cm² cm³ mm² mm³"
).split()
_UNIT_CHARS = 4


@functools.cache
def datatrove_classes() -> np.ndarray:
    """Return the flags of every code point below 0x20000: uint16, read-only, the same array on every call."""
    # imported here: the terminal punctuation of datatrove is the property that char_classes holds
    from refinery.kernels.char_classes import TERMINAL, class_table  # noqa: PLC0415

    table = np.zeros(_NUM_CODES, dtype=np.uint16)
    for code in range(_NUM_CODES):
        char = chr(code)
        category = unicodedata.category(char)
        flags = SPACE if char.isspace() else 0
        flags |= LETTER if char.isalpha() else 0
        if category in ("Ll", "Lo"):
            flags |= ALPHA | LOWER
        if category in ("Lu", "Lo"):
            flags |= ALPHA | UPPER
        if category == "So":
            flags |= ICON | PREFIX | SUFFIX
        if category == "Cc":
            flags |= MARK
        if char.isascii() and char.isalnum() or 0xA1 <= code <= 0xFFFF:
            flags |= HOST
        table[code] = flags
    for chars, flags in (
        (_PUNCT + _QUOTES + "—–", PREFIX | SUFFIX), ("§%=" + _CURRENCY, PREFIX), (_CURRENCY, CURRENCY),
        (_QUOTES, QUOTE), (_PUNCT + _QUOTES + "%²-+|?:().", BEFORE_STOP), ("0123456789", DIGIT), (_MARKS, MARK),
    ):  # fmt: skip
        table[[ord(char) for char in chars]] |= np.uint16(flags)
    table[ord(".")] &= ~np.uint16(BEFORE_STOP)
    table[(class_table()[:_NUM_CODES] & TERMINAL) != 0] |= np.uint16(MARK)
    table.flags.writeable = False
    return table


@functools.cache
def unit_table() -> np.ndarray:
    """Return the units of measurement as code points: int32, shape (units, 4), padded with 0, read-only."""
    table = np.zeros((len(_UNITS), _UNIT_CHARS), dtype=np.int32)
    for row, unit in enumerate(_UNITS):
        table[row, : len(unit)] = [ord(char) for char in unit]
    table.flags.writeable = False
    return table


@numba.njit(cache=True, nogil=True)
def decode_document(
    data: np.ndarray, start: int, end: int, classes: np.ndarray, codes: np.ndarray, flags: np.ndarray
) -> int:
    """Write the code points (int32) and flags (uint16) of ``data[start:end]``; return how many there are."""
    count, i = 0, start
    while i < end:
        code, width = np.int64(data[i]), 1
        if code >= 0x80:
            code, width = decode(data, i, end)
        codes[count] = code
        flags[count] = classes[code] if code < len(classes) else 0
        count += 1
        i += width
    return count


@numba.njit(cache=True)
def _lookup(codes: np.ndarray, start: int, end: int, specials: np.ndarray) -> int:
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
    for size in range(_UNIT_CHARS, 0, -1):
        first = end - size
        if first <= start or not flags[first - 1] & DIGIT:
            continue
        for unit in units:
            if size < _UNIT_CHARS and unit[size] != 0:
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
        return 1 if before & UPPER and last - 2 >= start and flags[last - 2] & UPPER else 0
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
    if before & DIGIT and (code == 0x2B or code == 0x2D or code == 0x2A or code == 0x5E):  # noqa: PLR1714
        if after & DIGIT or codes[i + 1] == 0x2D:
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
    joins = code == 0x2013 or code == 0x7E or code == 0x3A or code == 0x3C or code == 0x3E or code == 0x3D or code == 0x2F  # noqa: PLR1714
    return 1 if joins and after & ALPHA else 0


@numba.njit(cache=True)
def _is_host(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> bool:
    """Whether the string is a host name (or a routable IPv4 address), with a port and a path or without."""
    stop, dot = start, -1
    while stop < end and (flags[stop] & HOST or codes[stop] == 0x2E or codes[stop] == 0x2D or codes[stop] == 0x5F):  # noqa: PLR1714
        if codes[stop] == 0x2E:
            dot = stop
        stop += 1
    if dot <= start:
        return False
    rest = stop
    if rest < end and codes[rest] == 0x3A:
        rest += 1
        while rest < end and flags[rest] & DIGIT:
            rest += 1
        if not 2 <= rest - stop - 1 <= 5:
            return False
    if rest < end and codes[rest] != 0x2F and codes[rest] != 0x3F and codes[rest] != 0x23:  # noqa: PLR1714
        return False
    label = start
    for i in range(start, dot + 1):
        if codes[i] == 0x2E:
            if i == label or i - label > 64 or not flags[label] & HOST or not flags[i - 1] & HOST:
                return False
            label = i + 1
    if not 2 <= stop - dot - 1 <= 63:
        return _is_ipv4(codes, flags, start, stop)
    for i in range(dot + 1, stop):
        if not flags[i] & LOWER:
            return _is_ipv4(codes, flags, start, stop)
    return True


@numba.njit(cache=True)
def _is_ipv4(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> bool:
    part, parts, first, second = -1, 0, 0, 0
    for i in range(start, end + 1):
        if i == end or codes[i] == 0x2E:
            if not 0 <= part <= 255:
                return False
            first = part if parts == 0 else first
            second = part if parts == 1 else second
            parts, part = parts + 1, -1
        elif flags[i] & DIGIT:
            part = max(part, 0) * 10 + codes[i] - 0x30
        else:
            return False
    private = first == 10 or first == 127 or (first == 169 and second == 254) or (first == 192 and second == 168)  # noqa: PLR1714
    private = private or (first == 172 and 16 <= second <= 31)
    return parts == 4 and 1 <= first <= 223 and not private


@numba.njit(cache=True)
def _is_address(codes: np.ndarray, flags: np.ndarray, start: int, end: int) -> bool:
    """Whether the string is a URL, a host name or a mail address, which stay whole."""
    host, has_dot, scheme = start, False, True
    for i in range(start, end):
        has_dot = has_dot or codes[i] == 0x2E
        if scheme and not flags[i] & (LETTER | DIGIT):
            if codes[i] == 0x3A and i + 2 < end and codes[i + 1] == 0x2F and codes[i + 2] == 0x2F and i - start >= 2:
                host = i + 3
            scheme = codes[i] == 0x2B or codes[i] == 0x2D or codes[i] == 0x2E or codes[i] == 0x5F  # noqa: PLR1714
    if not has_dot:
        return False
    if _is_host(codes, flags, host, end) or (host > start and _is_host(codes, flags, start, end)):
        return True
    for i in range(end - 1, host, -1):
        if codes[i] == 0x40 and _is_host(codes, flags, i + 1, end):
            return True
    return False


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
    elif not _is_address(codes, flags, start, end):
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
def _merged(
    codes: np.ndarray, start: int, specials: np.ndarray, ends: np.ndarray, first: int, count: int
) -> int:
    """Join neighbours among ``ends[first:count]`` (a piece from `start` on) that make up a listed string."""
    kept, i, begin, in_run = first, first, start, False
    while i < count:
        joined = i
        for j in range(min(i + 5, count) - 1, i, -1):
            slot = _lookup(codes, begin, ends[j], specials) if ends[j] - begin <= 5 else -1
            if slot >= 0 and in_run and codes[ends[j] - 1] == codes[begin]:
                slot = -1  # of a run of quotes spaCy's matcher joins the first two only
            if slot >= 0 and specials[slot, 1] == np.uint64(0):
                joined = j
                break
        quote = ends[joined] - begin <= 2 and (codes[begin] == 0x27 or codes[begin] == 0x2019)  # noqa: PLR1714
        in_run = quote and (joined > i or ends[joined] - begin == 1)
        begin = ends[joined]
        ends[kept] = begin
        kept += 1
        i = joined + 1
    return kept


@numba.njit(cache=True, nogil=True)
def split_datatrove_words(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned arrays)
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
