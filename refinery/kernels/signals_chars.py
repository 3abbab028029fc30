"""Figures over characters: one decoding pass that fills a histogram and counts sentences."""

from __future__ import annotations

import numba
import numpy as np

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
    distinct, chars = 0, 0
    sentences, ellipses, dots = 0, 0, 0
    pending, is_open = 0, False
    i = start
    while i < end:
        code, width = decode(data, i, end)
        i += width
        if code >= 0x80 and histogram[code] == 0:
            seen[distinct] = code
            distinct += 1
        chars += 1
        histogram[code] += 1
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
            while i < end and data[i] < 0x80 and classes[data[i]] & ALPHA:  # the body of an ASCII word
                histogram[data[i]] += 1
                chars += 1
                i += 1
    row[Count.BYTES] = end - start
    row[Count.CHARS] = chars
    row[Count.SENTENCES] = sentences + 1 if is_open else sentences
    row[Count.ELLIPSES] = ellipses + histogram[0x2026]
    for code in range(0x80):  # ASCII is not tracked one by one: a fixed sweep costs less than a test per character
        if histogram[code]:
            seen[distinct] = code
            distinct += 1
    _sum_histogram(classes, histogram, seen[:distinct], chars, row)


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
