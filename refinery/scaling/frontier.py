"""Compute-optimal sizes without a loss law: Chinchilla's approaches 1 and 2 (Hoffmann et al. 2203.15556, section 3).

Approach 1 takes the lower envelope: at each compute the run of lowest loss so far, and a power law through their sizes.
It is meant for whole training curves; with the last points of runs alone it reads off few sizes, and its interval says
so. Approach 2 takes profiles of equal compute: a parabola in log N through each, its vertex, and a power law through
the vertices. Both say ``N_opt = k C^a``; D follows as C / 6N, so b = 1 - a. Neither predicts a loss.

Published: approach 1 a = 0.50 (0.488 to 0.502), approach 2 a = 0.49 (0.462 to 0.534).

Shape legend: R runs, P points that the power law goes through, B bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from refinery.errors import ConfigError

FLOPS_PER_PARAM_TOKEN = 6.0
_MIN_PROFILE_RUNS = 5
_MIN_POINTS = 3


class Profile(NamedTuple):
    """Runs of about equal compute and the parabola through them."""

    flops: float
    """Geometric mean of the compute of its runs."""
    num_runs: int
    """Runs in it."""
    num_params: float
    """Size at the vertex."""
    loss: float
    """Loss at the vertex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLaw:
    """``N_opt = coefficient C^a``."""

    coefficient: float
    """k."""
    a: float
    """Exponent of N in C; that of D is 1 - a."""
    a_interval: tuple[float, float]
    """Central 95 % of the bootstrap over runs."""
    flops_range: tuple[float, float]
    """Smallest and largest compute that a point has."""
    points: tuple[Profile, ...]
    """What the power law goes through."""
    residuals: np.ndarray
    """float64, shape (P,): log of a point's size over the law's."""
    num_runs: int
    """R."""

    @property
    def b(self) -> float:
        """Exponent of D in C."""
        return 1.0 - self.a

    def num_params(self, flops: float, *, max_extrapolation: float = 10.0) -> float:
        """Return the size for a budget.

        Raises:
            ConfigError: the budget is not positive, or further beyond the fitted compute than allowed.
        """
        if not (math.isfinite(flops) and flops > 0):
            raise ConfigError(f"flops is {flops}, it must be finite and > 0; give a positive number")
        factor = max(flops / self.flops_range[1], self.flops_range[0] / flops)
        if factor > max_extrapolation:
            raise ConfigError(
                f"{flops:.4g} FLOPs lie {factor:.1f} times outside the fitted compute {self.flops_range[0]:.3g} to "
                f"{self.flops_range[1]:.3g}, the bound is {max_extrapolation:g}; add runs out there, or raise "
                "max_extrapolation"
            )
        return self.coefficient * flops**self.a


@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_envelope(
    num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray, *, num_samples: int = 500, seed: int = 42
) -> SizeLaw:
    """Approach 1: a power law through the sizes of the lower envelope of loss over compute.

    Args:
        num_params: shape (R,).
        num_tokens: shape (R,).
        loss: shape (R,); points along training curves are best, last points will do.
        num_samples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: values that are not positive, or an envelope of fewer than three sizes.
    """
    runs = _checked(num_params, num_tokens, loss)
    points = _envelope(*runs)
    if len({p.num_params for p in points}) < _MIN_POINTS:
        raise ConfigError(
            f"the envelope of {len(runs[0])} points has {len(points)} of lowest loss; train more sizes, or give points "
            "along the training curves"
        )
    return _law(points, runs, _envelope, num_samples, seed)


@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_profiles(
    num_params: np.ndarray,
    num_tokens: np.ndarray,
    loss: np.ndarray,
    *,
    width: float = 1.2,
    num_samples: int = 500,
    seed: int = 42,
) -> SizeLaw:
    """Approach 2: parabolas in log N through runs of about equal compute, a power law through their vertices.

    Args:
        num_params: shape (R,).
        num_tokens: shape (R,).
        loss: shape (R,).
        width: runs are of one profile if their compute differs by no more than this factor; the fullest windows are
            taken first.
        num_samples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: values that are not positive, or fewer than three profiles with a lowest loss inside.
    """
    runs = _checked(num_params, num_tokens, loss)
    groups = _windows(runs[1], math.log(width))
    points = [p for g in groups if (p := _parabola(*(x[g] for x in runs))) is not None]
    if len(points) < _MIN_POINTS:
        raise ConfigError(
            f"{len(points)} profiles of equal compute (five runs within a factor {width:g}, lowest loss inside) were "
            f"found among {len(runs[0])} runs, three are the least; train several sizes at three budgets"
        )

    def again(log_n: np.ndarray, log_c: np.ndarray, losses: np.ndarray) -> list[Profile]:
        found = []
        for g in groups:
            low, high = runs[1][g].min(), runs[1][g].max()
            mine = (log_c >= low) & (log_c <= high)
            vertex = _parabola(log_n[mine], log_c[mine], losses[mine])
            found += [vertex] if vertex is not None else []
        return found

    return _law(points, runs, again, num_samples, seed)


def _checked(
    num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log N, log C and the losses."""
    params, tokens, losses = (np.asarray(x, dtype=np.float64) for x in (num_params, num_tokens, loss))
    if not len(params) == len(tokens) == len(losses):
        raise ConfigError(f"{len(params)} N, {len(tokens)} D and {len(losses)} losses; pass one of each per run")
    for name, values in (("N", params), ("D", tokens), ("loss", losses)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ConfigError(f"{name} of run {bad[0]} is {values[bad[0]]}, it must be finite and > 0; drop the run")
    return np.log(params), np.log(FLOPS_PER_PARAM_TOKEN * params * tokens), losses


def _envelope(log_n: np.ndarray, log_c: np.ndarray, losses: np.ndarray) -> list[Profile]:
    order = np.lexsort((losses, log_c))
    lowest = np.minimum.accumulate(losses[order])
    first = np.r_[True, lowest[1:] < lowest[:-1]]
    return [Profile(math.exp(log_c[i]), 1, math.exp(log_n[i]), float(losses[i])) for i in order[first]]


def _windows(log_c: np.ndarray, width: float) -> list[np.ndarray]:
    """Return the runs of each profile: the fullest window of compute first, until none holds five runs."""
    free = np.ones(len(log_c), dtype=bool)
    found: list[np.ndarray] = []
    while free.sum() >= _MIN_PROFILE_RUNS:
        order = np.flatnonzero(free)[np.argsort(log_c[free], kind="stable")]
        values = log_c[order]
        counts = np.searchsorted(values, values + width + 1e-12, side="right") - np.arange(len(values))
        start = int(np.argmax(counts))
        if counts[start] < _MIN_PROFILE_RUNS:
            break
        group = order[start : start + counts[start]]
        found.append(group)
        free[group] = False
    return sorted(found, key=lambda g: float(log_c[g].mean()))


def _parabola(log_n: np.ndarray, log_c: np.ndarray, losses: np.ndarray) -> Profile | None:
    """Return the vertex of a parabola through one profile; None where the lowest loss is not inside."""
    if len(log_n) < _MIN_PROFILE_RUNS - 1 or len(np.unique(log_n)) < 3:
        return None
    middle = float(log_n.mean())
    curve, slope, height = np.polyfit(log_n - middle, losses, 2)
    if curve <= 0:
        return None
    vertex = middle - slope / (2 * curve)
    if not log_n.min() <= vertex <= log_n.max():
        return None
    return Profile(
        math.exp(float(log_c.mean())), len(log_n), math.exp(vertex), float(height - slope * slope / (4 * curve))
    )


def _power(points: list[Profile]) -> tuple[float, float]:
    slope, start = np.polyfit(np.log([p.flops for p in points]), np.log([p.num_params for p in points]), 1)
    return float(slope), float(start)


def _law(
    points: list[Profile],
    runs: tuple[np.ndarray, np.ndarray, np.ndarray],
    again: Callable[[np.ndarray, np.ndarray, np.ndarray], list[Profile]],
    num_samples: int,
    seed: int,
) -> SizeLaw:
    a, start = _power(points)
    drawn = []
    for k in range(num_samples):
        picks = np.sort(np.random.default_rng([seed, k]).integers(0, len(runs[0]), len(runs[0])))
        found = again(*(x[picks] for x in runs))
        if len({p.num_params for p in found}) >= _MIN_POINTS:
            drawn.append(_power(found)[0])
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (math.nan, math.nan)
    flops = np.array([p.flops for p in points])
    return SizeLaw(
        coefficient=math.exp(start),
        a=a,
        a_interval=(float(low), float(high)),
        flops_range=(float(flops.min()), float(flops.max())),
        points=tuple(points),
        residuals=np.log([p.num_params for p in points]) - (start + a * np.log(flops)),
        num_runs=len(runs[0]),
    )
