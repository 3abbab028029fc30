"""The Spark half of document dedup: shuffles of keys, pairs and shingle sets, never of text.

For runs whose band keys do not fit into one process; `dedup_local` is the other half, and both decide the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import (
    BANDS,
    CANDIDATE_PAIRS,
    CANDIDATES,
    COPIES,
    EDGES,
    EXACT_KEYS,
    PART_SHIFT,
    RUN_SHIFT,
)
from refinery.io import parts as part_files
from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import counted_bucket_pairs
from refinery.kernels.text import text_views
from refinery.stages.dedup_clusters import text_copies, url_copies, with_ranks
from refinery.stages.dedup_index import Index
from refinery.stages.dedup_keys import NAME, DedupTask, shingles_part
from refinery.stages.part_tasks import apply_groups, map_batches, run_part_tasks
from refinery.stages.session import read_table

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from refinery.stages.workspace import Run

_COUNTED = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("weight", pa.int64())])
_OWN_BITS = (1 << RUN_SHIFT) - 1


def all_runs(spark: SparkSession, task: DedupTask, table: str, schema: pa.Schema) -> DataFrame:
    """Return a per-document table of this run and of those of its index, with ids of this run."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    whole = read_table(spark, task.workdir, NAME, table, schema.names, sorted(task.upstream))
    for run in task.index:
        mine = read_table(spark, run.workdir, NAME, table, schema.names, run.parts)
        whole = whole.union(mine.withColumn("doc_id", f.col("doc_id").bitwiseOR(f.lit(run.number << RUN_SHIFT))))
    return whole


def whole_partitions(
    frame: DataFrame, kernel: Callable[[pa.Table], pa.Table], out: pa.Schema, columns: pa.Schema
) -> DataFrame:
    """Apply a kernel to each partition as one table: rows that belong together must lie in one partition."""
    return map_batches(frame.select(*columns.names), functools.partial(_whole, kernel, out, columns), out)


def _whole(
    kernel: Callable[[pa.Table], pa.Table], out: pa.Schema, columns: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    tables = [pa.Table.from_batches([batch]).cast(columns) for batch in batches if batch.num_rows]
    if tables:
        yield from kernel(pa.concat_tables(tables)).cast(out).combine_chunks().to_batches()


def copies_frame(nodes: DataFrame, task: DedupTask, sources: Sequence[str]) -> DataFrame:
    """Return every document that goes because another has its URL or its text; schema COPIES."""
    policy = task.settings["keep"]
    found = None
    if task.settings["url"]:
        rows = _repeated(nodes.where("url_key is not null"), ["url_key", "scope"])
        kernel = functools.partial(_copies, url_copies, sources, policy)
        found = whole_partitions(rows, kernel, COPIES, EXACT_KEYS).localCheckpoint()
        nodes = nodes.join(found.select("doc_id"), "doc_id", "left_anti")
    kernel = functools.partial(_copies, text_copies, sources, policy)
    texts = whole_partitions(_repeated(nodes, ["exact_key"]), kernel, COPIES, EXACT_KEYS)
    return texts if found is None else found.union(texts)


def _repeated(nodes: DataFrame, keys: list[str]) -> DataFrame:
    several = nodes.groupBy(*keys).count().where("count > 1").select(*keys)
    return nodes.join(several, keys).repartition(*keys)


def _copies(
    kernel: Callable[[pa.Table, Sequence[str]], pa.Table],
    sources: Sequence[str],
    policy: Sequence[str],
    table: pa.Table,
) -> pa.Table:
    return kernel(with_ranks(table, sources), policy)


def pairs_frame(spark: SparkSession, task: DedupTask, index: Index, copies: DataFrame) -> DataFrame:
    """Return (a, b, buckets, jaccard, known) as `dedup_local.local_pairs` does."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    bands = all_runs(spark, task, "bands", BANDS)
    limit = task.settings["max_bucket_pairs"]
    if not index.base:
        counted = _bucket_pairs(bands.join(copies.select("doc_id"), "doc_id", "left_anti"), limit)
        return _unknown(counted).withColumnRenamed("weight", "buckets")
    gone_now = copies.select("doc_id", f.lit(True).alias("gone"))
    gone_before = _base(spark, index, "copies", COPIES).select("doc_id", f.lit(True).alias("was_gone"))
    covered = f.shiftright("doc_id", RUN_SHIFT).isin(sorted(index.covered()))
    marked = bands.join(gone_now, "doc_id", "left").join(gone_before, "doc_id", "left")
    marked = marked.withColumn("now", f.col("gone").isNull())
    marked = marked.withColumn("before", covered & f.col("was_gone").isNull())
    touched = marked.where("now <> before").select("key").distinct()
    marked = marked.join(touched, "key", "left_semi").localCheckpoint()
    gone = _bucket_pairs(marked.where("before"), limit).withColumn("weight", -f.col("weight"))
    come = _bucket_pairs(marked.where("now"), limit)
    base = _base(spark, index, "candidate_pairs", CANDIDATE_PAIRS)
    base = base.select("a", "b", f.col("buckets").alias("weight"), "jaccard")
    balance = base.withColumn("known", f.lit(True)).union(_unknown(gone.union(come)))
    summed = balance.groupBy("a", "b").agg(
        f.sum("weight").alias("buckets"), f.max("jaccard").alias("jaccard"), f.max("known").alias("known")
    )
    return summed.where("buckets > 0")


def _unknown(counted: DataFrame) -> DataFrame:
    from pyspark.sql import functions as f  # noqa: PLC0415

    nothing = f.lit(None).cast("double").alias("jaccard")
    return counted.select("a", "b", "weight", nothing, f.lit(False).alias("known"))


def _base(spark: SparkSession, index: Index, table: str, schema: pa.Schema) -> DataFrame:
    """Return a table of the base with ids of this run; of pairs, a < b again."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    workdir = index.runs[index.base - 1].workdir
    frame = read_table(spark, workdir, NAME, table, schema.names, part_files.part_numbers(workdir, NAME, table))
    for column in ("doc_id", "twin", "a", "b"):
        if column in schema.names:
            frame = frame.withColumn(column, _remapped(index, f.col(column)))
    if "b" in schema.names:
        frame = frame.withColumn("lower", f.least("a", "b")).withColumn("b", f.greatest("a", "b"))
        frame = frame.withColumn("a", f.col("lower")).drop("lower")
    return frame


def _remapped(index: Index, ids: Column) -> Column:
    from pyspark.sql import functions as f  # noqa: PLC0415

    table = f.create_map(*[f.lit(int(x)) for pair in index.base_runs.items() for x in pair])
    number = f.element_at(table, f.shiftright(ids, RUN_SHIFT).cast("int")).cast("long")
    return ids.bitwiseAND(f.lit(_OWN_BITS)).bitwiseOR(f.shiftleft(number, RUN_SHIFT))


def _bucket_pairs(bands: DataFrame, limit: int) -> DataFrame:
    """Return (a, b, number of shared buckets) of documents that share a bucket."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    # Equal keys come to lie side by side; inside a bucket the order is by identity, so that the representatives of a
    # giant bucket are the same for every partitioning.
    columns = ["key", "scope", "tie", "doc_id"]
    ordered = bands.repartition("key").sortWithinPartitions(*columns).select("key", "doc_id", "scope", "held")
    counted = map_batches(ordered, functools.partial(_bucket_stream, limit), _COUNTED)
    return counted.groupBy("a", "b").agg(f.sum("weight").alias("weight"))


def _bucket_stream(limit: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Turn a stream of sorted (key, doc_id, scope, held) into pairs; the last bucket of a batch waits for its rest."""
    waiting: list[np.ndarray] | None = None
    for batch in batches:
        columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        if waiting is not None:
            columns = [np.concatenate(pair) for pair in zip(waiting, columns, strict=True)]
        if not len(columns[0]):
            continue
        complete = int(np.searchsorted(columns[0], columns[0][-1], side="left"))
        yield from _pair_batches([c[:complete] for c in columns], limit)
        waiting = [c[complete:] for c in columns]
    if waiting is not None:
        yield from _pair_batches(waiting, limit)


def _pair_batches(columns: list[np.ndarray], limit: int) -> Iterator[pa.RecordBatch]:
    keys, docs, scopes, held = columns
    rows, counts = counted_bucket_pairs(keys, docs, limit, scopes, held.astype(bool))
    if len(rows):
        arrays = [pa.array(rows[:, 0]), pa.array(rows[:, 1]), pa.array(counts)]
        yield pa.RecordBatch.from_arrays(arrays, schema=_COUNTED)


def verified_frame(run: Run, task: DedupTask, pairs: DataFrame, fingerprint: str) -> tuple[DataFrame, int]:
    """Return schema CANDIDATE_PAIRS with the true Jaccard of all pairs, null below the bound; and old texts read."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    open_ = pairs.where("not known").select("a", "b")
    ends = open_.select(f.col("a").alias("doc_id")).union(open_.select(f.col("b").alias("doc_id"))).distinct()
    placed = ends.withColumn("place", f.shiftright("doc_id", PART_SHIFT))
    numbers = task.file_numbers()
    written = apply_groups(placed, ["place"], functools.partial(_write_candidates, task.workdir, fingerprint, numbers))
    places = sorted(r["place"] for r in written)
    read = run_part_tasks(run.spark, places, functools.partial(shingles_part, task, fingerprint))
    if not places:
        return pairs.select(*CANDIDATE_PAIRS.names), 0
    sets = read_table(run.spark, task.workdir, NAME, "shingles", ["doc_id", "shingles"], [numbers[p] for p in places])
    left = sets.select(f.col("doc_id").alias("a"), f.col("shingles").alias("left"))
    right = sets.select(f.col("doc_id").alias("b"), f.col("shingles").alias("right"))
    joined = open_.join(left, "a").join(right, "b").select("a", "b", "left", "right")
    edges = map_batches(joined, functools.partial(_verify, task.settings["jaccard"]), EDGES)
    found = edges.select("a", "b", f.col("jaccard").alias("found"))
    whole = pairs.join(found, ["a", "b"], "left")
    whole = whole.select("a", "b", "buckets", f.coalesce("jaccard", "found").alias("jaccard"))
    return whole, sum(r["num_texts"] for r in read if r["run"])


def _write_candidates(workdir: str, fingerprint: str, numbers: dict[int, int], table: pa.Table) -> dict[str, Any]:
    place = table.column("place")[0].as_py()
    rows = table.select(["doc_id"]).sort_by("doc_id")
    path = part_files.part_path(workdir, NAME, "candidates", numbers[place])
    part_files.write_part(path, rows, CANDIDATES, fingerprint_of(fingerprint, numbers[place]))
    return {"place": place}


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


def write_spread(task: DedupTask, frame: DataFrame, name: str, schema: pa.Schema, fingerprint: str) -> set[int]:
    """Write a table of documents or pairs in as many files as the run has parts; return their numbers."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    files = max(1, len(task.upstream))
    placed = frame.withColumn("file", f.pmod(f.col(schema.names[0]), f.lit(files)))
    written = apply_groups(placed, ["file"], functools.partial(_write_file, task.workdir, name, schema, fingerprint))
    return {r["file"] for r in written}


def read_spread(spark: SparkSession, task: DedupTask, name: str, schema: pa.Schema, files: set[int]) -> DataFrame:
    """Return a table that `write_spread` wrote."""
    if files:
        return read_table(spark, task.workdir, NAME, name, schema.names, sorted(files))
    return spark.createDataFrame(schema.empty_table())


def _write_file(workdir: str, name: str, schema: pa.Schema, fingerprint: str, table: pa.Table) -> dict[str, Any]:
    number = table.column("file")[0].as_py()
    rows = table.select(schema.names).sort_by([(c, "ascending") for c in schema.names[:2]])
    part_files.write_part(
        part_files.part_path(workdir, NAME, name, number), rows, schema, fingerprint_of(fingerprint, number)
    )
    return {"file": number}
