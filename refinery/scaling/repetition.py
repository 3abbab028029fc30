"""The data-constrained law: what the n-th epoch over the same tokens is worth (Muennighoff et al. 2305.16264).

``L = E + A / N'^alpha + B / D'^beta``, where repeated tokens and parameters in excess of what the unique tokens can
train count less and less::

    D' = U + U R* (1 - exp(-R / R*)),      U unique tokens, R = D / U - 1 repeats,           R* = 15.39
    N' = V + V S* (1 - exp(-S / S*)),      V = min(N, N_opt(U)),  S = N / V - 1 excess,     S* = 5.31

Constants are those of the authors' published code. Up to four epochs cost next to nothing, about sixteen are useful;
the law underestimates the loss of runs that fail (44 epochs in the paper).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from refinery.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionLaw:
    """Constants of the law; the defaults are the published ones (log coefficients a, b, e)."""

    A: float = math.exp(6.255414)
    """Coefficient of the parameter term, about 521."""
    B: float = math.exp(7.3049974)
    """Coefficient of the token term, about 1488."""
    E: float = math.exp(0.6254804)
    """Loss floor, about 1.87 nats per token."""
    alpha: float = 0.3526596
    """Exponent of parameters."""
    beta: float = 0.3526596
    """Exponent of tokens."""
    repeat_scale: float = 15.387756
    """R*_D: repeats over which the worth of a repeated token falls by e."""
    excess_scale: float = 5.309743
    """R*_N: the same for excess parameters."""

    def optimal_params(self, num_tokens: float) -> float:
        """Return N_opt of D unique tokens, seen once: (D G)^(beta / alpha) G."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        prefactor = ratio ** (1.0 / (self.alpha + self.beta))
        return float((num_tokens * prefactor) ** (self.beta / self.alpha) * prefactor)

    def effective_tokens(self, num_tokens: float, unique_tokens: float) -> float:
        """Return D': how many fresh tokens D tokens over U unique ones are worth.

        Raises:
            ConfigError: a number is not finite and above 0.
        """
        _check(num_tokens=num_tokens, unique_tokens=unique_tokens)
        unique = min(unique_tokens, num_tokens)
        repeats = num_tokens / unique - 1.0
        return unique + unique * self.repeat_scale * -math.expm1(-repeats / self.repeat_scale)

    def effective_params(self, num_params: float, unique_tokens: float) -> float:
        """Return N': how many well-fed parameters N parameters on U unique tokens are worth."""
        _check(num_params=num_params, unique_tokens=unique_tokens)
        fed = min(num_params, self.optimal_params(unique_tokens))
        excess = num_params / fed - 1.0
        return fed + fed * self.excess_scale * -math.expm1(-excess / self.excess_scale)

    def loss(self, num_params: float, num_tokens: float, unique_tokens: float) -> float:
        """Return the loss in nats per token of N parameters trained on D tokens of which U are unique.

        Raises:
            ConfigError: a number is not finite and above 0.
        """
        unique = min(unique_tokens, num_tokens)
        tokens = self.effective_tokens(num_tokens, unique)
        params = self.effective_params(num_params, unique)
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def epoch_value(self, epoch: int) -> float:
        """Return what a token of the n-th epoch is worth in fresh tokens, on average over the epoch, in (0, 1].

        Raises:
            ConfigError: the epoch is below 1.
        """
        if epoch < 1:
            raise ConfigError(f"epoch {epoch} does not exist; epochs count from 1")
        if epoch == 1:
            return 1.0
        before = math.exp(-(epoch - 2) / self.repeat_scale)
        return self.repeat_scale * before * -math.expm1(-1.0 / self.repeat_scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """Best use of a compute budget when data are short."""

    num_params: float
    """N."""
    num_tokens: float
    """D = C / (6 N), repeats included."""
    epochs: float
    """D over the unique tokens; below 1 when data are not short."""
    loss_nats: float
    """Predicted loss, nats per token."""


def best_epochs(flops: float, unique_tokens: float, law: RepetitionLaw | None = None) -> EpochPlan:
    """Split a budget of FLOPs between size and repeats so that the predicted loss is lowest.

    Args:
        flops: C = 6 N D.
        unique_tokens: tokens that exist.
        law: constants; the published ones if not given.
    Returns: N, D, epochs and loss: more epochs and fewer parameters than Chinchilla's rule when data are short.

    Raises:
        ConfigError: a number is not finite and above 0.
    """
    law = law or RepetitionLaw()
    _check(flops=flops, unique_tokens=unique_tokens)

    def loss_at(log_params: float) -> float:
        params = math.exp(log_params)
        return law.loss(params, flops / (6.0 * params), unique_tokens)

    # The loss has one valley in log N, yet its two branches (D below and above U) meet in a kink: bracket by a scan.
    middle = math.log(math.sqrt(flops / 6.0))
    grid = [middle + (k - 60) * 0.15 for k in range(121)]
    at = min(range(len(grid)), key=lambda k: loss_at(grid[k]))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    found = minimize_scalar(loss_at, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    params = math.exp(float(found.x))
    tokens = flops / (6.0 * params)
    return EpochPlan(
        num_params=params, num_tokens=tokens, epochs=tokens / unique_tokens, loss_nats=float(found.fun)
    )


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}, it must be finite and > 0; give a positive number")
