"""What merge learning keeps its pairs in: a table of counts, a queue by count, and arrays that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def find_key(keys: np.ndarray, key: Any) -> Any:
    """Return the slot of a key, or of the hole where it belongs."""
    mask = np.uint64(len(keys) - 1)
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = (mixed ^ (mixed >> np.uint64(32))) & mask
    while keys[slot] != -1 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@njit(cache=True, nogil=True)
def rehashed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the table with twice the slots."""
    wide_keys = np.full(2 * len(keys), -1, dtype=np.int64)
    wide_values = np.zeros(2 * len(keys), dtype=np.int64)
    for slot in range(len(keys)):
        if keys[slot] != -1:
            to = find_key(wide_keys, keys[slot])
            wide_keys[to] = keys[slot]
            wide_values[to] = values[slot]
    return wide_keys, wide_values


@njit(cache=True, nogil=True)
def _before(one: int, other: int, entries: np.ndarray) -> bool:
    """Tell whether entry `one` leaves the queue before `other`: higher count, then smaller pair, then older."""
    if entries[one, 0] != entries[other, 0]:
        return entries[one, 0] > entries[other, 0]
    if entries[one, 1] != entries[other, 1]:
        return entries[one, 1] < entries[other, 1]
    return one < other


@njit(cache=True, nogil=True)
def sift_up(heap: np.ndarray, at: int, entries: np.ndarray) -> None:
    """Move the entry at `at` towards the top of the heap, to its place."""
    item = heap[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(item, heap[parent], entries):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item


@njit(cache=True, nogil=True)
def sift_down(heap: np.ndarray, size: int, entries: np.ndarray) -> None:
    """Move the entry at the top of the heap down to its place."""
    if size == 0:
        return
    item, at = heap[0], 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(heap[child + 1], heap[child], entries):
            child += 1
        if not _before(heap[child], item, entries):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


@njit(cache=True, nogil=True)
def grown_1d(array: np.ndarray, need: int) -> np.ndarray:
    """Return an array of at least `need` items that begins with these."""
    if need <= len(array):
        return array
    larger = np.empty(max(need, len(array) + len(array) // 2), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@njit(cache=True, nogil=True)
def grown_2d(array: np.ndarray, need: int) -> np.ndarray:
    """Return an array of at least `need` rows that begins with these."""
    if need <= len(array):
        return array
    larger = np.empty((max(need, len(array) + len(array) // 2), array.shape[1]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@njit(cache=True, nogil=True)
def add_count(keys: np.ndarray, values: np.ndarray, key: Any, change: Any) -> int:
    """Add to the count of a pair; return 1 for a pair that was not there."""
    slot = find_key(keys, key)
    new = 1 if keys[slot] == -1 else 0
    keys[slot] = key
    values[slot] += change
    return new
