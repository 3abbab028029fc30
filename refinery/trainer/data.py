"""Batches by global row index, labels from segment lengths, read ahead by one thread.

The batch of a step is rows [k, k + n) of the plan, in an order keyed by k; rank r of w takes every w-th of them.
Nothing else enters: neither world size nor micro-batch nor accumulation changes which rows a step sees, so the data
part of a checkpoint is the single integer k. No random number is drawn here.

Shapes: B rows, L tokens per row, S segments of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refinery.errors import ConfigError
from refinery.shards.format import Segments, next_token_labels
from refinery.shards.prefetch import Prefetcher
from refinery.trainer.loss import IGNORE


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows as a source delivers them."""

    k: np.ndarray
    """int64, shape (B,): global row index; the row number for validation rows."""
    tokens: np.ndarray
    """Any integer type, shape (B, L)."""
    segments: Segments
    """Documents and padding inside the rows."""
    streams: np.ndarray
    """Integer, shape (B,): index into the source's `streams`."""
    loss_bytes: np.ndarray
    """int64, shape (B,): bytes of text behind the predicted tokens; 0 = not known."""


class RowSource(Protocol):
    """What training needs of a data set: shards on disk (`shard_source`) or rows in memory (`memory`)."""

    @property
    def sequence_length(self) -> int:
        """Tokens per row."""

    @property
    def vocab_size(self) -> int:
        """Tokenizer's vocabulary: every id is below it."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names that `RowBatch.streams` indexes."""

    @property
    def replay_streams(self) -> tuple[str, ...]:
        """Training streams whose role is replay."""

    @property
    def total_rows(self) -> int:
        """Rows of the plan; a step beyond them is refused."""

    def batch(self, first_row: int, num_rows: int, slots: slice = slice(None)) -> RowBatch:
        """Return the slots of the step of rows [first_row, first_row + num_rows); callable from two threads."""

    def validation_streams(self) -> tuple[str, ...]:
        """Names of the validation streams."""

    def validation_rows(self, stream: str, max_rows: int) -> RowBatch:
        """Return the fixed rows of a validation stream; at most max_rows, all if 0."""

    def describe(self, num_rows: int) -> dict[str, str]:
        """Return the hashes that a checkpoint is tied to: content, tokenizer, the plan's first num_rows rows."""


@dataclass(frozen=True, slots=True)
class ModelRows:
    """Rows ready for the model."""

    tokens: np.ndarray
    """int64, shape (B, L)."""
    labels: np.ndarray
    """int64, shape (B, L): next token, else IGNORE."""
    segments: Segments
    """Documents and padding inside the rows."""
    streams: np.ndarray
    """int64, shape (B,)."""
    loss_bytes: np.ndarray
    """int64, shape (B,)."""

    def rows(self, start: int, stop: int) -> ModelRows:
        """Return a contiguous slice of rows."""
        part = slice(start, stop)
        return ModelRows(
            self.tokens[part], self.labels[part], slice_segments(self.segments, start, stop), self.streams[part],
            self.loss_bytes[part])

    @property
    def num_targets(self) -> int:
        """Positions with a label."""
        return int(np.count_nonzero(self.labels != IGNORE))

    @property
    def attended_pairs(self) -> int:
        """Query-key pairs a causal attention inside segments must compute: sum of len (len + 1) / 2."""
        lengths = self.segments.seg_len.astype(np.int64)
        return int((lengths * (lengths + 1) // 2).sum())


def slice_segments(segments: Segments, start: int, stop: int) -> Segments:
    """Return the segments of rows [start, stop)."""
    pointers = segments.row_ptr[start : stop + 1]
    part = slice(int(pointers[0]), int(pointers[-1]))
    return Segments(pointers - pointers[0], segments.doc_hash[part], segments.seg_len[part], segments.flags[part])


def model_rows(batch: RowBatch, *, doc_mask: bool) -> ModelRows:
    """Add labels to rows.

    A label is the next token of the row; the last position of each segment and padding have none. With doc_mask off,
    documents flow into each other: the end of the row and of its text, and padding, are ignored.
    """
    if doc_mask:
        labels = next_token_labels(batch.tokens, batch.segments)
    else:
        position = np.arange(batch.tokens.shape[1])[None]
        last_of_text = (batch.tokens.shape[1] - 1 - batch.segments.padding_tokens)[:, None]
        following = np.concatenate((batch.tokens[:, 1:], batch.tokens[:, :1]), axis=1).astype(np.int64)
        labels = np.where(position < last_of_text, following, IGNORE)
    return ModelRows(
        batch.tokens.astype(np.int64), labels, batch.segments, batch.streams.astype(np.int64),
        batch.loss_bytes.astype(np.int64))


@dataclass(frozen=True, slots=True)
class StepRows:
    """One rank's share of one step."""

    step: int
    first_row: int
    """Global index of the batch's first row."""
    num_rows: int
    """Rows in the global batch."""
    local: ModelRows
    """This rank's rows."""
    prepared: Any = None
    """What `prefetch_steps` was told to make of them."""


def rows_in_batch(batch_tokens: int, sequence_length: int, world_size: int) -> int:
    """Return rows per global batch.

    Raises: ConfigError: not a whole number of rows, or rows that do not divide among the ranks.
    """
    if batch_tokens % sequence_length:
        raise ConfigError(f"batch_tokens is {batch_tokens}, must be a multiple of the row length {sequence_length}; "
                          f"use {max(1, round(batch_tokens / sequence_length)) * sequence_length}")
    num_rows = batch_tokens // sequence_length
    if num_rows % world_size:
        raise ConfigError(f"a batch of {num_rows} rows does not divide among {world_size} ranks; "
                          f"use a batch of {-(-num_rows // world_size) * world_size * sequence_length} tokens")
    return num_rows


def prefetch_steps(
    source: RowSource, steps: Sequence[tuple[int, int, int]], *, rank: int, world_size: int, doc_mask: bool,
    prepare: Callable[[ModelRows], Any] | None = None,
) -> Prefetcher[tuple[int, int, int], StepRows]:
    """Read this rank's rows of each step ahead, with labels; iterate it inside a `with`.

    Args:
        source: where rows come from.
        steps: (step, first_row, num_rows) in order.
        rank: this process.
        world_size: number of processes.
        doc_mask: see `model_rows`.
        prepare: called in the reading thread on this rank's rows: what a device can be given before it is asked for.
    """

    def read(request: tuple[int, int, int]) -> StepRows:
        step, first_row, num_rows = request
        batch = source.batch(first_row, num_rows, slice(rank, None, world_size))
        local = model_rows(batch, doc_mask=doc_mask)
        return StepRows(step, first_row, num_rows, local, None if prepare is None else prepare(local))

    return Prefetcher(read, steps)
