from __future__ import annotations

import json
from pathlib import Path

import pytest

from refinery.contracts.runs import read_run_record
from refinery.recipe import parse_recipe
from refinery.stages.pipeline import run_stage
from refinery.stages.train import train_file
from refinery.stages.workspace import Run, need_stage
from tests.stages.runs import files_of, fork

pytestmark = pytest.mark.spark

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
