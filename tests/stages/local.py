"""Run quality and select on documents written by hand, part tasks called one after another: no Spark, so fast.

That the same tasks give the same bytes under Spark is what test_whole_card and test_determinism hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from refinery.contracts.manifest import StageManifest, merge_counts
from refinery.contracts.tables import DOCUMENTS
from refinery.hashing import hex_key, key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.kernels.clean import text_hash
from refinery.recipe import parse_recipe
from refinery.stages import budget_cut, quality, quality_models, select, select_diagnostics
from refinery.stages.decisions import located
from refinery.stages.tallies import tally
from refinery.stages.workspace import Run, commit_stage

Row = dict[str, Any]


def tasks_in_turn(_spark: object, parts: Sequence[int], task: Callable[[int], Any], _progress: object = None) -> list:
    results = [json.loads(json.dumps(task(part))) for part in parts]
    return [{**r, "cpu_seconds": 0.0, "seconds": 0.0} for r in results]


def collected(
    _spark: object, parts: Sequence[int], task: Callable[[int], Iterator[pa.RecordBatch]]
) -> dict[str, dict[int, tuple[int, int]]]:
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for part in parts:
        for batch in task(part):
            for row in batch.to_pylist():
                group, key = found.setdefault(row["group"], {}), row["key"] % 2**64
                amount, rows = group.get(key, (0, 0))
                group[key] = amount + row["amount"], rows + row["rows"]
    return found


def without_spark(monkeypatch: Any) -> None:
    for module in (quality, quality_models, select, select_diagnostics):
        monkeypatch.setattr(module, "run_part_tasks", tasks_in_turn)
    monkeypatch.setattr(budget_cut, "_collect", collected)


def rows_of(source: str, texts: Sequence[str], *, role: str = "pool", domain: str = "", lang: str = "en") -> list[Row]:
    base = {"source": source, "role": role, "domain": domain or source, "lang": lang}
    return [{**base, "name": f"{source}-{k}", "text": text} for k, text in enumerate(texts)]


def values_for(workdir: Path, rows: Sequence[Row], **sections: Any) -> dict[str, Any]:
    """Return a recipe over these rows."""
    inputs = {(r["source"], r["domain"], r["role"]): {"format": "jsonl", "paths": []} for r in rows}
    named = [dict(zip(("source", "domain", "role"), k, strict=True)) | v for k, v in sorted(inputs.items())]
    return {"name": "local", "seed": 5, "workdir": str(workdir), "inputs": named, **sections}


def write_documents(values: dict[str, Any], rows: Sequence[Row], num_parts: int = 2, seed: int | None = 3) -> None:
    """Write the ingest stage: rows dealt to parts in turn, a tenth of the texts held out for validation by hash
    of the seed; none without one.
    """
    hashes = [text_hash(r["text"]) for r in rows]
    held = [False] * len(rows)
    if seed is not None:
        held = (keyed_uniform(seed, "split", key_prefix_uint64(hashes)) < 0.1).tolist()
    results = []
    for part in range(num_parts):
        mine = [
            {
                "doc_id": part << 32 | at,
                "doc_key": hex_key(rows[n]["source"], rows[n]["name"]),
                "text_hash": hashes[n],
                "split": "validation" if held[n] else "train",
                "num_bytes": len(rows[n]["text"].encode()),
                "num_chars": len(rows[n]["text"]),
                **{k: rows[n][k] for k in ("source", "domain", "role", "lang", "text")},
            }
            for at, n in enumerate(range(part, len(rows), num_parts))
        ]
        table = pa.Table.from_pylist(mine, schema=DOCUMENTS)
        path = part_files.part_path(values["workdir"], "ingest", "documents", part)
        written = part_files.write_part(path, table, DOCUMENTS, f"ingest-{part}")
        results.append({"documents": located(part, written), "counts": tally(table, None, None)})
    run = Run(parse_recipe(values))
    entries = [quality.part_entries("documents", [r], "documents")[0] for r in results]
    counts = merge_counts(r["counts"] for r in results)
    commit_stage(run, StageManifest("ingest", "print", 1, {}, {}, entries, counts), 0.0)


def run_local(values: dict[str, Any], stage: Any, *, slice_rows: int = 4096, force: bool = False) -> StageManifest:
    run = Run(parse_recipe(values), slice_rows=slice_rows)
    run.use_session(None)  # type: ignore[arg-type]
    run._spark = object()  # type: ignore[assignment]  # never asked for anything
    return stage.run(run, force=force)


def table_of(values: dict[str, Any], stage: str, table: str) -> list[Row]:
    """Return every row of a table, with the document's name in front."""
    numbers = part_files.part_numbers(values["workdir"], stage, table)
    return [r for p in numbers for r in part_files.read_part(values["workdir"], stage, table, p).to_pylist()]


def by_key(values: dict[str, Any], stage: str, table: str) -> dict[str, Row]:
    """Return rows of an aligned table by doc_key: the same for any number of parts."""
    keys = {r["doc_id"]: r["doc_key"] for r in table_of(values, "ingest", "documents")}
    return {keys[r["doc_id"]]: {k: v for k, v in r.items() if k != "doc_id"} for r in table_of(values, stage, table)}


def kept(values: dict[str, Any], stage: str, role: str = "pool") -> set[str]:
    """Return keys of documents of a role that a stage kept."""
    made = by_key(values, stage, "decisions")
    roles = {r["doc_key"]: r["role"] for r in table_of(values, "ingest", "documents")}
    return {key for key, row in made.items() if row["keep"] and roles[key] == role}
