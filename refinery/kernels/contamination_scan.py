"""Scan documents against an index of evaluation n-grams (`refinery.kernels.contamination`)."""

from __future__ import annotations

import numba
import numpy as np

from refinery.kernels.contamination import (
    WINDOW_FACTOR,
    Matches,
    NgramIndex,
    finish_window,
    unit_table,
    window_hash,
    window_power,
    word_positions,
)
from refinery.kernels.shingles import keep_tail
from refinery.kernels.text import TextViews
from refinery.kernels.word_scan import BLOCK_WORDS, WORD_SEED, scan_words

_S6, _S63 = np.uint64(6), np.uint64(63)


def documents_to_scan(views: TextViews, index: NgramIndex) -> np.ndarray:
    """Return bool, shape (D,): True where an n-gram, or the first words of a short item, may stand.

    This is the pass over all text; it never misses, and what it lets through is looked at by `find_matches`.
    """
    flags = np.zeros(views.num_docs, dtype=bool)
    _flag_documents(
        views.offsets, views.data, unit_table(index.unit), index.size, index.prefix_size,
        index.bitmap, index.keys, index.ids, index.short_bitmap, flags,
    )  # fmt: skip
    return flags


def find_matches(views: TextViews, index: NgramIndex) -> Matches:
    """Return every place where an n-gram or a short item of the index stands, by document and place.

    Args:
        views: D documents.
        index: from `refinery.kernels.contamination.build_index`.
    """
    flagged = np.flatnonzero(documents_to_scan(views, index))
    found = [_matches_of(views, int(doc), index) for doc in flagged]
    empty = np.empty(0, dtype=np.int64)
    columns = [np.concatenate([empty, *(f[i] for f in found)]) for i in range(6)]
    return Matches(*columns)


def _matches_of(views: TextViews, doc: int, index: NgramIndex) -> tuple[np.ndarray, ...]:
    one = TextViews(views.offsets[doc : doc + 2], views.data)
    words = word_positions(one, index.unit)
    num_words = len(words.hashes)
    places, ngrams = _match_words(
        words.hashes, index.size, index.bitmap, index.keys, index.ids, index.prefix_size, index.short_bitmap,
        index.prefixes, index.short_lengths, index.short_hashes, index.first_short,
    )  # fmt: skip
    last = places + index.lengths[ngrams] - 1
    count = len(places)
    return (
        np.full(count, doc), places, words.starts[places], words.ends[last], ngrams, np.full(count, num_words)
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _find(key: np.uint64, table_keys: np.ndarray, table_ids: np.ndarray) -> int:
    mask = np.uint64(len(table_keys) - 1)
    slot = key & mask
    while table_ids[slot] >= 0:
        if table_keys[slot] == key:
            return table_ids[slot]
        slot = (slot + np.uint64(1)) & mask
    return -1


@numba.njit(cache=True, inline="always")
def _may_hold(bitmap: np.ndarray, shift: np.uint64, key: np.uint64) -> bool:
    place = key >> shift
    return (bitmap[place >> _S6] >> (place & _S63)) & np.uint64(1) != 0


@numba.njit(cache=True, nogil=True)
def _shift_of(bitmap: np.ndarray) -> np.uint64:
    bits = 6
    while (1 << (bits - 6)) < len(bitmap):
        bits += 1
    return np.uint64(64 - bits)


@numba.njit(cache=True, nogil=True)
def _flag_documents(  # noqa: PLR0913, PLR0917 (numba takes arrays, not tuples of them, without a copy)
    offsets: np.ndarray, data: np.ndarray, table: np.ndarray, size: int, prefix_size: int,
    bitmap: np.ndarray, keys: np.ndarray, ids: np.ndarray, short_bitmap: np.ndarray, flags: np.ndarray,
) -> None:  # fmt: skip
    words = np.empty(BLOCK_WORDS + size, dtype=np.uint64)
    hashes = np.empty(BLOCK_WORDS + size, dtype=np.uint64)
    has_short = short_bitmap.any()
    no_keys, no_ids = keys[:0], ids[:0]
    for doc in range(len(offsets) - 1):
        position, end, filled, found = offsets[doc], offsets[doc + 1], 0, False
        while position < end and not found:
            filled, position = scan_words(data, position, end, table, WORD_SEED, words, filled)
            found = _any_window(words, filled, size, bitmap, keys, ids, hashes)
            if has_short and not found:
                found = _any_window(words, filled, prefix_size, short_bitmap, no_keys, no_ids, hashes)
            filled = keep_tail(words, filled, size)
        flags[doc] = found


@numba.njit(cache=True, nogil=True)
def _any_window(
    words: np.ndarray, filled: int, size: int, bitmap: np.ndarray, keys: np.ndarray, ids: np.ndarray, room: np.ndarray
) -> bool:
    """Say whether a window of ``words[:filled]`` is in the table; without ids, whether the bit map has one.

    One loop hashes, one asks the bit map without a branch: memory accesses then overlap instead of waiting for each
    other behind a wrong guess (Chinese, 13 million n-grams: from 28 MB/s to what the benchmark prints).
    """
    if filled < size:
        return False
    leaving, total = window_power(size), np.uint64(0)
    for k in range(size - 1):
        total = total * WINDOW_FACTOR + words[k]
    total = total * WINDOW_FACTOR + words[size - 1]
    room[0] = finish_window(total)
    for k in range(size, filled):
        total = total * WINDOW_FACTOR + words[k] - words[k - size] * leaving
        room[k - size + 1] = finish_window(total)
    shift, count = _shift_of(bitmap), 0
    for k in range(filled - size + 1):
        key = room[k]
        room[count] = key
        count += int(_may_hold(bitmap, shift, key))
    if len(ids) == 0:
        return count > 0
    for k in range(count):  # noqa: SIM110 - numba compiles no generator
        if _find(room[k], keys, ids) >= 0:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _match_words(  # noqa: PLR0913, PLR0917 (numba takes arrays, not tuples of them, without a copy)
    words: np.ndarray, size: int, bitmap: np.ndarray, keys: np.ndarray, ids: np.ndarray, prefix_size: int,
    short_bitmap: np.ndarray, prefixes: np.ndarray, short_lengths: np.ndarray, short_hashes: np.ndarray,
    first_short: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return (first word, n-gram id) of every match in one document's words."""
    places = np.empty(64, dtype=np.int64)
    ngrams = np.empty(64, dtype=np.int64)
    count = 0
    has_short = len(prefixes) > 0
    shift, short_shift = _shift_of(bitmap), _shift_of(short_bitmap)
    for first in range(len(words) - min(size, prefix_size) + 1):
        if count + len(prefixes) + 1 > len(places):
            places = np.concatenate((places, np.empty(len(places) + len(prefixes) + 1, dtype=np.int64)))
            ngrams = np.concatenate((ngrams, np.empty(len(places) - len(ngrams), dtype=np.int64)))
        if first + size <= len(words):
            key = window_hash(words, first, size)
            found = _find(key, keys, ids) if _may_hold(bitmap, shift, key) else -1
            if found >= 0:
                places[count], ngrams[count] = first, found
                count += 1
        if has_short and first + prefix_size <= len(words):
            key = window_hash(words, first, prefix_size)
            if _may_hold(short_bitmap, short_shift, key):
                for k in range(np.searchsorted(prefixes, key), len(prefixes)):
                    if prefixes[k] != key:
                        break
                    length = short_lengths[k]
                    if first + length <= len(words) and window_hash(words, first, length) == short_hashes[k]:
                        places[count], ngrams[count] = first, first_short + k
                        count += 1
    return places[:count], ngrams[:count]
