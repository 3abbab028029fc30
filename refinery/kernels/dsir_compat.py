r"""The features of ``data-selection`` 1.0.3, for whoever must reproduce a selection made with it.

Text is lower-cased as a whole (`str.lower`), tokens are the matches of ``\w+|[^\w\s]+``, n-grams are tokens and pairs
of neighbours joined by one blank, and the bucket is the sha256 of the n-gram as one big number, modulo `num_buckets`.
Counts, the ratio (`dsir.fit_log_ratio`) and the sums then are the library's. For Chinese that splitter makes a whole
unbroken run one token; `ngrams` is the better choice wherever nothing has to be reproduced.

sha256 is FIPS 180-4; here it runs inside the compiled scan, without a Python object per n-gram.

Shape legend: D documents, B buckets.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections import Counter

import numba
import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.char_classes import decode
from refinery.kernels.ngrams import WeightSums
from refinery.kernels.text import TextViews, views_of

FORMAT_VERSION = 1
MAX_BUCKETS = 2**24

_TOKEN = re.compile(r"\w+|[^\w\s]+")
_BREAK, _WORD, _SYMBOL = 0, 1, 2
_NUM_CODE_POINTS = 0x110000
_PADDING_BYTES = 72

_K = np.array([
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
], dtype=np.uint32)  # fmt: skip
_INITIAL = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], dtype=np.uint32
)


def bucket_counts(views: TextViews, num_buckets: int = 10_000) -> np.ndarray:
    """Count the n-grams of all documents together; counts of several batches add up.

    Args:
        views: D documents.
        num_buckets: B.
    Returns: int64, shape (B,).

    Raises:
        ConfigError: `num_buckets` is out of bounds.
    """
    if not 2 <= num_buckets <= MAX_BUCKETS:
        raise ConfigError(f"num_buckets is {num_buckets}, outside 2..{MAX_BUCKETS}; the library's value is 10000")
    lowered = _lowered(views)
    counts = np.zeros(num_buckets, dtype=np.int64)
    nothing = np.empty(0, dtype=np.float64)
    _scan(lowered.offsets, lowered.data, token_kinds(), counts, nothing, nothing, np.empty(0, dtype=np.int64))
    return counts


def weight_sums(views: TextViews, table_B: np.ndarray) -> WeightSums:
    """Sum a table's entries over the n-grams of each document; see `ngrams.weight_sums`.

    Raises:
        SchemaError: the table is not a float64 vector.
    """
    if table_B.dtype != np.float64 or table_B.ndim != 1 or len(table_B) < 2:
        raise SchemaError(
            f"a bucket table must be float64 of shape (buckets,), not {table_B.dtype} of shape {table_B.shape}"
        )
    lowered = _lowered(views)
    sums = np.zeros(views.num_docs, dtype=np.float64)
    num_words = np.zeros(views.num_docs, dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    _scan(lowered.offsets, lowered.data, token_kinds(), nothing, np.ascontiguousarray(table_B), sums, num_words)
    return WeightSums(sums, num_words)


def bucket_words(
    views: TextViews, buckets: np.ndarray, num_buckets: int = 10_000, top: int = 3
) -> dict[int, list[tuple[str, int]]]:
    """Name buckets by the n-grams of a sample that fall into them; see `ngrams.bucket_words`. Plain Python: 1 MB/s."""
    counters: dict[int, Counter[str]] = {int(bucket): Counter() for bucket in buckets}
    for index in range(views.num_docs):
        tokens = _TOKEN.findall(views.doc(index).lower())
        for ngram in (*tokens, *(f"{a} {b}" for a, b in itertools.pairwise(tokens))):
            bucket = int.from_bytes(hashlib.sha256(ngram.encode("utf-8", "replace")).digest(), "big") % num_buckets
            if bucket in counters:
                counters[bucket][ngram] += 1
    return {b: sorted(c.items(), key=lambda item: (-item[1], item[0]))[:top] for b, c in counters.items()}


@functools.cache
def token_kinds() -> np.ndarray:
    r"""Return uint8, shape (0x110000,): 1 where ``\w`` matches, 2 where neither it nor ``\s`` does. About 0.3 s."""
    kinds = np.full(_NUM_CODE_POINTS, _SYMBOL, dtype=np.uint8)
    every = "".join(map(chr, range(_NUM_CODE_POINTS)))
    for pattern, kind in ((r"\w+", _WORD), (r"\s+", _BREAK)):
        for found in re.finditer(pattern, every):
            kinds[found.start() : found.end()] = kind
    kinds.flags.writeable = False
    return kinds


def _lowered(views: TextViews) -> TextViews:
    return views_of([views.doc(index).lower() for index in range(views.num_docs)])


@numba.njit(cache=True, inline="always")
def _rotated(x: np.uint32, by: int) -> np.uint32:
    return np.uint32((x >> np.uint32(by)) | (x << np.uint32(32 - by)))


@numba.njit(cache=True, nogil=True)
def _compress(message: np.ndarray, at: int, constants: np.ndarray, schedule: np.ndarray, state: np.ndarray) -> None:
    """One block of sha256: ``message[at : at + 64]`` into `state` (uint32, shape (8,))."""
    for t in range(16):
        p = at + 4 * t
        schedule[t] = np.uint32(
            (np.uint32(message[p]) << np.uint32(24)) | (np.uint32(message[p + 1]) << np.uint32(16))
            | (np.uint32(message[p + 2]) << np.uint32(8)) | np.uint32(message[p + 3])
        )  # fmt: skip
    for t in range(16, 64):
        x, y = schedule[t - 15], schedule[t - 2]
        low = np.uint32(_rotated(x, 7) ^ _rotated(x, 18) ^ np.uint32(x >> np.uint32(3)))
        high = np.uint32(_rotated(y, 17) ^ _rotated(y, 19) ^ np.uint32(y >> np.uint32(10)))
        schedule[t] = np.uint32(schedule[t - 16] + low + schedule[t - 7] + high)
    a, b, c, d = state[0], state[1], state[2], state[3]
    e, f, g, h = state[4], state[5], state[6], state[7]
    for t in range(64):
        big = np.uint32(_rotated(e, 6) ^ _rotated(e, 11) ^ _rotated(e, 25))
        first = np.uint32(h + big + np.uint32((e & f) ^ (~e & g)) + constants[t] + schedule[t])
        big = np.uint32(_rotated(a, 2) ^ _rotated(a, 13) ^ _rotated(a, 22))
        second = np.uint32(big + np.uint32((a & b) ^ (a & c) ^ (b & c)))
        h, g, f = g, f, e
        e = np.uint32(d + first)
        d, c, b = c, b, a
        a = np.uint32(first + second)
    state[0] = np.uint32(state[0] + a)
    state[1] = np.uint32(state[1] + b)
    state[2] = np.uint32(state[2] + c)
    state[3] = np.uint32(state[3] + d)
    state[4] = np.uint32(state[4] + e)
    state[5] = np.uint32(state[5] + f)
    state[6] = np.uint32(state[6] + g)
    state[7] = np.uint32(state[7] + h)


@numba.njit(cache=True, nogil=True)
def _bucket(
    message: np.ndarray, length: int, size: np.uint64, constants: np.ndarray, schedule: np.ndarray, state: np.ndarray
) -> np.int64:
    """Return sha256(message[:length]) modulo `size`; `message` has room for the padding, which is written."""
    total = ((length + 8) // 64 + 1) * 64
    message[length] = 0x80
    message[length + 1 : total - 8] = 0
    bits = np.uint64(length) * np.uint64(8)
    for i in range(8):
        message[total - 1 - i] = (bits >> np.uint64(8 * i)) & np.uint64(0xFF)
    state[:] = _INITIAL
    for at in range(0, total, 64):
        _compress(message, at, constants, schedule, state)
    rest = np.uint64(0)
    for k in range(8):
        rest = ((rest << np.uint64(32)) | np.uint64(state[k])) % size
    return np.int64(rest)


@numba.njit(cache=True, nogil=True)
def _scan(
    offsets: np.ndarray,
    data: np.ndarray,
    kinds: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    num_words: np.ndarray,
) -> None:
    """Add to `counts`, or, where that is empty, sum `weights` per document."""
    counting = len(counts) > 0
    size = np.uint64(len(counts) if counting else len(weights))
    longest = 0
    for doc in range(len(offsets) - 1):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    pair = np.empty(longest + 1 + _PADDING_BYTES + 64, dtype=np.uint8)
    single = np.empty(longest + _PADDING_BYTES + 64, dtype=np.uint8)
    constants, schedule, state = _K, np.empty(64, dtype=np.uint32), np.empty(8, dtype=np.uint32)
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        before, words, total = 0, 0, 0.0
        while position < end:
            code, width = decode(data, position, end)
            kind = kinds[code]
            start = position
            position += width
            if kind == _BREAK:
                continue
            while position < end:
                code, width = decode(data, position, end)
                if kinds[code] != kind:
                    break
                position += width
            length = position - start
            single[:length] = data[start:position]
            bucket = _bucket(single, length, size, constants, schedule, state)
            if words > 0:
                pair[before] = 0x20
                pair[before + 1 : before + 1 + length] = data[start:position]
                both = _bucket(pair, before + 1 + length, size, constants, schedule, state)
                if counting:
                    counts[both] += 1
                else:
                    total += weights[both]
            if counting:
                counts[bucket] += 1
            else:
                total += weights[bucket]
            pair[:length] = data[start:position]
            before = length
            words += 1
        if not counting:
            sums[doc], num_words[doc] = total, words
