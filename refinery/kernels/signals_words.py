"""Figures over words: lengths, letters, stop words, phrases, and the hash of each word for n-grams."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refinery.hashing import hash_bytes, splitmix64
from refinery.kernels.char_classes import ALPHA, HAN, STOP_ZH, class_of, decode
from refinery.kernels.signals_catalog import Count
from refinery.kernels.wide import packed_bytes

_SEED = np.uint64(0x776F7264)
_THE, _BE, _TO, _OF, _AND, _THAT, _HAVE, _WITH = (
    int.from_bytes(word, "big") for word in (b"the", b"be", b"to", b"of", b"and", b"that", b"have", b"with")
)
_JAVASCRIPT = b"javascript"
_LOREM = b"lorem ipsum"
_PRIVACY_POLICY, _COOKIE_POLICY, _TERMS_OF_USE = b"privacy policy", b"cookie policy", b"terms of use"
_USES_COOKIES, _USE_OF_COOKIES, _USE_COOKIES = b"uses cookies", b"use of cookies", b"use cookies"
_PHRASE_FROM = np.array([{0x69: 5, 0x75: 3, 0x70: 6, 0x63: 7}.get(byte, 10) for byte in range(256)])
"""By first letter, lowered (i, u, p, c): the shortest word that can end a phrase; ten can be or hold "javascript"."""


@numba.njit(cache=True)
def _ends_with(data: np.ndarray, start: int, end: int, phrase: bytes) -> bool:
    """Whether ``data[start:end]``, ASCII letters lowered, ends with `phrase`."""
    if end - start < len(phrase):
        return False
    first = end - len(phrase)
    for j in range(len(phrase)):
        byte = data[first + j]
        if 0x41 <= byte <= 0x5A:
            byte |= 0x20
        if byte != phrase[j]:
            return False
    return True


@numba.njit(cache=True, inline="always")
def _stop_word_bits(packed: Any, length: int) -> int:
    """Return one bit per English stop word, 0 for any other packed word (case-sensitive); by length, without jumps."""
    if length == 2:
        return (packed == _BE) << 1 | (packed == _TO) << 2 | (packed == _OF) << 3
    if length == 3:
        return (packed == _THE) << 0 | (packed == _AND) << 4
    return (packed == _THAT) << 5 | (packed == _HAVE) << 6 | (packed == _WITH) << 7


@numba.njit(cache=True)
def _phrase(data: np.ndarray, doc_start: int, start: int, length: int) -> int:
    """Return what phrases that end in this word say, as bits: 1 lorem ipsum, 2 javascript, 4 a policy.

    Phrases are substrings: the last word of a phrase need only begin with the phrase's last word, the first need only
    end with the phrase's first. The word has at least the length that `_PHRASE_FROM` gives for its first letter.
    """
    letter, found = data[start] | 0x20, 0
    if letter == 0x69 and _ends_with(data, doc_start, start + 5, _LOREM):
        found = 1
    if letter == 0x75 and _ends_with(data, doc_start, start + 3, _TERMS_OF_USE):
        found = 4
    if letter == 0x70:
        stop = start + 6
        if _ends_with(data, doc_start, stop, _PRIVACY_POLICY) or _ends_with(data, doc_start, stop, _COOKIE_POLICY):
            found = 4
    if letter == 0x63:
        stop = start + 7
        if (
            _ends_with(data, doc_start, stop, _USES_COOKIES)
            or _ends_with(data, doc_start, stop, _USE_OF_COOKIES)
            or _ends_with(data, doc_start, stop, _USE_COOKIES)
        ):
            found = 4
    if length >= 10:
        for stop in range(start + 10, start + length + 1):
            if data[stop - 1] | 0x20 == 0x74 and _ends_with(data, doc_start, stop, _JAVASCRIPT):
                return found | 2
    return found


@numba.njit(cache=True)
def _line_end(data: np.ndarray, i: int, end: int) -> int:
    while i < end and data[i] != 0x0A:
        i += 1
    return i


@numba.njit(cache=True)
def _count_bits(bits: int) -> int:
    count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


@numba.njit(cache=True)
def _zh_bit(code: int, stop_zh: np.ndarray) -> int:
    for bit in range(len(stop_zh)):
        if stop_zh[bit] == code:
            return 1 << bit
    return 0


@numba.njit(cache=True, nogil=True)
def scan_words(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned arrays)
    data: np.ndarray,
    start: int,
    end: int,
    classes: np.ndarray,
    stop_zh: np.ndarray,
    num_words: int,
    starts: np.ndarray,
    ends: np.ndarray,
    num_chars: np.ndarray,
    kinds: np.ndarray,
    keys: np.ndarray,
    char_ends: np.ndarray,
    row: np.ndarray,
) -> None:
    """Count word figures into `row`, hash each word into `keys`, sum lengths into `char_ends`.

    Inputs are the arrays of `words.split_words`; `keys` uint64, shape (at least W,); `char_ends` int32, shape
    (at least W + 1,).
    """
    alpha, bits_en, bits_zh = 0, 0, 0
    javascript_until, policy_until = -1, -1
    char_ends[0] = 0
    for w in range(num_words):
        first, last = start + starts[w], start + ends[w]
        length = last - first
        if length < 8:  # the bytes and their number fit in the key: exact, and half the time of hash_bytes
            packed = packed_bytes(data, first, length)
            keys[w] = splitmix64(np.uint64(packed) | (np.uint64(length) << np.uint64(56)))
        else:
            packed = np.int64(0)
            keys[w] = hash_bytes(data, first, last, _SEED)
        char_ends[w + 1] = char_ends[w] + num_chars[w]
        if kinds[w] & ALPHA:
            alpha += 1
        if data[first] < 0x80:
            if 2 <= length <= 4:
                bits_en |= _stop_word_bits(packed, length)
        elif num_chars[w] == 1 and kinds[w] & HAN:
            code, _ = decode(data, first, last)
            if class_of(classes, code) & STOP_ZH:
                bits_zh |= _zh_bit(code, stop_zh)
        letter = data[first] | 0x20
        if length < _PHRASE_FROM[letter]:
            continue
        found = _phrase(data, start, first, length)
        if found & 1:
            row[Count.LOREM_IPSUM] += 1
        if found & 2 and first > javascript_until:
            row[Count.JAVASCRIPT_LINES] += 1
            javascript_until = _line_end(data, first, end)
        if found & 4 and first > policy_until:
            row[Count.POLICY_LINES] += 1
            policy_until = _line_end(data, first, end)
    row[Count.WORDS] = num_words
    row[Count.WORD_CHARS] = char_ends[num_words]
    row[Count.ALPHA_WORDS] = alpha
    row[Count.STOP_EN] = _count_bits(bits_en)
    row[Count.STOP_ZH] += _count_bits(bits_zh)
