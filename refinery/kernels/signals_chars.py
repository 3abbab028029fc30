"""Figures over characters: one decoding pass that fills a histogram and counts sentences."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refinery.hashing import load_uint64
from refinery.kernels.char_classes import (
    ALPHA,
    CLOSER,
    DIGIT,
    FULLWIDTH,
    HAN,
    IDEOGRAPHIC,
    KANA,
    LATIN,
    NUMBER,
    PUNCT,
    SPACE,
    TERMINAL,
    UPPER,
    class_of,
    decode,
)
from refinery.kernels.signals_catalog import Count
from refinery.kernels.wide import HIGH_BITS, equal_bytes

_BYTE = np.uint64(0xFF)
_DOTS, _CALLS, _QUESTIONS = (np.uint64(byte * 0x0101010101010101) for byte in (0x2E, 0x21, 0x3F))


@numba.njit(cache=True, nogil=True)
def scan_chars(
    data: np.ndarray,
    start: int,
    end: int,
    classes: np.ndarray,
    histogram: np.ndarray,
    seen: np.ndarray,
    row: np.ndarray,
) -> None:
    """Count characters, sentences and ellipses of one document into `row`.

    A sentence ends at a run of terminals (property STerm) and closing quotes or brackets that begins with a terminal,
    if the run holds a full-width terminal or white space follows it; text left open at the end is one more. No
    abbreviation list: "Mr. Smith" counts two where C4's Punkt counts one.

    Scratch: `histogram` int32 over all code points, all zero before and after; `seen` int32 with room for
    ``end - start + 0x80`` entries or all code points. Output: `row` float64, indexed by `Count`.
    """
    code: Any
    distinct, chars = 0, _count_ascii(data, start, end, histogram)
    sentences, ellipses, dots, pending, is_open = 0, 0, 0, 0, False
    i = start
    while i < end:
        code, width = np.int64(data[i]), 1
        if code >= 0x80:
            code, width = decode(data, i, end)
            if histogram[code] == 0:
                seen[distinct] = code
                distinct += 1
            chars += 1
            histogram[code] += 1
        i += width
        flags = class_of(classes, code)
        if flags & TERMINAL:
            dots = dots + 1 if code == 0x2E else 0
            if dots == 3:
                ellipses += 1
                dots = 0
            pending = 2 if flags & FULLWIDTH else max(pending, 1)
            is_open = True
            continue
        dots = 0
        if pending != 0:
            if flags & CLOSER:
                continue
            if pending == 2 or flags & SPACE:
                sentences += 1
                is_open = False
            pending = 0
        if not flags & SPACE:
            is_open = True
        if is_open:  # until a terminal nothing changes
            i = _next_terminal(data, i, end, classes)
    row[Count.BYTES] = end - start
    row[Count.CHARS] = chars
    row[Count.SENTENCES] = sentences + 1 if is_open else sentences
    row[Count.ELLIPSES] = ellipses + histogram[0x2026]
    for code in range(0x80):  # ASCII is not tracked one by one: a fixed sweep costs less than a test per character
        if histogram[code]:
            seen[distinct] = code
            distinct += 1
    _sum_histogram(classes, histogram, seen[:distinct], chars, row)


@numba.njit(cache=True, inline="always")
def _next_terminal(data: np.ndarray, i: int, end: int, classes: np.ndarray) -> int:
    """Return where the next terminal or character beyond ASCII stands, or `end`; of ASCII only . ! ? are terminals."""
    if i < end and data[i] < 0x80:
        while i + 8 <= end:
            eight: np.uint64 = load_uint64(data, i)
            found = equal_bytes(eight, _DOTS) | equal_bytes(eight, _CALLS) | equal_bytes(eight, _QUESTIONS)
            if (found | eight) & HIGH_BITS:
                break
            i += 8
        while i < end and data[i] < 0x80 and not classes[data[i]] & TERMINAL:
            i += 1
    return i


@numba.njit(cache=True, nogil=True)
def _count_ascii(data: np.ndarray, start: int, end: int, histogram: np.ndarray) -> int:
    """Add the ASCII characters to `histogram`; return how many there are.

    Four tables by turns: one counter that grows twice in a row costs the wait for its own store.
    """
    chars: Any
    tables = np.zeros((4, 256), dtype=np.int32)
    first, second, third, fourth = tables[0], tables[1], tables[2], tables[3]
    i = start
    while i + 8 <= end:
        eight: np.uint64 = load_uint64(data, i)
        first[eight & _BYTE] += 1
        second[(eight >> np.uint64(8)) & _BYTE] += 1
        third[(eight >> np.uint64(16)) & _BYTE] += 1
        fourth[(eight >> np.uint64(24)) & _BYTE] += 1
        first[(eight >> np.uint64(32)) & _BYTE] += 1
        second[(eight >> np.uint64(40)) & _BYTE] += 1
        third[(eight >> np.uint64(48)) & _BYTE] += 1
        fourth[eight >> np.uint64(56)] += 1
        i += 8
    while i < end:
        first[data[i]] += 1
        i += 1
    chars = 0
    for code in range(0x80):
        count = first[code] + second[code] + third[code] + fourth[code]
        histogram[code] += count
        chars += count
    return chars


@numba.njit(cache=True, nogil=True)
def _sum_histogram(
    classes: np.ndarray, histogram: np.ndarray, seen: np.ndarray, chars: int, row: np.ndarray
) -> None:
    """Sum class counts and the entropy from the distinct characters, and clear the histogram."""
    row[Count.HASHES] = histogram[0x23]
    row[Count.BRACES] = histogram[0x7B]
    row[Count.NEWLINES] = histogram[0x0A]
    row[Count.CHARS_WITHOUT_NEWLINES] = chars - histogram[0x0A]
    row[Count.STOP_ZH] = 1 if histogram[0xB7] > 0 else 0  # the one symbol in the list
    weighted = 0.0
    spaces, alnum = 0, 0
    for code in seen:
        count = histogram[code]
        histogram[code] = 0
        weighted += count * np.log(count)
        flags = class_of(classes, code)
        if flags & SPACE:
            spaces += count
        if flags & (ALPHA | NUMBER):
            alnum += count
        if flags & HAN:
            row[Count.HAN] += count
        if flags & KANA:
            row[Count.KANA] += count
        if flags & IDEOGRAPHIC:
            row[Count.HAN_KANA] += count
        if flags & LATIN:
            row[Count.LATIN] += count
        if flags & DIGIT:
            row[Count.DIGITS] += count
        if flags & UPPER:
            row[Count.UPPER] += count
        if flags & PUNCT:
            row[Count.PUNCT] += count
        if flags & FULLWIDTH:
            row[Count.FULLWIDTH] += count
    row[Count.NONSPACE_CHARS] = chars - spaces
    row[Count.ALNUM] = alnum
    row[Count.UNIQUE_CHARS] = len(seen)
    row[Count.ENTROPY] = max(0.0, np.log(chars) - weighted / chars) if chars > 0 else 0.0
