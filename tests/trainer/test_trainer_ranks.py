"""Two ranks on CPU under torchrun: FSDP2 over gloo."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refinery.contracts.runs import read_run_record
from refinery.errors import DataError
from refinery.trainer.loop import train
from refinery.trainer.metrics import read_json_lines
from tests.trainer.test_trainer_loop import same, tensors
from tests.trainer.tiny_runs import memory_source
from tests.trainer.train_on_ranks import ranks_config, restless_config, stop_after_three

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    assert train(ranks_config(), memory_source(), out / "grown", progress=stop_after_three).steps == 3
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "tests.trainer.train_on_ranks", str(out)],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def train_losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_json_lines(out / "metrics.jsonl") if line["kind"] == "train"]


def test_two_ranks_give_the_losses_of_one(two_ranks, tmp_path):
    alone = train(ranks_config(), memory_source(), tmp_path)
    together = read_run_record(two_ranks / "whole" / "run.json")
    assert together.hardware["world_size"] == 2
    assert train_losses(two_ranks / "whole") == pytest.approx(train_losses(tmp_path), abs=1e-5)
    for ours, theirs in zip(alone.points, together.points, strict=True):
        assert ours.loss_nats == pytest.approx(theirs.loss_nats, abs=1e-5)
    for key, value in tensors(tmp_path).items():
        if key.startswith("weight:"):
            torch.testing.assert_close(tensors(two_ranks / "whole")[key], value, rtol=0, atol=1e-4)


def test_resume_at_two_ranks_is_bit_equal(two_ranks):
    assert read_run_record(two_ranks / "resumed" / "run.json").status == "finished"
    assert same(tensors(two_ranks / "whole"), tensors(two_ranks / "resumed"))


def test_one_rank_continues_what_two_began(two_ranks):
    assert read_run_record(two_ranks / "half" / "run.json").steps == 3
    record = train(ranks_config(), memory_source(), two_ranks / "half")
    assert record.status == "finished"
    assert train_losses(two_ranks / "half") == pytest.approx(train_losses(two_ranks / "whole"), abs=1e-5)


def test_two_ranks_continue_what_one_began(two_ranks):
    record = read_run_record(two_ranks / "grown" / "run.json")
    assert (record.status, record.hardware["world_size"]) == ("finished", 2)
    assert train_losses(two_ranks / "grown") == pytest.approx(train_losses(two_ranks / "whole"), abs=1e-5)


def test_two_ranks_go_back_as_one_does(two_ranks, tmp_path):
    with contextlib.suppress(DataError):
        train(restless_config(), memory_source(), tmp_path)
    alone, together = (read_json_lines(out / "anomalies.jsonl") for out in (tmp_path, two_ranks / "restless"))
    assert [(line["kind"], line["step"]) for line in alone] == [(line["kind"], line["step"]) for line in together]
    assert {line["kind"] for line in alone} == {"refused", "restart"}
    first, second = alone[0], together[0]
    assert [row["doc_hashes"] for row in first["rows"]] == [row["doc_hashes"] for row in second["rows"]]
    assert [row["loss_nats"] for row in second["rows"]] == pytest.approx(
        [row["loss_nats"] for row in first["rows"]], abs=1e-4)
