"""Run stages in the session of the tests, and read tables back for checks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from refinery.contracts.manifest import StageManifest
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask
from refinery.recipe import Recipe, parse_recipe
from refinery.stages.pipeline import STAGES, run_stage
from refinery.stages.workspace import Run, need_stage

DATA_STAGES = ("ingest", "rules", "dedup_documents", "tokenize", "mix", "pack")


def run_stages(
    spark: Any, values: dict[str, Any], stages: Sequence[str] = DATA_STAGES, *, slice_rows: int = 4096,
    force: Sequence[str] = (),
) -> dict[str, StageManifest]:  # fmt: skip
    """Run stages one by one in a session that stays."""
    run = Run(parse_recipe(values), slice_rows=slice_rows)
    run.use_session(spark)
    return {name: run_stage(run, name, force=name in force) for name in stages if name in STAGES}


def fork(values: dict[str, Any], target: Path) -> dict[str, Any]:
    """Copy a run's folder, times included, and return its recipe pointing at the copy."""
    shutil.copytree(values["workdir"], target)
    return {**values, "workdir": str(target)}


def files_of(workdir: str | Path, stages: Sequence[str] | None = None) -> dict[str, int]:
    """Return modification times of all files of some stages."""
    root = Path(workdir)
    folders = [root / s for s in stages] if stages is not None else [root]
    return {
        str(p.relative_to(root)): p.stat().st_mtime_ns
        for folder in folders
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def parts_of(workdir: str, stage: str = "ingest", table: str = "documents") -> list[int]:
    return sorted(need_stage(workdir, stage).part_hashes(table))


def whole_table(workdir: str, stage: str, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a table of all parts."""
    numbers = part_files.part_numbers(workdir, stage, table)
    return pa.concat_tables([part_files.read_part(workdir, stage, table, p, columns) for p in numbers])


def documents(workdir: str) -> dict[str, dict[str, Any]]:
    """Return every ingested document by key."""
    columns = ["doc_id", "doc_key", "text", "text_hash", "source", "domain", "role", "split", "lang", "num_bytes"]
    return {row["doc_key"]: row for row in whole_table(workdir, "ingest", "documents", columns).to_pylist()}


def decisions(workdir: str, stage: str) -> dict[int, dict[str, Any]]:
    """Return every decision of a stage by doc_id."""
    return {row["doc_id"]: row for row in whole_table(workdir, stage, "decisions").to_pylist()}


def survivors(workdir: str, upto: Sequence[str]) -> set[int]:
    """Return the doc_ids that some stages kept."""
    kept: set[int] = set()
    for part in parts_of(workdir):
        ids = part_files.read_part(workdir, "ingest", "documents", part, ["doc_id"]).column("doc_id").to_numpy()
        kept |= set(ids[keep_mask(workdir, part, len(ids), upto)].tolist())
    return kept


def shard_hash(values: dict[str, Any]) -> str:
    return str(need_stage(values["workdir"], "pack").facts["shard_content_hash"])


def recipe(values: dict[str, Any]) -> Recipe:
    return parse_recipe(values)
