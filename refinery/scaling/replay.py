"""How much old text to replay: published tables as defaults, and the frontier of one's own sweep.

Replay trades new tokens for old ones at equal compute: the loss on the target rises a little, the loss on what was
learned before rises less. Published answers depend on how far the new text is from the old, so they are given by shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinery.contracts.runs import LossPoint, RunRecord
from refinery.errors import ConfigError

_SAME_START = 1e-3
"""Runs of one checkpoint on one text agree to the last digits; other machines round."""


class PublishedReplay(NamedTuple):
    """One published sweep: old and new loss by replay share."""

    source: str
    """Paper and table."""
    shift: str
    """weak, strong or language."""
    recommended: tuple[float, float]
    """Lowest and highest share that it recommends."""
    rows: tuple[tuple[float, float, float], ...]
    """(share, loss on old text, loss on new text), nats; empty where numbers are only in a figure."""


PUBLISHED: tuple[PublishedReplay, ...] = (
    PublishedReplay(
        "Ibrahim et al. 2403.08763, 405M, Pile to SlimPajama", "weak", (0.05, 0.05),
        ((0.0, 2.44, 2.50), (0.01, 2.26, 2.50), (0.05, 2.23, 2.51), (0.10, 2.21, 2.51), (0.50, 2.16, 2.54)),
    ),
    PublishedReplay(
        "Ibrahim et al. 2403.08763, 405M, Pile to German", "strong", (0.25, 0.25),
        (
            (0.0, 3.56, 1.11), (0.01, 2.83, 1.12), (0.05, 2.57, 1.12), (0.10, 2.46, 1.13), (0.25, 2.33, 1.16),
            (0.50, 2.24, 1.22),
        ),
    ),
    PublishedReplay(
        "Zheng et al. 2407.02118, 1.4B, English to Chinese: no replay takes the English loss from 2.40 to 3.68; about "
        "0.30 keeps it below its start",
        "language", (0.10, 0.30), (),
    ),
)  # fmt: skip
"""Defaults for those who have no runs of their own."""


def published_share(shift: str) -> tuple[float, str]:
    """Return the highest share that is recommended for a shift, and its source.

    Args:
        shift: ``weak`` (the same language, other text), ``strong`` (little in common), ``language`` (another language).

    Raises:
        ConfigError: unknown shift.
    """
    for one in PUBLISHED:
        if one.shift == shift:
            return one.recommended[1], one.source
    raise ConfigError(f"shift {shift!r} is unknown; known: {', '.join(p.shift for p in PUBLISHED)}")


class ReplayPoint(NamedTuple):
    """One replay share of a sweep."""

    share: float
    """Of the training tokens."""
    forgetting: float
    """Old loss at the end less old loss at the start; positive = forgotten."""
    target_cost: float
    """Target loss above that of the lowest share in the sweep."""
    efficient: bool
    """No other share is better on one side and no worse on the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayFrontier:
    """What a sweep says."""

    points: tuple[ReplayPoint, ...]
    """By share, ascending."""
    keeping_share: float | None
    """Smallest share at which the old loss ends where it started, between the points; None where none of them does."""
    slope: float
    """Forgetting per e-fold of the share: the power law of the curve, least squares over shares above 0."""


def replay_frontier(
    shares: Sequence[float], old_losses: Sequence[float], target_losses: Sequence[float], old_start: float
) -> ReplayFrontier:
    """Return the frontier of target gain against forgetting.

    Args:
        shares: replay shares, one per run.
        old_losses: loss on old text at the end of each.
        target_losses: loss on the target at the end of each.
        old_start: loss on old text before the first step; the same of all runs.

    Raises:
        ConfigError: fewer than three shares, the same share twice, a share outside [0, 1], a loss that is not finite.
    """
    table = np.array([shares, old_losses, target_losses], dtype=np.float64)
    if table.shape[1] < 3 or len(np.unique(table[0])) != table.shape[1]:
        raise ConfigError(f"{table.shape[1]} runs at shares {list(shares)}: three different shares are the least")
    if not np.isfinite(table).all() or not math.isfinite(old_start) or table[0].min() < 0 or table[0].max() > 1:
        raise ConfigError("shares must be within 0 and 1 and losses finite; drop the run that is not")
    table = table[:, np.argsort(table[0])]
    forgetting, cost = table[1] - old_start, table[2] - table[2][0]
    points = tuple(
        ReplayPoint(float(s), float(f), float(c), _efficient(f, c, forgetting, cost))
        for s, f, c in zip(table[0], forgetting, cost, strict=True)
    )
    used = table[0] > 0
    slope = float(np.polyfit(np.log(table[0][used]), forgetting[used], 1)[0]) if used.sum() > 1 else math.nan
    return ReplayFrontier(points=points, keeping_share=_crossing(table[0], forgetting), slope=slope)


def records_frontier(sweep: Sequence[tuple[float, RunRecord]], old: str, target: str) -> ReplayFrontier:
    """Return the frontier of runs that differ in their replay share.

    Args:
        sweep: (share, record) pairs.
        old: validation stream, or the domain of the only such stream, of what was learned before.
        target: the same of the new text.

    Raises:
        ConfigError: a stream that a run lacks or that is not one, runs without a loss at step 0 on the old text, runs
            that start from different losses, or as `replay_frontier`.
    """
    starts, ends, goals = [], [], []
    for _, record in sweep:
        curve = _curve(record, old)
        if curve[0].step != 0:
            raise ConfigError(f"run {record.name!r} has no loss on {old!r} at step 0; validate before the first step")
        starts.append(curve[0].loss_nats)
        ends.append(curve[-1].loss_nats)
        goals.append(_curve(record, target)[-1].loss_nats)
    if starts and max(starts) - min(starts) > _SAME_START * max(starts):
        raise ConfigError(
            f"the runs start at {min(starts):.4f} to {max(starts):.4f} nats on {old!r}: they continue different "
            "models, or were measured on different text; sweep from one checkpoint"
        )
    return replay_frontier([share for share, _ in sweep], ends, goals, starts[0] if starts else math.nan)


def _curve(record: RunRecord, name: str) -> list[LossPoint]:
    streams = sorted({p.stream for p in record.points if name in (p.stream, p.stream.split("/")[0])})
    if len(streams) != 1:
        known = ", ".join(sorted({p.stream for p in record.points})) or "none"
        raise ConfigError(f"run {record.name!r}: {name!r} names {len(streams)} of its validation streams ({known})")
    return [p for p in record.points if p.stream == streams[0]]


def frontier_text(found: ReplayFrontier) -> str:
    """Return a frontier for people, the published shares below."""
    lines = ["share   forgotten   cost on target"]
    lines += [
        f"{p.share:>5.2f}   {p.forgetting:>+9.4f}   {p.target_cost:>+9.4f}{'   on the frontier' if p.efficient else ''}"
        for p in found.points
    ]
    if found.keeping_share is None:
        lines.append("no share keeps the old loss at its start")
    else:
        lines.append(f"the old loss ends where it started at a share of {found.keeping_share:.3f}")
    lines += [f"published, {p.shift} shift: {p.recommended[1]:.0%} ({p.source})" for p in PUBLISHED]
    return "\n".join(lines)


def _efficient(f: float, c: float, forgetting: np.ndarray, cost: np.ndarray) -> bool:
    better = ((forgetting <= f) & (cost < c)) | ((forgetting < f) & (cost <= c))
    return not better.any()


def _crossing(shares: np.ndarray, forgetting: np.ndarray) -> float | None:
    kept = np.flatnonzero(forgetting <= 0)
    if not len(kept):
        return None
    i = int(kept[0])
    if i == 0:
        return float(shares[0])
    part = forgetting[i - 1] / (forgetting[i - 1] - forgetting[i])
    return float(shares[i - 1] + part * (shares[i] - shares[i - 1]))
