"""The Spark half of document dedup: shuffles of keys, pairs and shingle sets, never of text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import CANDIDATES, EDGES, PART_SHIFT, SHINGLES
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import candidate_pairs, unique_pairs
from refinery.kernels.shingles import shingle_sets
from refinery.kernels.text import text_views
from refinery.stages.part_tasks import apply_groups, map_batches, run_part_tasks
from refinery.stages.session import read_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from refinery.stages.dedup_documents import DedupTask
    from refinery.stages.workspace import Run

STAGE = "dedup_documents"
ORDER_COLUMNS = ("doc_id", "exact_key", "priority", "quality", "num_bytes", "date", "source_rank", "doc_key")
_PAIRS = pa.schema([("a", pa.int64()), ("b", pa.int64())])


def exact_groups(spark: SparkSession, workdir: str, parts: list[int]) -> pa.Table:
    """Return the order columns of all documents whose exact key occurs more than once."""
    keys = read_table(spark, workdir, STAGE, "exact_keys", ORDER_COLUMNS, parts)
    repeated = keys.groupBy("exact_key").count().where("count > 1").select("exact_key")
    return keys.join(repeated, "exact_key").select(*ORDER_COLUMNS).toArrow()


def candidate_pairs_frame(
    spark: SparkSession, workdir: str, parts: list[int], without: pa.ChunkedArray, max_all_pairs: int
) -> DataFrame:
    """Return the distinct pairs (a < b) of documents that share a bucket, exact duplicates left out."""
    bands = read_table(spark, workdir, STAGE, "bands", ["key", "doc_id", "tie"], parts)
    if len(without):
        bands = bands.join(spark.createDataFrame(pa.table({"doc_id": without})), "doc_id", "left_anti")
    # Equal keys come to lie side by side; inside a bucket the order is by identity, so that the representatives of a
    # giant bucket are the same for every partitioning.
    ordered = bands.repartition("key").sortWithinPartitions("key", "tie", "doc_id").select("key", "doc_id")
    return map_batches(ordered, functools.partial(_bucket_stream, max_all_pairs), _PAIRS).distinct()


def _bucket_stream(max_all_pairs: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Turn a stream of sorted (key, doc_id) into pairs; the last bucket of a batch waits for its rest."""
    keys, docs = np.empty(0, np.int64), np.empty(0, np.int64)
    for batch in batches:
        keys = np.concatenate([keys, batch.column(0).to_numpy()])
        docs = np.concatenate([docs, batch.column(1).to_numpy()])
        if not len(keys):
            continue
        complete = int(np.searchsorted(keys, keys[-1], side="left"))
        yield from _pair_batches(keys[:complete], docs[:complete], max_all_pairs)
        keys, docs = keys[complete:], docs[complete:]
    yield from _pair_batches(keys, docs, max_all_pairs)


def _pair_batches(keys: np.ndarray, docs: np.ndarray, max_all_pairs: int) -> Iterator[pa.RecordBatch]:
    pairs = unique_pairs(candidate_pairs(keys, docs, max_all_pairs))
    if len(pairs):
        yield pa.RecordBatch.from_arrays([pa.array(pairs[:, 0]), pa.array(pairs[:, 1])], schema=_PAIRS)


def verified_edges(run: Run, task: DedupTask, pairs: DataFrame, fingerprint: str) -> pa.Table:
    """Return the pairs whose true Jaccard reaches the recipe's bound, sorted."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    ends = pairs.select(f.col("a").alias("doc_id")).union(pairs.select(f.col("b").alias("doc_id"))).distinct()
    located = ends.withColumn("part", f.shiftright("doc_id", PART_SHIFT))
    written = apply_groups(located, ["part"], functools.partial(_write_candidates, task.workdir, fingerprint))
    parts = sorted(r["part"] for r in written)
    run_part_tasks(run.spark, parts, functools.partial(shingles_part, task, fingerprint))
    sets = read_table(run.spark, task.workdir, STAGE, "shingles", ["doc_id", "shingles"], parts)
    left = sets.select(f.col("doc_id").alias("a"), f.col("shingles").alias("left"))
    right = sets.select(f.col("doc_id").alias("b"), f.col("shingles").alias("right"))
    joined = pairs.join(left, "a").join(right, "b").select("a", "b", "left", "right")
    bound = task.settings["jaccard"]
    edges = map_batches(joined, functools.partial(_verify, bound), EDGES).toArrow()
    return edges.sort_by([("a", "ascending"), ("b", "ascending")])


def _write_candidates(workdir: str, fingerprint: str, table: pa.Table) -> dict[str, Any]:
    part = table.column("part")[0].as_py()
    rows = table.select(["doc_id"]).sort_by("doc_id")
    path = part_files.part_path(workdir, STAGE, "candidates", part)
    part_files.write_part(path, rows, CANDIDATES, fingerprint)
    return {"part": part}


def shingles_part(task: DedupTask, fingerprint: str, part: int) -> dict[str, Any]:
    """Write the shingle sets of one part's candidates: sorted unique uint32, little-endian bytes."""
    path = part_files.part_path(task.workdir, STAGE, "shingles", part)
    print_ = fingerprint_of("shingles", fingerprint, part)
    if part_files.found_part(path, print_):
        return {"skipped": True}
    wanted = part_files.read_part(task.workdir, STAGE, "candidates", part).column("doc_id").to_numpy()
    tables = [SHINGLES.empty_table()]
    for piece in read_survivors(task.workdir, part, ["doc_id", "text"], task.upto, task.slice_rows):
        mine = np.isin(piece.table.column("doc_id").to_numpy(), wanted, assume_unique=True)
        if not mine.any():
            continue
        table = piece.table.filter(pa.array(mine))
        sets = shingle_sets(text_views(table.column("text")), task.settings["ngram"], task.settings["unit"])
        data = pa.py_buffer(np.ascontiguousarray(sets.hashes, dtype="<u4"))
        offsets = pa.py_buffer((sets.offsets * 4).astype(np.int64))
        binary = pa.Array.from_buffers(pa.large_binary(), table.num_rows, [None, offsets, data])
        tables.append(pa.table({"doc_id": table.column("doc_id"), "shingles": binary}).cast(SHINGLES))
    part_files.write_part(path, pa.concat_tables(tables), SHINGLES, print_)
    return {"skipped": False}


def _verify(bound: float, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        count = batch.num_rows
        sides = pa.concat_arrays([batch.column(2), batch.column(3)])
        views = text_views(sides)
        hashes = np.frombuffer(views.data, dtype="<u4")
        index = np.arange(count, dtype=np.int64)
        jaccard = pair_jaccard(views.offsets // 4, hashes, index, index + count, bound)
        real = np.flatnonzero(~np.isnan(jaccard))
        kept = batch.take(pa.array(real))
        yield pa.RecordBatch.from_arrays([kept.column(0), kept.column(1), pa.array(jaccard[real])], schema=EDGES)


def order_columns(spark: SparkSession, workdir: str, parts: list[int], edges: pa.Table, removed: pa.Table) -> pa.Table:
    """Return the order columns of every document that an edge or an exact group names, sorted by doc_id."""
    named = [edges.column("a"), edges.column("b"), removed.column("doc_id"), removed.column("twin")]
    ids = np.unique(np.concatenate([c.to_numpy() for c in named]).astype(np.int64))
    if not len(ids):
        return pa.table({name: pa.array([], pa.int64()) for name in ORDER_COLUMNS})
    keys = read_table(spark, workdir, STAGE, "exact_keys", ORDER_COLUMNS, parts)
    wanted = spark.createDataFrame(pa.table({"doc_id": ids}))
    return keys.join(wanted, "doc_id").select(*ORDER_COLUMNS).toArrow().sort_by("doc_id")
