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

from refinery.kernels.bpe_queue import add_count, find_key, grown_1d, grown_2d, rehashed, sift_down, sift_up
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
def _queue_first(
    totals: np.ndarray, starts: np.ndarray, byte_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the table of pair counts (keys, values), the queue's entries, its heap, and how many there are.

    An entry is count, pair, and start and end of its list of words.
    """
    keys = np.full(1 << 18, -1, dtype=np.int64)
    values = np.zeros(1 << 18, dtype=np.int64)
    entries = np.empty((1 << 17, 4), dtype=np.int64)
    heap = np.empty(1 << 17, dtype=np.int32)
    size = 0
    for pair in range(1 << 16):
        if totals[pair] > 0:
            key = (np.int64(byte_ids[pair >> 8]) << 32) | byte_ids[pair & 255]
            add_count(keys, values, key, totals[pair])
            entries[size, 0] = totals[pair]
            entries[size, 1] = key
            entries[size, 2] = starts[pair]
            entries[size, 3] = starts[pair + 1]
            heap[size] = size
            size += 1
            sift_up(heap, size - 1, entries)
    return keys, values, entries, heap, size


@njit(cache=True, nogil=True)
def _spell(spelt: np.ndarray, token_starts: np.ndarray, left: int, right: int, size: int) -> np.ndarray:
    """Write the bytes of two tokens, joined, behind those of the first `size` tokens."""
    middle = token_starts[size] + token_starts[left + 1] - token_starts[left]
    end = middle + token_starts[right + 1] - token_starts[right]
    spelt = grown_1d(spelt, end)
    spelt[token_starts[size] : middle] = spelt[token_starts[left] : token_starts[left + 1]]
    spelt[middle:end] = spelt[token_starts[right] : token_starts[right + 1]]
    token_starts[size + 1] = end
    return spelt


@njit(cache=True, nogil=True)
def _merge_word(
    symbols: np.ndarray, start: int, length: int, left: int, right: int, new: int, changes: np.ndarray
) -> tuple[int, int]:
    """Join a pair in one word, leftmost first; note each neighbour as (pair gone, pair made, which side of `new`).

    Returns: the word's new length and the number of changes. The side is 0 for (x, new), 1 for (new, x).
    """
    read, write, noted = 0, 0, 0
    while read < length:
        here = symbols[start + read]
        if here != left or read + 1 >= length or symbols[start + read + 1] != right:
            symbols[start + write] = here
            read += 1
            write += 1
            continue
        if write > 0:
            before = np.int64(symbols[start + write - 1])
            changes[noted, 0] = (before << 32) | left
            changes[noted, 1] = (before << 32) | new
            changes[noted, 2] = 0
            noted += 1
        if read + 2 < length:
            after = np.int64(symbols[start + read + 2])
            changes[noted, 0] = (np.int64(right) << 32) | after
            changes[noted, 1] = (np.int64(new) << 32) | after
            changes[noted, 2] = 0 if after == new else 1
            noted += 1
        symbols[start + write] = new
        write += 1
        read += 2
    return write, noted


@njit(cache=True, nogil=True)
def _note_word(
    changes: np.ndarray,
    num_changes: int,
    word: int,
    group_of: np.ndarray,
    groups: np.ndarray,
    noted: np.ndarray,
    sizes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Put a word on the lists of the pairs that a merge made in it, once each.

    `groups` holds pair, words, last word and mark of each new pair, `noted` (group, word); ``sizes`` how many of both.
    """
    groups = grown_2d(groups, sizes[0] + num_changes)
    noted = grown_2d(noted, sizes[1] + num_changes)
    half = len(group_of) // 2
    for change in range(num_changes):
        made = changes[change, 1]
        mark = half + (made & 0xFFFFFFFF) if changes[change, 2] else made >> 32
        group = group_of[mark]
        if group < 0:
            group = sizes[0]
            group_of[mark] = group
            groups[group, 0] = made
            groups[group, 1] = 0
            groups[group, 2] = -1
            groups[group, 3] = mark
            sizes[0] += 1
        if groups[group, 2] != word:
            groups[group, 2] = word
            groups[group, 1] += 1
            noted[sizes[1], 0] = group
            noted[sizes[1], 1] = word
            sizes[1] += 1
    return groups, noted


@njit(cache=True, nogil=True)
def _list_words(
    groups: np.ndarray,
    noted: np.ndarray,
    sizes: np.ndarray,
    places: np.ndarray,
    used: int,
    entries: np.ndarray,
    at: int,
) -> int:
    """Write the entries of the new pairs from `at` on, counts left out, and their lists; return the room then used."""
    for group in range(sizes[0]):
        entries[at + group, 1] = groups[group, 0]
        entries[at + group, 2] = used
        entries[at + group, 3] = used
        used += groups[group, 1]
    for note in range(sizes[1]):
        entry = at + noted[note, 0]
        places[entries[entry, 3]] = noted[note, 1]
        entries[entry, 3] += 1
    return used


@njit(cache=True, nogil=True)
def _merge_all(  # noqa: PLR0913, PLR0917 - a kernel over shared arrays
    words: np.ndarray,
    offsets: np.ndarray,
    counts: np.ndarray,
    symbols: np.ndarray,
    lengths: np.ndarray,
    merge: np.ndarray,
    table: Any,
    group_of: np.ndarray,
    scratch: Any,
) -> tuple[Any, Any]:
    """Join the pair of ``merge`` (left, right, new) in all its words; return the counts' table and the scratch arrays.

    The scratch arrays are changes, groups, noted and their sizes, as `_note_word` leaves them.
    """
    keys, values, num_keys = table
    changes, groups, noted, sizes = scratch
    sizes[:] = 0
    for word in words:
        changes = grown_2d(changes, 2 * int(lengths[word]))
        length, found = _merge_word(
            symbols, offsets[word], int(lengths[word]), merge[0], merge[1], merge[2], changes
        )
        lengths[word] = length
        while 4 * (num_keys + 2 * found) > 3 * len(keys):
            keys, values = rehashed(keys, values)
        for change in range(found):
            num_keys += add_count(keys, values, changes[change, 0], -counts[word])
            num_keys += add_count(keys, values, changes[change, 1], counts[word])
        groups, noted = _note_word(changes, found, word, group_of, groups, noted, sizes)
    return (keys, values, num_keys), (changes, groups, noted, sizes)


@njit(cache=True, nogil=True)
def _queue_new(  # noqa: PLR0913, PLR0917 - a kernel over shared arrays
    groups: np.ndarray,
    num_groups: int,
    group_of: np.ndarray,
    table: Any,
    entries: np.ndarray,
    num_entries: int,
    heap: np.ndarray,
    heap_size: int,
) -> int:
    """Give the new pairs' entries their counts, queue those that occur, forget the groups; return the heap's size."""
    for group in range(num_groups):
        group_of[groups[group, 3]] = -1
        entry = num_entries + group
        entries[entry, 0] = table[1][find_key(table[0], groups[group, 0])]
        if entries[entry, 0] > 0:
            heap[heap_size] = entry
            heap_size += 1
            sift_up(heap, heap_size - 1, entries)
    return heap_size


@njit(cache=True, nogil=True)
def _learn(  # noqa: PLR0913, PLR0917 - one loop over shared arrays
    offsets: np.ndarray,
    data: np.ndarray,
    counts: np.ndarray,
    byte_ids: np.ndarray,
    spelt: np.ndarray,
    token_starts: np.ndarray,
    num_tokens: int,
    vocab_size: int,
    min_frequency: int,
) -> np.ndarray:
    totals, starts, places = _first_pairs(offsets, data, counts)
    keys, values, entries, heap, num_entries = _queue_first(totals, starts, byte_ids)
    table = (keys, values, num_entries)
    symbols = byte_ids[data]
    lengths = np.diff(offsets).astype(np.int32)
    heap_size, used = num_entries, len(places)
    token_slots = _token_table(spelt, token_starts, num_tokens, vocab_size)
    merges = np.empty((max(vocab_size, 16), 4), dtype=np.int64)
    num_merges = 0
    group_of = np.full(2 * vocab_size, -1, dtype=np.int32)  # of (x, new) under x, of (new, x) under vocab_size + x
    wide, pairs = np.empty((1024, 3), dtype=np.int64), np.empty((1024, 4), dtype=np.int64)
    scratch = (wide, pairs, np.empty((1024, 2), dtype=np.int32), np.zeros(2, dtype=np.int64))
    while num_tokens < vocab_size and heap_size > 0:
        top = heap[0]
        pair = entries[top, 1]
        count = table[1][find_key(table[0], pair)]
        if count != entries[top, 0]:
            entries[top, 0] = count
            sift_down(heap, heap_size, entries)
            continue
        heap_size -= 1
        heap[0] = heap[heap_size]
        sift_down(heap, heap_size, entries)
        if count < 1 or count < min_frequency:
            break
        spelt = _spell(spelt, token_starts, pair >> 32, pair & 0xFFFFFFFF, num_tokens)
        new, slot = _token_id(spelt, token_starts, token_slots, num_tokens)
        if new < 0:
            new = num_tokens
            token_slots[slot] = num_tokens
            num_tokens += 1
        merges = grown_2d(merges, num_merges + 1)
        merges[num_merges] = (pair >> 32, pair & 0xFFFFFFFF, new, count)
        words = places[entries[top, 2] : entries[top, 3]]
        table, scratch = _merge_all(
            words, offsets, counts, symbols, lengths, merges[num_merges], table, group_of, scratch
        )
        num_merges += 1
        sizes = scratch[3]
        entries = grown_2d(entries, num_entries + sizes[0])
        heap = grown_1d(heap, heap_size + sizes[0])
        places = grown_1d(places, used + sizes[1])
        used = _list_words(scratch[1], scratch[2], sizes, places, used, entries, num_entries)
        heap_size = _queue_new(scratch[1], sizes[0], group_of, table, entries, num_entries, heap, heap_size)
        num_entries += sizes[0]
    return merges[:num_merges]


@njit(cache=True, nogil=True)
def _token_table(spelt: np.ndarray, token_starts: np.ndarray, num_tokens: int, vocab_size: int) -> np.ndarray:
    slots = np.full(1 << (int(np.log2(max(vocab_size, num_tokens, 2))) + 2), -1, dtype=np.int32)
    for token in range(num_tokens):
        if token_starts[token + 1] > token_starts[token]:
            found, slot = _token_id(spelt, token_starts, slots, token)
            if found < 0:
                slots[slot] = token
    return slots


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
    found = _learn(
        *(offsets, data, counts, byte_ids, spelt, token_starts),
        *(len(first_tokens), vocab_size, min_frequency),
    )
    left, right, ids = (np.ascontiguousarray(found[:, column], dtype=np.int32) for column in range(3))
    return Merges(left, right, ids, np.ascontiguousarray(found[:, 3]))
