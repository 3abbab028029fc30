"""Run by torchrun in the test of several ranks: one whole run, and one that stops half way."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from refinery.trainer.config import CheckpointConfig, EvalConfig
from refinery.trainer.loop import train
from refinery.trainer.parallel import leave_ranks
from tests.trainer.tiny_runs import memory_source, tiny_config


def ranks_config():
    return tiny_config(steps=6, micro_batch_rows=2, evaluate=EvalConfig(every_steps=3),
                       checkpoint=CheckpointConfig(every_steps=3))


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
    leave_ranks()
