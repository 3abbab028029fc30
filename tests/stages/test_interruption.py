from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from refinery.recipe import parse_recipe
from refinery.stages.pipeline import run_recipe
from refinery.stages.workspace import Run, need_stage
from tests.stages.corpus import recipe_values
from tests.stages.runs import DATA_STAGES, fork, shard_hash

pytestmark = pytest.mark.spark


def _continue(spark, values, monkeypatch):
    """Run a recipe as the command does, lock and sweep included, in the session of the tests."""
    monkeypatch.setattr(Run, "stop_session", lambda self: None)
    run = Run(parse_recipe(values))
    run.use_session(spark)
    return run_recipe(run)


def _temporaries(workdir):
    return [p for p in Path(workdir).rglob("*") if ".tmp" in p.name]


def _assert_equal_runs(values, done):
    assert shard_hash(values) == shard_hash(done)
    for stage in DATA_STAGES:
        assert need_stage(values["workdir"], stage).content_hash == need_stage(done["workdir"], stage).content_hash
    assert _temporaries(values["workdir"]) == []


@pytest.mark.parametrize("moment", [0.04, 0.5, 0.9])
def test_a_run_goes_on_from_any_prefix_of_its_files(spark, done, tmp_path, monkeypatch, moment):
    """What a kill leaves is the files written so far and some temporary ones; the rest is made, to the same bytes."""
    values = fork(done, tmp_path / "run")
    root = Path(values["workdir"])
    files = sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    for path in files[int(len(files) * moment) :]:
        path.unlink()
    last = files[int(len(files) * moment)]
    last.with_name(f".{last.name}.0123.tmp").write_bytes(b"half")
    (root / "pack" / "shards" / "law").mkdir(parents=True, exist_ok=True)
    (root / "pack" / "shards" / "law" / ".part-00000.bin.tmp-1-ab").write_bytes(b"half")
    _continue(spark, values, monkeypatch)
    _assert_equal_runs(values, done)


MOMENTS = {
    "ingest": "ingest/documents/part-*.parquet",
    "keys": "dedup_documents/exact_keys/part-*.parquet",
    "tokens": "tokenize/tokens/part-*.parquet",
    "shards": "pack/shards/**/*.bin",
}


@pytest.mark.parametrize(
    ("moment", "whole_group"),
    [
        ("keys", False),
        pytest.param("ingest", True, marks=pytest.mark.slow),
        pytest.param("tokens", False, marks=pytest.mark.slow),
        pytest.param("shards", True, marks=pytest.mark.slow),
    ],
)
def test_kill_and_continue(spark, corpus, done, tmp_path, monkeypatch, moment, whole_group):
    """kill -9 of the driver, or of everything it started, at a moment of real work."""
    values = recipe_values(corpus, tmp_path / "run")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "refinery.cli", "run", str(path), "--json"]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while not any(Path(values["workdir"]).glob(MOMENTS[moment])):
            assert process.poll() is None, (tmp_path / "log").read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        if not whole_group:
            _wait_for_end_of_group(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if _group_lives(process) else None
        process.wait()
        log.close()
    assert not Path(values["workdir"], "pack", "_stage.json").exists(), "it was killed in the middle"
    _continue(spark, values, monkeypatch)
    _assert_equal_runs(values, done)


def _group_lives(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for_end_of_group(process):
    """The JVM and its workers notice that their driver is gone, and end by themselves."""
    process.wait()
    deadline = time.monotonic() + 60
    while _group_lives(process) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _group_lives(process), "orphans outlive a killed driver"
