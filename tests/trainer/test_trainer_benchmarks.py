"""The benchmark scripts run end to end; what they measure is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False)


def test_gpu_benchmark_runs_whole_on_a_cpu():
    done = run_script("benchmarks/gpu_train.py", "--device", "cpu", "--smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert [(row["size"], row["length"]) for row in result["rows"]] == [("tiny", 128), ("tiny", 64)]
    for row in result["rows"]:
        assert row["predicted"].keys() >= {"step_seconds", "tokens_per_second", "mfu_effective", "memory_bytes"}
        assert row["trainer"].keys() >= {"mfu_effective", "mfu_palm", "data_wait_frac", "memory_of_forecast"}
        assert row["trainer"]["tokens_per_second"] > 0
    assert result["rows"][0]["trainer_of_textbook"] > 0
    assert result["fsdp"]["step_seconds_fsdp"] > 0
    assert result["left_out"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_benchmark_says_that_there_is_no_gpu():
    done = run_script("benchmarks/gpu_train.py")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


@pytest.mark.slow
def test_cpu_benchmark_reports_all_three_figures():
    done = run_script("benchmarks/train_cpu.py", "--steps", "6", "--rows", "2", "--length", "64", "--vocab", "512",
                      "--repeats", "1")
    assert done.returncode in (0, 1), done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert {"trainer_of_bare", "trainer_of_textbook", "loader_share"} <= result.keys()
    assert set(result["tokens_per_cpu_second"]) == {"trainer", "bare", "textbook"}
