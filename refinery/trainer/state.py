"""Values that the loop carries: counters that a checkpoint holds, the run's objects, one step's result, the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from refinery.contracts.runs import LossPoint
from refinery.trainer.checkpoint import Progress
from refinery.trainer.config import TrainConfig
from refinery.trainer.data import ModelRows, RowSource
from refinery.trainer.metrics import EventWriter, JsonLines
from refinery.trainer.model import Decoder
from refinery.trainer.parallel import Ranks
from refinery.trainer.safety import SpikeGuard

ProgressCallback = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Counters:
    """What a run has done so far; saved with every checkpoint."""

    step: int = 0
    next_row: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    restarts: int = 0
    rate_factor: float = 1.0
    """Product of the cuts of all restarts; every learning rate is multiplied by it."""
    stream_tokens: dict[str, int] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    points: list[LossPoint] = field(default_factory=list)

    def to_progress(self, guard: SpikeGuard, seconds: float) -> Progress:
        """Return what a checkpoint saves besides tensors."""
        values = asdict(self) | {"seconds": seconds}
        fixed = {key: values.pop(key) for key in ("step", "next_row", "tokens")}
        return Progress(**fixed, extra={"counters": values, "guard": guard.to_dict()})

    @staticmethod
    def from_progress(saved: Progress) -> Counters:
        """Return the counters of a checkpoint."""
        values = dict(saved.extra["counters"])
        points = [LossPoint(**point) for point in values.pop("points")]
        return Counters(step=saved.step, next_row=saved.next_row, tokens=saved.tokens, points=points, **values)


@dataclass(slots=True)
class Run:
    """One run in this process."""

    config: TrainConfig
    source: RowSource
    out_dir: Path
    ranks: Ranks
    model: Decoder
    optimizer: torch.optim.Optimizer
    guard: SpikeGuard
    counters: Counters
    validation: dict[str, ModelRows]
    metrics: JsonLines | None = None
    anomalies: JsonLines | None = None
    events: EventWriter | None = None
    progress: ProgressCallback | None = None

    def tell(self, line: dict[str, Any]) -> None:
        """Write a metrics line and show it; does nothing on ranks that do not write."""
        if self.metrics is not None:
            self.metrics.write(line)
            if self.events is not None:
                self.events.write(line)
            if self.progress is not None:
                self.progress(line)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step measured, the same on every rank."""

    loss: float
    norm: float
    rate: float
    refused: str
    stream_losses: dict[str, float]
    stream_tokens: dict[str, int]
    attended_pairs: int
    row_losses: tuple[float, ...] = ()
    """Mean nats of each row of the global batch, in its order; only of a refused step."""


class Clock:
    """Seconds of the run so far, and the data wait and tokens since the last metrics line."""

    def __init__(self, earlier_seconds: float) -> None:
        self.origin = time.perf_counter() - earlier_seconds
        self.reset()

    def reset(self) -> None:
        """Start a new stretch."""
        self.mark = time.perf_counter()
        self.data_wait = 0.0
        self.tokens = 0
        self.flops = 0.0

    def total(self) -> float:
        """Return seconds over all resumes."""
        return time.perf_counter() - self.origin
