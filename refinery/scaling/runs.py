"""Run records as the arrays that fits take; never logs.

Losses in nats per token compare only between runs of one tokenizer; bits per byte compare always. Curves of one run
under a decaying learning rate are no substitute for runs that end there, so the last point of a finished run is the
default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refinery.contracts.runs import LossPoint, RunRecord, read_run_record
from refinery.errors import ConfigError

UNITS = ("nats", "bits_per_byte")
POINTS = ("final", "all")


class LossTable(NamedTuple):
    """Losses of R points on one validation stream."""

    names: tuple[str, ...]
    """Run of each point."""
    num_params: np.ndarray
    """float64, shape (R,): parameters without embedding and head."""
    num_tokens: np.ndarray
    """float64, shape (R,): tokens read."""
    loss: np.ndarray
    """float64, shape (R,): in the unit asked for."""
    unit: str
    """nats or bits_per_byte."""


def read_runs(paths: Iterable[Path]) -> list[RunRecord]:
    """Read run records; a folder stands for every ``run.json`` below it, in path order.

    Raises:
        ConfigError: a path does not exist, or nothing was found.
        IntegrityError: a file is no run record.
        SchemaError: a record lacks fields.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"run record {path} does not exist; give a run.json or a folder of runs")
        files += sorted(path.rglob("run.json")) if path.is_dir() else [path]
    if not files:
        raise ConfigError("no run.json below the folders given; train a run first, or give another folder")
    return [read_run_record(file) for file in files]


def loss_table(
    records: Sequence[RunRecord], stream: str, *, unit: str = "nats", points: str = "final"
) -> LossTable:
    """Return N, D and losses of one validation stream.

    Args:
        records: runs; those that failed, stopped early or were stopped give no point under ``"final"``.
        stream: validation stream, one that every used run measured.
        unit: ``"nats"`` per token (one tokenizer only) or ``"bits_per_byte"``.
        points: ``"final"``: the last point of finished runs; ``"all"``: every point after step 0 (constant rates).
    Returns: see `LossTable`; in the order of the records.

    Raises:
        ConfigError: unknown unit, mixed tokenizers, no usable run, an absent stream, a loss that is not finite.
    """
    _check_choice("unit", unit, UNITS)
    _check_choice("points", points, POINTS)
    used = [record for record in records if points == "all" or record.status == "finished"]
    if not used:
        raise ConfigError(f"none of {len(records)} runs is finished; finish one, or use points='all'")
    if unit == "nats":
        _check_one_tokenizer(used)
    rows: list[tuple[str, float, float, float]] = []
    for record in used:
        found = [point for point in record.points if point.stream == stream and point.tokens > 0]
        if not found:
            known = ", ".join(sorted({point.stream for point in record.points})) or "none"
            raise ConfigError(f"run {record.name!r} has no loss on stream {stream!r} (it has: {known}); name another")
        for point in found if points == "all" else found[-1:]:
            loss = _loss_of(record, point, unit)
            rows.append((record.name, float(record.num_non_embedding_params), float(point.tokens), loss))
    names, params, tokens, losses = zip(*rows, strict=True)
    return LossTable(tuple(names), np.array(params), np.array(tokens), np.array(losses), unit)


def _loss_of(record: RunRecord, point: LossPoint, unit: str) -> float:
    loss = point.loss_nats if unit == "nats" else point.bits_per_byte
    if loss is None:
        raise ConfigError(
            f"run {record.name!r} has no bits per byte on {point.stream!r}; validate with shards that know their bytes"
        )
    if not math.isfinite(loss):
        raise ConfigError(f"run {record.name!r} has loss {loss} on {point.stream!r} at step {point.step}; drop the run")
    return loss


def _check_one_tokenizer(records: Sequence[RunRecord]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        seen.setdefault(record.data.get("tokenizer_sha256", ""), record.name)
    if len(seen) > 1:
        listed = ", ".join(f"{name!r} ({digest[:12] or 'unknown'})" for digest, name in seen.items())
        raise ConfigError(
            f"runs have {len(seen)} tokenizers: {listed}; nats per token do not compare between them, "
            "use unit='bits_per_byte'"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
