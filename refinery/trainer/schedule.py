"""Learning rate as a pure function of the step: nothing to save, nothing to restore, the same on every rank.

Steps are 0-based: `learning_rate(config, s, n)` is the rate of the update that turns the weights after s steps into
those after s + 1. Warm-up therefore never has a rate of zero: step s of w uses (s + 1) / w of the peak.
"""

from __future__ import annotations

import math

from refinery.errors import ConfigError
from refinery.trainer.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of one step.

    Args:
        config: kind, peak and shape.
        step: 0-based; steps past the end keep the final rate.
        total_steps: length of the run in steps.
    Raises: ConfigError: warm-up longer than the run.
    Source: cosine and linear to a floor: LLaMA 2302.13971, OPT 2205.01068; wsd with 1 - sqrt decay: Hägele et al.
        2405.18392; inverse_sqrt: Vaswani et al. 1706.03762; rewarm: Ibrahim et al. 2403.08763.
    """
    if config.warmup_steps > total_steps:
        raise ConfigError(f"schedule.warmup_steps is {config.warmup_steps}, must be at most steps = {total_steps}; "
                          "shorten the warm-up or lengthen the run")
    peak, floor = config.max_lr, config.max_lr * config.min_lr_frac
    if step < config.warmup_steps:
        start = config.start_lr if config.kind == "rewarm" else 0.0
        return start + (peak - start) * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return peak
    if config.kind == "inverse_sqrt":
        anchor = max(1, config.warmup_steps)
        return max(floor, peak * math.sqrt(anchor / max(anchor, step + 1)))
    if config.kind == "wsd":
        decay_steps = max(1, round(total_steps * config.decay_frac))
        into_decay = min(1.0, max(0.0, (step + 1 - (total_steps - decay_steps)) / decay_steps))
        return floor + (peak - floor) * (1.0 - math.sqrt(into_decay))
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps))
    if config.kind == "linear":
        return peak + (floor - peak) * progress
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
