"""The same bytes from a cluster as from one machine, by the code of the archive that `make dist` ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from refinery.recipe import parse_recipe
from refinery.stages.pipeline import run_recipe, selected_stages
from refinery.stages.workspace import Run, need_stage
from tests.cluster.standalone import ROOT, standalone_cluster

pytestmark = pytest.mark.spark



class LastingRun(Run):
    """A run that leaves the session of the tests alone."""

    def stop_session(self) -> None:
        pass


def stages_of(values: dict[str, Any]) -> list[str]:
    return selected_stages(parse_recipe(values), None, "pack")


def run_here(spark: Any, values: dict[str, Any], workdir: Path) -> dict[str, str]:
    """Run up to pack in this process; return the content hash of every stage, and of the shards."""
    run = LastingRun(parse_recipe({**values, "workdir": str(workdir)}))
    run.use_session(spark)
    done = run_recipe(run, stages=stages_of(values))
    return {name: manifest.content_hash for name, manifest in done.items()} | {"shards": shards_of(workdir)}


def shards_of(workdir: Path) -> str:
    return str(need_stage(str(workdir), "pack").facts["shard_content_hash"])


def write_recipe(values: dict[str, Any], folder: Path, workdir: str | None = None) -> list[str]:
    """Write the recipe into a folder, its workdir `run` beside it; return the arguments of a job."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**values, "workdir": workdir or str(folder / "run")}), encoding="utf-8")
    return ["--recipe", str(path)]


@pytest.fixture(scope="module")
def both(spark, cluster, archive, some_stages, tmp_path_factory):
    """(folder, arguments, printed hashes) of one whole run on the cluster, and what one machine makes meanwhile."""
    folder = tmp_path_factory.mktemp("whole")
    relative = os.path.relpath(folder / "run", cluster.scratch)  # executors do not run where the driver does
    arguments = write_recipe(some_stages, folder, relative)
    process = cluster.submit_process(ROOT / "jobs" / "run.py", [*arguments, "--to", "pack"], archive)
    try:
        here = run_here(spark, some_stages, tmp_path_factory.mktemp("here") / "run")
        return (folder, arguments, cluster.await_job(process)), here
    finally:
        process.kill()


@pytest.fixture(scope="module")
def whole(both):
    return both[0]


@pytest.fixture(scope="module")
def here(both):
    return both[1]


def test_executors_run_the_archive(cluster, archive, some_stages, tmp_path):
    """Also where a checkout is installed beside it: the worker daemon must not take that one."""
    recipe = write_recipe(some_stages, tmp_path)[1]
    facts = cluster.submit(Path(__file__).with_name("probe.py"), [recipe], archive, "spark.locality.wait=1s")
    facts = {name: json.loads(value) for name, value in facts.items()}
    assert facts["master"] == cluster.master, "the recipe's master won over the submitted one"
    assert facts["locality_wait"] == "1s", "the recipe's setting won over the submitted one"
    assert facts["driver"].startswith(str(archive)), facts["driver"]
    kernels = {str(Path(seen["compiled_in"])) for seen in facts["executors"]}
    assert len(kernels) == 1, kernels
    assert Path(kernels.pop()).parts[-2].startswith("refinery-"), "compiled kernels are not shared"
    for seen in facts["executors"]:
        assert Path(seen["refinery"]).is_relative_to(cluster.work), seen
        assert "/refinery.zip/" in seen["refinery"], seen
        assert "/refinery.zip/" in seen["main"], "the daemon was not the archive's"
        assert seen["session"].startswith(seen["refinery"].removesuffix("__init__.py")), seen
        assert seen["python"] == sys.executable
        assert {"gopher", "c4", "fineweb"} <= set(seen["presets"])
        assert seen["language_model"].endswith("lid.176.ftz")


def test_whole_run_gives_the_bytes_of_one_machine(cluster, whole, some_stages, here):
    folder, _, printed = whole
    assert printed == {name: here[name] for name in stages_of(some_stages)}
    assert shards_of(folder / "run") == here["shards"]
    for worker in ("worker-0", "worker-1"):  # an executor fetches the archive with its first task
        assert list((cluster.work / worker).glob("app-*/*/refinery.zip")), f"{worker} took no part"


def test_one_stage_by_its_own_job(cluster, whole, archive, here):
    printed = cluster.submit(ROOT / "jobs" / "rules.py", [*whole[1], "--force"], archive)
    assert printed == {"rules": here["rules"]}


@pytest.mark.slow
def test_every_stage_by_its_own_job(spark, cluster, archive, all_stages, tmp_path):
    expected = run_here(spark, all_stages, tmp_path / "here")
    arguments = write_recipe(all_stages, tmp_path)
    for stage in stages_of(all_stages):
        assert cluster.submit(ROOT / "jobs" / f"{stage}.py", arguments, archive) == {stage: expected[stage]}
    assert shards_of(tmp_path / "run") == expected["shards"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ingest", "dedup_documents"])
def test_a_killed_worker_changes_nothing(stage, archive, some_stages, here, tmp_path):
    """The machine of one worker goes down while the stage runs."""
    arguments = write_recipe(some_stages, tmp_path)
    with standalone_cluster(tmp_path / "cluster") as cluster:
        process = cluster.submit_process(ROOT / "jobs" / "run.py", [*arguments, "--to", "pack"], archive)
        begun = tmp_path / "run" / stage
        while not (begun.is_dir() and any(begun.rglob("*.parquet"))):
            assert process.poll() is None, f"the run ended before {stage} began"
            time.sleep(0.05)
        assert not (begun / "_stage.json").exists(), "the stage was over before the worker could be killed"
        cluster.kill("worker-1")
        printed = cluster.await_job(process)
        cluster.await_workers(1)
    assert printed == {name: here[name] for name in stages_of(some_stages)}
    assert shards_of(tmp_path / "run") == here["shards"]


def test_archive_has_the_package_and_its_data_and_the_same_bytes_each_time(tmp_path):
    first, again = tmp_path / "first.zip", tmp_path / "again.zip"
    for path in (first, again):
        subprocess.run([sys.executable, ROOT / "jobs" / "_archive.py", path], check=True)
    assert first.read_bytes() == again.read_bytes()
    names = set(zipfile.ZipFile(first).namelist())
    package = ROOT / "refinery"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names, wanted - names


@pytest.mark.parametrize("job", ["select", "tokenize"])
def test_jobs_do_not_shadow_the_standard_library(job, tmp_path):
    """Their folder is first on Python's path, and the standard library has modules of the same names."""
    command = [sys.executable, ROOT / "jobs" / f"{job}.py", "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "--recipe" in shown.stdout
