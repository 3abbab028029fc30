"""Character classes over code points, and UTF-8 decoding for compiled kernels.

A class is a uint16 of flags, looked up in one table. The table comes from the interpreter's `unicodedata` (categories)
and from block ranges (scripts), is built once per process and costs about 0.1 s and 1.8 MB.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import numba
import numpy as np

ALPHA = 1 << 0
"""General category L*: what `str.isalpha` calls a letter; Han and kana included."""
NUMBER = 1 << 1
"""General category N*."""
MARK = 1 << 2
"""General category M*: combining marks and variation selectors."""
HAN = 1 << 3
"""Ideographs, with the iteration mark U+3005 and the zero U+3007."""
KANA = 1 << 4
"""Hiragana and katakana letters, half-width forms and the long-vowel mark included."""
DIGIT = 1 << 5
"""General category Nd: decimal digits of any script."""
UPPER = 1 << 6
"""General category Lu."""
LATIN = 1 << 7
"""Letters of the Latin script."""
SPACE = 1 << 8
"""`str.isspace`."""
PUNCT = 1 << 9
"""General categories P* and S*."""
FULLWIDTH = 1 << 10
"""Punctuation and symbols of the CJK, vertical-form and full-width blocks."""
TERMINAL = 1 << 11
"""Unicode property Sentence_Terminal (STerm)."""
CLOSER = 1 << 12
"""Closing quotes and brackets that may stand between a sentence's terminal and the space after it."""
STOP_ZH = 1 << 13
"""A stop word of FineWeb-2's Chinese configuration (all of them are single characters)."""

WORD = ALPHA | NUMBER | MARK
IDEOGRAPHIC = HAN | KANA

STOP_WORDS_ZH = "的和在是了年月为有日中人被也而為由後於與他·"
"""FineWeb-2 `cmn_Hani.yml`: 22 entries, · among them, the most frequent first."""

TABLE_SIZE = 0xE0200
"""Code points from here on (unassigned, private use) have class 0."""

REPLACEMENT = 0xFFFD

_HAN_RANGES = (
    (0x3005, 0x3005), (0x3007, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAD9), (0x20000, 0x2FA1D), (0x30000, 0x323AF),
)  # fmt: skip
_KANA_RANGES = ((0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF),
                (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F))  # fmt: skip
_LATIN_RANGES = ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0x2AF), (0x1D00, 0x1D25),
                 (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA722, 0xA7FF), (0xAB30, 0xAB64), (0xFF21, 0xFF3A),
                 (0xFF41, 0xFF5A))  # fmt: skip
_FULLWIDTH_RANGES = ((0x3000, 0x303F), (0xFE10, 0xFE1F), (0xFE30, 0xFE6F), (0xFF00, 0xFFEF))
# Unicode 16 PropList.txt, Sentence_Terminal, without U+2024 (one dot leader: a piece of an ellipsis).
_TERMINAL_RANGES = (
    (0x21, 0x21), (0x2E, 0x2E), (0x3F, 0x3F), (0x589, 0x589), (0x61D, 0x61F), (0x6D4, 0x6D4), (0x700, 0x702),
    (0x7F9, 0x7F9), (0x837, 0x837), (0x839, 0x839), (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B),
    (0x1362, 0x1362), (0x1367, 0x1368), (0x166E, 0x166E), (0x1735, 0x1736), (0x17D4, 0x17D5), (0x1803, 0x1803),
    (0x1809, 0x1809), (0x1944, 0x1945), (0x1AA8, 0x1AAB), (0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F), (0x1B7D, 0x1B7F),
    (0x1C3B, 0x1C3C), (0x1C7E, 0x1C7F), (0x203C, 0x203D), (0x2047, 0x2049), (0x2CF9, 0x2CFB), (0x2E2E, 0x2E2E),
    (0x2E3C, 0x2E3C), (0x2E53, 0x2E54), (0x3002, 0x3002), (0xA4FF, 0xA4FF), (0xA60E, 0xA60F), (0xA6F3, 0xA6F3),
    (0xA6F7, 0xA6F7), (0xA876, 0xA877), (0xA8CE, 0xA8CF), (0xA92F, 0xA92F), (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F),
    (0xAAF0, 0xAAF1), (0xABEB, 0xABEB), (0xFE12, 0xFE12), (0xFE15, 0xFE16), (0xFE52, 0xFE52), (0xFE56, 0xFE57),
    (0xFF01, 0xFF01), (0xFF0E, 0xFF0E), (0xFF1F, 0xFF1F), (0xFF61, 0xFF61),
)  # fmt: skip
_CLOSERS = "\"')]}»’”」』）】〉》］〕〗"
_SCRIPT_RANGES = ((_HAN_RANGES, HAN), (_KANA_RANGES, KANA), (_LATIN_RANGES, LATIN))


@functools.cache
def class_table() -> np.ndarray:
    """Return the flags of every code point below `TABLE_SIZE`: uint16, read-only, the same array on every call."""
    table = np.zeros(TABLE_SIZE, dtype=np.uint16)
    table[:0x20000] = [_category_flags(chr(code)) for code in range(0x20000)]
    table[0x20000:0x2FA1E] = ALPHA  # the two ideographic planes hold letters only
    table[0x30000:0x323B0] = ALPHA
    table[0xE0100:0xE01F0] = MARK  # variation selectors of ideographs
    for ranges, flag in _SCRIPT_RANGES:
        for first, last in ranges:
            block = table[first : last + 1]
            block[(block & (ALPHA | NUMBER)) != 0] |= np.uint16(flag)
    for first, last in _FULLWIDTH_RANGES:
        block = table[first : last + 1]
        block[(block & PUNCT) != 0] |= np.uint16(FULLWIDTH)
    for first, last in _TERMINAL_RANGES:
        table[first : last + 1] |= np.uint16(TERMINAL)
    for chars, flag in ((_CLOSERS, CLOSER), (STOP_WORDS_ZH, STOP_ZH)):
        table[[ord(char) for char in chars]] |= np.uint16(flag)
    table.flags.writeable = False
    return table


@functools.cache
def stop_words_zh() -> np.ndarray:
    """Return the code points of `STOP_WORDS_ZH`: int32, read-only."""
    codes = np.array([ord(char) for char in STOP_WORDS_ZH], dtype=np.int32)
    codes.flags.writeable = False
    return codes


def _category_flags(char: str) -> int:
    category = unicodedata.category(char)
    flags = {"L": ALPHA, "N": NUMBER, "M": MARK, "P": PUNCT, "S": PUNCT}.get(category[0], 0)
    if category == "Nd":
        flags |= DIGIT
    elif category == "Lu":
        flags |= UPPER
    if char.isspace():
        flags |= SPACE
    return flags


@numba.njit(cache=True)
def class_of(classes: np.ndarray, code: Any) -> Any:
    """Return the flags of one code point."""
    return np.int64(classes[code]) if code < TABLE_SIZE else np.int64(0)


@numba.njit(cache=True)
def decode_bytes(lead: Any, second: Any, third: Any, fourth: Any) -> tuple[int, int]:
    """Decode one character from its first byte and the three bytes after it (int64): (code point, width in bytes).

    Bytes that are not UTF-8 read as U+FFFD of width 1. Scalars, not an array: a helper that takes an array costs an
    atomic reference count per call in numba, measured at 10-20 ns, more than the rest of the work on a character.
    """
    if lead < 0x80:
        return lead, 1
    if 0xC2 <= lead < 0xE0 and second & 0xC0 == 0x80:
        return ((lead & 0x1F) << 6) | (second & 0x3F), 2
    if 0xE0 <= lead < 0xF0 and second & 0xC0 == 0x80 and third & 0xC0 == 0x80:
        return ((lead & 0x0F) << 12) | ((second & 0x3F) << 6) | (third & 0x3F), 3
    if 0xF0 <= lead < 0xF5 and second & 0xC0 == 0x80 and third & 0xC0 == 0x80 and fourth & 0xC0 == 0x80:
        code = ((lead & 0x07) << 18) | ((second & 0x3F) << 12) | ((third & 0x3F) << 6) | (fourth & 0x3F)
        if code <= 0x10FFFF:
            return code, 4
    return REPLACEMENT, 1


@numba.njit(cache=True)
def decode(data: np.ndarray, i: int, end: int) -> tuple[int, int]:
    """Decode the character at byte `i` < `end`: (code point, width in bytes); nothing at or after `end` is read.

    A byte missing at the end is replaced by the lead, which is no continuation: the character reads as broken.
    """
    return decode_bytes(
        np.int64(data[i]),
        np.int64(data[i + 1 * (i + 1 < end)]),
        np.int64(data[i + 2 * (i + 2 < end)]),
        np.int64(data[i + 3 * (i + 3 < end)]),
    )
