"""ingest: sources to the documents table.

The driver plans splits from the sorted file list, sizes and recipe; one part task reads one split, cleans its records
and writes one documents part. Keys that occur twice get a repeat number in a second, narrow pass. A broken record is
counted with its place and skipped; the run stops only over ``max_bad_records_frac``.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from typing import Any

import pyarrow as pa

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DOCUMENTS, PART_SHIFT
from refinery.errors import ConfigError, DataError
from refinery.hashing import hex_key
from refinery.io import parts as part_files
from refinery.io.sources import InputSpec
from refinery.io.splits import plan_splits
from refinery.recipe import Input, Recipe
from refinery.stages.ingest_part import MAX_LISTED_BAD_RECORDS, NAME, IngestTask, ingest_part, part_result
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.session import read_table
from refinery.stages.workspace import Run, commit_stage, part_entries, stage_fingerprint, up_to_date

ALGORITHM_VERSION = 5


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Ingest every input of the recipe.

    Raises:
        ConfigError: a path matches nothing, or a source yields no document.
        DataError: more records are unreadable than the recipe allows.
    """
    started = time.monotonic()
    recipe = run_.recipe
    task = plan(recipe)
    part_fingerprints = [
        fingerprint_of(NAME, ALGORITHM_VERSION, _slice(recipe), _split_identity(task, p))
        for p in range(len(task.splits))
    ]
    fingerprint = stage_fingerprint(
        NAME, ALGORITHM_VERSION, _slice(recipe), {"splits": fingerprint_of(part_fingerprints)}
    )
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    work = functools.partial(ingest_part, task, part_fingerprints)
    done_tasks = run_part_tasks(run_.spark, task.leaders(), work, run_.report_progress(NAME))
    results = [share for result in done_tasks for share in (result, *result.pop("shares"))]
    _check_sources(task, results, recipe.ingest.max_bad_records_frac)
    results = _number_repeated_keys(run_, task, part_fingerprints, results)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=_slice(recipe),
        inputs={},
        parts=part_entries("documents", results, "documents"),
        counts=merge_counts(r["counts"] for r in results),
        facts=_facts(results),
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def plan(recipe: Recipe) -> IngestTask:
    """Plan the splits of all inputs; a function of file lists, sizes and recipe only."""
    specs = tuple(_spec(i) for i in recipe.inputs)
    splits: list[tuple[int, bytes]] = []
    roots: list[str] = []
    for index, spec in enumerate(specs):
        mine = plan_splits(spec, recipe.ingest.part_bytes)
        splits += [(index, split.pack()) for split in mine]
        roots.append(_common_root([file.name for split in mine for file in split.files]))
    return IngestTask(
        recipe.workdir, recipe.seed, recipe.ingest.model_dump(mode="json"), specs, tuple(roots), tuple(splits)
    )


def _slice(recipe: Recipe) -> dict[str, Any]:
    inputs = [i.model_dump(mode="json") for i in recipe.inputs]
    for entry in inputs:
        entry.pop("paths")  # the splits carry the files, with sizes and times
    return {"ingest": recipe.ingest.model_dump(mode="json"), "inputs": inputs, "seed": recipe.seed}


def _split_identity(task: IngestTask, part: int) -> list[Any]:
    return [task.splits[part][0], task.split(part).fingerprint()]


def _spec(given: Input) -> InputSpec:
    return InputSpec(
        source=given.source,
        domain=given.domain,
        role=given.role,
        format=given.format,
        paths=given.paths,
        text_field=given.text_field,
        id_field=given.id_field,
        lang=given.lang,
        license=given.license,
        options=dict(given.options),
    )


def _common_root(names: list[str]) -> str:
    """Return the folder that all files of an input share: identities do not name where the data was mounted."""
    if not names or any(name.startswith("/") != names[0].startswith("/") for name in names):
        return ""
    return os.path.commonpath([name.rpartition("/")[0] or "." for name in names])


def _check_sources(task: IngestTask, results: list[dict[str, Any]], max_bad_frac: float) -> None:
    for spec in task.specs:
        mine = [r for r in results if r["source"] == spec.source]
        docs = sum(r["documents"]["rows"] for r in mine)
        bad = sum(sum(r["bad"].values()) for r in mine)
        listed = [place for r in mine for place in r["bad_listed"]][:5]
        if bad > max_bad_frac * (bad + docs):
            raise DataError(
                f"source {spec.source}: {bad} of {bad + docs} records are unreadable "
                f"({bad / (bad + docs):.1%}, ingest.max_bad_records_frac allows {max_bad_frac:.1%}); first: {listed}; "
                "mend the files or raise the bound"
            )
        if docs == 0:
            raise ConfigError(
                f"source {spec.source} yields no document (paths {list(spec.paths)}); check text_field and format"
            )


def _facts(results: list[dict[str, Any]]) -> dict[str, Any]:
    bad: dict[str, Counter[str]] = {}
    pii: Counter[str] = Counter()
    for result in results:
        bad.setdefault(result["source"], Counter()).update(result["bad"])
        pii.update(result["pii"])
    listed = [[r["source"], *place] for r in results for place in r["bad_listed"]]
    return {
        "bad_records": {source: dict(sorted(c.items())) for source, c in sorted(bad.items()) if c},
        "bad_listed": listed[:MAX_LISTED_BAD_RECORDS],
        "pii_masked": dict(sorted(pii.items())),
    }


def _number_repeated_keys(
    run_: Run, task: IngestTask, fingerprints: list[str], results: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Give the second and later documents of one key the key of (key, n), n by address; parts without any stay."""
    from pyspark.sql import functions as f  # noqa: PLC0415
    from pyspark.sql.window import Window  # noqa: PLC0415

    parts = range(len(task.splits))
    keys = read_table(run_.spark, task.workdir, NAME, "documents", ["doc_id", "doc_key", "key_base"], parts)
    base = keys.select("doc_id", "doc_key", f.coalesce("key_base", "doc_key").alias("base"))
    repeated = base.groupBy("base").count().where("count > 1").select("base")
    numbered = base.join(repeated, "base").withColumn(
        "n", f.row_number().over(Window.partitionBy("base").orderBy("doc_id")) - 1
    )
    # A part that an earlier run numbered may stand beside others that changed since: its stale numbers go, too.
    stale = base.where("doc_key != base").join(repeated, "base", "left_anti").select("doc_id", f.lit(0).alias("n"))
    stale = stale.union(numbered.where("n = 0 and doc_key != base").select("doc_id", "n"))
    by_part: dict[int, list[tuple[int, int]]] = {}
    for row in numbered.where("n > 0").select("doc_id", "n").union(stale).collect():
        by_part.setdefault(row["doc_id"] >> PART_SHIFT, []).append((row["doc_id"] & 0xFFFFFFFF, row["n"]))
    if not by_part:
        return results
    for rows in by_part.values():
        rows.sort()
    changed = run_part_tasks(
        run_.spark, sorted(by_part), functools.partial(renumber_part, task.workdir, fingerprints, by_part)
    )
    merged = {r["documents"]["part"]: r for r in results}
    for result in changed:
        merged[result["documents"]["part"]] |= {k: v for k, v in result.items() if k not in ("seconds", "cpu_seconds")}
    return [merged[p] for p in parts]


def renumber_part(
    workdir: str, fingerprints: list[str], repeats: dict[int, list[tuple[int, int]]], part: int
) -> dict[str, Any]:
    """Write the final keys of one part; done twice it writes the same bytes."""
    path = part_files.part_path(workdir, NAME, "documents", part)
    found = part_files.found_part(path, fingerprints[part])
    table = part_files.read_part(workdir, NAME, "documents", part)
    keys, bases = table.column("doc_key").to_pylist(), table.column("key_base").to_pylist()
    for row, n in repeats[part]:
        base = bases[row] or keys[row]
        bases[row], keys[row] = (base, hex_key(base, n)) if n else (None, base)
    table = table.set_column(table.column_names.index("doc_key"), "doc_key", pa.array(keys, pa.string()))
    table = table.set_column(table.column_names.index("key_base"), "key_base", pa.array(bases, pa.string()))
    result = found.result if found else {}
    return part_result(part, part_files.write_part(path, table, DOCUMENTS, fingerprints[part], result))
