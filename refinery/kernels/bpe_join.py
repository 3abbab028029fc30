"""Join the pairs of one pretoken by rank: by scans while it is short, by a heap where scans would be quadratic.

Both give what the `tokenizers` library gives (`Word.merge_all` of its BPE model): the pair of lowest rank first, of
equal ones the leftmost. Where that is proven to change nothing (`char_starts`), a pretoken starts from whole
characters instead of bytes: a Chinese character is then one symbol, not three.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from refinery.kernels.pretoken_scan import char_at
from refinery.kernels.pretokens import hash_bytes, same_bytes

NO_PAIR = np.uint64(0xFFFFFFFFFFFFFFFF)
FROM_BYTES, OWN_BYTES = -1, -2
"""Instead of a character's id: the pretoken must start from its bytes; only this character must."""
SHORT = 64
"""Symbols up to which the next pair is found by a scan."""
PIECE = 32
"""Bytes from which on a long pretoken is cut where no token could span the cut."""
_PAIRS_AT = 1 << 18
_ONE = np.uint64(1)
_S32 = np.uint64(32)
_MASK32 = np.uint64(0xFFFFFFFF)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_BMP = 0x10000


class JoinTables(NamedTuple):
    """A vocabulary, ready to encode with."""

    classes: np.ndarray
    """uint8, shape (0x110000,): bits of `refinery.kernels.pretoken_scan` by code point."""
    max_digits: int
    byte_ids: np.ndarray
    """int32, shape (256,): id of every byte."""
    pairs: np.ndarray
    """uint64, shape (2 * slots,): ``left << 32 | right`` and ``rank << 32 | id`` in turn, from `pair_table`."""
    char_ids: np.ndarray
    """int32, shape (0x10000,): id of a character, `FROM_BYTES` or `OWN_BYTES`."""
    whole: bool
    """A pretoken that is a token is that token, whatever merges say (`ignore_merges`)."""
    token_starts: np.ndarray
    """int64, shape (tokens + 1,): where a token's bytes start in `token_bytes`."""
    token_bytes: np.ndarray
    token_slots: np.ndarray
    """int32: open-addressing table of tokens by their bytes, -1 where empty; read only where `whole`."""
    inner: np.ndarray
    """uint64, shape (2**18 + 2**10,): which three bytes stand in a token, which two are one; from `inner_bytes`."""


@njit(cache=True, inline="always")
def pair_value(pairs: np.ndarray, left: int, right: int) -> Any:
    """Return ``rank << 32 | id`` of a pair, `NO_PAIR` if it does not merge."""
    key = (np.uint64(left) << _S32) | np.uint64(right)
    mask = np.uint64(len(pairs) // 2 - 1)
    slot = ((key * _SPREAD) >> _S32) & mask
    while True:
        found = pairs[2 * slot]
        if found == key:
            return pairs[2 * slot + np.uint64(1)]
        if found == NO_PAIR:
            return NO_PAIR
        slot = (slot + np.uint64(1)) & mask


@njit(cache=True)
def _fill_pairs(pairs: np.ndarray, left: np.ndarray, right: np.ndarray, ids: np.ndarray) -> None:
    mask = np.uint64(len(pairs) // 2 - 1)
    for rank in range(len(left)):
        key = (np.uint64(left[rank]) << _S32) | np.uint64(right[rank])
        slot = ((key * _SPREAD) >> _S32) & mask
        while pairs[2 * slot] not in (key, NO_PAIR):
            slot = (slot + np.uint64(1)) & mask
        pairs[2 * slot] = key
        pairs[2 * slot + np.uint64(1)] = (np.uint64(rank) << _S32) | np.uint64(ids[rank])


def pair_table(left: np.ndarray, right: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the table of merges in order of rank; of a pair listed twice the later rank stays, as in the library.

    Args:
        left: int32, shape (M,).
        right: int32, shape (M,).
        ids: int32, shape (M,): what they become.
    Returns: uint64, shape (2 * slots,), at most a quarter full.
    """
    slots = 1 << max(4, (4 * len(left)).bit_length())
    pairs = np.full(2 * slots, NO_PAIR, dtype=np.uint64)
    _fill_pairs(pairs, left, right, ids)
    return pairs


@njit(cache=True)
def token_of(data: np.ndarray, at: int, stop: int, starts: np.ndarray, spelt: np.ndarray, slots: np.ndarray) -> Any:
    """Return the id of the token with these bytes, -1 if there is none."""
    mask = np.uint64(len(slots) - 1)
    slot = hash_bytes(data, at, stop) & mask
    while slots[slot] >= 0:
        token = np.int64(slots[slot])
        if starts[token + 1] - starts[token] == stop - at and same_bytes(spelt, starts[token], data, at, stop - at):
            return token
        slot = (slot + np.uint64(1)) & mask
    return -1


@njit(cache=True)
def token_table(starts: np.ndarray, spelt: np.ndarray) -> np.ndarray:
    """Return an open-addressing table, int32, of the tokens with bytes, by them; -1 where empty."""
    size = 16
    while size < 2 * len(starts):
        size *= 2
    slots = np.full(size, -1, dtype=np.int32)
    for token in range(len(starts) - 1):
        if starts[token + 1] > starts[token]:
            slot = hash_bytes(spelt, starts[token], starts[token + 1]) & np.uint64(size - 1)
            while slots[slot] >= 0:
                slot = (slot + np.uint64(1)) & np.uint64(size - 1)
            slots[slot] = token
    return slots


@njit(cache=True)
def inner_bytes(starts: np.ndarray, spelt: np.ndarray) -> np.ndarray:
    """Return as bits which runs of three bytes stand in some token, and behind them which two bytes are a token."""
    bits = np.zeros(_PAIRS_AT + (1 << 10), dtype=np.uint64)
    for token in range(len(starts) - 1):
        if starts[token + 1] - starts[token] == 2:
            pair = (np.int64(spelt[starts[token]]) << 8) | spelt[starts[token] + 1]
            bits[_PAIRS_AT + (pair >> 6)] |= _ONE << np.uint64(pair & 63)
        for at in range(starts[token], starts[token + 1] - 2):
            three = (np.int64(spelt[at]) << 16) | (np.int64(spelt[at + 1]) << 8) | spelt[at + 2]
            bits[three >> 6] |= _ONE << np.uint64(three & 63)
    return bits


@njit(cache=True)
def _piece_end(data: np.ndarray, at: int, stop: int, inner: np.ndarray) -> int:
    """Return a character's first byte that no token reaches across, `PIECE` bytes or more after `at`; `stop` if none.

    A token across the place holds the two bytes around it, and, unless it is these two, three bytes that hold them.
    """
    for place in range(at + PIECE, stop - 1):
        if data[place] & 0xC0 == 0x80:  # inside a character
            continue
        before, first = np.int64(data[place - 2]), np.int64(data[place - 1])
        second, after = np.int64(data[place]), np.int64(data[place + 1])
        pair = (first << 8) | second
        if (inner[_PAIRS_AT + (pair >> 6)] >> np.uint64(pair & 63)) & _ONE:
            continue
        three = (before << 16) | pair
        if (inner[three >> 6] >> np.uint64(three & 63)) & _ONE:
            continue
        three = (pair << 8) | after
        if not (inner[three >> 6] >> np.uint64(three & 63)) & _ONE:
            return place
    return stop


@njit(cache=True)
def _start(data: np.ndarray, at: int, stop: int, tables: JoinTables, symbols: np.ndarray, first: int) -> int:
    """Write the symbols that a pretoken starts as to ``symbols[first:]``; return their number."""
    count, place = first, at
    while place < stop:
        lead = data[place]
        if lead < 0x80:
            symbols[count] = tables.byte_ids[lead]
            place += 1
            count += 1
            continue
        code, size = char_at(data, place)
        known = tables.char_ids[code] if code < _BMP else np.int32(FROM_BYTES)
        if known >= 0:
            symbols[count] = known
            place += size
            count += 1
        elif known == OWN_BYTES:
            for byte in range(place, place + size):
                symbols[count] = tables.byte_ids[data[byte]]
                count += 1
            place += size
        else:
            for byte in range(at, stop):
                symbols[first + byte - at] = tables.byte_ids[data[byte]]
            return stop - at
    return count - first


@njit(cache=True)
def join_pretoken(
    data: np.ndarray, at: int, stop: int, tables: JoinTables, symbols: np.ndarray, values: np.ndarray
) -> int:
    """Encode the pretoken ``data[at:stop]``; return the number of ids.

    Args:
        data: uint8, valid UTF-8.
        at: the pretoken's first byte.
        stop: its end.
        tables: the vocabulary.
        symbols: int32, as many as the pretoken has bytes, at least: receives the ids.
        values: uint64, shape (SHORT + 1,): scratch.
    """
    if tables.whole:
        token = token_of(data, at, stop, tables.token_starts, tables.token_bytes, tables.token_slots)
        if token >= 0:
            symbols[0] = token
            return 1
    size = 0
    while at < stop:
        end = stop if stop - at <= 2 * PIECE else _piece_end(data, at, stop, tables.inner)
        count = _start(data, at, end, tables, symbols, size)
        if count <= SHORT:
            size += join_short(symbols, size, count, values, tables.pairs)
        else:
            size += join_long(symbols, size, count, tables.pairs)
        at = end
    return size


@njit(cache=True)
def join_short(symbols: np.ndarray, first: int, count: int, values: np.ndarray, pairs: np.ndarray) -> int:
    """Join ``symbols[first : first + count]`` in place by scans for the lowest rank; return how many are left.

    `values` is scratch for as many.
    """
    for place in range(count - 1):
        values[place] = pair_value(pairs, symbols[first + place], symbols[first + place + 1])
    while count > 1:
        best = NO_PAIR
        where = 0
        for place in range(count - 1):
            if values[place] < best:
                best = values[place]
                where = place
        if best == NO_PAIR:
            break
        symbols[first + where] = np.int32(best & _MASK32)
        count -= 1
        for place in range(where + 1, count):
            symbols[first + place] = symbols[first + place + 1]
            values[place] = values[place + 1]
        if where > 0:
            values[where - 1] = pair_value(pairs, symbols[first + where - 1], symbols[first + where])
        if where + 1 < count:
            values[where] = pair_value(pairs, symbols[first + where], symbols[first + where + 1])
    return count


@njit(cache=True)
def _sift_down(heap: np.ndarray, place: int, size: int) -> None:
    moved = heap[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= moved:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = moved


@njit(cache=True)
def _push(heap: np.ndarray, size: int, value: Any) -> None:
    place = size
    while place > 0 and heap[(place - 1) >> 1] > value:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = value


@njit(cache=True)
def join_long(symbols: np.ndarray, first: int, count: int, pairs: np.ndarray) -> int:
    """Join ``symbols[first : first + count]`` in place by a heap of (rank, place) over a linked list, O(n log n).

    Return how many symbols are left.

    Stale entries are known by their rank: the pair that stands there now has another. Memory: 24 bytes a symbol.
    """
    after = np.arange(1, count + 1).astype(np.int32)
    before = np.arange(-1, count - 1).astype(np.int32)
    # A join takes one entry off the heap and puts two on at most, and there are under `count` joins.
    heap = np.empty(2 * count, dtype=np.uint64)
    size = 0
    for place in range(count - 1):
        value = pair_value(pairs, symbols[first + place], symbols[first + place + 1])
        if value != NO_PAIR:
            heap[size] = (value & ~_MASK32) | np.uint64(place)
            size += 1
    for place in range(size // 2 - 1, -1, -1):
        _sift_down(heap, place, size)
    while size > 0:
        top = heap[0]
        size -= 1
        heap[0] = heap[size]
        _sift_down(heap, 0, size)
        place = np.int64(top & _MASK32)  # type: ignore[assignment]
        right = np.int64(after[place])
        if symbols[first + place] < 0 or right >= count:
            continue
        value = pair_value(pairs, symbols[first + place], symbols[first + right])
        if value == NO_PAIR or value >> _S32 != top >> _S32:
            continue
        symbols[first + place] = np.int32(value & _MASK32)
        symbols[first + right] = -1
        past, left = np.int64(after[right]), np.int64(before[place])
        after[place] = past
        if past < count:
            before[past] = place
            value = pair_value(pairs, symbols[first + place], symbols[first + past])
            if value != NO_PAIR:
                _push(heap, size, (value & ~_MASK32) | np.uint64(place))
                size += 1
        if left >= 0:
            value = pair_value(pairs, symbols[first + left], symbols[first + place])
            if value != NO_PAIR:
                _push(heap, size, (value & ~_MASK32) | np.uint64(left))
                size += 1
    kept = 0
    for place in range(count):
        if symbols[first + place] >= 0:
            symbols[first + kept] = symbols[first + place]
            kept += 1
    return kept
