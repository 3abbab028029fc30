"""Which characters a pretoken may start from whole, so that Chinese is merged by characters and not by bytes.

The merges of a byte-level vocabulary are of three kinds: inside one character (partial bytes into partial bytes or
into the character), of whole characters, and *crossing* ones that join part of a character to a neighbour. A character
is safe when (1) while its own merges run, every partial piece at its edges is consumed by merges of lower rank than any
crossing merge that could take it; (2) every merge of whole characters that it takes part in ranks after all its own.

In a pretoken of safe characters no crossing merge ever happens: the first to happen would need a partial piece at a
character's edge, and there, by (1), a merge of lower rank inside that character was still possible. So characters are
completed independently of each other, and by (2) no merge of whole characters happens whose choice depended on a
character still incomplete: had the pair of lowest rank among whole characters contained an incomplete one, that one's
own next merge would rank lower still. Starting from the results of the characters' own merges thus gives the same ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from refinery.kernels.bpe_join import FROM_BYTES, NO_PAIR, OWN_BYTES, pair_value
from refinery.kernels.pretoken_scan import char_at

_OTHER, _WHOLE, _HEAD, _TAIL = 0, 1, 2, 3
_NEVER = np.int64(2**62)
_BMP = 0x10000
_S32, _MASK32 = np.uint64(32), np.uint64(0xFFFFFFFF)


@njit(cache=True)
def _char_size(first: int) -> int:
    """Return the bytes of a character by its first byte; 0 for a byte that starts none."""
    if first < 0x80:
        return 1
    if 0xC2 <= first < 0xE0:
        return 2
    if 0xE0 <= first < 0xF0:
        return 3
    return 4 if 0xF0 <= first < 0xF5 else 0


@njit(cache=True)
def _kind(spelt: np.ndarray, at: int, stop: int) -> int:
    """Return whether bytes are whole characters, the head of one, continuation bytes of one, or anything else."""
    if stop == at:
        return _OTHER
    tails = 0
    for place in range(at, stop):
        tails += (spelt[place] & 0xC0) == 0x80
    if tails == stop - at:
        return _TAIL if tails <= 3 else _OTHER
    place = at
    while place < stop:
        size = _char_size(spelt[place])
        if size == 0:
            return _OTHER
        for step in range(place + 1, min(place + size, stop)):
            if spelt[step] & 0xC0 != 0x80:
                return _OTHER
        if place + size > stop:
            return _HEAD if place == at else _OTHER
        place += size
    return _WHOLE


@njit(cache=True)
def _crossing(
    left: np.ndarray, right: np.ndarray, kinds: np.ndarray, starts: np.ndarray, spelt: np.ndarray
) -> tuple[Any, Any]:
    """Return by token the lowest rank of a crossing merge that takes it as left half, and as right half."""
    as_left = np.full(len(kinds), _NEVER)
    as_right = np.full(len(kinds), _NEVER)
    for rank in range(len(left)):
        one, other = left[rank], right[rank]
        size = starts[one + 1] - starts[one] + starts[other + 1] - starts[other]
        inside = kinds[other] == _TAIL and (
            (kinds[one] == _TAIL and size <= 3)
            or (kinds[one] == _HEAD and size <= _char_size(spelt[starts[one]]))
        )
        if not inside and not (kinds[one] == _WHOLE and kinds[other] == _WHOLE):
            as_left[one] = min(as_left[one], rank)
            as_right[other] = min(as_right[other], rank)
    return as_left, as_right


@njit(cache=True)
def _own_merges(
    symbols: np.ndarray, count: int, pairs: np.ndarray, as_left: np.ndarray, as_right: np.ndarray
) -> tuple[int, Any]:
    """Merge the bytes of one character alone, in place.

    Returns: symbols left, and the highest rank used, `_NEVER` where a crossing merge could come first.
    """
    highest, since_first, since_last = np.int64(-1), np.int64(-1), np.int64(-1)
    while count > 1:
        best, where = NO_PAIR, 0
        for place in range(count - 1):
            value = pair_value(pairs, symbols[place], symbols[place + 1])
            if value < best:
                best, where = value, place
        if best == NO_PAIR:
            break
        rank = np.int64(best >> _S32)
        highest, since_first, since_last = max(highest, rank), max(since_first, rank), max(since_last, rank)
        if where == 0:
            if as_right[symbols[0]] < since_first:
                return count, _NEVER
            since_first = np.int64(-1)
        if where + 2 == count:
            if as_left[symbols[count - 1]] < since_last:
                return count, _NEVER
            since_last = np.int64(-1)
        symbols[where] = np.int32(best & _MASK32)
        count -= 1
        for place in range(where + 1, count):
            symbols[place] = symbols[place + 1]
    if count > 1 and (as_right[symbols[0]] < _NEVER or as_left[symbols[count - 1]] < _NEVER):
        return count, _NEVER
    return count, highest


@njit(cache=True)
def _utf8(code: int, text: np.ndarray) -> int:
    """Write a code point from U+0080 to U+FFFF as UTF-8; return its bytes."""
    if code < 0x800:
        text[0], text[1] = 0xC0 | (code >> 6), 0x80 | (code & 0x3F)
        return 2
    text[0], text[1], text[2] = 0xE0 | (code >> 12), 0x80 | ((code >> 6) & 0x3F), 0x80 | (code & 0x3F)
    return 3


@njit(cache=True)
def char_starts(
    left: np.ndarray,
    right: np.ndarray,
    ids: np.ndarray,
    pairs: np.ndarray,
    byte_ids: np.ndarray,
    starts: np.ndarray,
    spelt: np.ndarray,
) -> np.ndarray:
    """Return what each character of the basic plane starts as.

    Args:
        left: int32, shape (M,): merges in order of rank.
        right: int32, shape (M,).
        ids: int32, shape (M,): what they become.
        pairs: the same as a table (`refinery.kernels.bpe_join.pair_table`).
        byte_ids: int32, shape (256,).
        starts: int64, shape (tokens + 1,): token i is spelt ``spelt[starts[i]:starts[i + 1]]``.
        spelt: uint8.
    Returns: int32, shape (0x10000,): the id of a safe character that is one token; `OWN_BYTES` for a safe one that
        stays in pieces; `FROM_BYTES` for the others.
    """
    kinds = np.empty(len(starts) - 1, dtype=np.int64)
    for token in range(len(kinds)):
        kinds[token] = _kind(spelt, starts[token], starts[token + 1])
    as_left, as_right = _crossing(left, right, kinds, starts, spelt)
    found = np.full(_BMP, FROM_BYTES, dtype=np.int32)
    highest = np.full(_BMP, -1, dtype=np.int64)
    text, symbols = np.empty(4, dtype=np.uint8), np.empty(4, dtype=np.int32)
    for code in range(0x80, _BMP):
        size = _utf8(code, text)
        for place in range(size):
            symbols[place] = byte_ids[text[place]]
        count, rank = _own_merges(symbols, size, pairs, as_left, as_right)
        if rank < _NEVER:
            found[code] = symbols[0] if count == 1 else OWN_BYTES
            highest[code] = rank
    for rank in range(len(left)):
        if kinds[left[rank]] == _WHOLE and kinds[right[rank]] == _WHOLE:
            place, stop = starts[ids[rank]], starts[ids[rank] + 1]
            while place < stop:
                code, size = char_at(spelt, place)
                if 0x80 <= code < _BMP and rank <= highest[code]:
                    found[code] = FROM_BYTES
                place += size
    return found
