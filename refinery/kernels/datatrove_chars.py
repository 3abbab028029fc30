"""Characters as datatrove's English splitter sees them: flags of code points, units, and documents as code points."""

from __future__ import annotations

import functools
import unicodedata

import numba
import numpy as np

from refinery.kernels.char_classes import TERMINAL, class_table, decode

SPACE, PREFIX, SUFFIX, ALPHA, LOWER, UPPER, QUOTE, BEFORE_STOP = (1 << bit for bit in range(8))
ICON, CURRENCY, DIGIT, HOST, LETTER, MARK = (1 << bit for bit in range(8, 14))
"""Flags of a code point; LETTER is ``str.isalpha``, MARK is in datatrove's PUNCTUATION_SET."""

_PUNCT = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼₴₿" + "".join(map(chr, range(0x20A0, 0x20BF)))
_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
"""datatrove's PUNCTUATION, whose further members are control characters and terminal punctuation of all scripts."""
_NUM_CODES = 0x40000
UNITS = (
    "km m dm cm mm ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G "
    "M K % km² km³ m² m³ dm² dm³ cm² cm³ mm² mm³"
)
UNIT_CHARS = 4


@functools.cache
def datatrove_classes() -> np.ndarray:
    """Return the flags of every code point below 0x40000; no letter stands above.

    uint16, read-only, the same array on every call.
    """
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
        if (char.isascii() and char.isalnum()) or 0xA1 <= code <= 0xFFFF:
            flags |= HOST
        table[code] = flags
    for chars, flags in (
        (_PUNCT + _QUOTES + "—–", PREFIX | SUFFIX), ("§%=" + _CURRENCY, PREFIX), (_CURRENCY, CURRENCY),
        (_QUOTES, QUOTE), (_PUNCT + _QUOTES + "%²-+|?:().", BEFORE_STOP), ("0123456789", DIGIT), (_MARKS, MARK),
    ):  # fmt: skip
        table[[ord(char) for char in chars]] |= np.uint16(flags)
    table[ord(".")] &= ~np.uint16(BEFORE_STOP)
    # datatrove's list of terminal punctuation is the property that char_classes holds
    table[(class_table()[:_NUM_CODES] & TERMINAL) != 0] |= np.uint16(MARK)
    table.flags.writeable = False
    return table


@functools.cache
def unit_table() -> np.ndarray:
    """Return the units of measurement as code points: int32, shape (units, 4), padded with 0, read-only."""
    table = np.zeros((len(UNITS.split()), UNIT_CHARS), dtype=np.int32)
    for row, unit in enumerate(UNITS.split()):
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
        code, width = int(data[i]), 1
        if code >= 0x80:
            code, width = decode(data, i, end)
        codes[count] = code
        flags[count] = classes[code] if code < len(classes) else 0
        count += 1
        i += width
    return count
