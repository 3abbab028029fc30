"""Proxy models of an ablation: equal data sets in size and order, one trainer process per (arm, seed).

A run's folder holds what it was asked (``_fingerprint``), its log and its record. A finished record of the same
question is taken as the answer; a run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.runs import RunRecord, read_run_record
from refinery.errors import ConfigError, DataError, IntegrityError, RefineryError, SchemaError, TransientError
from refinery.io import storage
from refinery.recipe import Recipe, Train
from refinery.shards.manifest import PartEntry, ShardManifest, StreamKey, build_manifest, load_manifest
from refinery.shards.plan import MixPlan, PlanStage, load_plan, plan_bytes
from refinery.shards.writer import write_manifest
from refinery.stages.pack import PLAN_NAME, shards_folder
from refinery.stages.train import train_file

_ERRORS: Mapping[int, type[RefineryError]] = {
    e.exit_code: e for e in (ConfigError, SchemaError, IntegrityError, DataError, TransientError)
}


@dataclass(frozen=True)
class ProxyRun:
    """One training to do."""

    arm: str
    seed: int
    folder: Path
    train_json: dict[str, Any]
    fingerprint: str
    threads: int


@dataclass(frozen=True)
class HeldOut:
    """Packed validation streams that every arm gets."""

    folder: Path
    entries: Mapping[StreamKey, Sequence[PartEntry]]


def with_heldout(arm_shards: Path, held: HeldOut, target: Path) -> ShardManifest:
    """Put an arm's training streams and the held-out streams into one data set; files are linked, not copied.

    Returns: the manifest of the data set in `target`.
    """
    arm = load_manifest(arm_shards)
    parts: dict[StreamKey, list[PartEntry]] = {
        s.key: [replace(p, path=p.path.rpartition("/")[2]) for p in s.parts] for s in arm.streams
    }
    for source, streams in ((arm_shards, dict(parts)), (held.folder, held.entries)):
        for key, entries in streams.items():
            for entry in entries:
                for suffix in entry.files:
                    _link_file(source / key.name / f"{entry.path}{suffix}", target / key.name / f"{entry.path}{suffix}")
    parts |= {key: list(entries) for key, entries in held.entries.items()}
    manifest = build_manifest(arm.tokenizer, arm.packing, parts, arm.lineage, arm.unhashed)
    write_manifest(target, manifest)
    return manifest


def _link_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def plan_of_rows(plan: MixPlan, manifest: ShardManifest, num_rows: int, seed: int) -> MixPlan:
    """Return a plan of exactly `num_rows` rows with the phases and weights of another, in the order of a seed.

    Raises:
        ConfigError: fewer rows than phases.
    """
    if num_rows < len(plan.stages):
        raise ConfigError(f"{num_rows} rows cannot hold {len(plan.stages)} phases; raise the token budget")
    edges = [round(stage.start_row * num_rows / plan.total_rows) for stage in plan.stages] + [num_rows]
    stages = [
        PlanStage(start, max(1, end - start), stage.weights)
        for stage, start, end in zip(plan.stages, edges, edges[1:], strict=False)
    ]
    return replace(plan, seed=seed, content_hash=manifest.content_hash, stages=tuple(stages))


def proxy_runs(
    recipe: Recipe, arm: str, data: Path, manifest: ShardManifest, section: Train, seeds: Sequence[int], threads: int
) -> list[ProxyRun]:
    """Return the trainings of one arm, one per seed; plans are written beside the data set.

    Args:
        recipe: of the arm; its pack stage stands.
        arm: name shown.
        data: folder from `with_heldout`.
        manifest: of that folder.
        section: trainer settings; steps are set, so every arm takes as many.
        seeds: of weights and order; equal seeds of two arms make a pair.
        threads: CPU threads of one trainer.
    Raises:
        ConfigError: the batch is no multiple of the row length.
    """
    length = manifest.sequence_length
    if section.steps is None or section.batch_tokens % length:
        raise ConfigError(f"train.batch_tokens {section.batch_tokens} must be a multiple of the row length {length}")
    rows = section.steps * (section.batch_tokens // length)
    base = load_plan(shards_folder(recipe.workdir) / "plan" / f"{PLAN_NAME}.json")
    runs = []
    for seed in seeds:
        plan = plan_of_rows(base, manifest, rows, seed)
        folder = Path(recipe.workdir) / "runs" / f"{section.preset}-seed-{seed}"
        runs.append(proxy_run(recipe, section, (arm, seed, threads), (data, plan), folder))
    return runs


def proxy_run(
    recipe: Recipe, section: Train, who: tuple[str, int, int], data: tuple[Path, MixPlan], folder: Path
) -> ProxyRun:
    """Return one training on the rows of a plan, which is written beside the run.

    Args:
        recipe: gives paths and trainer settings.
        section: trainer settings, steps included.
        who: (name of the arm, seed of the weights, CPU threads).
        data: (folder of the data set, plan over it).
        folder: of the run.
    """
    arm, seed, threads = who
    path = data[0] / "plan" / f"{folder.name}.json"
    storage.write_atomic(str(path), plan_bytes(data[1]))
    body = train_file(recipe, section)
    del body["tokenizer"]  # proxies are measured, not exported
    evaluate = {"at_start": False, **body["options"]["evaluate"]}  # what is compared is the end of each
    body["options"] |= {"seed": seed, "threads": threads, "evaluate": evaluate}
    places = {
        "manifest": str((data[0] / "manifest.json").absolute()), "plan": str(path.absolute()),
        "out_dir": str(folder.absolute()), "name": f"{arm} seed {seed}",
    }  # fmt: skip
    asked = fingerprint_of(data[1].content_hash, data[1].plan_hash, body["model"], body["options"])
    return ProxyRun(arm, seed, folder, {**body, **places}, asked, threads)


def groups_of_runs(count: int, jobs: int, *, share_last: bool) -> list[tuple[int, int]]:
    """Split trainings of equal length into groups, one after the other: (trainings, how many beside each other).

    Args:
        count: trainings to do.
        jobs: trainings that fill the machine.
        share_last: what is left at the end joins the round before it, rather than leave a part of the machine idle
            for a whole training: 21 on two cores take 10.5 rounds then, and not 11.
    """
    left = count % jobs
    if not share_last or not left or count < jobs:
        return [(count, jobs)]
    whole = count - left - jobs
    return [(whole, jobs), (jobs + left, jobs + left)] if whole else [(count, count)]


def train_all(
    runs: Sequence[ProxyRun], jobs: int, told: Callable[[ProxyRun, RunRecord, bool], None] | None = None, *,
    share_last: bool = False,
) -> list[RunRecord]:  # fmt: skip
    """Train what is not trained yet, `jobs` at a time, and return the records in the order of `runs`.

    Args:
        runs: what to train.
        jobs: trainer processes beside each other.
        told: called after each with its record and whether it stood already.
        share_last: let the last ones be more than `jobs` beside each other; see `groups_of_runs`.
    Raises:
        RefineryError: as the first trainer that failed ended; those not yet started are not.
    """
    records: list[RunRecord] = []
    for count, beside in groups_of_runs(len(runs), jobs, share_last=share_last):
        records += _train_group(runs[len(records) : len(records) + count], beside, told)
    return records


def _train_group(
    runs: Sequence[ProxyRun], jobs: int, told: Callable[[ProxyRun, RunRecord, bool], None] | None
) -> list[RunRecord]:
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        futures = [pool.submit(_train, run, told) for run in runs]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((f for f in futures if f.done() and f.exception() is not None), None)
        if failed is not None:
            raise failed.exception()  # type: ignore[misc]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _train(run: ProxyRun, told: Callable[[ProxyRun, RunRecord, bool], None] | None) -> RunRecord:
    marker, record_path = run.folder / "_fingerprint", run.folder / "run.json"
    same = marker.is_file() and marker.read_text(encoding="utf-8") == run.fingerprint
    if same and record_path.is_file():
        record = read_run_record(record_path)
        if record.status == "finished":
            if told:
                told(run, record, True)
            return record
    if not same and run.folder.is_dir():
        shutil.rmtree(run.folder)
    storage.write_atomic(str(run.folder / "train.json"), json.dumps(run.train_json, indent=1).encode())
    storage.write_atomic(str(marker), run.fingerprint.encode())
    _spawn(run)
    record = read_run_record(record_path)
    if record.status != "finished":
        raise TransientError(
            f"{run.arm}, seed {run.seed}: training stopped ({record.status}) at step {record.steps}; run the same "
            "command again to go on from there"
        )
    if told:
        told(run, record, False)
    return record


def _spawn(run: ProxyRun) -> None:
    log = run.folder / "log.txt"
    command = [sys.executable, "-m", "refinery.trainer", "--config", str(run.folder / "train.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads)}
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(command, stderr=stream, env=environment, check=False)  # noqa: S603
    if done.returncode:
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        raise _ERRORS.get(done.returncode, RefineryError)(
            f"{run.arm}, seed {run.seed}: the trainer ended with {done.returncode}: {lines[-1] if lines else ''} "
            f"(whole log: {log})"
        )
