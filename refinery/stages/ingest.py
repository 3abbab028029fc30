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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DOCUMENTS, PART_SHIFT
from refinery.errors import ConfigError, DataError
from refinery.hashing import hex_key, key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.io.charset import mojibake_repair, simplified_converter
from refinery.io.sources import BadRecord, InputSpec, RawDocument, read_split
from refinery.io.splits import Split, plan_splits
from refinery.kernels.chinese_script import is_traditional
from refinery.kernels.clean import clean_text, cut_to_bytes, text_hash
from refinery.recipe import Input, Recipe
from refinery.stages.decisions import located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.session import read_table
from refinery.stages.tallies import tally
from refinery.stages.workspace import Run, commit_stage, part_entries, stage_fingerprint, up_to_date

NAME = "ingest"
ALGORITHM_VERSION = 2
MAX_LISTED_BAD_RECORDS = 200
"""Bad records named one by one per part; all are counted."""
_BATCH_DOCS = 2048


@dataclass(frozen=True)
class IngestTask:
    """Everything one part task needs, the same for every part."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    specs: tuple[InputSpec, ...]
    roots: tuple[str, ...]
    splits: tuple[tuple[int, Split], ...]
    """For each part: index of its input, and its split."""


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
    parts = range(len(task.splits))
    results = run_part_tasks(run_.spark, parts, work, run_.report_progress(NAME))
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
    splits: list[tuple[int, Split]] = []
    roots: list[str] = []
    for index, spec in enumerate(specs):
        mine = plan_splits(spec, recipe.ingest.part_bytes)
        splits += [(index, split) for split in mine]
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
    index, split = task.splits[part]
    return [index, split.fingerprint()]


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


def ingest_part(task: IngestTask, fingerprints: list[str], part: int) -> dict[str, Any]:
    """Read, clean and write one part; skip it if it is there with the right fingerprint."""
    path = part_files.part_path(task.workdir, NAME, "documents", part)
    found = part_files.found_part(path, fingerprints[part])
    if found is None:
        table, result = _read_part(task, part)
        found = part_files.write_part(path, table, DOCUMENTS, fingerprints[part], result)
    return _part_result(part, found)


def _part_result(part: int, written: part_files.PartFile) -> dict[str, Any]:
    return {**written.result, "documents": located(part, written)}


def _read_part(task: IngestTask, part: int) -> tuple[pa.Table, dict[str, Any]]:
    index, split = task.splits[part]
    spec, root = task.specs[index], task.roots[index]
    bad: Counter[str] = Counter()
    listed: list[list[Any]] = []
    pii: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    dropped_bytes: Counter[str] = Counter()
    columns: dict[str, list[Any]] = {name: [] for name in _READ_COLUMNS}
    batches: list[pa.Table] = []
    cut: Counter[str] = Counter()
    clean = _cleaner(task.settings, pii)
    for record in read_split(spec, split):
        if isinstance(record, BadRecord):
            bad[record.reason] += 1
            if len(listed) < MAX_LISTED_BAD_RECORDS:
                listed.append([_relative(record.path, root), record.offset, record.reason])
            continue
        text = clean(record.text)
        size = _utf8_bytes(text)
        too_long = size > task.settings["max_document_bytes"]
        if too_long and task.settings["long_documents"] == "cut":
            text = cut_to_bytes(text, task.settings["max_document_bytes"])
            left = _utf8_bytes(text)
            cut.update(docs=1, bytes=size - left)
            size, too_long = left, False
        reason = "empty" if not text.strip() else "too_long" if too_long else None
        if reason:
            dropped[reason] += 1
            dropped_bytes[reason] += size
            continue
        _append(columns, record, text, size, spec, root)
        if len(columns["text"]) >= _BATCH_DOCS:
            batches.append(_batch(columns))
    batches.append(_batch(columns))
    table = _finish(task, spec, part, pa.concat_tables(batches))
    result = {
        "counts": tally(table, None, None) + _left_out_counts(spec, dropped, dropped_bytes, cut),
        "bad": dict(sorted(bad.items())),
        "bad_listed": listed,
        "pii": dict(sorted(pii.items())),
        "source": spec.source,
    }
    return table, result


_READ_COLUMNS = ("key_base", "text", "text_hash", "lang", "url", "date", "license", "meta", "num_bytes", "num_chars")


def _append(
    columns: dict[str, list[Any]], record: RawDocument, text: str, size: int, spec: InputSpec, root: str
) -> None:
    identity = (
        (record.upstream_id,) if record.upstream_id is not None else (_relative(record.path, root), record.offset)
    )
    columns["key_base"].append(hex_key(spec.source, *identity))
    columns["text"].append(text)
    columns["text_hash"].append(text_hash(text))
    columns["lang"].append(record.lang or spec.lang)
    columns["url"].append(record.url)
    columns["date"].append(record.date)
    columns["license"].append(record.license or spec.license)
    columns["meta"].append(orjson.dumps(record.meta, default=str).decode() if record.meta else None)
    columns["num_bytes"].append(size)
    columns["num_chars"].append(len(text))


def _batch(columns: dict[str, list[Any]]) -> pa.Table:
    schema = pa.schema([DOCUMENTS.field(name) for name in _READ_COLUMNS])
    table = pa.Table.from_pydict(columns, schema=schema)
    for values in columns.values():
        values.clear()
    return table


def _finish(task: IngestTask, spec: InputSpec, part: int, table: pa.Table) -> pa.Table:
    count = table.num_rows
    draws = keyed_uniform(task.seed, "split", key_prefix_uint64(table.column("text_hash").to_pylist()))
    validation = pa.array(draws < task.settings["validation_frac"])
    constant = {name: pa.repeat(pa.scalar(getattr(spec, name)), count) for name in ("source", "domain", "role")}
    ids = pa.array((np.int64(part) << PART_SHIFT) + np.arange(count, dtype=np.int64))
    data = {name: table.column(name) for name in _READ_COLUMNS}
    data |= constant
    data |= {
        "doc_id": ids,
        "doc_key": table.column("key_base"),
        "key_base": pa.nulls(count, pa.string()),
        "split": pc.if_else(validation, "validation", "train"),
    }
    return pa.table({name: data[name] for name in DOCUMENTS.names})


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/") if root else path


def _left_out_counts(
    spec: InputSpec, docs: Counter[str], sizes: Counter[str], cut: Counter[str]
) -> list[dict[str, Any]]:
    labels = {"source": spec.source, "domain": spec.domain, "role": spec.role, "lang": spec.lang or "", "split": ""}
    rows = [
        {"kind": "dropped", "reason": f"ingest.{reason}", **labels, "docs": docs[reason], "bytes": sizes[reason]}
        for reason in sorted(docs)
    ]
    if cut:
        rows.append({"kind": "cut", "reason": "ingest.too_long", **labels, "docs": cut["docs"], "bytes": cut["bytes"]})
    return rows


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _cleaner(settings: dict[str, Any], pii: Counter[str]) -> Callable[[str], str]:
    """Return what makes a record's text clean; what it masks is counted in `pii`."""
    repair = mojibake_repair() if settings["mojibake"] == "repair" else None
    steps: list[Callable[[str], str]] = []
    if settings["chinese"] == "simplified":
        convert = simplified_converter()
        steps.append(lambda text: convert(text) if is_traditional(text) else text)
    if settings["pii"] == "mask":
        from refinery.kernels.pii import mask  # noqa: PLC0415 - only runs that mask load it

        def masked(text: str) -> str:
            text, found = mask(text)
            pii.update(found)
            return text

        steps.append(masked)

    def clean(text: str) -> str:
        text = clean_text(text, repair=repair)
        for step in steps:
            text = step(text)
        return text

    return clean


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
    return _part_result(part, part_files.write_part(path, table, DOCUMENTS, fingerprints[part], result))
