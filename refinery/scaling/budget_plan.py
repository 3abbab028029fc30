"""One answer to "what should I train?": size, tokens, loss, epochs, replay, hours and memory for a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refinery.errors import ConfigError
from refinery.scaling.budget import (
    DEFAULT_MAX_EPOCHS,
    cost_of,
    epochs_by_domain,
    flops_of_hours,
    over_training,
)
from refinery.scaling.fit_file import Law
from refinery.scaling.kaplan import kaplan_losses
from refinery.scaling.plan import MAX_EXTRAPOLATION, Plan, compute_optimal, fixed_size
from refinery.scaling.replay import published_share

REPLAY = "replay"
"""Name under which replayed text has its share and its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    """A budget, given one way, and what is known beside it."""

    flops: float | None = None
    """C = 6 N D."""
    gpu_hours: float | None = None
    """Card hours."""
    params: float | None = None
    """N; with a budget beside it the size is fixed and the optimum is shown for comparison."""
    tokens: float | None = None
    """D."""
    hardware: str = "h100"
    """Name of a card."""
    cards: int = 1
    """Cards beside each other."""
    mfu: float = 0.4
    """Share of the peak that training reaches; stated by the user."""
    over_train: float = 1.0
    """Divide the optimal size by this, at the same budget."""
    unique_tokens: Mapping[str, float] = field(default_factory=dict)
    """Domain -> tokens that exist; empty: not asked."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Domain -> share; empty: by tokens that exist."""
    replay: float | None = None
    """Share of replayed text in continual pretraining; None takes the published one for `shift`."""
    shift: str = "language"
    """How far the new text is from the old: weak, strong, language."""
    max_epochs: float = DEFAULT_MAX_EPOCHS
    """Refuse plans that read a domain more often."""
    max_extrapolation: float = MAX_EXTRAPOLATION
    """Refuse plans this many times beyond the fitted runs."""


def plan_budget(law: Law, asked: BudgetRequest) -> dict[str, Any]:
    """Return the plan of a budget as plain values.

    Raises:
        ConfigError: not one budget, or what `plan`, `budget` and `replay` refuse.
    """
    flops = _flops(law, asked)
    limits: dict[str, Any] = {"intervals": law.intervals, "max_extrapolation": asked.max_extrapolation}
    fixed = _fixed_params(law, asked, flops)
    if fixed is None:
        optimal = plan = compute_optimal(law.fit, flops, **limits)
    else:
        plan = fixed_size(law.fit, flops, fixed, **limits)
        optimal = compute_optimal(law.fit, flops, max_extrapolation=math.inf)
    body: dict[str, Any] = {
        **dataclasses.asdict(plan),
        "tokens_per_param": plan.tokens_per_param,
        "law": law.source,
        "continual": law.continual,
        "cost": dataclasses.asdict(cost_of(plan, asked.hardware, asked.mfu, asked.cards)),
        "kaplan": kaplan_losses(plan.num_params, plan.num_tokens)._asdict(),
    }
    if plan.num_params < optimal.num_params * (1 - 1e-9):
        body["over_training"] = dataclasses.asdict(over_training(law.fit, plan, optimal))
    replay, source = (asked.replay, "as given") if asked.replay is not None else published_share(asked.shift)
    if law.continual:
        body["replay"] = {"share": replay, "source": source}
    if asked.unique_tokens:
        body |= _domains(law, asked, plan, replay if law.continual else 0.0)
    return body


def _flops(law: Law, asked: BudgetRequest) -> float:
    given = {n: v for n in ("flops", "gpu_hours", "tokens", "params") if (v := getattr(asked, n)) is not None}
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, it must be finite and > 0")
    budgets = [n for n in ("flops", "gpu_hours", "tokens") if n in given]
    if len(budgets) > 1 or not given:
        raise ConfigError(
            f"a plan needs one of --flops, --gpu-hours, --tokens, or --params, given: {', '.join(given) or 'none'}; "
            "--params may stand beside one of them"
        )
    if "flops" in given:
        return given["flops"]
    if "gpu_hours" in given:
        return flops_of_hours(given["gpu_hours"], asked.hardware, asked.mfu)
    if "tokens" in given and "params" in given:
        return 6.0 * given["params"] * given["tokens"]
    fit = law.fit
    if "tokens" in given:
        return float(6.0 * (given["tokens"] * fit.G) ** (1.0 / fit.b))
    return float(6.0 * (given["params"] / fit.G) ** (1.0 / fit.a))


def _fixed_params(law: Law, asked: BudgetRequest, flops: float) -> float | None:
    """Return the size where it is not the optimum's."""
    if asked.over_train < 1:
        raise ConfigError(f"--over-train {asked.over_train} must be at least 1: it divides the optimal size")
    beside = asked.params is not None and any(v is not None for v in (asked.flops, asked.gpu_hours, asked.tokens))
    if beside and asked.over_train > 1:
        raise ConfigError("--params fixes the size already; leave --over-train out")
    if beside:
        return asked.params
    if asked.over_train == 1:
        return None
    return float(law.fit.G * (flops / 6.0) ** law.fit.a / asked.over_train)


def _domains(law: Law, asked: BudgetRequest, plan: Plan, replay: float) -> dict[str, Any]:
    unique = dict(asked.unique_tokens)
    old = unique.pop(REPLAY, 0.0) if not law.continual else unique.get(REPLAY, 0.0)
    fresh = {d: t for d, t in unique.items() if d != REPLAY}
    total = sum(fresh.values())
    shares = dict(asked.shares) or {d: t / total for d, t in fresh.items()}
    if law.continual and replay > 0 and REPLAY not in shares:
        if not old:
            raise ConfigError(
                f"the plan replays {replay:.2f} of its tokens, but no text of role replay exists; add a source of that "
                "role, or pass --replay 0"
            )
        shares = {d: s * (1 - replay) for d, s in shares.items()} | {REPLAY: replay}
    spread = epochs_by_domain(plan.num_tokens, unique, shares, max_epochs=asked.max_epochs)
    worth = sum(d.effective_tokens for d in spread.values())
    return {
        "domains": {name: dataclasses.asdict(d) for name, d in spread.items()},
        "effective_tokens": worth,
        "loss_with_repeats_nats": float(law.fit.loss(plan.num_params, worth)),
    }


def plan_text(body: Mapping[str, Any]) -> str:
    """Return a plan for people."""
    cost = body["cost"]
    low_high = body["loss_interval_nats"]
    interval = f"95 %: {low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "no interval: the law has no bootstrap"
    loss = f"{body['loss_nats']:.4f} nats ({interval})"
    lines = [
        f"{'continue' if body['continual'] else 'from scratch'}: N = {body['num_params']:.4g} parameters, "
        f"D = {body['num_tokens']:.4g} tokens ({body['tokens_per_param']:.1f} per parameter), C = {body['flops']:.4g}",
        f"expected loss {loss}",
        f"{cost['card_hours']:,.1f} {cost['hardware']} hours at {cost['mfu']:.0%} of the peak, {cost['hours']:,.1f} "
        f"hours on {cost['cards']}; state {cost['state_bytes'] / 1e9:,.1f} GB, at least {cost['min_cards']} card(s)",
    ]
    if "over_training" in body:
        lines.append(_over_text(body["over_training"]))
    if "replay" in body:
        lines.append(f"replay {body['replay']['share']:.0%} of the tokens ({body['replay']['source']})")
    for name, d in body.get("domains", {}).items():
        lines.append(
            f"  {name:<16} {d['share']:>7.1%}  {d['tokens']:>12,.0f} tokens of {d['unique_tokens']:>12,.0f}: "
            f"{d['epochs']:.2f} epochs, worth {d['effective_tokens']:,.0f}"
        )
    if "domains" in body:
        lines.append(f"with repeats, expected loss {body['loss_with_repeats_nats']:.4f} nats")
    kaplan = body["kaplan"]
    lines.append(f"for comparison, Kaplan's joint law says {kaplan['joint']:.3f} nats (its own tokenizer and text)")
    lines.append(f"{body['extrapolation']:.2g} times the largest fitted run; law: {body['law']}")
    return "\n".join(lines)


def _over_text(over: Mapping[str, Any]) -> str:
    text = (
        f"smaller than the optimum of {over['optimal_params']:.4g}: {over['loss_given_up_nats']:.4f} nats given up, "
        f"{over['inference_saved_frac']:.0%} of inference saved"
    )
    if over["tokens_for_optimal_loss"] is None:
        return text + "; it never reaches the optimum's loss"
    return (
        f"{text}; {over['tokens_for_optimal_loss']:.4g} tokens would reach the optimum's loss, for "
        f"{over['extra_train_flops']:.3g} more FLOPs, paid back after {over['break_even_tokens']:.3g} generated tokens"
    )
