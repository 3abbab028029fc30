"""Run by torchrun in the test of several ranks: one whole run, and one that stops half way."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from refinery.errors import DataError
from refinery.trainer.config import CheckpointConfig, EvalConfig, SafetyConfig, ScheduleConfig
from refinery.trainer.loop import train
from refinery.trainer.parallel import leave_ranks
from tests.trainer.tiny_runs import memory_source, tiny_config


def ranks_config():
    return tiny_config(steps=6, micro_batch_rows=2, evaluate=EvalConfig(every_steps=3),
                       checkpoint=CheckpointConfig(every_steps=3))


def restless_config():
    """Any loss above the mean is a spike, so the run goes back to its last checkpoint until it may no more."""
    safety = SafetyConfig(max_sigmas=1e-9, min_history_steps=1, max_skips_in_row=1, max_restarts=2)
    return replace(ranks_config(), steps=12, safety=safety, checkpoint=CheckpointConfig(every_steps=1),
                   schedule=ScheduleConfig(kind="constant", max_lr=0.1))


def stop_after_three(line):
    if line["kind"] == "train" and line["step"] == 3:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    train(ranks_config(), memory_source(), out / "whole")
    train(ranks_config(), memory_source(), out / "resumed", progress=stop_after_three)
    train(ranks_config(), memory_source(), out / "half", progress=stop_after_three)
    train(ranks_config(), memory_source(), out / "resumed")
    train(ranks_config(), memory_source(), out / "grown")  # one process began it
    with contextlib.suppress(DataError):
        train(restless_config(), memory_source(), out / "restless")
    leave_ranks()
