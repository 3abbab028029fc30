"""From token shares per stream to rows of a plan over what was written; and what a plan makes of every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from refinery.errors import ConfigError, DataError
from refinery.kernels.mixing import DEFAULT_MAX_EPOCHS, REPLAY
from refinery.shards.manifest import ShardManifest, StreamKey
from refinery.shards.plan import MixPlan, append_stage, draws_at, first_plan, realise, weights_from_shares

Phases = Sequence[tuple[float, Mapping[str, float]]]
"""(share of the budget, {stream: share of the phase's tokens}) in training order."""


def mix_domain(key: StreamKey) -> str:
    """Return the name on which a mix sets the share of a stream: its domain, or `replay`."""
    return REPLAY if key.role == REPLAY else key.domain


def rows_of_phases(
    manifest: ShardManifest,
    phases: Phases,
    budget_tokens: int,
    max_epochs: Mapping[str, float],
    drawn_before: Mapping[str, int] | None = None,
) -> list[tuple[int, dict[str, float]]]:
    """Turn a token budget into rows per phase, over what was packed.

    A budget in tokens becomes rows through the tokens that a row predicts; document starts and padding predict
    nothing, so that the last rows could pass a cap that the tokens meet. All phases shrink by the factor that keeps
    every stream within its cap on epochs.

    Args:
        manifest: the data set.
        phases: token shares; streams that have nothing packed are left out.
        budget_tokens: over all phases.
        max_epochs: cap per domain and `replay`; 4 where none is given.
        drawn_before: rows of each stream that an earlier part of the plan has read.
    Raises:
        DataError: a phase without a packed stream. ConfigError: a stream's cap is used up.
    """
    packed = {s.name: s for s in manifest.streams if s.key.split == "train" and s.total("loss_tokens")}
    per_row = {name: s.total("loss_tokens") / s.rows for name, s in packed.items()}
    stages: list[tuple[float, dict[str, float]]] = []
    drawn: dict[str, float] = {}
    for phase_share, streams in phases:
        shares = {name: share for name, share in streams.items() if name in packed}
        total = sum(shares.values())
        if not total:
            raise DataError("a phase of the mix has no packed stream; its domains were dropped upstream")
        shares = {name: share / total for name, share in shares.items()}
        tokens = phase_share * budget_tokens
        for name, share in shares.items():
            drawn[name] = drawn.get(name, 0.0) + tokens * share / per_row[name]
        stages.append((sum(tokens * share / per_row[name] for name, share in shares.items()), shares))
    scale = 1.0
    for name, rows in drawn.items():
        cap = max_epochs.get(mix_domain(packed[name].key), DEFAULT_MAX_EPOCHS)
        left = cap * packed[name].rows - (drawn_before or {}).get(name, 0)
        if left < 1 <= rows:
            raise ConfigError(f"{name} has been read {cap:g} times already, its cap: drop it or raise max_epochs")
        scale = min(scale, left / rows)
    return [(max(1, int(rows * scale)), shares) for rows, shares in stages]


def new_plan(
    manifest: ShardManifest, seed: int, phases: Phases, budget_tokens: int, max_epochs: Mapping[str, float]
) -> MixPlan:
    """Make a plan from row 0 on."""
    return first_plan(manifest, seed, rows_of_phases(manifest, phases, budget_tokens, max_epochs))


def continued_plan(
    base: MixPlan,
    at_row: int,
    manifest: ShardManifest,
    phases: Phases,
    budget_tokens: int,
    max_epochs: Mapping[str, float],
) -> MixPlan:
    """Return `base` up to row `at_row`, then the phases; every stream goes on where it was.

    Raises:
        ConfigError: `at_row` outside the base plan, or a stream whose cap is used up.
    """
    plan, row = base, at_row
    for num_rows, shares in rows_of_phases(manifest, phases, budget_tokens, max_epochs, draws_at(base, at_row)):
        plan = append_stage(plan, row, num_rows, dict(weights_from_shares(shares, manifest)))
        row += num_rows
    return plan


def realised_facts(plan: MixPlan, manifest: ShardManifest) -> dict[str, Any]:
    """Return rows, predicted tokens, epochs and first repeated rows of a plan, by stream and by domain.

    Computed from the rows that were written and the plan's integers, not from what was asked for.
    """
    realised = realise(plan, manifest)
    total = sum(r.loss_tokens for r in realised)
    domains: dict[str, dict[str, Any]] = {}
    for entry in realised:
        stream = manifest.stream(entry.stream)
        sums = domains.setdefault(
            mix_domain(stream.key), {"rows": 0, "loss_tokens": 0, "packed_rows": 0, "first_repeat_row": -1}
        )
        sums["rows"] += entry.rows
        sums["loss_tokens"] += entry.loss_tokens
        sums["packed_rows"] += stream.rows
        wraps = [row for row in (sums["first_repeat_row"], entry.first_repeat_row) if row >= 0]
        sums["first_repeat_row"] = min(wraps, default=-1)
    for sums in domains.values():
        sums["share"] = sums["loss_tokens"] / total if total else 0.0
        sums["epochs"] = sums["rows"] / sums["packed_rows"]
    return {"realised": [asdict(r) for r in realised], "domains": dict(sorted(domains.items()))}
