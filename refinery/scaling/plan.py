"""Plans from a fitted law: how large a model and how many tokens for a budget of compute, and what loss to expect.

A law is asked for numbers beyond its runs by nature; how far is stated. Past `max_extrapolation` times the largest N or
D that was fitted a plan is refused unless the caller says that it is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refinery.errors import ConfigError
from refinery.scaling.cpt import CptFit, CptIntervals
from refinery.scaling.parametric import Fit, Intervals

MAX_EXTRAPOLATION = 10.0
"""Chinchilla's own step from its runs to 70B was 4.4 in N; errors of the exponents grow with its logarithm."""
_LOSS_STEP = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training run to aim at."""

    flops: float
    """C = 6 N D."""
    num_params: float
    """N."""
    num_tokens: float
    """D."""
    loss_nats: float
    """Predicted loss, nats per token."""
    loss_given_up_nats: float
    """Loss above the compute-optimal one of the same budget; 0 for the optimal plan."""
    extrapolation: float
    """Largest of N and D over the largest fitted; above 1 the plan leaves the range of the runs."""
    loss_interval_nats: tuple[float, float] | None = None
    """Central 95 % of the bootstrap, where one was given."""

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.num_tokens / self.num_params


def compute_optimal(
    law: Fit | CptFit,
    flops: float,
    *,
    intervals: Intervals | CptIntervals | None = None,
    max_extrapolation: float = MAX_EXTRAPOLATION,
) -> Plan:
    """Return the N and D of lowest loss for a budget: N = G (C / 6)^a, D = (C / 6)^b / G.

    Args:
        law: a fit from scratch or of continual pretraining.
        flops: C.
        intervals: bootstrap of the fit, for an interval of the loss at this N and D.
        max_extrapolation: refuse beyond this multiple of the fitted range; ``inf`` to allow all.
    Returns: see `Plan`.

    Raises:
        ConfigError: the budget is not positive, exponents are not, or the plan extrapolates too far.
    """
    _check_positive("flops", flops)
    _check_exponents(law)
    params = law.G * (flops / 6.0) ** law.a
    return _plan(law, flops, params, intervals, max_extrapolation)


def fixed_size(
    law: Fit | CptFit,
    flops: float,
    num_params: float,
    *,
    intervals: Intervals | CptIntervals | None = None,
    max_extrapolation: float = MAX_EXTRAPOLATION,
) -> Plan:
    """Return the plan that spends a budget on a given size (over-training, LLaMA style) and the loss it gives up.

    Arguments and errors as in `compute_optimal`.
    """
    _check_positive("flops", flops)
    _check_positive("num_params", num_params)
    _check_exponents(law)
    return _plan(law, flops, num_params, intervals, max_extrapolation)


def tokens_for_loss(law: Fit | CptFit, num_params: float, loss_nats: float) -> float:
    """Return the tokens at which a size reaches a loss.

    Raises:
        ConfigError: the size cannot reach it with any number of tokens (the message names its floor).
    """
    _check_positive("num_params", num_params)
    scratch = law.scratch if isinstance(law, CptFit) else law
    floor = scratch.E + scratch.A * num_params**-scratch.alpha
    if loss_nats <= floor + _LOSS_STEP:
        raise ConfigError(
            f"{num_params:.4g} parameters never reach {loss_nats} nats: the floor of that size is {floor:.4f}; "
            "take a larger model or a higher loss"
        )
    coefficient = law.B * num_params**-law.gamma if isinstance(law, CptFit) else law.B
    return float((coefficient / (loss_nats - floor)) ** (1.0 / law.beta))


def _plan(
    law: Fit | CptFit, flops: float, num_params: float, intervals: Intervals | CptIntervals | None,
    max_extrapolation: float,
) -> Plan:  # fmt: skip
    tokens = flops / (6.0 * num_params)
    factor = max(num_params / law.params_range[1], tokens / law.tokens_range[1])
    if factor > max_extrapolation:
        raise ConfigError(
            f"{num_params:.4g} parameters on {tokens:.4g} tokens lie {factor:.1f} times beyond the largest fitted run, "
            f"the bound is {max_extrapolation:g}; add larger runs, lower the budget, or raise max_extrapolation"
        )
    loss = float(law.loss(num_params, tokens))
    best_params = law.G * (flops / 6.0) ** law.a
    best = float(law.loss(best_params, flops / (6.0 * best_params)))
    return Plan(
        flops=flops,
        num_params=num_params,
        num_tokens=tokens,
        loss_nats=loss,
        loss_given_up_nats=max(0.0, loss - best),
        extrapolation=factor,
        loss_interval_nats=None if intervals is None else _loss_interval(law, intervals, num_params, tokens),
    )


def _loss_interval(
    law: Fit | CptFit, intervals: Intervals | CptIntervals, num_params: float, num_tokens: float
) -> tuple[float, float]:
    if isinstance(law, CptFit):
        B, beta, gamma = intervals.samples.T
        fixed = law.scratch.E + law.scratch.A * num_params**-law.scratch.alpha
        losses = fixed + B * num_tokens**-beta * num_params**-gamma
    else:
        A, B, E, alpha, beta = intervals.samples[:, :5].T
        losses = E + A * num_params**-alpha + B * num_tokens**-beta
    low, high = np.percentile(losses, [2.5, 97.5])
    return float(low), float(high)


def _check_exponents(law: Fit | CptFit) -> None:
    scratch = law.scratch if isinstance(law, CptFit) else law
    if scratch.alpha <= 0 or law.beta <= 0:
        raise ConfigError(
            f"exponents alpha {scratch.alpha:.3g}, beta {law.beta:.3g} must be > 0: the runs do not show that size or "
            "tokens help; fit runs of a wider range"
        )


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}, it must be finite and > 0; give a positive number")
