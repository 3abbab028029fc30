"""Figures over words: lengths, letters, stop words, phrases, and the hash of each word for n-grams."""

from __future__ import annotations

import numba
import numpy as np

from refinery.hashing import hash_bytes, load_uint64, splitmix64
from refinery.kernels.char_classes import ALPHA, HAN, STOP_ZH, class_of, decode
from refinery.kernels.signals_catalog import Count
from refinery.kernels.wide import short_bytes

_SEED = np.uint64(0x776F7264)
_SPREAD = np.uint64(0xC42DDDC22F41F7CD)
"""Found by trying: the high three bits of its products with the eight English stop words are all different."""
_STOP_WORDS = np.array(
    sorted(
        (int.from_bytes(word, "little") for word in b"the be to of and that have with".split()),
        key=lambda word: word * int(_SPREAD) % (1 << 64),
    ),
    dtype=np.uint64,
)
_S56, _S61 = np.uint64(56), np.uint64(61)
_THREE, _LOWER = np.uint64(0xFFFFFF), np.uint64(0x202020)
_IPS, _USE, _POL, _COO = (np.uint64(int.from_bytes(word, "little")) for word in (b"ips", b"use", b"pol", b"coo"))
"""The first letters of the words that end a phrase."""
_JAVASCRIPT = b"javascript"
_LOREM = b"lorem ipsum"
_PRIVACY_POLICY, _COOKIE_POLICY, _TERMS_OF_USE = b"privacy policy", b"cookie policy", b"terms of use"
_USES_COOKIES, _USE_OF_COOKIES, _USE_COOKIES = b"uses cookies", b"use of cookies", b"use cookies"


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


@numba.njit(cache=True)
def _phrase(data: np.ndarray, doc_start: int, start: int, length: int) -> int:
    """Return what phrases that end in this word say, as bits: 1 lorem ipsum, 2 javascript, 4 a policy.

    Phrases are substrings: the last word of a phrase need only begin with the phrase's last word, the first need only
    end with the phrase's first.
    """
    letter, found = data[start] | 0x20, 0
    if letter == 0x69 and length >= 5 and _ends_with(data, doc_start, start + 5, _LOREM):
        found = 1
    if letter == 0x75 and length >= 3 and _ends_with(data, doc_start, start + 3, _TERMS_OF_USE):
        found = 4
    if letter == 0x70 and length >= 6:
        stop = start + 6
        if _ends_with(data, doc_start, stop, _PRIVACY_POLICY) or _ends_with(data, doc_start, stop, _COOKIE_POLICY):
            found = 4
    if letter == 0x63 and length >= 7:
        stop = start + 7
        if (
            _ends_with(data, doc_start, stop, _USES_COOKIES)
            or _ends_with(data, doc_start, stop, _USE_OF_COOKIES)
            or _ends_with(data, doc_start, stop, _USE_COOKIES)
        ):
            found = 4
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
            eight = short_bytes(data, first, length)
            keys[w] = splitmix64(eight | (np.uint64(length) << _S56))
        else:
            eight = load_uint64(data, first)
            keys[w] = hash_bytes(data, first, last, _SEED)
        char_ends[w + 1] = char_ends[w] + num_chars[w]
        alpha += kinds[w] & ALPHA != 0
        slot = (eight * _SPREAD) >> _S61  # no jumps on lengths or letters: none can be foretold
        bits_en |= (_STOP_WORDS[slot] == eight) << np.int64(slot)
        if kinds[w] & HAN and num_chars[w] == 1:
            code, _ = decode(data, first, last)
            if class_of(classes, code) & STOP_ZH:
                bits_zh |= _zh_bit(code, stop_zh)
        three = (eight & _THREE) | _LOWER
        if not (three == _IPS) | (three == _USE) | (three == _POL) | (three == _COO) | (length >= 10):
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
