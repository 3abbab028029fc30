"""The Spark half of document dedup: shuffles of keys, pairs and shingle sets, never of text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from refinery.contracts.tables import EDGES
from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import candidate_pairs, unique_pairs
from refinery.stages.part_tasks import map_batches
from refinery.stages.session import read_table
from refinery.stages.shingle_pairs import ShingleSource, compared_pairs

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
    settings = task.settings
    source = ShingleSource(
        task.workdir, STAGE, task.upto, task.slice_rows, settings["ngram"], settings["unit"], fingerprint
    )
    return compared_pairs(run, source, pairs, functools.partial(_verified, settings["jaccard"]), EDGES)


def _verified(
    bound: float, offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray
) -> dict[str, np.ndarray]:
    jaccard = pair_jaccard(offsets, hashes, left, right, bound)
    return {"jaccard": jaccard, "keep": ~np.isnan(jaccard)}


def order_columns(spark: SparkSession, workdir: str, parts: list[int], edges: pa.Table, removed: pa.Table) -> pa.Table:
    """Return the order columns of every document that an edge or an exact group names, sorted by doc_id."""
    named = [edges.column("a"), edges.column("b"), removed.column("doc_id"), removed.column("twin")]
    ids = np.unique(np.concatenate([c.to_numpy() for c in named]).astype(np.int64))
    if not len(ids):
        return pa.table({name: pa.array([], pa.int64()) for name in ORDER_COLUMNS})
    keys = read_table(spark, workdir, STAGE, "exact_keys", ORDER_COLUMNS, parts)
    wanted = spark.createDataFrame(pa.table({"doc_id": ids}))
    return keys.join(wanted, "doc_id").select(*ORDER_COLUMNS).toArrow().sort_by("doc_id")
