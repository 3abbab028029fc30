"""Going back to the last good checkpoint with a lower learning rate: what the OPT log did by hand (2205.01068, 2.5).

Weights and moments go back, steps and rows go on: the rows between the checkpoint and the trouble are not read again
(PaLM 2204.02311, section 5.1, skipped them likewise), so which rows a step reads stays a function of the plan, and the
schedule keeps its place. Every later rate is multiplied by `safety.restart_lr_factor`. The state after going back is
saved at once, so a run that is killed later resumes exactly; one killed before meets the same trouble and goes back in
the same way.
"""

from __future__ import annotations

import logging
from pathlib import Path

from refinery.trainer.checkpoint import load_checkpoint, read_state
from refinery.trainer.state import Run

log = logging.getLogger(__name__)


def last_healthy(folder: Path) -> Path | None:
    """Return the newest checkpoint whose guard saw no trouble coming, or None."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if (path / "state.json").is_file() and read_state(path)["extra"]["guard"].get("healthy", True):
            return path
    return None


def go_back(run: Run, reason: str) -> bool:
    """Put the last good weights back and lower the rate; collective.

    Args:
        run: at a step after which `SpikeGuard.trouble` says something.
        reason: what it says.
    Returns: False when the recipe allows no further restart, or there is no checkpoint to go back to.
    """
    counters, safety = run.counters, run.config.safety
    target = last_healthy(run.out_dir / "checkpoints") if counters.restarts < safety.max_restarts else None
    if target is None:
        return False
    # a checkpoint from before the first update has no moments to overwrite these with
    run.optimizer.state.clear()
    saved = load_checkpoint(target, run.model, run.optimizer)
    run.guard.restore({**saved.extra["guard"], "skips_in_row": 0})
    counters.restarts += 1
    counters.rate_factor *= safety.restart_lr_factor
    counters.recent_losses = list(saved.extra["counters"]["recent_losses"])
    line = {"kind": "restart", "step": counters.step, "reason": reason, "checkpoint_step": saved.step,
            "rows_left_out": [saved.next_row, counters.next_row], "rate_factor": counters.rate_factor,
            "restarts": counters.restarts}
    log.warning("step %d: %s; back to the weights of step %d, learning rate times %g from here",
                counters.step, reason, saved.step, counters.rate_factor)
    run.tell(line)
    if run.anomalies is not None:
        run.anomalies.write(line)
    return True
