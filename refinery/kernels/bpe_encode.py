"""Encode UTF-8 with byte-pair merges: whole pretokens from a cache, merges only for those not seen lately.

Equal to the `tokenizers` library's `BPE` model (0.23, without dropout, prefixes, suffixes and unknown token): inside a
pretoken the pair of lowest rank is joined first, of equal ones the leftmost, until no rule applies. Which pretokens the
cache holds changes the speed, never the ids: a pretoken is found by comparing all its bytes.

Per pretoken: its end (`refinery.kernels.pretoken_scan`), its bytes as four integers, one cache line read; a pretoken of
up to 31 bytes and 12 ids (6 above 65,536 ids) is cached. The cache is two-way with the less recently used line
replaced, so it is bounded and never rebuilt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from refinery.hashing import load_uint64
from refinery.kernels.bpe_join import SHORT, JoinTables, join_pretoken
from refinery.kernels.pretoken_scan import pretoken_end

LINE_WORDS = 8
"""uint64 words of a cache line: bytes 0-30 of a pretoken and its length, ids, how many."""
MOST_KEY_BYTES = 31
_ID_WORDS, _FIRST_ID, _COUNT = 3, 4, 7
_SCRATCH = 4 * SHORT
_NARROW_IDS = 1 << 16
_EMPTY = np.uint64(0)
_PRIMES = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93))
_ONE, _S3, _S16, _S32, _S56 = (np.uint64(n) for n in (1, 3, 16, 32, 56))
_NARROW, _WIDE = np.uint64(0xFFFF), np.uint64(0xFFFFFFFF)


class EncodeState(NamedTuple):
    """What encoding keeps between calls; make it with `new_state`."""

    lines: np.ndarray
    """uint64, shape (sets * 2 * LINE_WORDS,), its first byte at a multiple of 64: the cache."""
    shift: np.ndarray
    """uint64, shape (1,): a hash shifted right by it is a set's number."""
    narrow: bool
    """Lines hold ids of 16 bits, not of 32."""
    symbols: np.ndarray
    """int32: a pretoken's ids while they are joined."""
    values: np.ndarray
    """uint64: scratch."""
    totals: np.ndarray
    """int64, shape (3,): pretokens seen, not found in the cache, kept out of it."""


def new_state(num_sets: int, vocab_size: int) -> EncodeState:
    """Return an empty cache of `num_sets`, a power of two from 2 on, times two lines of 64 bytes."""
    raw = np.zeros((num_sets * 2 + 1) * LINE_WORDS, dtype=np.uint64)
    skipped = (-raw.ctypes.data % 64) // 8
    lines = raw[skipped : skipped + num_sets * 2 * LINE_WORDS]
    shift = np.array([64 - (num_sets.bit_length() - 1)], dtype=np.uint64)
    symbols, values = np.empty(_SCRATCH, dtype=np.int32), np.empty(SHORT + 1, dtype=np.uint64)
    return EncodeState(lines, shift, vocab_size <= _NARROW_IDS, symbols, values, np.zeros(3, dtype=np.int64))


@njit(cache=True, inline="always")
def _word(data: np.ndarray, at: int, size: int) -> Any:
    """Return up to eight bytes as one little-endian integer; nothing after ``data`` is read."""
    if size <= 0:
        return _EMPTY
    if at + 8 <= len(data):
        eight = load_uint64(data, at)
        return eight if size >= 8 else eight & ((_ONE << np.uint64(8 * size)) - _ONE)
    word = _EMPTY
    for place in range(min(size, 8)):
        word |= np.uint64(data[at + place]) << np.uint64(8 * place)
    return word


@njit(cache=True, inline="always")
def _key(data: np.ndarray, at: int, size: int) -> Any:
    """Return the bytes and the length of a pretoken of up to 31 bytes as four integers."""
    length = np.uint64(size) << _S56
    if size <= 8:
        return _word(data, at, size), _EMPTY, _EMPTY, length
    if size <= 16:
        return _word(data, at, 8), _word(data, at + 8, size - 8), _EMPTY, length
    third, fourth = _word(data, at + 16, size - 16), _word(data, at + 24, size - 24)
    return _word(data, at, 8), _word(data, at + 8, 8), third, fourth | length


@njit(cache=True, inline="always")
def _is_line(lines: np.ndarray, line: int, key: Any) -> bool:
    return (
        (lines[line] ^ key[0]) | (lines[line + 1] ^ key[1]) | (lines[line + 2] ^ key[2]) | (lines[line + 3] ^ key[3])
    ) == _EMPTY


@njit(cache=True, inline="always")
def _swap(lines: np.ndarray, first: int) -> None:
    for word in range(first, first + LINE_WORDS):
        kept = lines[word]
        lines[word] = lines[word + LINE_WORDS]
        lines[word + LINE_WORDS] = kept


@njit(cache=True)
def _keep(lines: np.ndarray, first: int, key: Any, ids: np.ndarray, count: int, narrow: bool) -> None:
    """Write a pretoken over the less recently used line of its set, which becomes the first."""
    for word in range(first, first + LINE_WORDS):
        lines[word + LINE_WORDS] = lines[word]
        lines[word] = _EMPTY
    lines[first], lines[first + 1], lines[first + 2], lines[first + 3] = key
    for place in range(count):
        if narrow:
            lines[first + _FIRST_ID + (place >> 2)] |= np.uint64(ids[place]) << np.uint64(16 * (place & 3))
        else:
            lines[first + _FIRST_ID + (place >> 1)] |= np.uint64(ids[place]) << np.uint64(32 * (place & 1))
    lines[first + _COUNT] = np.uint64(count)


@njit(cache=True, inline="always")
def _copy_ids(lines: np.ndarray, first: int, out: np.ndarray, size: int, narrow: bool) -> Any:
    count = np.int64(lines[first + _COUNT])
    if narrow:
        out[size] = lines[first + _FIRST_ID] & _NARROW
        for place in range(1, count):
            out[size + place] = (lines[first + _FIRST_ID + (place >> 2)] >> np.uint64(16 * (place & 3))) & _NARROW
    else:
        out[size] = lines[first + _FIRST_ID] & _WIDE
        for place in range(1, count):
            out[size + place] = (lines[first + _FIRST_ID + (place >> 1)] >> np.uint64(32 * (place & 1))) & _WIDE
    return size + count


@njit(cache=True)
def _join_and_keep(  # noqa: PLR0913, PLR0917 - a kernel over the arrays of one pretoken
    data: np.ndarray, at: int, stop: int, tables: JoinTables, state: EncodeState, first: int, out: np.ndarray, size: int
) -> int:
    """Write a pretoken's ids to ``out[size:]``; keep it in the set at `first`, unless that is negative."""
    symbols = state.symbols if stop - at <= _SCRATCH else np.empty(stop - at, dtype=np.int32)
    count = join_pretoken(data, at, stop, tables, symbols, state.values)
    state.totals[1] += 1
    if first >= 0 and count <= (4 if state.narrow else 2) * _ID_WORDS:
        _keep(state.lines, first, _key(data, at, stop - at), symbols, count, state.narrow)
    else:
        state.totals[2] += 1
    for place in range(count):
        out[size + place] = symbols[place]
    return size + count


@njit(cache=True)
def encode_documents(
    offsets: np.ndarray, data: np.ndarray, tables: JoinTables, state: EncodeState, eos_id: int, out: np.ndarray
) -> np.ndarray:
    """Encode D documents back to back; `state` is used by one thread at a time.

    Args:
        offsets: int64, shape (D + 1,): document i is ``data[offsets[i]:offsets[i + 1]]``.
        data: uint8, valid UTF-8 document by document.
        tables: the vocabulary.
        state: the cache, filled on the way.
        eos_id: id after every document, or -1 for none.
        out: uint16 or int32, shape (bytes of the documents + D,) at least: receives the ids.
    Returns: int64, shape (D + 1,): document i is ``out[bounds[i]:bounds[i + 1]]``.
    """
    bounds = np.zeros(len(offsets), dtype=np.int64)
    lines, shift, narrow = state.lines, state.shift[0], state.narrow
    size, seen = 0, 0
    for document in range(len(offsets) - 1):
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            stop = pretoken_end(data, at, end, tables.classes, tables.max_digits)
            seen += 1
            first = -1
            if stop - at <= MOST_KEY_BYTES:
                key = _key(data, at, stop - at)
                mixed = (key[0] ^ key[1] * _PRIMES[0] ^ key[2] * _PRIMES[1] ^ key[3] * _PRIMES[2]) * _PRIMES[3]
                mixed ^= mixed >> _S32
                first = np.int64(((mixed * _PRIMES[0]) >> shift) * np.uint64(2 * LINE_WORDS))  # type: ignore[assignment]
                if _is_line(lines, first, key):
                    size = _copy_ids(lines, first, out, size, narrow)
                    at = stop
                    continue
                if _is_line(lines, first + LINE_WORDS, key):
                    _swap(lines, first)
                    size = _copy_ids(lines, first, out, size, narrow)
                    at = stop
                    continue
            size = _join_and_keep(data, at, stop, tables, state, first, out, size)
            at = stop
        if eos_id >= 0:
            out[size] = eos_id
            size += 1
        bounds[document + 1] = size
    state.totals[0] += seen
    return bounds
