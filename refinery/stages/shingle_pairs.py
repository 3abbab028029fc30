"""Exact comparison of candidate pairs: part tasks write shingle sets of the documents named, Spark joins them to pairs.

Shuffles carry ids and shingle sets, never text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import CANDIDATES, PART_SHIFT, SHINGLES
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.shingles import shingle_sets
from refinery.kernels.text import text_views
from refinery.stages.part_tasks import apply_groups, map_batches, run_part_tasks
from refinery.stages.session import read_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from refinery.stages.workspace import Run

Comparison = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""(offsets int64, hashes uint32, left, right) -> columns of the pairs; a column ``keep`` (bool) chooses among them."""


@dataclass(frozen=True)
class ShingleSource:
    """Whose shingles are written, and of which kind."""

    workdir: str
    stage: str
    upto: tuple[str, ...]
    slice_rows: int
    ngram: int
    unit: str
    fingerprint: str


def compared_pairs(
    run: Run, source: ShingleSource, pairs: DataFrame, compare: Comparison, schema: pa.Schema
) -> pa.Table:
    """Return what a comparison says of pairs, for those that it keeps, sorted by (a, b).

    Args:
        run: session.
        source: whose shingles.
        pairs: columns ``a`` and ``b``, doc_ids; distinct.
        compare: the kernel; a module-level function or a `functools.partial` of one.
        schema: columns of the result, ``a`` and ``b`` first.
    """
    from pyspark.sql import functions as f  # noqa: PLC0415

    ends = pairs.select(f.col("a").alias("doc_id")).union(pairs.select(f.col("b").alias("doc_id"))).distinct()
    located = ends.withColumn("part", f.shiftright("doc_id", PART_SHIFT))
    written = apply_groups(located, ["part"], functools.partial(_write_candidates, source))
    parts = sorted(r["part"] for r in written)
    run_part_tasks(run.spark, parts, functools.partial(shingles_part, source))
    sets = read_table(run.spark, source.workdir, source.stage, "shingles", ["doc_id", "shingles"], parts)
    left = sets.select(f.col("doc_id").alias("a"), f.col("shingles").alias("left"))
    right = sets.select(f.col("doc_id").alias("b"), f.col("shingles").alias("right"))
    joined = pairs.select("a", "b").join(left, "a").join(right, "b").select("a", "b", "left", "right")
    found = map_batches(joined, functools.partial(_compare, compare, schema), schema).toArrow()
    return found.sort_by([("a", "ascending"), ("b", "ascending")])


def _write_candidates(source: ShingleSource, table: pa.Table) -> dict[str, Any]:
    part = table.column("part")[0].as_py()
    rows = table.select(["doc_id"]).sort_by("doc_id")
    path = part_files.part_path(source.workdir, source.stage, "candidates", part)
    part_files.write_part(path, rows, CANDIDATES, source.fingerprint)
    return {"part": part}


def shingles_part(source: ShingleSource, part: int) -> dict[str, Any]:
    """Write the shingle sets of one part's candidates: sorted unique uint32, little-endian bytes."""
    path = part_files.part_path(source.workdir, source.stage, "shingles", part)
    print_ = fingerprint_of("shingles", source.fingerprint, part)
    if part_files.found_part(path, print_):
        return {"skipped": True}
    wanted = part_files.read_part(source.workdir, source.stage, "candidates", part).column("doc_id").to_numpy()
    tables = [SHINGLES.empty_table()]
    for piece in read_survivors(source.workdir, part, ["doc_id", "text"], source.upto, source.slice_rows):
        mine = np.isin(piece.table.column("doc_id").to_numpy(), wanted, assume_unique=True)
        if not mine.any():
            continue
        table = piece.table.filter(pa.array(mine))
        sets = shingle_sets(text_views(table.column("text")), source.ngram, source.unit)
        data = pa.py_buffer(np.ascontiguousarray(sets.hashes, dtype="<u4"))
        offsets = pa.py_buffer((sets.offsets * 4).astype(np.int64))
        binary = pa.Array.from_buffers(pa.large_binary(), table.num_rows, [None, offsets, data])
        tables.append(pa.table({"doc_id": table.column("doc_id"), "shingles": binary}).cast(SHINGLES))
    part_files.write_part(path, pa.concat_tables(tables), SHINGLES, print_)
    return {"skipped": False}


def _compare(compare: Comparison, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        count = batch.num_rows
        views = text_views(pa.concat_arrays([batch.column(2), batch.column(3)]))
        hashes = np.frombuffer(views.data, dtype="<u4")
        index = np.arange(count, dtype=np.int64)
        columns = compare(views.offsets // 4, hashes, index, index + count)
        kept = np.flatnonzero(columns["keep"])
        rows = batch.take(pa.array(kept))
        values = [rows.column(0), rows.column(1), *(pa.array(columns[name][kept]) for name in schema.names[2:])]
        yield pa.RecordBatch.from_arrays(values, schema=schema)
