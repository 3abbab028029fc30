"""Count the distinct pretokens of UTF-8 text, cut by the scanners of `refinery.kernels.pretoken_scan`.

Counting keeps each distinct pretoken once: an arena of bytes, an open-addressing table of 32-bit slots, and counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from refinery.kernels.pretoken_scan import pretoken_end
from refinery.kernels.text import TextViews

_LOAD = 0.6
_S40 = np.uint64(40)


class PretokenCounts(NamedTuple):
    """W distinct pretokens with their counts."""

    offsets: np.ndarray
    """int64, shape (W + 1,): pretoken i is ``data[offsets[i]:offsets[i + 1]]``."""
    data: np.ndarray
    """uint8: UTF-8."""
    counts: np.ndarray
    """int64, shape (W,): occurrences."""


@njit(cache=True, nogil=True)
def hash_bytes(data: np.ndarray, start: int, end: int) -> np.uint64:
    """Return a 64-bit hash of a few bytes (multiply and fold; collisions are resolved by comparing)."""
    value = np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(end - start)
    for at in range(start, end):
        value = (value ^ np.uint64(data[at])) * np.uint64(0x100000001B3)
    value ^= value >> np.uint64(29)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    return value ^ (value >> np.uint64(32))


@njit(cache=True, nogil=True)
def same_bytes(one: np.ndarray, at: int, other: np.ndarray, start: int, size: int) -> bool:
    """Compare `size` bytes."""
    for step in range(size):  # noqa: SIM110 - a generator is no loop to numba
        if one[at + step] != other[start + step]:
            return False
    return True


@njit(cache=True, nogil=True, inline="always")
def _add(  # noqa: PLR0913, PLR0917 - a kernel over the arrays of one table
    data: np.ndarray,
    at: int,
    stop: int,
    times: int,
    size: int,
    slots: np.ndarray,
    table: np.ndarray,
    arena: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Count a pretoken `times` more; return the number of distinct ones, -1 if an array is full."""
    mask = np.uint64(len(slots) - 1)
    slot = hash_bytes(data, at, stop) & mask
    while True:
        found = slots[slot]
        if found < 0:
            if size >= min(int(len(slots) * _LOAD), len(counts)) or table[size] + stop - at > len(arena):
                return -1
            slots[slot] = size
            table[size + 1] = table[size] + stop - at
            arena[table[size] : table[size + 1]] = data[at:stop]
            counts[size] = times
            return size + 1
        start = table[found]
        if table[found + 1] - start == stop - at and same_bytes(arena, start, data, at, stop - at):
            counts[found] += times
            return size
        slot = (slot + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def _count(  # noqa: PLR0913, PLR0917 - a kernel over the arrays of one table
    offsets: np.ndarray,
    data: np.ndarray,
    place: np.ndarray,
    classes: np.ndarray,
    max_digits: int,
    slots: np.ndarray,
    table: np.ndarray,
    arena: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Count from ``place`` = (document, byte) on; return the number of pretokens. Stops early when an array is full."""
    size = place[2]
    while place[0] < len(offsets) - 1:
        end = offsets[place[0] + 1]
        at = max(place[1], offsets[place[0]])
        while at < end:
            stop = pretoken_end(data, at, end, classes, max_digits)
            added = _add(data, at, stop, 1, size, slots, table, arena, counts)
            if added < 0:
                place[1], place[2] = at, size
                return size
            size = added
            at = stop
        place[0] += 1
        place[1] = 0
    place[2] = size
    return size


@njit(cache=True, nogil=True)
def _count_counted(  # noqa: PLR0913, PLR0917 - a kernel over the arrays of one table
    offsets: np.ndarray,
    data: np.ndarray,
    times: np.ndarray,
    place: np.ndarray,
    slots: np.ndarray,
    table: np.ndarray,
    arena: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Add counted pretokens from ``place[0]`` on; return the number of distinct ones. Stops when an array is full."""
    size = place[2]
    for word in range(place[0], len(times)):
        added = _add(data, offsets[word], offsets[word + 1], times[word], size, slots, table, arena, counts)
        if added < 0:
            place[0], place[2] = word, size
            return size
        size = added
    place[0], place[2] = len(times), size
    return size


@njit(cache=True, nogil=True)
def _buckets(offsets: np.ndarray, data: np.ndarray, num_buckets: int) -> np.ndarray:
    found = np.empty(len(offsets) - 1, dtype=np.int64)
    for word in range(len(found)):
        # High bits: the low ones choose slots, and a bucket's pretokens must not share theirs.
        found[word] = np.int64((hash_bytes(data, offsets[word], offsets[word + 1]) >> _S40) % np.uint64(num_buckets))
    return found


@njit(cache=True, nogil=True)
def _gathered(offsets: np.ndarray, data: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    out = np.empty(size, dtype=np.uint8)
    at = 0
    for word in order:
        for place in range(offsets[word], offsets[word + 1]):
            out[at] = data[place]
            at += 1
    return out


def selected(counted: PretokenCounts, order: np.ndarray) -> PretokenCounts:
    """Return the pretokens at these positions, int64, in this order."""
    bounds = np.concatenate([[0], np.cumsum(np.diff(counted.offsets)[order])]).astype(np.int64)
    return PretokenCounts(
        bounds, _gathered(counted.offsets, counted.data, order, int(bounds[-1])), counted.counts[order]
    )


def split_by_hash(counted: PretokenCounts, num_buckets: int) -> list[PretokenCounts]:
    """Split pretokens into buckets, the same pretoken always into the same, so that each can be summed alone."""
    where = _buckets(counted.offsets, counted.data, num_buckets)
    order = np.argsort(where, kind="stable")
    bounds = np.searchsorted(where[order], np.arange(num_buckets + 1))
    return [selected(counted, order[bounds[b] : bounds[b + 1]]) for b in range(num_buckets)]


@njit(cache=True, nogil=True)
def _refill(slots: np.ndarray, table: np.ndarray, arena: np.ndarray, size: int) -> None:
    mask = np.uint64(len(slots) - 1)
    for index in range(size):
        slot = hash_bytes(arena, table[index], table[index + 1]) & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = index


@njit(cache=True, nogil=True)
def pretoken_bounds(offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, max_digits: int) -> np.ndarray:
    """Return where the pretokens of all documents end, as byte positions, int64, shape (pretokens,)."""
    ends = np.empty(max(16, len(data) // 2), dtype=np.int64)
    count = 0
    for document in range(len(offsets) - 1):
        at = offsets[document]
        while at < offsets[document + 1]:
            at = pretoken_end(data, at, offsets[document + 1], classes, max_digits)
            if count == len(ends):
                larger = np.empty(2 * count, dtype=np.int64)
                larger[:count] = ends
                ends = larger
            ends[count] = at
            count += 1
    return ends[:count].copy()


class PretokenCounter:
    """Counts pretokens over many batches; memory grows with the distinct ones only, about 30 bytes and their text."""

    def __init__(self, classes: np.ndarray, max_digits: int) -> None:
        """Start empty.

        Args:
            classes: uint8, shape (0x110000,), bits by code point.
            max_digits: characters of category N in one pretoken.
        """
        self._classes = classes
        self._max_digits = max_digits
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._slots = np.full(1 << 16, -1, dtype=np.int32)
        self._table = np.zeros(1 << 16, dtype=np.int64)
        self._counts = np.zeros((1 << 16) - 1, dtype=np.int64)
        self._arena = np.empty(1 << 19, dtype=np.uint8)
        self._size = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the distinct pretokens."""
        return int(self._table[self._size])

    def add(self, views: TextViews) -> None:
        """Count the pretokens of some documents, which must be valid UTF-8."""
        place = np.array([0, 0, self._size], dtype=np.int64)
        while True:
            self._size = int(
                _count(
                    *(views.offsets, views.data, place, self._classes, self._max_digits),
                    *(self._slots, self._table, self._arena, self._counts),
                )
            )
            if place[0] >= views.num_docs:
                return
            self._grow(len(views.data))

    def add_counted(self, counted: PretokenCounts) -> None:
        """Add pretokens that were counted elsewhere."""
        place = np.array([0, 0, self._size], dtype=np.int64)
        while True:
            self._size = int(
                _count_counted(*counted, place, self._slots, self._table, self._arena, self._counts)
            )
            if place[0] >= len(counted.counts):
                return
            self._grow(int(np.diff(counted.offsets).max()))

    def _grow(self, longest: int) -> None:
        if self._size >= int(len(self._slots) * _LOAD):
            self._slots = np.full(2 * len(self._slots), -1, dtype=np.int32)
            _refill(self._slots, self._table, self._arena, self._size)
        elif self._size >= len(self._counts):
            self._table = np.concatenate([self._table, np.zeros(len(self._table) // 2, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(len(self._table) - 1 - len(self._counts), np.int64)])
        else:
            self._arena = np.concatenate([self._arena, np.empty(max(len(self._arena) // 2, longest), np.uint8)])

    def counts(self) -> PretokenCounts:
        """Return what was counted, in the order of first sight; views, valid until the next call of `add`."""
        size = self._size
        return PretokenCounts(self._table[: size + 1], self._arena[: self.num_bytes], self._counts[:size])
