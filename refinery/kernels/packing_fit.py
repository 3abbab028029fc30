"""The compiled loops of `packing`: best fit by a tree of bits, placing, and copying of tokens.

Best fit follows Ding et al., 2404.10830, section 3: a tree over the amounts of room knows which of them some row has,
and rows of equal room form a stack. Their segment tree of integers is a tree of 64-bit words here: for L = 4096 it is
528 bytes in three levels instead of 64 KiB in thirteen, so a search stays in the first cache (2.6 to 48 M documents/s).
"""

from __future__ import annotations

import numba
import numpy as np

STARTS_DOCUMENT = 1
ENDS_DOCUMENT = 2
PADDING = 4
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_INDEX = np.zeros(64, dtype=np.int64)
_BIT_INDEX[[((1 << bit) * 0x03F79D71B4CB0A89 & (2**64 - 1)) >> 58 for bit in range(64)]] = np.arange(64)


@numba.njit(cache=True, nogil=True)
def counting_sort(piece_length: np.ndarray, longest: int, order: np.ndarray) -> None:
    """Fill `order` with piece indices by descending length, stable."""
    begin = np.zeros(longest + 2, dtype=np.int64)
    for i in range(len(piece_length)):
        begin[longest - piece_length[i] + 1] += 1
    for j in range(1, longest + 2):
        begin[j] += begin[j - 1]
    for i in range(len(piece_length)):
        slot = longest - piece_length[i]
        order[begin[slot]] = i
        begin[slot] += 1


@numba.njit(cache=True, nogil=True, inline="always")
def _lowest_bit(word: np.uint64) -> int:
    """Return the index of the lowest set bit of a word that is not 0."""
    return _BIT_INDEX[((word & (~word + np.uint64(1))) * _DE_BRUIJN) >> np.uint64(58)]


@numba.njit(cache=True, nogil=True)
def _bit_tree(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an empty set of integers below `size` as a tree of 64-bit words, and where its levels begin."""
    first = np.zeros(6, dtype=np.int64)
    words, levels, total = size, 0, 0
    while True:
        words = (words + 63) // 64
        first[levels] = total
        total += words
        levels += 1
        if words == 1:
            break
    first[levels] = total
    return np.zeros(total, dtype=np.uint64), first[: levels + 1]


@numba.njit(cache=True, nogil=True, inline="always")
def _insert(tree: np.ndarray, first: np.ndarray, value: int) -> None:
    for level in range(len(first) - 1):
        place = first[level] + (value >> 6)
        before = tree[place]
        tree[place] = before | (np.uint64(1) << np.uint64(value & 63))
        if before != 0:
            return
        value >>= 6


@numba.njit(cache=True, nogil=True, inline="always")
def _remove(tree: np.ndarray, first: np.ndarray, value: int) -> None:
    for level in range(len(first) - 1):
        place = first[level] + (value >> 6)
        tree[place] &= ~(np.uint64(1) << np.uint64(value & 63))
        if tree[place] != 0:
            return
        value >>= 6


@numba.njit(cache=True, nogil=True, inline="always")
def _first_at_least(tree: np.ndarray, first: np.ndarray, bound: int) -> int:
    """Return the smallest member >= bound, -1 if there is none."""
    levels = len(first) - 1
    for level in range(levels):
        place = first[level] + (bound >> 6)
        if level == levels - 1 and bound >= 64:
            return -1
        if level < levels - 1 and place >= first[level + 1]:
            return -1
        word = tree[place] >> np.uint64(bound & 63)
        if word != 0:
            found = bound + _lowest_bit(word)
            for below in range(level - 1, -1, -1):
                found = found * 64 + _lowest_bit(tree[first[below] + found])
            return found
        bound = (bound >> 6) + 1
    return -1


@numba.njit(cache=True, nogil=True)
def best_fit(descending: np.ndarray, sequence_length: int) -> np.ndarray:
    """Assign a row to every piece: the row with the least sufficient room, the last one touched among equals.

    Args:
        descending: int64, lengths of the pieces from long to short.
        sequence_length: L.
    Returns: int64, row of every piece, in the order of `descending`.
    """
    tree, first = _bit_tree(sequence_length + 1)
    top = np.full(sequence_length + 1, -1, dtype=np.int64)  # stack of rows by room
    below = np.empty(len(descending), dtype=np.int64)
    row_of_piece = np.empty(len(descending), dtype=np.int64)
    num_rows = 0
    for piece in range(len(descending)):
        length = descending[piece]
        room = _first_at_least(tree, first, length)
        if room < 0:
            row = num_rows
            num_rows += 1
            left = sequence_length - length
        else:
            row = top[room]
            top[room] = below[row]
            if top[room] < 0:
                _remove(tree, first, room)
            left = room - length
        row_of_piece[piece] = row
        if left > 0:
            if top[left] < 0:
                _insert(tree, first, left)
            below[row] = top[left]
            top[left] = row
    return row_of_piece


@numba.njit(cache=True, nogil=True)
def best_fit_crop(doc_length: np.ndarray, long_docs: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill one row after the other; member m of the tree stands for documents of L + 1 - m tokens.

    Args:
        doc_length: int64, in ascending tie, none 0.
        long_docs: int64, indices of documents over L in the order in which they are cropped.
        sequence_length: L.
    Returns: (row, kept tokens) of every document, int64.
    """
    tree, first = _bit_tree(sequence_length + 2)
    top = np.full(sequence_length + 2, -1, dtype=np.int64)
    below = np.empty(len(doc_length), dtype=np.int64)
    shortest = 0  # largest member: documents are only ever taken away, so it only falls
    for i in range(len(doc_length) - 1, -1, -1):  # reversed: the stack then yields ascending ties
        if doc_length[i] <= sequence_length:
            leaf = sequence_length + 1 - doc_length[i]
            if top[leaf] < 0:
                _insert(tree, first, leaf)
            below[i] = top[leaf]
            top[leaf] = i
            shortest = max(shortest, leaf)
    row_of_doc = np.full(len(doc_length), -1, dtype=np.int64)
    kept = np.zeros(len(doc_length), dtype=np.int64)
    row, room, next_long = -1, 0, 0
    for _ in range(len(doc_length)):
        if room == 0:
            row += 1
            room = sequence_length
        leaf = _first_at_least(tree, first, sequence_length + 1 - room)
        if leaf < 0:
            while shortest > 0 and top[shortest] < 0:
                shortest -= 1
            leaf = shortest
        if leaf == 0:
            doc = long_docs[next_long]
            next_long += 1
        else:
            doc = top[leaf]
            top[leaf] = below[doc]
            if top[leaf] < 0:
                _remove(tree, first, leaf)
        row_of_doc[doc] = row
        kept[doc] = min(room, doc_length[doc])
        room -= kept[doc]
    return row_of_doc, kept


@numba.njit(cache=True, nogil=True)
def sum_rows(group: np.ndarray, amount: np.ndarray, rank: np.ndarray, out: np.ndarray) -> None:
    """Add each amount to ``out[rank[group]]``; a group of -1 is skipped."""
    for i in range(len(group)):
        if group[i] >= 0:
            out[rank[group[i]]] += amount[i]


@numba.njit(cache=True, nogil=True)
def place(  # noqa: PLR0913, PLR0917 - numba takes arrays, not a record of them
    piece_doc: np.ndarray,
    piece_start: np.ndarray,
    piece_length: np.ndarray,
    row_of_piece: np.ndarray,
    rank: np.ndarray,
    lengths: np.ndarray,
    row_ptr: np.ndarray,
    sequence_length: int,
    doc: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    position: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Write the segments of every row, pieces in the order given, padding last."""
    num_rows = len(row_ptr) - 1
    next_segment = row_ptr[:-1].copy()
    used = np.zeros(num_rows, dtype=np.int64)
    for i in range(len(piece_doc)):
        if row_of_piece[i] < 0:
            continue
        row = rank[row_of_piece[i]]
        s = next_segment[row]
        next_segment[row] += 1
        doc[s] = piece_doc[i]
        start[s] = piece_start[i]
        length[s] = piece_length[i]
        position[s] = used[row]
        used[row] += piece_length[i]
        flag = 0
        if piece_start[i] == 0:
            flag |= STARTS_DOCUMENT
        if piece_start[i] + piece_length[i] == lengths[piece_doc[i]]:
            flag |= ENDS_DOCUMENT
        flags[s] = flag
    for row in range(num_rows):
        if used[row] < sequence_length:
            s = next_segment[row]
            position[s] = used[row]
            length[s] = sequence_length - used[row]


@numba.njit(cache=True, nogil=True)
def copy_tokens(  # noqa: PLR0913, PLR0917 - numba takes arrays, not a record of them
    row_ptr: np.ndarray,
    doc: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    token_offsets: np.ndarray,
    tokens: np.ndarray,
    pad_id: int,
    out: np.ndarray,
) -> None:
    """Fill ``out``, shape (R, L), with the tokens of each segment and `pad_id` in padding."""
    for row in range(len(row_ptr) - 1):
        position = 0
        for s in range(row_ptr[row], row_ptr[row + 1]):
            if doc[s] < 0:
                out[row, position : position + length[s]] = pad_id
            else:
                source = token_offsets[doc[s]] + start[s]
                for j in range(length[s]):
                    out[row, position + j] = tokens[source + j]
            position += length[s]


@numba.njit(cache=True, nogil=True)
def copy_segments(
    target: np.ndarray, source: np.ndarray, length: np.ndarray, tokens: np.ndarray, out: np.ndarray
) -> None:
    """Copy runs of tokens: ``out[target[i] + j] = tokens[source[i] + j]`` for j below ``length[i]``."""
    for i in range(len(target)):
        for j in range(length[i]):
            out[target[i] + j] = tokens[source[i] + j]


@numba.njit(cache=True, nogil=True)
def sum_bytes(
    row_ptr: np.ndarray,
    length: np.ndarray,
    flags: np.ndarray,
    rows: np.ndarray,
    token_bytes: np.ndarray,
    utf8_bytes: np.ndarray,
    loss_bytes: np.ndarray,
) -> None:
    """Add up the bytes of document tokens per row: all of them, and all but the first of each segment."""
    for row in range(len(row_ptr) - 1):
        position = 0
        for s in range(row_ptr[row], row_ptr[row + 1]):
            if flags[s] != PADDING:
                first = np.int64(token_bytes[rows[row, position]])
                total = first
                for j in range(1, length[s]):
                    total += token_bytes[rows[row, position + j]]
                utf8_bytes[row] += total
                loss_bytes[row] += total - first
            position += length[s]
