"""The continual-pretraining law of arXiv 2407.02118 (EMNLP 2024): fit, allocation, savings, and its contradiction.

From scratch: ``L = E + A / N^alpha + B / D^beta``. Continued from a checkpoint of another language:
``L = E + A / N^alpha + B' / (D^beta' N^gamma)`` with E, A and alpha frozen at the scratch values; transfer lives in the
token term alone, and grows with size through gamma.

The published table of rounded parameters contradicts the paper's own result: with it, continual pretraining has the
*higher* loss at the 20 tokens per parameter that were trained, for every size (`published_contradiction`). The two
published power laws L(C) do agree with the text, so savings come from them (`compute_saving`). Two decimals on the
exponents are not enough for absolute predictions: fit your own runs.

Shape legend: R runs, K terms, P parameters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from refinery.errors import ConfigError
from refinery.scaling.parametric import HUBER_DELTA, Fit, check_runs, polish

_PARAMS_RANGE, _TOKENS_RANGE = (49e6, 5.534e9), (9.8e8, 1.107e11)
"""Of the study's runs: 49M to 5.5B parameters, 20 tokens for each."""
PUBLISHED_SCRATCH = Fit(
    A=420.0, B=719.5, E=1.55, alpha=0.40, beta=0.30, objective=float("nan"), num_runs=40,
    params_range=_PARAMS_RANGE, tokens_range=_TOKENS_RANGE,
)  # fmt: skip
"""Table of 2407.02118, from scratch."""
SCRATCH_LOSS_OF_FLOPS = (33.69907, 0.0579)
"""Published L_opt(C) = c C^-k from scratch."""
CPT_LOSS_OF_FLOPS = (31.9594, 0.0575)
"""Published L_opt(C) = c C^-k for continual pretraining."""
_MIN_RUNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CptFit:
    """A fitted law ``L = E + A / N^alpha + B / (D^beta N^gamma)``."""

    scratch: Fit
    """Fit of the runs from scratch; gives E, A and alpha."""
    B: float
    """Coefficient of the token term (B' in the paper)."""
    beta: float
    """Exponent of tokens (beta')."""
    gamma: float
    """Exponent of parameters in the token term."""
    objective: float
    """Sum of Huber losses on log L."""
    num_runs: int
    """Runs fitted."""
    params_range: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest N of continual pretraining seen."""
    tokens_range: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest D of continual pretraining seen."""
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    """float64, shape (R,): log of measured over predicted loss."""

    @property
    def a(self) -> float:
        """Exponent of the compute-optimal N in C: beta' / (alpha + beta' - gamma)."""
        return self.beta / (self.scratch.alpha + self.beta - self.gamma)

    @property
    def b(self) -> float:
        """Exponent of the compute-optimal D in C: (alpha - gamma) / (alpha + beta' - gamma)."""
        return (self.scratch.alpha - self.gamma) / (self.scratch.alpha + self.beta - self.gamma)

    @property
    def G(self) -> float:  # noqa: N802 - the paper's symbol
        """Prefactor: ``N_opt = G (C / 6)^a`` and ``D_opt = (C / 6)^b / G``.

        Raises:
            ConfigError: gamma >= beta: then more parameters always win and no optimum exists.
        """
        if self.gamma >= self.beta:
            raise ConfigError(
                f"gamma {self.gamma:.3g} is not below beta {self.beta:.3g}: no compute-optimal size exists; "
                "fit runs with a wider range of sizes and tokens"
            )
        ratio = self.scratch.alpha * self.scratch.A / ((self.beta - self.gamma) * self.B)
        return float(ratio ** (1.0 / (self.scratch.alpha + self.beta - self.gamma)))

    def loss(self, num_params: float | np.ndarray, num_tokens: float | np.ndarray) -> np.ndarray:
        """Return the predicted loss, nats per token; tokens are those of continual pretraining; broadcasts."""
        params = np.asarray(num_params, dtype=np.float64)
        tokens = np.asarray(num_tokens, dtype=np.float64)
        fixed = self.scratch.E + self.scratch.A * params**-self.scratch.alpha
        return fixed + self.B * tokens**-self.beta * params**-self.gamma

    def scratch_tokens(self, num_params: float | np.ndarray, num_tokens: float | np.ndarray) -> np.ndarray:
        """Return the tokens that a run from scratch needs for the same loss: (B D^beta' N^gamma / B')^(1 / beta)."""
        params = np.asarray(num_params, dtype=np.float64)
        tokens = np.asarray(num_tokens, dtype=np.float64)
        ratio = self.scratch.B * tokens**self.beta * params**self.gamma / self.B
        return ratio ** (1.0 / self.scratch.beta)

    def transferred_tokens(self, num_params: float | np.ndarray, num_tokens: float | np.ndarray) -> np.ndarray:
        """Return effectively transferred data: tokens from scratch minus tokens of CPT at equal loss."""
        return self.scratch_tokens(num_params, num_tokens) - np.asarray(num_tokens, dtype=np.float64)


PUBLISHED_CPT = CptFit(
    scratch=PUBLISHED_SCRATCH, B=433.3, beta=0.20, gamma=0.08, objective=float("nan"), num_runs=40,
    params_range=_PARAMS_RANGE, tokens_range=_TOKENS_RANGE,
)  # fmt: skip
"""Table of 2407.02118, continual pretraining; see `published_contradiction` before using it."""


class CptIntervals(NamedTuple):
    """Bootstrap of a CPT fit, scratch parameters held."""

    names: tuple[str, ...]
    """B, beta, gamma."""
    standard_errors: np.ndarray
    """float64, shape (3,)."""
    low: np.ndarray
    """float64, shape (3,): 2.5 % point."""
    high: np.ndarray
    """float64, shape (3,): 97.5 % point."""
    samples: np.ndarray
    """float64, shape (num_samples, 3)."""


class _Problem(NamedTuple):
    offsets: np.ndarray
    design: np.ndarray
    log_loss: np.ndarray
    mean_log_n: float
    mean_log_d: float


def _problem(scratch: Fit, num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray) -> _Problem:
    log_n, log_d = np.log(num_params), np.log(num_tokens)
    mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
    offsets = np.zeros((3, len(loss)))
    offsets[0] = np.log(scratch.A) - scratch.alpha * log_n
    offsets[2] = np.log(max(scratch.E, 1e-6))  # runs far above their floor may put it at 0
    design = np.zeros((3, len(loss), 3))
    design[1, :, 0] = 1.0
    design[1, :, 1] = mean_d - log_d
    design[1, :, 2] = mean_n - log_n
    return _Problem(offsets, design, np.log(loss), mean_n, mean_d)


def _checked(
    num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    params, tokens, losses = (np.asarray(x, dtype=np.float64) for x in (num_params, num_tokens, loss))
    check_runs(params, tokens, losses, min_runs=_MIN_RUNS)
    centred = np.column_stack([np.log(params), np.log(tokens)])
    centred -= centred.mean(axis=0)
    collinear = abs(np.corrcoef(centred.T)[0, 1])
    if collinear > 0.9999:
        raise ConfigError(
            f"log N and log D have correlation {collinear:.6f}: beta and gamma cannot be told apart at one ratio D/N; "
            "use points along the training curves, or runs of other ratios"
        )
    return params, tokens, losses


@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_cpt(scratch: Fit, num_params: np.ndarray, num_tokens: np.ndarray, loss: np.ndarray) -> CptFit:
    """Fit B', beta' and gamma with E, A and alpha frozen, by the same robust objective as `parametric.fit`.

    Args:
        scratch: law of the runs from scratch on the same validation set and tokenizer.
        num_params: shape (R,).
        num_tokens: shape (R,): tokens of continual pretraining; points along training curves are fine.
        loss: shape (R,), nats per token.
    Returns: the best fit over a grid of 100 starts, of which the 12 best are polished.

    Raises:
        ConfigError: as `parametric.check_runs`, or N and D move together (D = 20 N in every run).
    """
    params, tokens, losses = _checked(num_params, num_tokens, loss)
    problem = _problem(scratch, params, tokens, losses)
    arguments = (problem.offsets, problem.design, problem.log_loss, np.ones(len(losses)))
    # Centred, the first parameter is the log of the token term at the mean run: a share of the loss, e^-5 to e^1.
    axes = ((-5.0, -3.0, -1.5, 0.0, 1.0), (0.0, 0.2, 0.5, 1.0), (-0.2, -0.05, 0.1, 0.25, 0.4))
    starts = np.array(list(itertools.product(*axes)))
    errors = [
        np.abs(np.logaddexp.reduce(problem.offsets + problem.design @ s, axis=0) - problem.log_loss).sum()
        for s in starts
    ]
    best = starts[np.argsort(errors, kind="stable")[:12]]
    value, theta = min((polish(s, *arguments) for s in best), key=lambda pair: pair[0])
    predicted = np.logaddexp.reduce(problem.offsets + problem.design @ theta, axis=0)
    return CptFit(
        scratch=scratch,
        B=float(np.exp(theta[0] + theta[1] * problem.mean_log_d + theta[2] * problem.mean_log_n)),
        beta=float(theta[1]),
        gamma=float(theta[2]),
        objective=value * HUBER_DELTA**2,
        num_runs=len(losses),
        params_range=(float(params.min()), float(params.max())),
        tokens_range=(float(tokens.min()), float(tokens.max())),
        residuals=problem.log_loss - predicted,
    )


@threadpool_limits.wrap(limits=1, user_api="blas")
def bootstrap_cpt(
    law: CptFit,
    num_params: np.ndarray,
    num_tokens: np.ndarray,
    loss: np.ndarray,
    num_samples: int = 500,
    seed: int = 42,
) -> CptIntervals:
    """Refit resampled runs from the optimum; the scratch parameters stay, so their error is not in the interval.

    Raises:
        ConfigError: as `fit_cpt`.
    """
    params, tokens, losses = _checked(num_params, num_tokens, loss)
    problem = _problem(law.scratch, params, tokens, losses)
    start = np.array([np.log(law.B), law.beta, law.gamma])
    start[0] -= law.beta * problem.mean_log_d + law.gamma * problem.mean_log_n
    samples = np.empty((num_samples, 3))
    for k in range(num_samples):
        picks = np.random.default_rng([seed, k]).integers(0, len(losses), len(losses))
        weights = np.bincount(picks, minlength=len(losses)).astype(np.float64)
        _, theta = polish(start, problem.offsets, problem.design, problem.log_loss, weights)
        samples[k] = theta
        samples[k, 0] = np.exp(theta[0] + theta[1] * problem.mean_log_d + theta[2] * problem.mean_log_n)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return CptIntervals(("B", "beta", "gamma"), samples.std(axis=0, ddof=1), low, high, samples)


def compute_saving(loss_nats: float | np.ndarray) -> np.ndarray:
    """Return the share of FLOPs that continual pretraining saves at equal loss, from the two published L(C) laws.

    44 to 47 % between 3.0 and 1.9 nats, in line with the 25-50 % of the text.
    """
    loss = np.asarray(loss_nats, dtype=np.float64)
    flops = [(scale / loss) ** (1.0 / exponent) for scale, exponent in (SCRATCH_LOSS_OF_FLOPS, CPT_LOSS_OF_FLOPS)]
    return 1.0 - flops[1] / flops[0]


class Contradiction(NamedTuple):
    """One size of the published table at its own 20 tokens per parameter."""

    num_params: float
    """N."""
    scratch_loss_nats: float
    """Loss from scratch by the table."""
    cpt_loss_nats: float
    """Loss of continual pretraining by the table: higher, against the paper's text."""
    crossing_tokens_per_param: float
    """D / N below which the table gives continual pretraining the lower loss."""
    saving_frac: float
    """Saving at the scratch loss by the published L(C) laws: what the text claims."""


def published_contradiction(
    num_params: tuple[float, ...] = (49e6, 259e6, 1393e6, 5534e6), tokens_per_param: float = 20.0
) -> list[Contradiction]:
    """Show that the rounded table of 2407.02118 contradicts its text: CPT loses at D = 20 N for every size.

    The curves cross at D = (B N^gamma / B')^(1 / (beta - beta')), 4.6 tokens per parameter at 49M and 1.8 at 5.5B.
    """
    rows = []
    scratch, cpt = PUBLISHED_SCRATCH, PUBLISHED_CPT
    for size in num_params:
        tokens = tokens_per_param * size
        crossing = (scratch.B * size**cpt.gamma / cpt.B) ** (1.0 / (scratch.beta - cpt.beta))
        loss = float(scratch.loss(size, tokens))
        rows.append(
            Contradiction(size, loss, float(cpt.loss(size, tokens)), crossing / size, float(compute_saving(loss)))
        )
    return rows
