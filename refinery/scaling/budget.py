"""What a plan costs and what it needs: hours on named hardware, memory, epochs over the tokens that exist, inference.

Compute is C = 6 N D (parameters times tokens, forward and backward). Hours follow from the dense bfloat16 peak of a
card and the share of it that training reaches (MFU); memory is the state of mixed-precision AdamW, 16 bytes per
parameter, and a quarter on top for activations and buffers, which depend on batch and recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from refinery.errors import ConfigError
from refinery.scaling.cpt import CptFit
from refinery.scaling.parametric import Fit
from refinery.scaling.plan import Plan, tokens_for_loss
from refinery.scaling.repetition import RepetitionLaw

STATE_BYTES_PER_PARAM = 16
"""float32 weight, gradient and two moments (ZeRO, 1910.02054, section 3.1)."""
HEADROOM = 1.25
"""State and activations over state: a rule of thumb, full recomputation needs less."""
INFERENCE_FLOPS_PER_PARAM = 2
"""Forward pass per token (Kaplan et al. 2001.08361, section 2.1)."""
DEFAULT_MAX_EPOCHS = 4.0
"""Repetition up to here costs next to nothing (2305.16264)."""


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator."""

    peak_flops: float
    """Dense bfloat16 peak, FLOP/s; data sheets print twice that for sparse products."""
    memory_bytes: float
    """Memory of one card."""


HARDWARE: Mapping[str, Card] = {
    "a100": Card(312e12, 80e9),
    "h100": Card(989e12, 80e9),
    "h200": Card(989e12, 141e9),
    "b200": Card(2250e12, 180e9),
    "l40s": Card(362e12, 48e9),
}
"""Vendors' data sheets, SXM where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Time and memory of a plan."""

    hardware: str
    """Name in `HARDWARE`."""
    cards: int
    """Cards beside each other."""
    mfu: float
    """Share of the peak that is reached: stated, not predicted."""
    card_hours: float
    """Hours of one card."""
    hours: float
    """Wall clock on `cards` cards."""
    state_bytes: float
    """Weights, gradients and moments."""
    min_cards: int
    """Fewest cards that hold state and headroom."""


def find_card(name: str) -> Card:
    """Return a card by name.

    Raises:
        ConfigError: no such card.
    """
    if name not in HARDWARE:
        raise ConfigError(f"hardware {name!r} is unknown; known: {', '.join(HARDWARE)}")
    return HARDWARE[name]


def flops_of_hours(card_hours: float, hardware: str, mfu: float) -> float:
    """Return the FLOPs that some card hours give.

    Raises:
        ConfigError: hours not above 0, MFU not in (0, 1], unknown hardware.
    """
    _check_mfu(mfu)
    if not (math.isfinite(card_hours) and card_hours > 0):
        raise ConfigError(f"{card_hours} card hours must be finite and > 0; give a positive number")
    return card_hours * 3600.0 * find_card(hardware).peak_flops * mfu


def cost_of(plan: Plan, hardware: str, mfu: float, cards: int = 1) -> Cost:
    """Return time and memory of a plan; errors as `flops_of_hours`, or fewer than one card."""
    _check_mfu(mfu)
    if cards < 1:
        raise ConfigError(f"{cards} cards cannot train; give 1 or more")
    card = find_card(hardware)
    hours = plan.flops / (card.peak_flops * mfu) / 3600.0
    state = STATE_BYTES_PER_PARAM * plan.num_params
    return Cost(
        hardware=hardware,
        cards=cards,
        mfu=mfu,
        card_hours=hours,
        hours=hours / cards,
        state_bytes=state,
        min_cards=max(1, math.ceil(state * HEADROOM / card.memory_bytes)),
    )


def _check_mfu(mfu: float) -> None:
    if not 0 < mfu <= 1:
        raise ConfigError(f"mfu {mfu} must be above 0 and at most 1; 0.3 to 0.5 is usual")


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainTokens:
    """One domain under a plan."""

    share: float
    """Of the plan's tokens."""
    tokens: float
    """Tokens read."""
    unique_tokens: float
    """Tokens that exist."""
    epochs: float
    """Tokens over unique tokens."""
    effective_tokens: float
    """Fresh tokens that they are worth by the law of repetition."""


def epochs_by_domain(
    num_tokens: float,
    unique_tokens: Mapping[str, float],
    shares: Mapping[str, float],
    *,
    max_epochs: float = DEFAULT_MAX_EPOCHS,
    law: RepetitionLaw | None = None,
) -> dict[str, DomainTokens]:
    """Spread a plan's tokens over domains and count how often each is read.

    Args:
        num_tokens: D.
        unique_tokens: domain -> tokens that exist.
        shares: domain -> share of D; they add up to 1.
        max_epochs: refuse plans that read a domain more often.
        law: of repetition; the published one if not given.

    Raises:
        ConfigError: shares that do not add up or name unknown domains, or more epochs than allowed: the message says
            how many tokens would do, and how many are missing.
    """
    law = law or RepetitionLaw()
    unknown = sorted(set(shares) - set(unique_tokens))
    total = sum(shares.values())
    if unknown or abs(total - 1.0) > 1e-6 or min(shares.values(), default=0.0) < 0:
        raise ConfigError(
            f"shares sum to {total:.6f}, must be 1, none negative; unknown domains: {', '.join(unknown) or 'none'} "
            f"(the manifest has {', '.join(sorted(unique_tokens))})"
        )
    found = {}
    for name, share in shares.items():
        if share == 0:
            continue
        tokens, unique = share * num_tokens, unique_tokens[name]
        if unique <= 0 or tokens > max_epochs * unique * (1 + 1e-9):
            raise ConfigError(
                f"domain {name} has {unique:,.0f} tokens; {share:.3f} of {num_tokens:.4g} reads them "
                f"{tokens / max(unique, 1.0):.1f} times, the bound is {max_epochs:g}: add "
                f"{tokens / max_epochs - unique:,.0f} tokens, lower its share below "
                f"{max_epochs * unique / num_tokens:.4f}, or raise --max-epochs"
            )
        found[name] = DomainTokens(
            share=share,
            tokens=tokens,
            unique_tokens=unique,
            epochs=tokens / unique,
            effective_tokens=law.effective_tokens(tokens, min(unique, tokens)),
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTraining:
    """A smaller model trained longer, beside the compute-optimal one of the same budget."""

    optimal_params: float
    """Size of the compute-optimal plan."""
    loss_given_up_nats: float
    """Loss above the optimum at equal training compute."""
    inference_saved_frac: float
    """Share of the FLOPs per generated token that the smaller model saves."""
    tokens_for_optimal_loss: float | None
    """Tokens at which the smaller model reaches the optimum's loss; None where it never does."""
    extra_train_flops: float | None
    """Training FLOPs on top of the budget for that."""
    break_even_tokens: float | None
    """Tokens of inference from which training on to that loss pays."""


def over_training(law: Fit | CptFit, plan: Plan, optimal: Plan) -> OverTraining:
    """Weigh a smaller model against the optimum of its budget (Touvron et al. 2302.13971, section 1).

    Args:
        law: what both plans come from.
        plan: the smaller model.
        optimal: from `plan.compute_optimal` of the same budget.

    Raises:
        ConfigError: the plan's model is not the smaller one.
    """
    if plan.num_params > optimal.num_params:
        raise ConfigError(
            f"{plan.num_params:.4g} parameters are more than the optimum's {optimal.num_params:.4g}: that is "
            "under-training; give a smaller size or a larger budget"
        )
    saved = INFERENCE_FLOPS_PER_PARAM * (optimal.num_params - plan.num_params)
    try:
        tokens = tokens_for_loss(law, plan.num_params, optimal.loss_nats)
    except ConfigError:
        tokens = None
    extra = None if tokens is None else max(0.0, 6.0 * plan.num_params * tokens - plan.flops)
    return OverTraining(
        optimal_params=optimal.num_params,
        loss_given_up_nats=plan.loss_given_up_nats,
        inference_saved_frac=1.0 - plan.num_params / optimal.num_params,
        tokens_for_optimal_loss=tokens,
        extra_train_flops=extra,
        break_even_tokens=None if extra is None or saved == 0 else extra / saved,
    )
