"""A `RowSource` over packed shards: manifest, plan and reader seen the way training wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from refinery.errors import DataError
from refinery.shards.manifest import ShardManifest
from refinery.shards.order import rows_for
from refinery.shards.plan import MixPlan, check_plan, load_plan
from refinery.shards.reader import ShardReader
from refinery.shards.row_table import read_rows_table
from refinery.shards.verify import verify_dataset
from refinery.trainer.data import RowBatch


class ShardSource:
    """Rows of a data set in the order of a plan. Validation streams are all streams of that split."""

    def __init__(self, root: Path, manifest: ShardManifest, plan: MixPlan) -> None:
        """Wrap a verified data set.

        Raises: ConfigError, IntegrityError: the plan does not fit the data set.
        """
        check_plan(plan, manifest)
        self._root = root
        self.manifest = manifest
        self.plan = plan
        self.reader = ShardReader(root, manifest)

    @property
    def sequence_length(self) -> int:
        """Tokens per row."""
        return self.manifest.sequence_length

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the tokenizer that made the ids."""
        return self.manifest.tokenizer.vocab_size

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams of the manifest, in its order."""
        return tuple(stream.name for stream in self.manifest.streams)

    @property
    def replay_streams(self) -> tuple[str, ...]:
        """Streams of role replay."""
        return tuple(stream.name for stream in self.manifest.streams if stream.key.role == "replay")

    @property
    def total_rows(self) -> int:
        """Rows of the plan."""
        return self.plan.total_rows

    def batch(self, first_row: int, num_rows: int, slots: slice = slice(None)) -> RowBatch:
        """Return the slots of one step; bytes are not looked up for training rows."""
        batch = self.reader.batch(self.plan, first_row, num_rows, slots)
        return RowBatch(
            batch.k, batch.tokens, batch.segments, batch.refs.stream_index, np.zeros(len(batch.k), dtype=np.int64))

    def validation_streams(self) -> tuple[str, ...]:
        """Names of the streams of split validation."""
        return tuple(stream.name for stream in self.manifest.streams if stream.key.split == "validation")

    def validation_rows(self, stream: str, max_rows: int) -> RowBatch:
        """Return rows spread evenly over a validation stream, at most max_rows, all if 0."""
        index = self.reader.stream_index(stream)
        entry = self.manifest.streams[index]
        count = min(max_rows or entry.rows, entry.rows)
        rows = np.arange(count) * entry.rows // count
        tokens = np.empty((count, self.sequence_length), dtype=self.reader.dtype)
        self.reader.read_rows(index, rows, tokens)
        tables = [read_rows_table(self._root / f"{part.path}.rows.parquet") for part in entry.parts]
        loss_bytes = np.concatenate([table.column("loss_bytes").to_numpy() for table in tables])[rows]
        return RowBatch(rows, tokens, self.reader.segments(index, rows), np.full(count, index), loss_bytes)

    def describe(self, num_rows: int) -> dict[str, str]:
        """Return hashes of content, tokenizer and the plan's first num_rows rows.

        A plan that only differs later describes the same past, so a run may go on with another mix.
        """
        return {
            "content_hash": self.manifest.content_hash, "tokenizer_sha256": self.manifest.tokenizer.sha256,
            "plan_seed": str(self.plan.seed), "plan_prefix_hash": plan_prefix_hash(self.plan, num_rows)}

    def close(self) -> None:
        """Close file handles."""
        self.reader.close()


def plan_prefix_hash(plan: MixPlan, num_rows: int) -> str:
    """Return the hash of the plan cut after num_rows rows; "" for none."""
    stages = [
        replace(stage, num_rows=min(stage.num_rows, num_rows - stage.start_row))
        for stage in plan.stages if stage.start_row < num_rows]
    return replace(plan, stages=tuple(stages)).plan_hash if stages else ""


def open_shards(
    root: Path, plan_path: Path, *, verify: str = "start", encode: Callable[[str], Sequence[int]] | None = None
) -> ShardSource:
    """Verify a data set, load its plan and check that no validation document is trained on.

    Args:
        root: folder of the manifest.
        plan_path: mix plan made for it.
        verify: level of `verify.verify_dataset`.
        encode: the tokenizer that will be used, checked against the manifest's probe.
    Raises:
        IntegrityError: the data set or the plan is damaged, or the plan is of other data.
        DataError: a validation document is in a training stream.
    """
    manifest = verify_dataset(root, verify, encode)
    source = ShardSource(root, manifest, load_plan(plan_path))
    check_leakage(source)
    return source


def check_leakage(source: ShardSource) -> None:
    """Refuse a data set whose first planned rows hold a document of a validation stream.

    Only the rows of the first 65,536 of the plan are looked at: the split is a function of the document's hash, so
    a broken split shows at once, and a full pass is the audit level of verification.

    Raises: DataError: with the document's hash.
    """
    reader, manifest = source.reader, source.manifest
    held_out = [
        reader.segments(index, np.arange(stream.rows)).doc_hash
        for index, stream in enumerate(manifest.streams) if stream.key.split == "validation"]
    if not held_out:
        return
    validation = np.unique(np.concatenate(held_out))
    validation = validation[validation != 0]
    refs = rows_for(source.plan, manifest, 0, min(source.total_rows, 1 << 16))
    for index in np.unique(refs.stream_index):
        rows = np.unique(refs.row[refs.stream_index == index])
        leaked = np.intersect1d(reader.segments(int(index), rows).doc_hash, validation)
        if len(leaked):
            raise DataError(f"{len(leaked)} validation documents are in stream {manifest.streams[index].name}, first "
                            f"doc_hash {int(leaked[0]):016x}; split before packing and pack again")
