"""Parametric loss laws fitted by robust regression: Chinchilla's approach 3 and what follows from it.

The law is ``L(N, D) = E + A / N^alpha + B / D^beta`` (Hoffmann et al. 2203.15556, section 3.3): N parameters, D tokens,
L nats per token. It is fitted on log L through the log-sum-exp of its three terms, by the *sum* of Huber losses with
delta = 1e-3, L-BFGS from a grid of starts. Three details decide whether the published numbers come out:

- the sum, not the mean: with the mean the objective is so small that L-BFGS meets its tolerance far from the optimum,
  which Besiroglu et al. (2404.10102) name as the cause of the biased published parameters. Here residuals are measured
  in units of delta, so the tolerance is meant as it reads;
- log N and log D are centred inside the optimiser: exponent and coefficient are otherwise correlated beyond 0.99 and
  L-BFGS takes ten times the steps;
- the best starts by objective are polished, not all: the optimum is the same as from all 4,500 on the published table
  (``benchmarks/scaling_fit.py --all-starts``).

BLAS gets one thread: the products are five numbers wide, and on a machine that is busy with other work threads that
wait for each other turned 6 CPU seconds into ten minutes (250 resamples of 240 runs, two cores, load 12).

Shape legend: R runs, P free parameters, K terms, S starts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from refinery.errors import ConfigError

HUBER_DELTA = 1e-3
"""On log L (2203.15556)."""
MIN_RUNS = 6
"""One more than the five parameters; fewer runs fit any law exactly."""
_EXPONENT_STARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_COEFFICIENT_STARTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
_FLOOR_STARTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_FLOPS_PER_PARAM_TOKEN = 6.0
_SMALLEST_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted law ``L = E + A / N^alpha + B / D^beta`` and the range of runs behind it."""

    A: float
    """Coefficient of the parameter term."""
    B: float
    """Coefficient of the token term."""
    E: float
    """Loss floor, nats per token."""
    alpha: float
    """Exponent of parameters."""
    beta: float
    """Exponent of tokens."""
    objective: float
    """Sum of Huber losses on log L."""
    num_runs: int
    """Runs fitted."""
    params_range: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest N seen."""
    tokens_range: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest D seen."""
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    """float64, shape (R,): log of measured over predicted loss."""

    @property
    def a(self) -> float:
        """Exponent of the compute-optimal N in C: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the compute-optimal D in C: alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> float:  # noqa: N802 - the paper's symbol
        """Prefactor: ``N_opt = G (C / 6)^a`` and ``D_opt = (C / 6)^b / G``."""
        return float((self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta)))

    def loss(self, num_params: float | np.ndarray, num_tokens: float | np.ndarray) -> np.ndarray:
        """Return the predicted loss in nats per token; broadcasts; says nothing about extrapolation."""
        params = np.asarray(num_params, dtype=np.float64)
        tokens = np.asarray(num_tokens, dtype=np.float64)
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def vector(self) -> np.ndarray:
        """Return (A, B, E, alpha, beta), float64, shape (5,)."""
        return np.array([self.A, self.B, self.E, self.alpha, self.beta])


class Intervals(NamedTuple):
    """Bootstrap distribution of a fit."""

    names: tuple[str, ...]
    """A, B, E, alpha, beta, a."""
    standard_errors: np.ndarray
    """float64, shape (6,)."""
    low: np.ndarray
    """float64, shape (6,): lower percentile."""
    high: np.ndarray
    """float64, shape (6,): upper percentile."""
    samples: np.ndarray
    """float64, shape (num_samples, 6)."""


def huber_lse(
    theta: np.ndarray, offsets_KR: np.ndarray, design_KRP: np.ndarray, log_loss: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the objective in units of delta squared, and its gradient.

    The model is ``log L = logsumexp_k(offsets[k] + design[k] @ theta)``; every law here is of this form.

    Args:
        theta: float64, shape (P,).
        offsets_KR: float64, shape (K, R): frozen parts of the terms.
        design_KRP: float64, shape (K, R, P).
        log_loss: float64, shape (R,).
        weights: float64, shape (R,): how often each run counts (bootstrap), else ones.
    Returns: the sum of Huber losses divided by delta squared, and its gradient, shape (P,).
    """
    terms = offsets_KR + design_KRP @ theta
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    residual = (top + np.log(total) - log_loss) / HUBER_DELTA
    size = np.abs(residual)
    value = float(weights @ np.where(size <= 1.0, 0.5 * residual * residual, size - 0.5))
    slope = weights * np.clip(residual, -1.0, 1.0) / (HUBER_DELTA * total)
    return value, np.einsum("kr,krp->p", shares * slope, design_KRP)


def polish(
    start: np.ndarray, offsets_KR: np.ndarray, design_KRP: np.ndarray, log_loss: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """Run L-BFGS from one start; return the objective (in units of delta squared) and the parameters, shape (P,)."""
    result = minimize(
        huber_lse,
        start,
        args=(offsets_KR, design_KRP, log_loss, weights),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20},
    )
    return float(result.fun), result.x


def check_runs(num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray, min_runs: int = MIN_RUNS) -> None:
    """Check the runs of a fit.

    Raises:
        ConfigError: lengths differ, too few runs, values that are not finite and positive, no spread in N or D.
    """
    if not len(num_params) == len(num_tokens) == len(loss):
        raise ConfigError(f"{len(num_params)} N, {len(num_tokens)} D and {len(loss)} losses; pass one of each per run")
    if len(loss) < min_runs:
        raise ConfigError(f"{len(loss)} runs cannot fix the law, {min_runs} is the least; train more sizes or lengths")
    for name, values in (("N", num_params), ("D", num_tokens), ("loss", loss)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ConfigError(f"{name} of run {bad[0]} is {values[bad[0]]}, it must be finite and > 0; drop the run")
    for name, values in (("N", num_params), ("D", num_tokens)):
        spread = float(values.max() / values.min())
        if spread < 1.5:
            raise ConfigError(
                f"{name} varies only by a factor {spread:.3g} over {len(values)} runs, 1.5 is the least; "
                f"add runs of another {'size' if name == 'N' else 'length'}"
            )


class _Problem(NamedTuple):
    """Centred form of the law: theta = (a - alpha m_N, b - beta m_D, e, alpha, beta)."""

    offsets: np.ndarray
    design: np.ndarray
    log_loss: np.ndarray
    mean_log_n: float
    mean_log_d: float


def _problem(num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray) -> _Problem:
    log_n, log_d = np.log(num_params), np.log(num_tokens)
    mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
    design = np.zeros((3, len(loss), 5))
    design[0, :, 0] = design[1, :, 1] = design[2, :, 2] = 1.0
    design[0, :, 3] = mean_n - log_n
    design[1, :, 4] = mean_d - log_d
    return _Problem(np.zeros((3, len(loss))), design, np.log(loss), mean_n, mean_d)


def _grid(problem: _Problem) -> np.ndarray:
    """Return the 4,500 published starts in centred form, float64, shape (S, 5)."""
    axes = (_COEFFICIENT_STARTS, _COEFFICIENT_STARTS, _FLOOR_STARTS, _EXPONENT_STARTS, _EXPONENT_STARTS)
    grid = np.array(list(itertools.product(*axes)))
    grid[:, 0] -= grid[:, 3] * problem.mean_log_n
    grid[:, 1] -= grid[:, 4] * problem.mean_log_d
    return grid


def _best_starts(problem: _Problem, num_starts: int) -> np.ndarray:
    grid = _grid(problem)
    if num_starts >= len(grid):
        return grid
    # Rows of the design are affine in two numbers per run, so the whole grid is three outer products.
    terms_n = grid[:, 0:1] + grid[:, 3:4] * problem.design[0, :, 3]
    terms_d = grid[:, 1:2] + grid[:, 4:5] * problem.design[1, :, 4]
    predicted = np.logaddexp(np.logaddexp(terms_n, terms_d), grid[:, 2:3])
    size = np.abs(predicted - problem.log_loss) / HUBER_DELTA
    value = np.where(size <= 1.0, 0.5 * size * size, size - 0.5).sum(axis=1)
    return grid[np.argsort(value, kind="stable")[:num_starts]]


def _as_parameters(theta: np.ndarray, problem: _Problem) -> np.ndarray:
    """Return (A, B, E, alpha, beta) of a centred theta."""
    return np.array([
        np.exp(theta[0] + theta[3] * problem.mean_log_n),
        np.exp(theta[1] + theta[4] * problem.mean_log_d),
        np.exp(theta[2]),
        theta[3],
        theta[4],
    ])


@threadpool_limits.wrap(limits=1, user_api="blas")
def fit(num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray, num_starts: int = 48) -> Fit:
    """Fit ``L = E + A / N^alpha + B / D^beta``: Chinchilla's approach 3 (2203.15556, 2404.10102).

    Args:
        num_params: shape (R,).
        num_tokens: shape (R,); where only FLOPs are known, ``FLOP / (6 N)``.
        loss: shape (R,), nats per token, of one tokenizer and one validation set.
        num_starts: starts of the 4,500-point grid to polish, best first; 4500 takes all.
    Returns: the best fit over the starts.

    Raises:
        ConfigError: see `check_runs`.
    """
    params, tokens, losses = (np.asarray(x, dtype=np.float64) for x in (num_params, num_tokens, loss))
    check_runs(params, tokens, losses)
    problem = _problem(params, tokens, losses)
    ones = np.ones(len(losses))
    arguments = (problem.offsets, problem.design, problem.log_loss, ones)
    value, theta = min((polish(s, *arguments) for s in _best_starts(problem, num_starts)), key=lambda pair: pair[0])
    A, B, E, alpha, beta = _as_parameters(theta, problem).tolist()
    predicted = np.logaddexp.reduce(problem.offsets + problem.design @ theta, axis=0)
    return Fit(
        A=A, B=B, E=E, alpha=alpha, beta=beta,
        objective=value * HUBER_DELTA**2,
        num_runs=len(losses),
        params_range=(float(params.min()), float(params.max())),
        tokens_range=(float(tokens.min()), float(tokens.max())),
        residuals=problem.log_loss - predicted,
    )  # fmt: skip


def objective(law: Fit, num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray) -> float:
    """Return the sum of Huber losses of a given law on given runs."""
    size = np.abs(np.log(law.loss(num_params, num_tokens)) - np.log(loss)) / HUBER_DELTA
    return float(np.where(size <= 1.0, 0.5 * size * size, size - 0.5).sum() * HUBER_DELTA**2)


@threadpool_limits.wrap(limits=1, user_api="blas")
def bootstrap(
    law: Fit,
    num_params: np.ndarray,
    num_tokens: np.ndarray,
    loss: np.ndarray,
    num_samples: int = 1000,
    seed: int = 42,
) -> Intervals:
    """Refit resampled runs from the optimum and return standard errors and the central 95 % of the parameters.

    A resample is a vector of counts, so a repeated run costs nothing. Each sample draws from its own stream
    (seed, sample), so the first samples of a longer bootstrap are those of a shorter one.

    Raises:
        ConfigError: see `check_runs`; or fewer than 2 samples.
    """
    params, tokens, losses = (np.asarray(x, dtype=np.float64) for x in (num_params, num_tokens, loss))
    check_runs(params, tokens, losses)
    if num_samples < 2:
        raise ConfigError(f"num_samples {num_samples} gives no interval, 2 is the least; 1000 is usual")
    problem = _problem(params, tokens, losses)
    start = np.array([
        np.log(law.A) - law.alpha * problem.mean_log_n,
        np.log(law.B) - law.beta * problem.mean_log_d,
        np.log(max(law.E, _SMALLEST_FLOOR)),  # runs far above their floor may put it at 0
        law.alpha,
        law.beta,
    ])
    samples = np.empty((num_samples, 6))
    for k in range(num_samples):
        picks = np.random.default_rng([seed, k]).integers(0, len(losses), len(losses))
        weights = np.bincount(picks, minlength=len(losses)).astype(np.float64)
        used = weights > 0
        _, theta = polish(
            start, problem.offsets[:, used], problem.design[:, used], problem.log_loss[used], weights[used]
        )
        samples[k, :5] = _as_parameters(theta, problem)
        samples[k, 5] = samples[k, 4] / (samples[k, 3] + samples[k, 4])
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return Intervals(("A", "B", "E", "alpha", "beta", "a"), samples.std(axis=0, ddof=1), low, high, samples)
