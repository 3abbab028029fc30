from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from refinery.stages.workspace import need_stage
from tests.stages.corpus import recipe_values
from tests.stages.runs import DATA_STAGES, run_stages

pytestmark = pytest.mark.spark


def _hashes(values):
    manifests = {stage: need_stage(values["workdir"], stage) for stage in DATA_STAGES}
    return {stage: m.content_hash for stage, m in manifests.items()} | {
        "shards": manifests["pack"].facts["shard_content_hash"], "plan": manifests["pack"].facts["plan_hash"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shuffle_partitions", "slice_rows"), [(1, 7), (7, 1), pytest.param(3, 1000, marks=pytest.mark.slow)]
)
def test_same_bytes_for_any_partitions_and_slices(spark, corpus, done, tmp_path, shuffle_partitions, slice_rows):
    values = recipe_values(corpus, tmp_path / "run")
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", str(shuffle_partitions))
    spark.conf.set("spark.sql.adaptive.enabled", "false")  # so that the number is really used
    try:
        run_stages(spark, values, slice_rows=slice_rows)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
        spark.conf.set("spark.sql.adaptive.enabled", "true")
    assert _hashes(values) == _hashes(done)
    for path in sorted(Path(done["workdir"]).rglob("part-*")):
        other = Path(values["workdir"]) / path.relative_to(done["workdir"])
        assert path.read_bytes() == other.read_bytes(), f"{path}: part for part the same bytes"


@pytest.mark.slow
def test_another_seed_gives_other_shards(spark, corpus, done, tmp_path):
    values = {**recipe_values(corpus, tmp_path / "run"), "seed": 8}
    run_stages(spark, values)
    assert _hashes(values)["shards"] != _hashes(done)["shards"]


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_same_bytes_for_any_number_of_cores(corpus, done, tmp_path, cores):
    values = recipe_values(corpus, tmp_path / "run")
    values["spark"]["master"] = f"local[{cores}]"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "refinery.cli", "run", str(path), "--json"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ}, timeout=280)
    assert _hashes(values) == _hashes(done)
    assert (
        json.loads((tmp_path / "run" / "recipe.json").read_text(encoding="utf-8"))["spark"]["master"]
        == f"local[{cores}]"
    )
