"""Kaplan et al. 2001.08361, for comparison: its constants, and what they say of a budget.

The fits hold for models without embeddings, trained with a schedule that did not fit each length; Hoffmann et al.
(2203.15556, section 2) give that as the reason why it wants larger models on fewer tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from refinery.errors import ConfigError

PARAMS_SCALE, PARAMS_EXPONENT = 8.8e13, 0.076
"""L(N) = (N_c / N)^0.076, parameters without embeddings, tokens without bound."""
TOKENS_SCALE, TOKENS_EXPONENT = 5.4e13, 0.095
"""L(D) = (D_c / D)^0.095, large models, stopped early."""
COMPUTE_SCALE_PF_DAYS, COMPUTE_EXPONENT = 3.1e8, 0.050
"""L(C_min) = (C_c / C_min)^0.050, PF-days at the best batch size."""
JOINT_PARAMS_SCALE, JOINT_TOKENS_SCALE, JOINT_PARAMS_EXPONENT, JOINT_TOKENS_EXPONENT = 6.4e13, 1.8e13, 0.076, 0.103
"""L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D."""
OPTIMAL_PARAMS_EXPONENT, OPTIMAL_TOKENS_EXPONENT = 0.73, 0.27
"""N ~ C^0.73, D ~ C^0.27."""
FLOPS_PER_PF_DAY = 1e15 * 86_400


class KaplanLosses(NamedTuple):
    """Losses by the three single laws and the joint one, nats per token of its own tokenizer and text."""

    of_params: float
    of_tokens: float
    of_compute: float
    joint: float


def kaplan_losses(num_params: float, num_tokens: float) -> KaplanLosses:
    """Return what Kaplan's laws say of N parameters and D tokens.

    Raises:
        ConfigError: a number is not finite and above 0.
    """
    for name, value in (("num_params", num_params), ("num_tokens", num_tokens)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}, it must be finite and > 0; give a positive number")
    days = 6.0 * num_params * num_tokens / FLOPS_PER_PF_DAY
    size = (JOINT_PARAMS_SCALE / num_params) ** (JOINT_PARAMS_EXPONENT / JOINT_TOKENS_EXPONENT)
    return KaplanLosses(
        (PARAMS_SCALE / num_params) ** PARAMS_EXPONENT,
        (TOKENS_SCALE / num_tokens) ** TOKENS_EXPONENT,
        (COMPUTE_SCALE_PF_DAYS / days) ** COMPUTE_EXPONENT,
        (size + JOINT_TOKENS_SCALE / num_tokens) ** JOINT_TOKENS_EXPONENT,
    )
