"""Learn byte-pair merges from (pretoken, count): the `tokenizers` library's greedy loop over counted words.

Sennrich et al. (1508.07909, section 3.2) with incremental pair counts. The result equals that of the library's trainer
(BpeTrainer of `tokenizers` 0.23) on the same words, so its particulars are kept: of equally frequent pairs the one with
smaller ids comes first; a pair's count is not lowered by its own merge; a merge that spells an existing token takes
that token's id, and pairs it forms anew are queued beside an entry that the pair may have already, each with its own
words. Counts are 64 bits wide, the library's 32.

Memory: 4 bytes a symbol for the words, 4-12 for the lists of words that hold a pair, 20 a word, 50 a distinct pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from refinery.kernels.pretokens import hash_bytes, same_bytes


class Merges(NamedTuple):
    """M merges, most frequent first."""

    left: np.ndarray
    """int32, shape (M,): id of the first half."""
    right: np.ndarray
    """int32, shape (M,)."""
    ids: np.ndarray
    """int32, shape (M,): id of what they become; not always a new one."""
    counts: np.ndarray
    """int64, shape (M,): how often the pair occurred when it was merged."""


@njit(cache=True, nogil=True)
def _find(keys: np.ndarray, key: Any) -> Any:
    """Return the slot of a key, or of the hole where it belongs."""
    mask = np.uint64(len(keys) - 1)
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = (mixed ^ (mixed >> np.uint64(32))) & mask
    while keys[slot] != -1 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@njit(cache=True, nogil=True)
def _rehashed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide_keys = np.full(2 * len(keys), -1, dtype=np.int64)
    wide_values = np.zeros(2 * len(keys), dtype=np.int64)
    for slot in range(len(keys)):
        if keys[slot] != -1:
            to = _find(wide_keys, keys[slot])
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
def _sift_up(heap: np.ndarray, at: int, entries: np.ndarray) -> None:
    item = heap[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(item, heap[parent], entries):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item


@njit(cache=True, nogil=True)
def _sift_down(heap: np.ndarray, size: int, entries: np.ndarray) -> None:
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
def _grown_1d(array: np.ndarray, need: int) -> np.ndarray:
    if need <= len(array):
        return array
    larger = np.empty(max(need, len(array) + len(array) // 2), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@njit(cache=True, nogil=True)
def _grown_2d(array: np.ndarray, need: int) -> np.ndarray:
    if need <= len(array):
        return array
    larger = np.empty((max(need, len(array) + len(array) // 2), array.shape[1]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@njit(cache=True, nogil=True)
def _first_pairs(
    offsets: np.ndarray, data: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pairs of bytes: counts and list starts, int64 by ``first * 256 + second``, and the words of each pair."""
    totals = np.zeros(1 << 16, dtype=np.int64)
    last = np.full(1 << 16, -1, dtype=np.int64)
    starts = np.zeros((1 << 16) + 1, dtype=np.int64)
    for word in range(len(counts)):
        for at in range(offsets[word], offsets[word + 1] - 1):
            pair = np.int64(data[at]) * 256 + data[at + 1]
            totals[pair] += counts[word]
            if last[pair] != word:
                last[pair] = word
                starts[pair + 1] += 1
    starts = np.cumsum(starts)
    fill = starts[:-1].copy()
    last[:] = -1
    places = np.empty(starts[-1], dtype=np.int32)
    for word in range(len(counts)):
        for at in range(offsets[word], offsets[word + 1] - 1):
            pair = np.int64(data[at]) * 256 + data[at + 1]
            if last[pair] != word:
                last[pair] = word
                places[fill[pair]] = word
                fill[pair] += 1
    return totals, starts, places


@njit(cache=True, nogil=True)
def _token_id(spelt: np.ndarray, token_starts: np.ndarray, token_slots: np.ndarray, size: int) -> tuple[Any, Any]:
    """Look up the spelling at ``spelt[token_starts[size]:token_starts[size + 1]]``: (id or -1, its slot)."""
    start, end = token_starts[size], token_starts[size + 1]
    mask = np.uint64(len(token_slots) - 1)
    slot = hash_bytes(spelt, start, end) & mask
    while token_slots[slot] >= 0:
        other = token_slots[slot]
        if token_starts[other + 1] - token_starts[other] == end - start and same_bytes(
            spelt, token_starts[other], spelt, start, end - start
        ):
            return np.int64(other), np.int64(slot)
        slot = (slot + np.uint64(1)) & mask
    return -1, np.int64(slot)


@njit(cache=True, nogil=True)
def _add_count(keys: np.ndarray, values: np.ndarray, key: Any, change: Any) -> int:
    """Add to the count of a pair; return 1 for a pair that was not there."""
    slot = _find(keys, key)
    new = 1 if keys[slot] == -1 else 0
    keys[slot] = key
    values[slot] += change
    return new


@njit(cache=True, nogil=True)
def _learn(  # noqa: PLR0913, PLR0915, PLR0917 - one loop over shared arrays
    offsets: np.ndarray,
    data: np.ndarray,
    counts: np.ndarray,
    byte_ids: np.ndarray,
    spelt: np.ndarray,
    token_starts: np.ndarray,
    num_tokens: int,
    vocab_size: int,
    min_frequency: int,
) -> tuple[np.ndarray, np.ndarray]:
    totals, starts, places = _first_pairs(offsets, data, counts)
    symbols = np.empty(len(data), dtype=np.int32)
    for at in range(len(data)):
        symbols[at] = byte_ids[data[at]]
    lengths = np.empty(len(counts), dtype=np.int32)
    for word in range(len(counts)):
        lengths[word] = offsets[word + 1] - offsets[word]
    keys = np.full(1 << 18, -1, dtype=np.int64)
    values = np.zeros(1 << 18, dtype=np.int64)
    num_keys = 0
    entries = np.empty((1 << 17, 4), dtype=np.int64)  # count, pair, start and end of its words
    heap = np.empty(1 << 17, dtype=np.int32)
    num_entries = 0
    for pair in range(1 << 16):
        if totals[pair] > 0:
            key = (np.int64(byte_ids[pair >> 8]) << 32) | byte_ids[pair & 255]
            num_keys += _add_count(keys, values, key, totals[pair])
            entries[num_entries, 0] = totals[pair]
            entries[num_entries, 1] = key
            entries[num_entries, 2] = starts[pair]
            entries[num_entries, 3] = starts[pair + 1]
            heap[num_entries] = num_entries
            num_entries += 1
            _sift_up(heap, num_entries - 1, entries)
    heap_size, used = num_entries, len(places)
    token_slots = np.full(1 << (int(np.log2(max(vocab_size, 2))) + 2), -1, dtype=np.int32)
    for token in range(num_tokens):
        if token_starts[token + 1] > token_starts[token]:
            found, slot = _token_id(spelt, token_starts, token_slots, token)
            if found < 0:
                token_slots[slot] = token
    merges = np.empty((max(vocab_size, 16), 4), dtype=np.int64)
    num_merges = 0
    # New pairs of one merge: (x, new) under x, (new, x) under vocab_size + x.
    group_of = np.full(2 * vocab_size, -1, dtype=np.int32)
    group_keys = np.empty(1024, dtype=np.int64)
    group_sizes = np.empty(1024, dtype=np.int64)
    group_last = np.empty(1024, dtype=np.int32)
    group_marks = np.empty(1024, dtype=np.int32)
    noted = np.empty((1024, 2), dtype=np.int32)  # group, word
    while num_tokens < vocab_size and heap_size > 0:
        top = heap[0]
        pair = entries[top, 1]
        count = values[_find(keys, pair)]
        if count != entries[top, 0]:
            entries[top, 0] = count
            _sift_down(heap, heap_size, entries)
            continue
        heap_size -= 1
        heap[0] = heap[heap_size]
        _sift_down(heap, heap_size, entries)
        if count < 1 or count < min_frequency:
            break
        left, right = np.int32(pair >> 32), np.int32(pair & 0xFFFFFFFF)
        size_left = token_starts[left + 1] - token_starts[left]
        size_right = token_starts[right + 1] - token_starts[right]
        end = token_starts[num_tokens] + size_left + size_right
        spelt = _grown_1d(spelt, end)
        middle = token_starts[num_tokens] + size_left
        spelt[token_starts[num_tokens] : middle] = spelt[token_starts[left] : token_starts[left + 1]]
        spelt[middle:end] = spelt[token_starts[right] : token_starts[right + 1]]
        token_starts[num_tokens + 1] = end
        found, slot = _token_id(spelt, token_starts, token_slots, num_tokens)
        new = np.int32(found)
        if found < 0:
            new = np.int32(num_tokens)
            token_slots[slot] = num_tokens
            num_tokens += 1
        merges = _grown_2d(merges, num_merges + 1)
        merges[num_merges, 0] = left
        merges[num_merges, 1] = right
        merges[num_merges, 2] = new
        merges[num_merges, 3] = count
        num_merges += 1
        num_groups, num_noted = 0, 0
        for place in range(entries[top, 2], entries[top, 3]):
            word = places[place]
            start, length, weight = offsets[word], np.int64(lengths[word]), counts[word]
            read, write = 0, 0
            while read < length:
                here = symbols[start + read]
                if here != left or read + 1 >= length or symbols[start + read + 1] != right:
                    symbols[start + write] = here
                    read += 1
                    write += 1
                    continue
                if 4 * num_keys > 3 * len(keys) - 64:
                    keys, values = _rehashed(keys, values)
                for side in range(2):
                    if side == 0:
                        if write == 0:
                            continue
                        other = symbols[start + write - 1]
                        gone = (np.int64(other) << 32) | left
                        made = (np.int64(other) << 32) | new
                        mark = np.int64(other)
                    else:
                        if read + 2 >= length:
                            continue
                        other = symbols[start + read + 2]
                        gone = (np.int64(right) << 32) | other
                        made = (np.int64(new) << 32) | other
                        mark = np.int64(other) if other == new else vocab_size + np.int64(other)
                    num_keys += _add_count(keys, values, gone, -weight)
                    num_keys += _add_count(keys, values, made, weight)
                    group = group_of[mark]
                    if group < 0:
                        group = num_groups
                        group_of[mark] = group
                        group_keys = _grown_1d(group_keys, group + 1)
                        group_sizes = _grown_1d(group_sizes, group + 1)
                        group_last = _grown_1d(group_last, group + 1)
                        group_marks = _grown_1d(group_marks, group + 1)
                        group_keys[group] = made
                        group_sizes[group] = 0
                        group_last[group] = -1
                        group_marks[group] = mark
                        num_groups += 1
                    if group_last[group] != word:
                        group_last[group] = word
                        group_sizes[group] += 1
                        noted = _grown_2d(noted, num_noted + 1)
                        noted[num_noted, 0] = group
                        noted[num_noted, 1] = word
                        num_noted += 1
                symbols[start + write] = new
                write += 1
                read += 2
            lengths[word] = write
        entries = _grown_2d(entries, num_entries + num_groups)
        heap = _grown_1d(heap, heap_size + num_groups)
        places = _grown_1d(places, used + num_noted)
        for group in range(num_groups):
            group_of[group_marks[group]] = -1
            entries[num_entries + group, 0] = values[_find(keys, group_keys[group])]
            entries[num_entries + group, 1] = group_keys[group]
            entries[num_entries + group, 2] = used
            entries[num_entries + group, 3] = used
            used += group_sizes[group]
        for note in range(num_noted):
            entry = num_entries + noted[note, 0]
            places[entries[entry, 3]] = noted[note, 1]
            entries[entry, 3] += 1
        for group in range(num_groups):
            if entries[num_entries + group, 0] > 0:
                heap[heap_size] = num_entries + group
                heap_size += 1
                _sift_up(heap, heap_size - 1, entries)
        num_entries += num_groups
    return merges[:num_merges], token_starts


def learn_merges(
    offsets: np.ndarray,
    data: np.ndarray,
    counts: np.ndarray,
    first_tokens: list[bytes],
    vocab_size: int,
    min_frequency: int,
) -> Merges:
    """Learn merges until the vocabulary is full or no pair occurs `min_frequency` times.

    Args:
        offsets: int64, shape (W + 1,): pretoken i is ``data[offsets[i]:offsets[i + 1]]``; their order is of no account.
        data: uint8, shape (N,).
        counts: int64, shape (W,), 1 or more; their sum times the longest pretoken stays under 2**63.
        first_tokens: the tokens that stand before any merge, by id: every single byte is among them. An empty entry is
            a token that no text can spell.
        vocab_size: tokens to stop at.
        min_frequency: pairs that occur less often are not merged.
    Returns: the merges in order.
    """
    token_starts = np.zeros(max(vocab_size, len(first_tokens)) + 2, dtype=np.int64)
    token_starts[1 : len(first_tokens) + 1] = np.cumsum([len(token) for token in first_tokens])
    spelt = np.frombuffer(b"".join(first_tokens), dtype=np.uint8).copy()
    byte_ids = np.array([first_tokens.index(bytes([byte])) for byte in range(256)], dtype=np.int32)
    found, _ = _learn(
        *(offsets, data, counts, byte_ids, spelt, token_starts),
        *(len(first_tokens), vocab_size, min_frequency),
    )
    left, right, ids = (np.ascontiguousarray(found[:, column], dtype=np.int32) for column in range(3))
    return Merges(left, right, ids, np.ascontiguousarray(found[:, 3]))
