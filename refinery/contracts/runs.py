"""Record of one training run: the trainer writes it, scaling and the reports read it.

One JSON file per run, `run.json`. It holds what a loss law needs (parameters with and without embeddings, tokens,
validation losses per stream along the way, learning rate beside each of them), what a reader needs to trust it
(hashes of data, plan and tokenizer, the full configuration, hardware) and nothing that is only of interest live.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refinery.errors import IntegrityError, SchemaError

RUN_FORMAT = "refinery-run"
RUN_VERSION = 1
STATUSES = ("finished", "stopped", "early_stop", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """Validation loss of one stream at one step."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Tokens read in training up to here."""
    stream: str
    """Validation stream."""
    loss_nats: float
    """Mean negative log likelihood per predicted token, nats."""
    bits_per_byte: float | None
    """The same per byte of text, comparable between tokenizers; null when the bytes are not known."""
    target_tokens: int
    """Predicted tokens the mean is over."""
    learning_rate: float
    """Rate of the last update (0 at step 0)."""
    replay_frac: float
    """Share of the training tokens so far that came from replay streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run."""

    name: str
    """Name of the run, for people."""
    status: str
    """finished, stopped (a signal or a run of refused steps), early_stop, failed."""
    init: str
    """"scratch", or where the first weights came from."""
    num_params: int
    """All parameters."""
    num_non_embedding_params: int
    """Parameters without embedding and head: N for scaling fits."""
    steps: int
    """Optimiser steps done."""
    tokens: int
    """Tokens read: D."""
    sequence_length: int
    """Tokens per row."""
    final_train_loss_nats: float
    """Mean training loss of the last steps."""
    num_skipped_steps: int
    """Refused updates."""
    num_restarts: int = 0
    """Times that the run went back to its last good checkpoint with a lower learning rate."""
    train_flops: float
    """Model FLOPs of forward and backward, attention inside documents, no recomputation."""
    seconds: float
    """Wall clock of training, validation and checkpoints, over all resumes."""
    points: tuple[LossPoint, ...]
    """Validation losses in order of steps."""
    stream_tokens: dict[str, int] = field(default_factory=dict)
    """Training tokens read per stream."""
    data: dict[str, str] = field(default_factory=dict)
    """Hashes of content, plan and tokenizer."""
    config: dict[str, Any] = field(default_factory=dict)
    """Resolved configuration."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """Device, world size, library versions."""
    format: str = RUN_FORMAT
    """Always "refinery-run"."""
    version: int = RUN_VERSION
    """Version of this layout."""

    def final_losses(self) -> dict[str, float]:
        """Return the last validation loss of each stream, nats per token."""
        return {point.stream: point.loss_nats for point in self.points}

    def to_json(self) -> str:
        """Return the record as indented JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> RunRecord:
        """Parse a record.

        Raises:
            IntegrityError: not a run record, or of a newer version.
            SchemaError: keys are missing or unknown.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise IntegrityError(f"run record is not JSON ({error}); write it again from the run's folder") from error
        if not isinstance(values, dict) or values.get("format") != RUN_FORMAT:
            raise IntegrityError(f"not a run record: format must be {RUN_FORMAT!r}; give a run.json")
        if values.get("version") != RUN_VERSION:
            raise IntegrityError(
                f"run record has version {values.get('version')}, this program reads {RUN_VERSION}; "
                "update the program that is older"
            )
        try:
            points = tuple(LossPoint(**point) for point in values.pop("points"))
            return RunRecord(points=points, **values)
        except (KeyError, TypeError) as error:
            raise SchemaError(f"run record does not have the declared fields ({error}); write it again") from error


def write_run_record(record: RunRecord, path: Path) -> None:
    """Write a record: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(record.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_run_record(path: Path) -> RunRecord:
    """Read a record; errors as `RunRecord.from_json`."""
    return RunRecord.from_json(path.read_text(encoding="utf-8"))
