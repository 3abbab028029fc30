"""The compiled loops of `packing`: bins by a segment tree, placing, and copying of tokens.

Tree and stacks follow Ding et al., 2404.10830, section 3: leaf i of the tree holds i if some row has exactly i tokens
of room, inner nodes hold the maximum of their children. Rows of equal room form a stack.
"""

from __future__ import annotations

import numba
import numpy as np

STARTS_DOCUMENT = 1
ENDS_DOCUMENT = 2
PADDING = 4


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
def _set_leaf(tree: np.ndarray, width: int, leaf: int, value: int) -> None:
    """Set a leaf and the maxima above it; stops where a maximum does not change."""
    node = width + leaf
    tree[node] = value
    node >>= 1
    while node >= 1:
        best = max(tree[2 * node], tree[2 * node + 1])
        if tree[node] == best:
            return
        tree[node] = best
        node >>= 1


@numba.njit(cache=True, nogil=True, inline="always")
def _first_at_least(tree: np.ndarray, width: int, bound: int) -> int:
    """Return the smallest leaf value >= bound, 0 if there is none (leaf i holds i or 0)."""
    if tree[1] < bound:
        return 0
    node = 1
    while node < width:
        node *= 2
        if tree[node] < bound:
            node += 1
    return tree[node]


@numba.njit(cache=True, nogil=True)
def best_fit(piece_length: np.ndarray, order: np.ndarray, sequence_length: int) -> np.ndarray:
    """Assign a row to every piece: the row with the least sufficient room, the last one touched among equals."""
    width = 1
    while width < sequence_length + 1:
        width *= 2
    tree = np.zeros(2 * width, dtype=np.int32)
    top = np.full(sequence_length + 1, -1, dtype=np.int64)  # stack of rows by room
    below = np.empty(len(piece_length), dtype=np.int64)
    row_of_piece = np.empty(len(piece_length), dtype=np.int64)
    num_rows = 0
    for piece in order:
        length = piece_length[piece]
        room = _first_at_least(tree, width, length)
        if room == 0:
            row = num_rows
            num_rows += 1
            left = sequence_length - length
        else:
            row = top[room]
            top[room] = below[row]
            if top[room] < 0:
                _set_leaf(tree, width, room, 0)
            left = room - length
        row_of_piece[piece] = row
        if left > 0:
            if top[left] < 0:
                _set_leaf(tree, width, left, left)
            below[row] = top[left]
            top[left] = row
    return row_of_piece


@numba.njit(cache=True, nogil=True)
def best_fit_crop(doc_length: np.ndarray, long_docs: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill one row after the other; leaf m of the tree stands for documents of L + 1 - m tokens."""
    width = 1
    while width < sequence_length + 2:
        width *= 2
    tree = np.zeros(2 * width, dtype=np.int32)
    top = np.full(sequence_length + 2, -1, dtype=np.int64)
    below = np.empty(len(doc_length), dtype=np.int64)
    for i in range(len(doc_length) - 1, -1, -1):  # reversed: the stack then yields ascending ties
        if doc_length[i] <= sequence_length:
            leaf = sequence_length + 1 - doc_length[i]
            if top[leaf] < 0:
                _set_leaf(tree, width, leaf, leaf)
            below[i] = top[leaf]
            top[leaf] = i
    row_of_doc = np.full(len(doc_length), -1, dtype=np.int64)
    kept = np.zeros(len(doc_length), dtype=np.int64)
    row, room, next_long = -1, 0, 0
    for _ in range(len(doc_length)):
        if room == 0:
            row += 1
            room = sequence_length
        leaf = _first_at_least(tree, width, sequence_length + 1 - room)
        if leaf == 0:
            leaf = tree[1]  # the shortest that is left
        if leaf == 0:
            doc = long_docs[next_long]
            next_long += 1
        else:
            doc = top[leaf]
            top[leaf] = below[doc]
            if top[leaf] < 0:
                _set_leaf(tree, width, leaf, 0)
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
