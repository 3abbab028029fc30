"""Which updates to refuse: non-finite values, and loss or gradient norm far above what came just before.

The rule is OLMo's skip-step: more than 6 standard deviations above the mean of the last 128 accepted steps. A refused
update is not applied at all (multiplying by zero would keep a NaN), the data goes on to the next rows, and the
anomaly log names step, rows and documents.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev
from typing import Any

from refinery.trainer.config import SafetyConfig

MIN_SIGMA_FRAC = 0.005
"""Floor of sigma as a share of the mean: a very smooth stretch must not make ordinary noise a spike."""


class SpikeGuard:
    """Window of accepted losses and gradient norms; plain numbers, so a checkpoint holds it exactly."""

    def __init__(self, config: SafetyConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window_steps)
        self.norms: deque[float] = deque(maxlen=config.window_steps)
        self.skips_in_row = 0

    def reason_to_refuse(self, loss: float, norm: float) -> str:
        """Judge one step and remember it; "" means accept.

        Args:
            loss: mean nats per token of the global batch.
            norm: global gradient norm before clipping.
        """
        reason = self._judge(loss, norm)
        if reason:
            self.skips_in_row += 1
        else:
            self.skips_in_row = 0
            self.losses.append(loss)
            self.norms.append(norm)
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

    @property
    def should_stop(self) -> bool:
        """True when too many updates in a row were refused."""
        return self.skips_in_row >= self.config.max_skips_in_row

    def to_dict(self) -> dict[str, Any]:
        """Return the window as JSON values; floats survive JSON exactly."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skips_in_row": self.skips_in_row}

    def restore(self, values: dict[str, Any]) -> None:
        """Take over a window saved by `to_dict`."""
        self.losses.extend(values["losses"])
        self.norms.extend(values["norms"])
        self.skips_in_row = values["skips_in_row"]
