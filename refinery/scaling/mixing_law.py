"""Data-mixing law: loss on a held-out set as a function of the shares that were trained on (Ye et al. 2403.16952).

``L_i(r) = c_i + k_i exp(sum_j t_ij r_j)`` for shares r that add up to 1. Because they do, k and a constant added to
every t are the same thing, so the law is fitted as ``c + exp(sum_j s_j r_j)`` with ``s = t + log k``: one parameter per
domain and a floor. For a given floor the law is linear in log(L - c), so the floor is searched and the rest solved;
least squares on the loss polishes. The sum of such laws is convex in the shares: the best mix is found, not guessed.

Every fit says how well it predicts runs that it has not seen (leave one out), beside predicting their mean: with a
dozen tiny runs that is what tells a law from noise.

Shape legend: R runs, M domains, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares, minimize, minimize_scalar
from threadpoolctl import threadpool_limits

from refinery.errors import ConfigError

_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingFit:
    """Fitted law of one held-out set."""

    domains: tuple[str, ...]
    """Names of the shares, in order; length M."""
    floor: float
    """c: loss that no mix goes under."""
    slopes: np.ndarray
    """float64, shape (M,): s_j; a lower one means that the domain helps more."""
    heldout_mae: float
    """Mean absolute error on each run by a fit to the others."""
    heldout_standard_error: float
    """Standard error of ``mean_mae - heldout_mae`` over the runs."""
    mean_mae: float
    """The same for predicting the mean of the others: what a law must beat."""
    shares_range: tuple[tuple[float, float], ...]
    """Lowest and highest share fitted, per domain."""
    num_runs: int
    """R."""
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    """float64, shape (R,): measured less predicted loss."""

    def loss(self, shares: np.ndarray) -> np.ndarray:
        """Return predicted losses for shares of shape (..., M)."""
        return self.floor + np.exp(np.asarray(shares, dtype=np.float64) @ self.slopes)

    @property
    def useful(self) -> bool:
        """Whether the law predicts unseen runs clearly better than their mean does: by two standard errors."""
        return self.mean_mae - self.heldout_mae > 2.0 * self.heldout_standard_error


def check_shares(shares: np.ndarray, domains: Sequence[str]) -> np.ndarray:
    """Return shares as float64, shape (R, M).

    Raises:
        ConfigError: not one column per domain, negative, or rows that do not add up to 1 within 1e-6.
    """
    table = np.atleast_2d(np.asarray(shares, dtype=np.float64))
    if table.shape[1] != len(domains):
        raise ConfigError(f"{table.shape[1]} shares per run for {len(domains)} domains; give one share per domain")
    sums = table.sum(axis=1)
    wrong = np.flatnonzero((np.abs(sums - 1.0) > _SHARE_TOLERANCE) | (table < 0).any(axis=1))
    if len(wrong):
        raise ConfigError(f"shares of run {wrong[0]} sum to {sums[wrong[0]]:.6f} or are negative; they must sum to 1")
    return table


@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_mixing(shares: np.ndarray, losses: np.ndarray, domains: Sequence[str]) -> MixingFit:
    """Fit the law of one held-out set.

    Args:
        shares: shape (R, M), rows that add up to 1.
        losses: shape (R,), in one unit, of runs that differ in nothing but the mix.
        domains: M names.

    Raises:
        ConfigError: fewer than M + 2 runs, bad shares, losses that are not finite and positive, a domain whose share
            does not vary.
    """
    table, values = check_shares(shares, domains), np.asarray(losses, dtype=np.float64)
    need = len(domains) + 2
    if len(values) != len(table) or len(table) < need:
        raise ConfigError(
            f"{len(values)} losses of {len(table)} mixtures cannot fix a law of {len(domains)} domains, {need} is the "
            "least; train more mixtures"
        )
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ConfigError(f"loss of run {bad[0]} is {values[bad[0]]}, it must be finite and > 0; drop the run")
    still = [d for d, spread in zip(domains, np.ptp(table, axis=0), strict=True) if spread < 0.02]
    if still:
        raise ConfigError(f"the share of {', '.join(still)} hardly varies over the runs; widen its bounds")
    floor, slopes = _solve(table, values)
    errors = [_left_out(table, values, i) for i in range(len(values))]
    by_law, by_mean = np.abs(np.array(errors)).T
    ranges = tuple((float(low), float(high)) for low, high in zip(table.min(axis=0), table.max(axis=0), strict=True))
    return MixingFit(
        domains=tuple(domains),
        floor=floor,
        slopes=slopes,
        heldout_mae=float(by_law.mean()),
        heldout_standard_error=float((by_mean - by_law).std(ddof=1) / np.sqrt(len(values))),
        mean_mae=float(by_mean.mean()),
        shares_range=ranges,
        num_runs=len(values),
        residuals=values - floor - np.exp(table @ slopes),
    )


def _solve(table: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    lowest, spread = float(values.min()), max(float(np.ptp(values)), 1e-6 * float(values.min()))

    def slopes_of(gap: float) -> np.ndarray:
        height = values - (lowest - gap)  # also the weight: what is to be small is the error in L, not in log L
        return np.linalg.lstsq(table * height[:, None], np.log(height) * height, rcond=None)[0]

    def squares(log_gap: float) -> float:
        gap = float(np.exp(log_gap))
        return float(((values - (lowest - gap) - np.exp(table @ slopes_of(gap))) ** 2).sum())

    # A floor of nothing is the furthest that makes sense: losses are positive.
    bounds = (np.log(spread * 1e-2), np.log(max(lowest, spread * 2e-2)))
    gap = float(np.exp(minimize_scalar(squares, bounds=bounds, method="bounded").x))
    start = np.concatenate([[lowest - gap], slopes_of(gap)])
    found = least_squares(
        lambda x: x[0] + np.exp(np.minimum(table @ x[1:], 50.0)) - values, start, method="trf", x_scale="jac",
        bounds=(np.r_[0.0, np.full(len(start) - 1, -60.0)], np.r_[lowest, np.full(len(start) - 1, 60.0)]),
    ) if np.isfinite(start).all() and 0 <= start[0] < lowest else None  # fmt: skip
    best = start if found is None else found.x
    return float(best[0]), best[1:]


def _left_out(table: np.ndarray, values: np.ndarray, i: int) -> tuple[float, float]:
    rest = np.arange(len(values)) != i
    floor, slopes = _solve(table[rest], values[rest])
    return float(values[i] - floor - np.exp(table[i] @ slopes)), float(values[i] - values[rest].mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class BestMix:
    """Mix of the lowest predicted goal under constraints."""

    shares: dict[str, float]
    """Best share per domain."""
    intervals: dict[str, tuple[float, float]]
    """Central 95 % of the best share over bootstraps of the runs."""
    loss: float
    """Predicted goal."""
    loss_interval: tuple[float, float]
    """Central 95 % of the predicted goal at these shares."""
    bound: tuple[str, ...]
    """Domains whose share lies on a constraint."""


@threadpool_limits.wrap(limits=1, user_api="blas")
def best_mix(
    laws: Mapping[str, MixingFit],
    goal: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    runs: tuple[np.ndarray, Mapping[str, np.ndarray]],
    *,
    num_samples: int = 200,
    seed: int = 42,
) -> BestMix:
    """Find the shares with the lowest weighted sum of predicted losses, with bootstrap intervals.

    Args:
        laws: held-out set -> law; all of the same domains.
        goal: held-out set -> weight in the sum; weights must be positive.
        bounds: domain -> lowest and highest share; domains that are not named stay in the range that was fitted.
        runs: (shares of shape (R, M), held-out set -> losses of shape (R,)): what the laws were fitted to.
        num_samples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: unknown sets or domains, bounds outside the fitted range, bounds without a mix.
    """
    domains = next(iter(laws.values())).domains
    box = _box(laws, goal, bounds, domains)
    weights = np.array(list(goal.values())) / sum(goal.values())
    chosen = [laws[name] for name in goal]
    best = _minimum([(law.floor, law.slopes) for law in chosen], weights, box)
    table, losses = runs
    samples, predicted = [], []
    for k in range(num_samples):
        picks = np.random.default_rng([seed, k]).integers(0, len(table), len(table))
        if len(np.unique(picks)) < len(domains) + 2:
            continue
        drawn = [_solve(table[picks], np.asarray(losses[name])[picks]) for name in goal]
        samples.append(_minimum(drawn, weights, box))
        predicted.append(_goal(drawn, weights, best))
    low, high = np.percentile(samples, [2.5, 97.5], axis=0) if samples else (best, best)
    fitted = [(law.floor, law.slopes) for law in chosen]
    ends = np.percentile(predicted, [2.5, 97.5]) if predicted else np.full(2, _goal(fitted, weights, best))
    on_edge = (best - box[:, 0] < 1e-4) | (box[:, 1] - best < 1e-4)
    return BestMix(
        shares={d: float(s) for d, s in zip(domains, best, strict=True)},
        intervals={d: (float(a), float(b)) for d, a, b in zip(domains, low, high, strict=True)},
        loss=_goal(fitted, weights, best),
        loss_interval=(float(ends[0]), float(ends[1])),
        bound=tuple(d for d, edge in zip(domains, on_edge, strict=True) if edge),
    )


def _box(
    laws: Mapping[str, MixingFit],
    goal: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    domains: tuple[str, ...],
) -> np.ndarray:
    unknown = sorted({*goal} - {*laws}) + sorted({*bounds} - {*domains})
    if unknown or not goal or min(goal.values()) <= 0:
        raise ConfigError(
            f"goal or bounds name {', '.join(unknown) or 'no positive weight'}; held-out sets are "
            f"{', '.join(laws)}, domains {', '.join(domains)}"
        )
    fitted = laws[next(iter(goal))].shares_range
    box = np.array([bounds.get(d, fitted[j]) for j, d in enumerate(domains)])
    for j, domain in enumerate(domains):
        if box[j, 0] < fitted[j][0] - 1e-9 or box[j, 1] > fitted[j][1] + 1e-9:
            raise ConfigError(
                f"bounds {box[j, 0]:.3f} to {box[j, 1]:.3f} of {domain} leave the fitted range {fitted[j][0]:.3f} to "
                f"{fitted[j][1]:.3f}; train mixtures out there, or narrow the bounds"
            )
    if (box[:, 0] > box[:, 1]).any() or box[:, 0].sum() > 1 + 1e-9 or box[:, 1].sum() < 1 - 1e-9:
        raise ConfigError(
            f"no mix fits the bounds: lowest shares sum to {box[:, 0].sum():.3f}, highest to {box[:, 1].sum():.3f}, "
            "1 must lie between; loosen them"
        )
    return box


def _goal(laws: Sequence[tuple[float, np.ndarray]], weights: np.ndarray, shares: np.ndarray) -> float:
    return float(sum(w * (c + np.exp(min(shares @ s, 50.0))) for w, (c, s) in zip(weights, laws, strict=True)))


def _minimum(laws: Sequence[tuple[float, np.ndarray]], weights: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Minimise a convex sum over a simplex cut by a box."""
    slack = 1.0 - box[:, 0].sum()
    width = box[:, 1] - box[:, 0]
    start = box[:, 0] + width * (slack / max(width.sum(), 1e-12))

    def gradient(shares: np.ndarray) -> np.ndarray:
        return sum(
            (w * np.exp(min(shares @ s, 50.0)) * s for w, (_, s) in zip(weights, laws, strict=True)),
            start=np.zeros(len(shares)),
        )

    found = minimize(
        lambda r: _goal(laws, weights, r), start, jac=gradient, method="SLSQP", bounds=box,
        constraints=[{"type": "eq", "fun": lambda r: r.sum() - 1.0, "jac": np.ones_like}],
        options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    shares = np.clip(found.x, box[:, 0], box[:, 1])
    return shares / shares.sum()


def simplex_mixtures(
    num: int, bounds: Sequence[tuple[float, float]], seed: int, first: Sequence[float] | None = None
) -> np.ndarray:
    """Draw mixtures evenly from a simplex cut by bounds; more of them begin with the fewer.

    Args:
        num: mixtures, R.
        bounds: lowest and highest share of each of M domains.
        seed: of the draws; draw k depends on (seed, k) only.
        first: a mixture to begin with, such as the recipe's.
    Returns: float64, shape (R, M), rows that add up to 1.

    Raises:
        ConfigError: no mix fits the bounds, or hardly any draw does.
    """
    box = np.asarray(bounds, dtype=np.float64)
    slack = 1.0 - box[:, 0].sum()
    if slack < -1e-9 or box[:, 1].sum() < 1 - 1e-9 or (box[:, 0] > box[:, 1]).any():
        raise ConfigError(
            f"no mix fits the bounds: lowest shares sum to {box[:, 0].sum():.3f}, highest to {box[:, 1].sum():.3f}"
        )
    rows = [] if first is None else [np.asarray(first, dtype=np.float64)]
    for k in range(len(rows), num):
        rng = np.random.default_rng([seed, k])
        for _ in range(10_000):
            drawn = box[:, 0] + slack * rng.dirichlet(np.ones(len(box)))
            if (drawn <= box[:, 1] + 1e-12).all():
                rows.append(drawn)
                break
        else:
            raise ConfigError("10,000 draws met the highest shares in none; raise them")
    return np.array(rows[:num])
