"""Rows in memory: training from arrays without a data set on disk, for experiments, tests and benchmarks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from refinery.shards.format import ENDS_DOCUMENT, PADDING, STARTS_DOCUMENT, Segments
from refinery.trainer.data import RowBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySource:
    """A `RowSource` that walks fixed rows round and round."""

    rows: RowBatch
    """Training rows; row k of the plan is row k mod B."""
    validation: dict[str, RowBatch] = field(default_factory=dict)
    """Validation rows by stream."""
    vocab_size: int
    streams: tuple[str, ...]
    replay_streams: tuple[str, ...] = ()
    total_rows: int = 1 << 40

    @property
    def sequence_length(self) -> int:
        """Tokens per row."""
        return int(self.rows.tokens.shape[1])

    def batch(self, first_row: int, num_rows: int, slots: slice = slice(None)) -> RowBatch:
        """Return the slots of one step; slot i is row first_row + i."""
        k = np.arange(first_row, first_row + num_rows)[slots]
        return replace(take_rows(self.rows, k % len(self.rows.tokens)), k=k)

    def validation_streams(self) -> tuple[str, ...]:
        """Names of the validation streams."""
        return tuple(self.validation)

    def validation_rows(self, stream: str, max_rows: int) -> RowBatch:
        """Return the first max_rows rows of a validation stream, all if 0."""
        rows = self.validation[stream]
        return take_rows(rows, np.arange(min(max_rows or len(rows.tokens), len(rows.tokens))))

    def describe(self, num_rows: int) -> dict[str, str]:
        """Return the hash of the training rows; the order is fixed."""
        digest = hashlib.sha256(self.rows.tokens.tobytes())
        digest.update(self.rows.segments.seg_len.tobytes())
        return {"content_hash": digest.hexdigest()}


def take_rows(batch: RowBatch, index: np.ndarray) -> RowBatch:
    """Return rows by number."""
    pointers = batch.segments.row_ptr
    counts = np.diff(pointers)[index]
    row_ptr = np.concatenate(([0], np.cumsum(counts)))
    which = np.arange(row_ptr[-1]) + np.repeat(pointers[index] - row_ptr[:-1], counts)
    old = batch.segments
    segments = Segments(row_ptr, old.doc_hash[which], old.seg_len[which], old.flags[which])
    return RowBatch(batch.k[index], batch.tokens[index], segments, batch.streams[index], batch.loss_bytes[index])


def rows_of_documents(
    documents: list[np.ndarray], sequence_length: int, *, stream: int = 0, bytes_per_token: int = 4
) -> RowBatch:
    """Lay documents one after the other into rows, splitting at row ends and padding the last row.

    Args:
        documents: token ids, each at least one long; document i gets doc_hash i + 1.
        sequence_length: tokens per row.
        stream: index for all rows.
        bytes_per_token: assumed size of the text.
    """
    ids = np.concatenate(documents)
    number = np.repeat(np.arange(1, len(documents) + 1, dtype=np.uint64), [len(document) for document in documents])
    num_rows = -(-len(ids) // sequence_length)
    padding = num_rows * sequence_length - len(ids)
    tokens = np.concatenate((ids, np.zeros(padding, dtype=ids.dtype))).reshape(num_rows, sequence_length)
    marks = np.concatenate((number, np.zeros(padding, dtype=np.uint64)))
    position = np.arange(len(marks))
    begins = np.flatnonzero((position % sequence_length == 0) | (marks != np.roll(marks, 1)))
    lengths = np.diff(np.append(begins, len(marks))).astype(np.int32)
    row_ptr = np.searchsorted(begins, np.arange(num_rows + 1) * sequence_length)
    doc_hash = marks[begins]
    starts = doc_hash != np.concatenate(([0], doc_hash[:-1])).astype(np.uint64)
    ends = doc_hash != np.concatenate((doc_hash[1:], [0])).astype(np.uint64)
    flags = np.where(doc_hash == 0, PADDING, STARTS_DOCUMENT * starts + ENDS_DOCUMENT * ends).astype(np.uint8)
    segments = Segments(row_ptr.astype(np.int64), doc_hash, lengths, flags)
    return RowBatch(
        np.arange(num_rows), tokens, segments, np.full(num_rows, stream), segments.loss_tokens * bytes_per_token)


def join_rows(batches: list[RowBatch]) -> RowBatch:
    """Return the rows of several batches, one after the other."""
    counts = np.concatenate([np.diff(b.segments.row_ptr) for b in batches])
    segments = Segments(
        np.concatenate(([0], np.cumsum(counts))), np.concatenate([b.segments.doc_hash for b in batches]),
        np.concatenate([b.segments.seg_len for b in batches]), np.concatenate([b.segments.flags for b in batches]))
    return RowBatch(
        np.concatenate([b.k for b in batches]), np.concatenate([b.tokens for b in batches]), segments,
        np.concatenate([b.streams for b in batches]), np.concatenate([b.loss_bytes for b in batches]))
