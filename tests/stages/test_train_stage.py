from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from refinery.contracts.runs import read_run_record
from refinery.recipe import parse_recipe
from refinery.report.explain import explain
from refinery.stages.pipeline import run_stage
from refinery.stages.train import train_file
from refinery.stages.workspace import Run, need_stage
from tests.stages.runs import files_of, fork

pytestmark = pytest.mark.spark
ROOT = Path(__file__).parents[2]

STEPS = 20


@pytest.fixture(scope="module")
def trained(done, tmp_path_factory):
    """The whole way: raw text to 20 steps of a small model."""
    values = fork(done, tmp_path_factory.mktemp("train") / "run")
    values["train"] = {
        "preset": "tiny", "steps": STEPS, "batch_tokens": 2048, "learning_rate": 4e-3, "schedule": "constant",
        "eval_every": STEPS, "checkpoint_every": STEPS, "options": {"threads": 1, "evaluate": {"max_rows": 16}},
    }  # fmt: skip
    run_stage(Run(parse_recipe(values)), "train")
    return values


def test_validation_loss_falls_on_every_domain(trained):
    record = read_run_record(Path(trained["workdir"], "train", "run.json"))
    first: dict[str, float] = {}
    for point in record.points:
        first.setdefault(point.stream, point.loss_nats)
    final = record.final_losses()
    assert {s.split("/")[0] for s in final} == {"law", "web", "news", "general"}
    assert record.steps == STEPS
    for stream, loss in final.items():
        assert loss < first[stream] - 0.2, stream


def test_the_record_names_the_data_it_was_trained_on(trained):
    facts = need_stage(trained["workdir"], "train").facts
    pack = need_stage(trained["workdir"], "pack").facts
    assert facts["data"]["content_hash"] == pack["shard_content_hash"]
    tokenizer = need_stage(trained["workdir"], "tokenize").facts["sha256"]
    assert facts["data"]["tokenizer_sha256"] == tokenizer


def test_training_is_not_repeated(trained):
    before = files_of(trained["workdir"])
    run_stage(Run(parse_recipe(trained)), "train")
    assert files_of(trained["workdir"]) == before


def test_train_file_carries_options(trained):
    recipe = parse_recipe(trained)
    body = train_file(recipe, recipe.train)
    assert body["options"]["threads"] == 1
    assert body["options"]["evaluate"] == {"every_steps": STEPS, "max_rows": 16}
    assert json.loads(Path(trained["workdir"], "train", "train.json").read_bytes()) == body


def by_torchrun(command: list[str], recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command, "refinery.trainer", "--recipe", str(recipe)], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_torchrun_trains_a_recipe_and_the_stage_takes_it(trained, tmp_path, ranks):
    values = fork(trained, tmp_path / "run")
    values["train"] = {**trained["train"], "steps": 3, "eval_every": 3}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    launcher = [] if ranks == 1 else ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    by_torchrun(launcher, tmp_path / "recipe.yaml")
    out = tmp_path / "run" / "train"
    record = read_run_record(out / "run.json")
    assert (record.status, record.steps, record.hardware["world_size"]) == ("finished", 3, ranks)
    assert (tmp_path / "run" / "train.old-1" / "run.json").is_file()  # the 20 steps that were there
    before = files_of(out)
    assert run_stage(Run(parse_recipe(values)), "train").facts["steps"] == 3
    after = files_of(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"_stage.json", "train.json", "_fingerprint"}


def test_refused_steps_name_their_documents(trained, tmp_path):
    values = fork(trained, tmp_path / "run")
    values["train"] = {**trained["train"], "steps": 6, "options": {
        "threads": 1, "evaluate": {"max_rows": 1},
        # one part in 10^9 above the mean is a spike, so some step is refused
        "safety": {"max_sigmas": 1e-9, "min_history_steps": 1, "max_skips_in_row": 99}}}
    values["train"]["options"]["schedule"] = {"min_lr_frac": 1.0}
    values["train"]["learning_rate"] = 0.5
    run_stage(Run(parse_recipe(values)), "train")
    lines = [json.loads(line) for line in Path(values["workdir"], "train", "anomalies.jsonl").read_text().splitlines()]
    refused = [line for line in lines if line["kind"] == "refused"]
    assert refused
    for line in refused:
        assert line["documents"]
        losses = [document["row_loss_nats"] for document in line["documents"]]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] == max(row["loss_nats"] for row in line["rows"])
    first = refused[0]["documents"][0]
    told = explain(values["workdir"], first["doc_key"][:16])
    assert [told[key] for key in ("doc_key", "source", "domain", "url")] == [
        first[key] for key in ("doc_key", "source", "domain", "url")]
    assert first["stages"] == {said["stage"]: said["verdict"] for said in told["stages"]}
    assert set(first["stages"].values()) <= {"kept", "not asked"}


def test_samples_begin_held_out_documents_of_every_domain(trained):
    done = subprocess.run(
        [sys.executable, "-m", "refinery.trainer.sample", "--run", trained["workdir"], "--per-domain", "1",
         "--tokens", "4", "--json"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["domain"].split("/")[0] for one in found} == {"law", "web", "news", "general"}
    assert all(one["prompt"] and one["num_tokens"] <= 4 for one in found)
