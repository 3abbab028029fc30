"""Which updates to refuse: non-finite values, and loss or gradient norm far above what came just before.

The rule is OLMo's skip-step: more than 6 standard deviations above the mean of the last 128 steps, refused ones
included. A refused update is not applied at all (multiplying by zero would keep a NaN), the data goes on to the next
rows, and the anomaly log names step, rows and documents. Too many refusals in a row, or a mean loss well above its
lowest, mean that the run cannot go on: it stops, or goes back to its last good checkpoint (`recovery`).

Refused values belong in the window. A high gradient norm can be a property of the weights, not of the batch: refusing
leaves the weights where they are, so the next norm is as high, and a window of accepted steps alone never learns. Proxy
models of 1.3 M parameters stopped that way at steps 35 and 50, with a norm of 2.8 after 0.4 and an ordinary loss.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev
from typing import Any

from refinery.trainer.config import SafetyConfig

MIN_SIGMA_FRAC = 0.005
"""Floor of sigma as a share of the mean: a very smooth stretch must not make ordinary noise a spike."""

RISE_STEPS = 32
"""Accepted steps whose mean loss is compared with the lowest such mean of the run."""


class SpikeGuard:
    """Windows of finite losses and gradient norms, and of the losses accepted last.

    Plain numbers, so a checkpoint holds them exactly.
    """

    def __init__(self, config: SafetyConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window_steps)
        self.accepted: deque[float] = deque(maxlen=RISE_STEPS)
        self.norms: deque[float] = deque(maxlen=config.window_steps)
        self.skips_in_row = 0
        self.lowest_mean = math.inf

    def reason_to_refuse(self, loss: float, norm: float) -> str:
        """Judge one step and remember it; "" means accept.

        Args:
            loss: mean nats per token of the global batch.
            norm: global gradient norm before clipping.
        """
        reason = self._judge(loss, norm)
        if math.isfinite(loss) and math.isfinite(norm):
            self.losses.append(loss)
            self.norms.append(norm)
        if reason:
            self.skips_in_row += 1
        else:
            self.skips_in_row = 0
            self.accepted.append(loss)
            self.lowest_mean = min(self.lowest_mean, self._recent_mean())
        return reason

    def _judge(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return "loss_not_finite"
        if not math.isfinite(norm):
            return "gradient_not_finite"
        if self.config.max_sigmas <= 0 or len(self.losses) < self.config.min_history_steps:
            return ""
        for name, value, window in (("loss", loss, self.losses), ("gradient", norm, self.norms)):
            mean = fmean(window)
            sigma = max(pstdev(window, mean), MIN_SIGMA_FRAC * abs(mean))
            if value > mean + self.config.max_sigmas * sigma:
                return f"{name}_spike"
        return ""

    def _recent_mean(self) -> float:
        return fmean(self.accepted) if len(self.accepted) == RISE_STEPS else math.inf

    def _rise(self) -> float:
        """Return how far the recent mean loss is above the lowest, nats; 0 before there is one."""
        return 0.0 if math.isinf(self.lowest_mean) else self._recent_mean() - self.lowest_mean

    @property
    def trouble(self) -> str:
        """Why the run cannot go on like this; "" if it can."""
        if self.skips_in_row >= self.config.max_skips_in_row:
            return f"{self.skips_in_row} updates in a row were refused, the bound is {self.config.max_skips_in_row}"
        if 0 < self.config.max_rise_nats < self._rise():
            return (f"the mean loss of {RISE_STEPS} steps is {self._rise():.3f} nats above its lowest, the bound is "
                    f"{self.config.max_rise_nats}")
        return ""

    @property
    def is_healthy(self) -> bool:
        """Whether weights of this moment are worth going back to: nothing just refused, not half way to diverged."""
        return self.skips_in_row == 0 and (
            self.config.max_rise_nats <= 0 or self._rise() <= self.config.max_rise_nats / 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the window as JSON values; floats survive JSON exactly."""
        lowest = None if math.isinf(self.lowest_mean) else self.lowest_mean
        return {"losses": list(self.losses), "norms": list(self.norms), "accepted": list(self.accepted),
                "skips_in_row": self.skips_in_row, "lowest_mean": lowest, "healthy": self.is_healthy}

    def restore(self, values: dict[str, Any]) -> None:
        """Take over a window saved by `to_dict`, in place of the present one."""
        for window, name in ((self.losses, "losses"), (self.norms, "norms"), (self.accepted, "accepted")):
            window.clear()
            window.extend(values[name])
        self.skips_in_row = values["skips_in_row"]
        self.lowest_mean = math.inf if values.get("lowest_mean") is None else values["lowest_mean"]
