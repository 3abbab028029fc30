"""One run's folder: which parts exist, which stage manifests stand, who holds the lock; and how a stage sees text."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refinery.contracts.manifest import CountRow, PartEntry, StageManifest, fingerprint_of, stage_manifest_from_json
from refinery.errors import ConfigError, IntegrityError, TransientError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.process_memory import peak_resident_bytes
from refinery.recipe import Recipe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Progress = Callable[[str, int, int], None]


@dataclass
class Run:
    """What a stage needs: the recipe, the folder, a session made at first use, and a place to tell progress."""

    recipe: Recipe
    progress: Progress | None = None
    slice_rows: int = 4096
    """Documents per kernel call; results do not depend on it."""
    _spark: SparkSession | None = field(default=None, repr=False)

    @property
    def workdir(self) -> str:
        """The run's folder."""
        return self.recipe.workdir

    @property
    def spark(self) -> SparkSession:
        """The session; started at first use, so a run with nothing to do never starts one."""
        if self._spark is None:
            from refinery.stages.session import make_session  # noqa: PLC0415

            self._spark = make_session(self.recipe.spark, self.recipe.name)
        return self._spark

    def use_session(self, spark: SparkSession) -> None:
        """Use a session that already runs (tests, notebooks)."""
        self._spark = spark

    def stop_session(self) -> None:
        """Stop the session if one was started: the trainer gets the memory."""
        if self._spark is not None:
            self._spark.stop()
            self._spark = None

    def report_progress(self, stage: str) -> Callable[[int, int], None] | None:
        """Return a (done, total) callback for one stage, or None where nobody listens."""
        if self.progress is None:
            return None
        listener = self.progress
        return lambda done, total: listener(stage, done, total)


def manifest_path(workdir: str, stage: str) -> str:
    """Return the path of a stage's manifest."""
    return storage.join(workdir, stage, "_stage.json")


def load_stage(workdir: str, stage: str) -> StageManifest | None:
    """Load a stage's manifest; None if the stage is not complete.

    Raises:
        IntegrityError: the manifest is damaged.
    """
    path = manifest_path(workdir, stage)
    if not storage.exists(path):
        return None
    return stage_manifest_from_json(storage.read_bytes(path).decode("utf-8", "replace"), path)


def need_stage(workdir: str, stage: str) -> StageManifest:
    """Load a stage's manifest that must be there.

    Raises:
        ConfigError: the stage has not been run.
    """
    manifest = load_stage(workdir, stage)
    if manifest is None:
        raise ConfigError(f"stage {stage} is not complete in {workdir}; run `refinery {stage} RECIPE` first")
    return manifest


def decision_stages(recipe: Recipe, before: str) -> list[str]:
    """Return the stages before one that decide about documents, in order."""
    deciding = {"screen", "rules", "quality", "select", "dedup_documents", "dedup_sentences", "decontaminate", "mix"}
    order = recipe.stages()
    upto = order.index(before) if before in order else len(order)
    return [s for s in order[:upto] if s in deciding]


def stores_words(recipe: Recipe, before: str) -> bool:
    """Whether a stage may ask `io.survivors.read_survivors` for the column ``words``: rules stored it before."""
    return recipe.rules is not None and recipe.rules.segment_chinese and "rules" in decision_stages(recipe, before)


def upstream_of(run: Run, stage: str) -> tuple[tuple[str, ...], list[StageManifest], dict[int, str]]:
    """Return what stands before a stage.

    Returns: (deciding stages before it, manifests of ingest and of those, part -> hash of what the stage reads of it).

    Raises:
        ConfigError: one of them has not been run.
    """
    upto = tuple(decision_stages(run.recipe, stage))
    manifests = [need_stage(run.workdir, s) for s in ("ingest", *upto)]
    read = ("documents", "language", "words", "quality", "decisions", "cuts")
    tables = [m.part_hashes(t) for m in manifests for t in read]
    seen = {p: fingerprint_of([t[p] for t in tables if p in t]) for p in tables[0]}
    return upto, manifests, seen


def stage_fingerprint(stage: str, version: int, recipe_slice: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return what a stage's output is a function of."""
    return fingerprint_of(stage, version, dict(recipe_slice), dict(inputs))


def up_to_date(workdir: str, stage: str, fingerprint: str) -> StageManifest | None:
    """Return the stage's manifest if it was made from the same inputs and settings and its parts are all there."""
    manifest = load_stage(workdir, stage)
    if manifest is None or manifest.fingerprint != fingerprint:
        return None
    tables: dict[str, set[int]] = {}
    for entry in manifest.parts:
        tables.setdefault(entry.table, set()).add(entry.part)
    for table, numbers in tables.items():
        if not numbers <= set(part_files.part_numbers(workdir, stage, table)):
            return None
    return manifest


def forget_stage(workdir: str, stage: str) -> None:
    """Remove a stage's manifest and part files, so that the next run makes every one of them again."""
    storage.remove(manifest_path(workdir, stage))
    for table in storage.list_names(storage.join(workdir, stage)):
        for part in part_files.part_numbers(workdir, stage, table):
            storage.remove(part_files.part_path(workdir, stage, table, part))


def commit_stage(run: Run, manifest: StageManifest, started: float) -> StageManifest:
    """Seal a manifest and write it last: from here on the stage is complete."""
    volatile = {
        **manifest.volatile,
        "seconds": round(time.monotonic() - started, 3),
        "driver_peak_rss_bytes": peak_resident_bytes(),
        "host": platform.node(),
        "git_commit": git_commit(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    sealed = StageManifest(**{**manifest.__dict__, "volatile": volatile}).sealed()
    storage.write_atomic(manifest_path(run.workdir, manifest.stage), sealed.to_json().encode())
    return sealed


def git_commit() -> str:
    """Return the commit of the code that runs, or an empty string outside a checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    command = ["git", "-C", folder, "rev-parse", "--short=12", "HEAD"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return shown.stdout.strip() if shown.returncode == 0 else ""


def part_entries(table: str, results: Sequence[Mapping[str, Any]], key: str) -> list[PartEntry]:
    """Turn part-task results into manifest entries; ``results[i][key]`` holds part, rows, content_hash, num_bytes."""
    return [
        PartEntry(table, r[key]["part"], r[key]["rows"], r[key]["content_hash"], r[key]["num_bytes"])
        for r in results
        if r.get(key)
    ]


def check_conservation(stage: str, entered: Sequence[CountRow], left: Sequence[CountRow]) -> None:
    """Check that documents, bytes and (once known) tokens that entered a stage left it kept, dropped or cut.

    Raises:
        IntegrityError: with both sums, if they differ.
    """
    docs_in = sum(c.docs for c in entered if c.kind == "kept")
    bytes_in = sum(c.bytes for c in entered if c.kind == "kept")
    tokens_in = sum(c.tokens for c in entered if c.kind == "kept")
    docs_out = sum(c.docs for c in left if c.kind != "cut")
    bytes_out = sum(c.bytes for c in left)
    tokens_out = sum(c.tokens for c in left) if tokens_in else 0  # tokenize counts them first
    if (docs_in, bytes_in, tokens_in) != (docs_out, bytes_out, tokens_out):
        raise IntegrityError(
            f"{stage}: {docs_in} documents with {bytes_in} bytes and {tokens_in} tokens came in, {docs_out} with "
            f"{bytes_out} and {tokens_out} are accounted for; run the stage again with --force"
        )


@contextmanager
def hold_lock(workdir: str) -> Iterator[None]:
    """Hold the run's folder; a second run in the same local folder is refused.

    Object stores have no lock: there, part files are whole objects and the last writer wins with equal bytes.

    Raises:
        TransientError: another process holds the folder.
    """
    if not storage.is_local(workdir):
        yield
        return
    folder = storage.local_path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TransientError(
                f"{workdir} is held by another run (process {holder}); wait for it, or give this run its own workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        storage.sweep_temporaries(workdir)
        yield
