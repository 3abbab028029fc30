"""Lay documents into rows of exactly L tokens.

Best-fit decreasing (Ding et al., "Fewer Truncations Improve Language Modeling", 2404.10830): documents are cut into
pieces of at most L tokens, pieces are taken from long to short, and each goes into the row with the least room that
still holds it. A segment tree over the L possible amounts of room answers that in O(log L), so a part costs
O(pieces * log L). Tails of long documents are kept; `best_fit_crop` and `concat` are there to be compared with.

Everything is a function of (length, tie) of the documents, never of their order: pieces of equal length are taken by
ascending tie, the pieces of a row lie in ascending tie, and rows are ordered by a hash of their first piece. Best-fit
opens rows from the longest piece to the shortest, so without that last step a part would be sorted by document length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.hashing import splitmix64_array
from refinery.kernels.packing_fit import (
    PADDING,
    best_fit,
    best_fit_crop,
    copy_segments,
    copy_tokens,
    counting_sort,
    place,
    sum_bytes,
    sum_rows,
)

# D documents, P pieces (a document or a part of one), S segments (pieces and padding), R rows, L tokens in a row
POLICIES = ("best_fit", "concat", "best_fit_crop")
MAX_SEQUENCE_LENGTH = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """Where every token of a part goes; segments in row-major order, each row tiled exactly.

    Attributes:
        sequence_length: L, tokens in a row.
        row_ptr: int64, shape (R + 1,); segments of row r are ``row_ptr[r]:row_ptr[r + 1]``.
        doc: int64, shape (S,); index of the document, -1 for padding.
        start: int64, shape (S,); first token of the segment inside its document, 0 for padding.
        length: int32, shape (S,), tokens.
        position: int32, shape (S,); first token of the segment inside its row.
        flags: uint8, shape (S,); 1 starts at document start, 2 ends at document end, 4 padding.
        num_docs: documents with at least one token.
        num_docs_cut: documents that lie in more than one segment or lost tokens.
        dropped_tokens: tokens that no row holds (only `best_fit_crop` drops any).
    """

    sequence_length: int
    row_ptr: np.ndarray
    doc: np.ndarray
    start: np.ndarray
    length: np.ndarray
    position: np.ndarray
    flags: np.ndarray
    num_docs: int
    num_docs_cut: int
    dropped_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows of the part."""
        return len(self.row_ptr) - 1

    @property
    def row_of_segment(self) -> np.ndarray:
        """int64, shape (S,): the row of every segment."""
        return np.repeat(np.arange(self.num_rows, dtype=np.int64), np.diff(self.row_ptr))

    @property
    def padding_tokens(self) -> int:
        """Tokens of padding in all rows."""
        return int(self.length[self.flags == PADDING].sum(dtype=np.int64))

    @property
    def fill_frac(self) -> float:
        """Share of row positions that hold document tokens; 1.0 for no rows."""
        capacity = self.num_rows * self.sequence_length
        return 1.0 - self.padding_tokens / capacity if capacity else 1.0

    def segment_hashes(self, doc_hash: np.ndarray) -> np.ndarray:
        """Spread a uint64 hash per document, shape (D,), over segments, shape (S,); padding gets 0."""
        out = np.zeros(len(self.doc), dtype=np.uint64)
        real = self.doc >= 0
        out[real] = doc_hash[self.doc[real]]
        return out


def plan_rows(lengths: np.ndarray, tie: np.ndarray, sequence_length: int, policy: str = "best_fit") -> PackPlan:
    """Decide which tokens of which documents share a row.

    Args:
        lengths: tokens of every document (end-of-document token included), integers >= 0, shape (D,).
            A document of no tokens gets no segment.
        tie: uint64, shape (D,), distinct (first 64 bits of ``doc_key``); with it the rows do not depend on the order
            in which documents are given.
        sequence_length: L, at least 2.
        policy: ``best_fit``: nothing lost, documents over L cut at L and their tails packed; ``concat``: documents in
            ascending tie, back to back, cut at every row end; ``best_fit_crop``: rows are filled with the longest
            document that fits, and when none fits the shortest one is cropped to the room left, its rest dropped
            (nanochat's loader, with the part as its buffer).
    Returns: a `PackPlan`. Cost O(D log D) for the ties, O(P log L) for the rows.
    Raises: ConfigError: unknown policy, sequence_length out of range. SchemaError: arrays of unequal length, negative
        lengths.
    """
    lengths, tie = _checked(lengths, tie, sequence_length, policy)
    by_tie = np.argsort(tie, kind="stable")
    if policy == "concat":
        piece_doc, piece_start, piece_length = _concat_pieces(lengths, by_tie, sequence_length)
        row_of_piece = np.concatenate(([0], np.cumsum(piece_length, dtype=np.int64)))[:-1] // sequence_length
        row_key = None
    else:
        if policy == "best_fit":
            piece_doc, piece_start, piece_length = _split_pieces(lengths, by_tie, sequence_length)
            longest_first = _longest_first(piece_length, sequence_length)
            row_of_piece = np.empty(len(piece_length), dtype=np.int64)
            row_of_piece[longest_first] = best_fit(piece_length[longest_first], sequence_length)
        else:
            order = by_tie[lengths[by_tie] > 0]
            long_docs = np.flatnonzero(lengths[order] > sequence_length)
            # the shortest is cropped first, also among documents that can never fit a row
            long_docs = long_docs[np.argsort(lengths[order[long_docs]], kind="stable")]
            row_of_piece, piece_length = best_fit_crop(lengths[order], long_docs, sequence_length)
            piece_doc, piece_start = order, np.zeros(len(order), dtype=np.int64)
        mixed = splitmix64_array(piece_start.astype(np.uint64))
        row_key = splitmix64_array(tie[piece_doc] ^ mixed)
    return _lay_out((piece_doc, piece_start, piece_length, row_of_piece), row_key, lengths, sequence_length)


def write_rows(
    plan: PackPlan,
    token_offsets: np.ndarray,
    tokens: np.ndarray,
    pad_id: int,
    dtype: np.dtype | type | None = None,
) -> np.ndarray:
    """Copy tokens to their rows.

    Args:
        plan: from `plan_rows` over the same documents.
        token_offsets: int64, shape (D + 1,); document d is ``tokens[token_offsets[d]:token_offsets[d + 1]]``.
        tokens: token ids, any integer dtype, one dimension.
        pad_id: id that fills the padding.
        dtype: of the result; that of `tokens` if not given. Ids must fit (the shard writer checks them against the
            vocabulary, so check before narrowing).
    Returns: shape (R, L), C-contiguous.
    Raises: SchemaError: offsets do not fit the plan or the tokens.
    """
    num_docs = len(token_offsets) - 1
    if len(plan.doc) and int(plan.doc.max()) >= num_docs:
        raise SchemaError(f"the plan names document {int(plan.doc.max())}, but there are offsets of {num_docs}")
    if num_docs >= 0 and len(token_offsets) and int(token_offsets[-1]) > len(tokens):
        raise SchemaError(f"token_offsets end at {int(token_offsets[-1])}, but there are {len(tokens)} tokens")
    out = np.empty((plan.num_rows, plan.sequence_length), dtype=dtype or tokens.dtype)
    copy_tokens(plan.row_ptr, plan.doc, plan.start, plan.length, token_offsets, tokens, pad_id, out)
    return out


class TokenChunks(NamedTuple):
    """Documents in several arrays, as Arrow delivers them: nothing is put together first, so nothing is held twice."""

    tokens: Sequence[np.ndarray]
    """Token ids of each chunk, one dimension."""
    chunk: np.ndarray
    """int64, shape (D,): chunk of the document."""
    first: np.ndarray
    """int64, shape (D,): its first token inside the chunk."""


def write_row_range(plan: PackPlan, rows: range, documents: TokenChunks, pad_id: int, out: np.ndarray) -> None:
    """Copy the tokens of some rows.

    Args:
        plan: from `plan_rows` over the same documents.
        rows: rows of the plan that follow each other.
        documents: where each document lies.
        pad_id: id that fills the padding.
        out: shape (len(rows), L), C-contiguous, dtype of the tokens.
    """
    begin, end = int(plan.row_ptr[rows.start]), int(plan.row_ptr[rows.stop])
    doc = plan.doc[begin:end]
    real = np.flatnonzero(doc >= 0)
    doc = doc[real]
    row = np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(plan.row_ptr[rows.start : rows.stop + 1]))[real]
    target = row * plan.sequence_length + plan.position[begin:end][real]
    source = documents.first[doc] + plan.start[begin:end][real]
    length = plan.length[begin:end][real]
    chunk = documents.chunk[doc]
    flat = out.reshape(-1)
    flat[:] = pad_id
    for number in np.unique(chunk):
        mine = np.flatnonzero(chunk == number)
        copy_segments(target[mine], source[mine], length[mine], documents.tokens[number], flat)


def row_range_bytes(
    plan: PackPlan, rows: range, tokens: np.ndarray, token_bytes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `row_bytes` returns, of some rows: `tokens` has shape (len(rows), L), `token_bytes` is int32."""
    begin, end = int(plan.row_ptr[rows.start]), int(plan.row_ptr[rows.stop])
    pointers = plan.row_ptr[rows.start : rows.stop + 1] - begin
    utf8_bytes, loss_bytes = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    sum_bytes(pointers, plan.length[begin:end], plan.flags[begin:end], tokens, token_bytes, utf8_bytes, loss_bytes)
    return utf8_bytes, loss_bytes


def row_bytes(plan: PackPlan, rows: np.ndarray, token_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the UTF-8 bytes behind the tokens of every row.

    Args:
        plan: the plan of the part.
        rows: token ids, shape (R, L), from `write_rows`.
        token_bytes: integers, shape (vocab_size,): UTF-8 bytes that each token stands for, 0 for special tokens.
    Returns: (utf8_bytes, loss_bytes), int64, shape (R,): bytes of all document tokens, and of those that are
        predicted (all but the first of each segment), the denominator of bits per byte.
    """
    return row_range_bytes(plan, range(plan.num_rows), rows, token_bytes.astype(np.int32))


def unpack_rows(plan: PackPlan, rows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put rows back into documents: the inverse of `write_rows`.

    Args:
        plan: the plan of the part.
        rows: token ids, shape (R, L).
        lengths: tokens of every document as given to `plan_rows`, shape (D,).
    Returns: (token_offsets int64 (D + 1,), tokens). Tokens that the plan dropped are 0.
    """
    token_offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=token_offsets[1:])
    tokens = np.zeros(int(token_offsets[-1]), dtype=rows.dtype)
    row = plan.row_of_segment
    for s in np.flatnonzero(plan.doc >= 0):
        target = token_offsets[plan.doc[s]] + plan.start[s]
        position, length = plan.position[s], plan.length[s]
        tokens[target : target + length] = rows[row[s], position : position + length]
    return token_offsets, tokens


def _checked(lengths: np.ndarray, tie: np.ndarray, sequence_length: int, policy: str) -> tuple[np.ndarray, np.ndarray]:
    if policy not in POLICIES:
        raise ConfigError(f"packing policy {policy!r} is unknown: choose one of {', '.join(POLICIES)}")
    if not 2 <= sequence_length <= MAX_SEQUENCE_LENGTH:
        raise ConfigError(f"sequence_length {sequence_length} is outside 2..{MAX_SEQUENCE_LENGTH}: change pack")
    if lengths.shape != tie.shape or lengths.ndim != 1:
        raise SchemaError(f"lengths {lengths.shape} and tie {tie.shape} must be one-dimensional and of equal length")
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    if len(lengths) and int(lengths.min()) < 0:
        raise SchemaError(f"document {int(lengths.argmin())} has {int(lengths.min())} tokens: lengths must be >= 0")
    return lengths, np.ascontiguousarray(tie, dtype=np.uint64)


def _split_pieces(
    lengths: np.ndarray, by_tie: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents at L; pieces in ascending (tie, start)."""
    ordered = lengths[by_tie]
    pieces_of_doc = -(-ordered // sequence_length)
    doc = np.repeat(by_tie, pieces_of_doc)
    first_piece = np.cumsum(pieces_of_doc) - pieces_of_doc
    index_in_doc = np.arange(len(doc), dtype=np.int64) - np.repeat(first_piece, pieces_of_doc)
    start = index_in_doc * sequence_length
    return doc, start, np.minimum(lengths[doc] - start, sequence_length)


def _concat_pieces(
    lengths: np.ndarray, by_tie: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the back-to-back documents at every multiple of L."""
    order = by_tie[lengths[by_tie] > 0]
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.concatenate((starts, np.arange(0, total, sequence_length, dtype=np.int64))))
    owner = np.searchsorted(starts, cuts, side="right") - 1
    length = np.diff(np.append(cuts, total))
    return order[owner], cuts - starts[owner], length


def _longest_first(piece_length: np.ndarray, sequence_length: int) -> np.ndarray:
    """Stable counting sort of pieces by descending length: the order of ties survives."""
    order = np.empty(len(piece_length), dtype=np.int64)
    counting_sort(piece_length, sequence_length, order)
    return order


def _lay_out(
    pieces: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    row_key: np.ndarray | None,
    lengths: np.ndarray,
    sequence_length: int,
) -> PackPlan:
    """Order rows and segments and add the padding. Pieces come in ascending tie; a row of -1 means dropped."""
    piece_doc, piece_start, piece_length, row_of_piece = pieces
    num_rows = int(row_of_piece.max()) + 1 if len(row_of_piece) else 0
    used = np.bincount(row_of_piece[row_of_piece >= 0], weights=None, minlength=num_rows).astype(np.int64)
    if row_key is None:
        rank = np.arange(num_rows, dtype=np.int64)
    else:
        key_of_row = np.zeros(num_rows, dtype=np.uint64)
        reverse = np.arange(len(row_of_piece) - 1, -1, -1)
        reverse = reverse[row_of_piece[reverse] >= 0]
        key_of_row[row_of_piece[reverse]] = row_key[reverse]  # the last write wins: the first piece of the row
        rank = np.empty(num_rows, dtype=np.int64)
        rank[np.argsort(key_of_row, kind="stable")] = np.arange(num_rows, dtype=np.int64)
    filled = np.zeros(num_rows, dtype=np.int64)
    used_ranked = np.zeros(num_rows, dtype=np.int64)
    sum_rows(row_of_piece, piece_length, rank, filled)
    used_ranked[rank] = used
    segments_of_row = used_ranked + (filled < sequence_length)
    row_ptr = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(segments_of_row, out=row_ptr[1:])
    num_segments = int(row_ptr[-1])
    doc = np.full(num_segments, -1, dtype=np.int64)
    start = np.zeros(num_segments, dtype=np.int64)
    length = np.zeros(num_segments, dtype=np.int32)
    position = np.zeros(num_segments, dtype=np.int32)
    flags = np.full(num_segments, PADDING, dtype=np.uint8)
    place(piece_doc, piece_start, piece_length, row_of_piece, rank, lengths, row_ptr,
           sequence_length, doc, start, length, position, flags)  # fmt: skip
    kept = np.zeros(len(lengths), dtype=np.int64)
    sum_rows(doc, length.astype(np.int64), np.arange(len(lengths), dtype=np.int64), kept)
    parts_of_doc = np.bincount(doc[doc >= 0], minlength=len(lengths))
    return PackPlan(
        sequence_length=sequence_length,
        row_ptr=row_ptr,
        doc=doc,
        start=start,
        length=length,
        position=position,
        flags=flags,
        num_docs=int(np.count_nonzero(lengths)),
        num_docs_cut=int(np.count_nonzero((parts_of_doc > 1) | (kept < lengths))),
        dropped_tokens=int((lengths - kept).sum()),
    )
