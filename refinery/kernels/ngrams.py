r"""Hashed bags of words and word pairs: the features of importance resampling.

A document becomes its lower-cased words (`word_scan.scan_words`: punctuation separates, a character of an unspaced
script such as Han is a word) and every pair of neighbours; each goes to one of `num_buckets` buckets:

    x      = w                        for a word hash w
    x      = w_1 * M + w_2            for a pair, in uint64 with wrap-around
    bucket = (((x ^ (x >> 32)) * R) >> 32) * num_buckets >> 32

DSIR (2302.03169, section 4; its library ``data-selection`` 1.0.3) counts the same n-grams of ``\w+|[^\w\s]+`` tokens
and hashes by sha256. That splitter makes an unbroken Han run one token, and punctuation of one habit (spaces before
commas in WikiText) decides its weights; so here punctuation carries nothing and every Han character is a word, or,
with word boundaries (`segmentation`), every Chinese word is one: then the words of `preparation` are scanned.

Bags are never materialised: one pass adds counts, or sums a table's entries. Values are the same on every machine; they
follow the Unicode tables of the running Python (`word_scan.table_digest`).

Shape legend: D documents, B buckets.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.preparation import prepare
from refinery.kernels.text import TextViews
from refinery.kernels.word_scan import BLOCK_WORDS, WORD_SEED, scan_table, scan_words

FORMAT_VERSION = 1
"""Changes with any change to the formula above or to the scan."""
DEFAULT_NUM_BUCKETS = 10_000
"""As in DSIR."""

_M = np.uint64(0xA0761D6478BD642F)
_R = np.uint64(0xE7037ED1A0B428DB)
_S32 = np.uint64(32)
_BREAK, _WORD, _SINGLE, _MARK = range(4)  # kinds in the scan table's top byte


class WeightSums(NamedTuple):
    """Sums of a bucket table over the n-grams of D documents."""

    sums: np.ndarray
    """float64, shape (D,)."""
    num_words: np.ndarray
    """int64, shape (D,): a document of w words has 2w - 1 n-grams (none without words)."""


def bucket_counts(
    views: TextViews, num_buckets: int = DEFAULT_NUM_BUCKETS, boundaries: np.ndarray | None = None
) -> np.ndarray:
    """Count the words and word pairs of all documents together; counts of several batches add up.

    Args:
        views: D documents.
        num_buckets: B.
        boundaries: word boundaries of the text, as `words.word_spans` takes; None: a Han character is a word.
    Returns: int64, shape (B,).

    Raises:
        ConfigError: `num_buckets` is out of bounds.
    """
    if not 2 <= num_buckets <= 2**24:
        raise ConfigError(f"num_buckets is {num_buckets}, outside 2..{2**24}; DSIR's value is {DEFAULT_NUM_BUCKETS}")
    counts = np.zeros(num_buckets, dtype=np.int64)
    views, table = _scanned(views, boundaries)
    _count(views.offsets, views.data, table, counts)
    return counts


def weight_sums(views: TextViews, table_B: np.ndarray, boundaries: np.ndarray | None = None) -> WeightSums:
    """Sum a table's entries over the words and word pairs of each document.

    The order of addition is fixed by the document alone, so sums are equal for any batch and any machine.

    Args:
        views: D documents.
        table_B: float64, shape (B,): one value per bucket.
        boundaries: as in `bucket_counts`.
    Returns: see `WeightSums`.

    Raises:
        SchemaError: the table is not a float64 vector.
    """
    if table_B.dtype != np.float64 or table_B.ndim != 1 or len(table_B) < 2:
        raise SchemaError(
            f"a bucket table must be float64 of shape (buckets,), not {table_B.dtype} of shape {table_B.shape}"
        )
    sums = np.zeros(views.num_docs, dtype=np.float64)
    num_words = np.zeros(views.num_docs, dtype=np.int64)
    views, table = _scanned(views, boundaries)
    _sum(views.offsets, views.data, table, np.ascontiguousarray(table_B), sums, num_words)
    return WeightSums(sums, num_words)


def bucket_words(
    views: TextViews,
    buckets: np.ndarray,
    num_buckets: int = DEFAULT_NUM_BUCKETS,
    top: int = 3,
    boundaries: np.ndarray | None = None,
) -> dict[int, list[tuple[str, int]]]:
    """Name buckets by the n-grams of a sample that fall into them, the most frequent first.

    For reports: a few megabytes of sample are read at scanning speed, but each hit costs a microsecond of Python.

    Args:
        views: the sample.
        buckets: int, the buckets to name.
        num_buckets: B.
        top: how many n-grams per bucket.
        boundaries: as in `bucket_counts`.
    Returns: bucket -> [(n-gram with one space between words, times seen)]; ties in alphabetical order.
    """
    wanted = np.zeros(num_buckets, dtype=np.bool_)
    wanted[buckets] = True
    views, table = _scanned(views, boundaries)
    num_hits = _find(views.offsets, views.data, table, wanted, np.empty((0, 3), dtype=np.int64))
    hits = np.empty((num_hits, 3), dtype=np.int64)
    _find(views.offsets, views.data, table, wanted, hits)
    counters: dict[int, Counter[str]] = {int(bucket): Counter() for bucket in buckets}
    for bucket, start, end in hits.tolist():
        counters[bucket][_visible(bytes(views.data[start:end]), table)] += 1
    return {
        bucket: sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top]
        for bucket, counter in counters.items()
    }


def _scanned(views: TextViews, boundaries: np.ndarray | None) -> tuple[TextViews, np.ndarray]:
    """Return what is scanned and the table: with boundaries, prepared words, in which Han is as any other letter.

    A document without Han gives the same words both ways, so a batch may mix.
    """
    if boundaries is None:
        return views, scan_table("words")
    return prepare(views, "segmented", boundaries), _joined_table()


@functools.cache
def _joined_table() -> np.ndarray:
    table = scan_table("words").copy()
    single = table >> 24 == _SINGLE
    table[single] = (table[single] & np.uint32(0xFFFFFF)) | np.uint32(_WORD << 24)
    table.flags.writeable = False
    return table


def _visible(raw: bytes, table: np.ndarray) -> str:
    """Return what the scan saw of a piece of text: folded words with one space between."""
    seen = ""
    for character in raw.decode("utf-8", "replace"):
        code = ord(character)
        if code >= len(table):
            continue
        kind, folded = int(table[code]) >> 24, chr(int(table[code]) & 0xFFFFFF)
        if kind == _WORD or (kind == _MARK and not seen.endswith(" ") and seen):
            seen += folded
        elif kind in (_BREAK, _SINGLE):
            seen += f" {folded} " if kind == _SINGLE else " "
    return " ".join(seen.split())


@numba.njit(cache=True, inline="always")
def _bucket(x: np.uint64, num_buckets: np.uint64) -> np.int64:
    return np.int64(((((x ^ (x >> _S32)) * _R) >> _S32) * num_buckets) >> _S32)


@numba.njit(cache=True, nogil=True)
def _count(offsets: np.ndarray, data: np.ndarray, table: np.ndarray, counts: np.ndarray) -> None:
    words = np.empty(BLOCK_WORDS, dtype=np.uint64)
    num_buckets = np.uint64(len(counts))
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        previous, seen = np.uint64(0), False
        while position < end:
            filled, position = scan_words(data, position, end, table, WORD_SEED, words, 0)
            for k in range(filled):
                word = words[k]
                counts[_bucket(word, num_buckets)] += 1
                if seen:
                    counts[_bucket(previous * _M + word, num_buckets)] += 1
                previous, seen = word, True


@numba.njit(cache=True, nogil=True)
def _sum(
    offsets: np.ndarray,
    data: np.ndarray,
    table: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    num_words: np.ndarray,
) -> None:
    words = np.empty(BLOCK_WORDS, dtype=np.uint64)
    num_buckets = np.uint64(len(weights))
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        previous, seen, total = np.uint64(0), False, 0
        single, pair = 0.0, 0.0  # two chains of additions run side by side
        while position < end:
            filled, position = scan_words(data, position, end, table, WORD_SEED, words, 0)
            total += filled
            for k in range(filled):
                word = words[k]
                single += weights[_bucket(word, num_buckets)]
                if seen:
                    pair += weights[_bucket(previous * _M + word, num_buckets)]
                previous, seen = word, True
        sums[doc] = single + pair
        num_words[doc] = total


@numba.njit(cache=True, nogil=True)
def _find(offsets: np.ndarray, data: np.ndarray, table: np.ndarray, wanted: np.ndarray, hits: np.ndarray) -> int:
    """Write (bucket, start, end) of every n-gram in a wanted bucket while there is room; return how many there are."""
    one = np.empty(1, dtype=np.uint64)  # room for one word: the scanner stops behind each
    num_buckets = np.uint64(len(wanted))
    num_hits = 0
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        previous, previous_start = np.uint64(0), np.int64(-1)
        while position < end:
            start = position
            filled, position = scan_words(data, position, end, table, WORD_SEED, one, 0)
            if filled == 0:
                break
            for size in range(1, 3):
                if size == 2 and previous_start < 0:
                    continue
                bucket = _bucket(one[0] if size == 1 else previous * _M + one[0], num_buckets)
                if wanted[bucket]:
                    if num_hits < len(hits):
                        hits[num_hits, 0] = bucket
                        hits[num_hits, 1] = start if size == 1 else previous_start
                        hits[num_hits, 2] = position
                    num_hits += 1
            previous, previous_start = one[0], start
    return num_hits
