"""Which sentences say the same: coarse cells, blocks of vectors, the guard, and who stays.

Spark shuffles cell, sentence and float16 vector. A cell with more vectors than a block is compared block by block, each
pair of blocks a task's worth of work, so that no cell is ever split or cut short. Pairs above the threshold go on to
the guard as hashed features of their sentences; what it lets pass is resolved on the driver: about 50 bytes a pair.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import CELLS, CENTROIDS, COMPARED, GUARDS, PAIRS, PART_SHIFT
from refinery.errors import DataError
from refinery.hashing import keyed_uint64, splitmix64_array
from refinery.io import parts as part_files
from refinery.kernels.components import greedy_keep
from refinery.kernels.sentence_guard import features_veto, guard_features
from refinery.kernels.similarity import same_cell
from refinery.kernels.text import text_views
from refinery.process_memory import return_freed_memory
from refinery.stages.dedup_clusters import keep_rank
from refinery.stages.part_tasks import apply_groups, map_batches, map_parts, run_part_tasks
from refinery.stages.sentence_repeats import STAGE, SentencesTask, order_columns, sentence_texts
from refinery.stages.session import read_table
from refinery.stages.task_resources import task_gpu

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

CELL_ROWS = 2000
"""Sentences per cell, on average: pairs inside a cell grow with its square, cells with the search for the nearest."""
_TRAINING_ROWS = 64
_MAX_TRAINING_ROWS = 500_000
_BLOCKS = pa.schema(
    [
        ("cell", pa.int64()), ("x", pa.int32()), ("y", pa.int32()), ("block", pa.int32()), ("own", pa.bool_()),
        ("sentence_id", pa.int64()), ("doc_id", pa.int64()), ("vector", pa.binary()),
    ]
)  # fmt: skip
_UNPACK_ROWS = 8192
"""Vectors brought to unit length at a time: float64 on the way, with 384 features 25 MB."""
_JUDGED = pa.schema([*PAIRS, ("vetoed", pa.int64())])
"""Pairs that the guard lets pass; what it spares is only counted, in rows whose `a` is -1: there may be far more."""
REMOVED = pa.schema(
    [
        ("doc_id", pa.int64()), ("start", pa.int64()), ("because_of", pa.string()), ("because_doc", pa.int64()),
        ("because_start", pa.int64()), ("because_end", pa.int64()), ("similarity", pa.float64()),
    ]
)  # fmt: skip


def unpacked_vectors(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return stored float16 rows as float32, shape (S, F), unit length again.

    Raises:
        DataError: rows of different lengths: vectors of two models.
    """
    views = text_views(column)
    widths = np.diff(views.offsets)
    _check_widths(set(np.unique(widths).tolist()))
    if not len(widths):
        return np.empty((0, 1), np.float32)
    rows = views.data[views.offsets[0] : views.offsets[-1]].view("<f2").reshape(len(widths), -1)
    out = np.empty(rows.shape, dtype=np.float32)
    for first in range(0, len(rows), _UNPACK_ROWS):
        vectors = rows[first : first + _UNPACK_ROWS].astype(np.float32)
        norms = np.sqrt(np.einsum("sf,sf->s", vectors, vectors, dtype=np.float64))[:, None]
        out[first : first + _UNPACK_ROWS] = vectors / np.where(norms > 0, norms, 1.0)
    return out


def _check_widths(widths: set[int]) -> None:
    if len(widths) > 1:
        raise DataError(
            f"stored vectors have {', '.join(str(w // 2) for w in sorted(widths))} features: two models made them; run "
            "dedup_sentences with --force"
        )


def matched_sentences(
    spark: SparkSession, task: SentencesTask, parts: list[int], profile: ResourceProfile | None
) -> tuple[pa.Table, dict[str, Any]]:
    """Compare the stored vectors and return the sentences that go, schema `REMOVED`, and facts."""
    settings = task.settings["embeddings"]
    [trained] = run_part_tasks(spark, [0], functools.partial(_cells_trained, task, parts))
    if "refused" in trained:
        raise DataError(trained["refused"])
    if not trained["rows"]:
        return REMOVED.empty_table(), {"num_pairs": 0, "num_vetoed": 0, "num_removed": 0}
    run_part_tasks(spark, parts, functools.partial(cells_part, task, trained["content_hash"]), profile=profile)
    cells = read_table(spark, task.workdir, STAGE, "cells", ["cell"], parts)
    large = cells.groupBy("cell").count().where(f"count > {settings['block_rows']}").toArrow()
    counts = dict(zip(large.column("cell").to_pylist(), large.column("count").to_pylist(), strict=True))
    rows = map_parts(spark, parts, functools.partial(_blocks_of_part, task, counts), _BLOCKS)
    ordered = rows.repartition("cell", "x", "y").sortWithinPartitions("cell", "x", "y", "sentence_id")
    compare = functools.partial(_compare_stream, settings["similarity"], settings["device"], settings["block_rows"])
    pairs = map_batches(ordered, compare, PAIRS, profile).dropDuplicates(["a", "b"]).persist()
    try:
        judged = _judged(spark, task, pairs, fingerprint_of(trained["content_hash"], task.settings, task.upstream))
    finally:
        pairs.unpersist()
    vetoed = int(judged.column("vetoed").to_numpy().sum())
    allowed = judged.filter(pa.array(judged.column("a").to_numpy() >= 0)).drop_columns(["vetoed"])
    path = part_files.part_path(task.workdir, STAGE, "pairs", 0)
    part_files.write_part(path, allowed, PAIRS, fingerprint_of(trained["content_hash"]))
    removed = _resolved(spark, task, parts, allowed)
    facts = {
        "num_pairs": allowed.num_rows + vetoed, "num_vetoed": vetoed, "num_removed": removed.num_rows,
        "num_cells": trained["rows"], "num_block_cells": len(counts), "centroids_hash": trained["content_hash"],
    }  # fmt: skip
    return removed, facts


def train_cells(task: SentencesTask, parts: list[int]) -> part_files.PartFile | None:
    """Train centroids on a sample of the vectors and store them; None where there is nothing to compare.

    Raises:
        DataError: a stored vector is not finite.
    """
    from refinery.gpu.kmeans import spherical_kmeans  # noqa: PLC0415 - torch, only where embeddings are on

    counts = {part: part_files.read_part(task.workdir, STAGE, "vectors", part, ["start"]).num_rows for part in parts}
    total = sum(counts.values())
    if total < 2:
        return None
    num_cells = max(1, total // CELL_ROWS)
    wanted = min(total, _MAX_TRAINING_ROWS, max(_TRAINING_ROWS * num_cells, 10_000))
    bound = np.uint64(min(2**64 - 1, int(wanted / total * 2**64)))
    sample = []
    for part in parts:
        table = part_files.read_part(task.workdir, STAGE, "vectors", part, ["sentence_id", "doc_id", "start", "vector"])
        keys = splitmix64_array(table.column("doc_id").to_numpy().view(np.uint64)) ^ table.column(
            "start"
        ).to_numpy().view(np.uint64)
        drawn = keyed_uint64(task.seed, "cells", keys) <= bound
        sample.append(unpacked_vectors(table.filter(pa.array(drawn)).column("vector")))
    _check_widths({2 * rows.shape[1] for rows in sample if len(rows)})
    vectors = np.concatenate([rows for rows in sample if len(rows)] or [np.empty((0, 1), np.float32)])
    num_cells = min(num_cells, len(vectors))
    if not num_cells:
        return None
    path = part_files.part_path(task.workdir, STAGE, "centroids", 0)
    print_ = fingerprint_of("centroids", task.seed, num_cells, len(vectors))
    centroids = spherical_kmeans(vectors, num_cells, seed=task.seed % 2**31)
    raw = [row.tobytes() for row in centroids.astype("<f4")]
    table = pa.table({"cell": np.arange(num_cells), "vector": pa.array(raw, pa.large_binary())})
    return part_files.write_part(path, table, CENTROIDS, print_)


def _cells_trained(task: SentencesTask, parts: list[int], _: int) -> dict[str, Any]:
    """Train in a worker: the driver needs neither torch nor the memory for the sample."""
    try:
        trained = train_cells(task, parts)
    except DataError as error:
        return {"refused": str(error)}
    finally:
        return_freed_memory()  # the worker lives on, beside others
    return {"rows": 0} if trained is None else {"rows": trained.rows, "content_hash": trained.content_hash}


def cells_part(task: SentencesTask, centroids_hash: str, part: int) -> dict[str, Any]:
    """Write the cells of one part's vectors: the nearest, and further ones across a border."""
    settings = task.settings["embeddings"]
    path = part_files.part_path(task.workdir, STAGE, "cells", part)
    columns = ["sentence_id", "scope", "vector"]
    table = part_files.read_part(task.workdir, STAGE, "vectors", part, columns)
    found = []
    if table.num_rows:
        from refinery.gpu.kmeans import assign_cells  # noqa: PLC0415 - torch, only where embeddings are on

        _take_gpu()
        stored = part_files.read_part(task.workdir, STAGE, "centroids", 0)
        flat = np.frombuffer(b"".join(stored.column("vector").to_pylist()), dtype="<f4")
        centroids = flat.reshape(stored.num_rows, -1)
        probes = min(1 + settings["border_cells"], len(centroids))
        vectors = unpacked_vectors(table.column("vector"))
        cells = assign_cells(vectors, centroids, num_probe=probes, device=settings["device"]).astype(np.uint64)
        scope = table.column("scope").to_numpy().view(np.uint64)
        ids = table.column("sentence_id").to_numpy()
        for probe in range(probes):
            group = splitmix64_array(splitmix64_array(scope) ^ cells[:, probe]).view(np.int64)
            found.append(pa.table({"sentence_id": ids, "cell": group, "own": np.full(len(ids), probe == 0)}))
    whole = pa.concat_tables(found).sort_by("sentence_id") if found else CELLS.empty_table()
    file = part_files.write_part(path, whole, CELLS, fingerprint_of("cells", centroids_hash, part))
    del table, whole, found
    return_freed_memory()  # the worker lives on, beside others
    return {"rows": file.rows}


def _take_gpu() -> None:
    """Work on the GPU that Spark gave to this task."""
    from refinery.gpu.embed import use_gpu  # noqa: PLC0415 - torch, only where embeddings are on

    use_gpu(task_gpu())


def _blocks_of_part(task: SentencesTask, counts: dict[int, int], part: int) -> Iterator[pa.RecordBatch]:
    """Yield one part's vectors by cell; in a cell of several blocks, once for every pair of blocks of its own."""
    vectors = part_files.read_part(task.workdir, STAGE, "vectors", part, ["sentence_id", "doc_id", "vector"])
    cells = part_files.read_part(task.workdir, STAGE, "cells", part)
    if not cells.num_rows:
        return
    row = cells.column("sentence_id").to_numpy() & ((1 << PART_SHIFT) - 1)
    cell, own = cells.column("cell").to_numpy(), cells.column("own").to_numpy(zero_copy_only=False)
    block_rows = task.settings["embeddings"]["block_rows"]
    blocks = np.array([-(-counts.get(c, 1) // block_rows) for c in cell.tolist()], dtype=np.int64)
    mine = (splitmix64_array(cells.column("sentence_id").to_numpy().view(np.uint64)) % blocks.astype(np.uint64)).astype(
        np.int64
    )
    for other in range(int(blocks.max())):
        here = np.flatnonzero(blocks > other)
        for first in range(0, len(here), 8192):
            at = here[first : first + 8192]
            taken = vectors.take(pa.array(row[at]))
            arrays = [
                pa.array(cell[at]),
                pa.array(np.minimum(mine[at], other).astype(np.int32)),
                pa.array(np.maximum(mine[at], other).astype(np.int32)),
                pa.array(mine[at].astype(np.int32)),
                pa.array(own[at]),
                *(taken.column(c).combine_chunks() for c in ("sentence_id", "doc_id")),
                taken.column("vector").combine_chunks().cast(pa.binary()),
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=_BLOCKS)


def _compare_stream(
    threshold: float, device: str, block_rows: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Turn a stream sorted by cell and pair of blocks into pairs; the last group of a batch waits for its rest."""
    waiting: list[pa.RecordBatch] = []
    last: tuple[Any, ...] | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        keys = np.stack([batch.column(c).to_numpy().astype(np.int64) for c in range(3)], axis=1)
        bounds = np.concatenate([[0], np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1, [len(keys)]])
        for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            key = tuple(keys[first].tolist())
            if key != last and waiting:
                yield _compare(threshold, device, block_rows, waiting)
                waiting = []
            last = key
            waiting.append(batch.slice(first, end - first))
    if waiting:
        yield _compare(threshold, device, block_rows, waiting)


def _compare(threshold: float, device: str, block_rows: int, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    from refinery.gpu.neighbours import pairs_in_cells  # noqa: PLC0415 - torch, only where embeddings are on

    table = pa.Table.from_batches(batches)
    ids, docs = table.column("sentence_id").to_numpy(), table.column("doc_id").to_numpy()
    left = right = np.empty(0, dtype=np.int64)
    similarity = np.empty(0)
    if len(ids) > 1:
        _take_gpu()
        block = table.column("block").to_numpy()
        x, y = table.column("x")[0].as_py(), table.column("y")[0].as_py()
        cells = same_cell(table.column("own").to_numpy(zero_copy_only=False))
        rows = min(block_rows, 1024) if device == "cpu" else None
        found = pairs_in_cells(
            unpacked_vectors(table.column("vector")), cells, threshold, device=device, block_rows=rows
        )
        good = docs[found.left] != docs[found.right]
        if x != y:  # pairs inside a block are those of (x, x) and (y, y)
            good &= block[found.left] != block[found.right]
        left, right, similarity = ids[found.left[good]], ids[found.right[good]], found.similarity[good].round(9)
    a, b = np.minimum(left, right), np.maximum(left, right)
    return pa.RecordBatch.from_arrays([pa.array(a), pa.array(b), pa.array(similarity)], schema=PAIRS)


def _judged(spark: SparkSession, task: SentencesTask, pairs: DataFrame, print_: str) -> pa.Table:
    """Return the pairs that the guard lets pass, sorted, and rows that count those it spares; schema `_JUDGED`."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    if not task.settings["embeddings"]["guard"]:
        return map_batches(pairs, _unguarded, _JUDGED).toArrow().sort_by([("a", "ascending"), ("b", "ascending")])
    ends = pairs.select(f.col("a").alias("sentence_id")).union(pairs.select(f.col("b").alias("sentence_id"))).distinct()
    split = ends.withColumn("part", f.shiftright("sentence_id", PART_SHIFT))
    written = apply_groups(split, ["part"], functools.partial(_write_compared, task.workdir, print_))
    parts = sorted(r["part"] for r in written)
    if not parts:
        return _JUDGED.empty_table()
    run_part_tasks(spark, parts, functools.partial(guards_part, task, print_))
    guards = read_table(spark, task.workdir, STAGE, "guards", ["sentence_id", "features"], parts)
    left = guards.select(f.col("sentence_id").alias("a"), f.col("features").alias("left"))
    right = guards.select(f.col("sentence_id").alias("b"), f.col("features").alias("right"))
    joined = pairs.join(left, "a").join(right, "b").select("a", "b", "similarity", "left", "right")
    return map_batches(joined, _veto, _JUDGED).toArrow().sort_by([("a", "ascending"), ("b", "ascending")])


def _unguarded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        spared = pa.array(np.zeros(batch.num_rows, dtype=np.int64))
        yield pa.RecordBatch.from_arrays([*batch.columns[:3], spared], schema=_JUDGED)


def _veto(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        sides = ([np.frombuffer(raw, "<u8") for raw in batch.column(c).to_pylist()] for c in (3, 4))
        vetoed = np.array([features_veto(a, b) != 0 for a, b in zip(*sides, strict=True)], dtype=bool)
        passed = batch.select(["a", "b", "similarity"]).filter(pa.array(~vetoed))
        counted = {"a": [-1], "b": [-1], "similarity": [0.0], "vetoed": [int(vetoed.sum())]}
        zeros = pa.array(np.zeros(passed.num_rows, dtype=np.int64))
        yield pa.RecordBatch.from_arrays([*passed.columns, zeros], schema=_JUDGED)
        yield pa.RecordBatch.from_pydict(counted, schema=_JUDGED)


def _write_compared(workdir: str, print_: str, table: pa.Table) -> dict[str, Any]:
    part = table.column("part")[0].as_py()
    rows = table.select(["sentence_id"]).sort_by("sentence_id")
    part_files.write_part(part_files.part_path(workdir, STAGE, "compared", part), rows, COMPARED, print_)
    return {"part": part}


def guards_part(task: SentencesTask, print_: str, part: int) -> dict[str, Any]:
    """Write what the guard has to know of one part's sentences that are in pairs: hashes, no text."""
    wanted = part_files.read_part(task.workdir, STAGE, "compared", part).column("sentence_id").to_numpy()
    where = part_files.read_part(task.workdir, STAGE, "vectors", part, ["doc_id", "start", "end"])
    texts = sentence_texts(task, part, where.take(pa.array(wanted & ((1 << PART_SHIFT) - 1))))
    raw = [guard_features(text).astype("<u8").tobytes() for text in texts]
    table = pa.table({"sentence_id": wanted, "features": pa.array(raw, pa.binary())})
    path = part_files.part_path(task.workdir, STAGE, "guards", part)
    return {"rows": part_files.write_part(path, table, GUARDS, print_).rows}


def _resolved(spark: SparkSession, task: SentencesTask, parts: list[int], pairs: pa.Table) -> pa.Table:
    """Walk the sentences in keep order and return those that have a pair with a kept one."""
    if not pairs.num_rows:
        return REMOVED.empty_table()
    ids = np.unique(np.concatenate([pairs.column("a").to_numpy(), pairs.column("b").to_numpy()]))
    where = _places(task, ids)
    docs = np.unique(where["doc_id"])
    wanted = spark.createDataFrame(pa.table({"doc_id": docs}))
    nodes = order_columns(spark, task, parts).join(wanted, "doc_id").toArrow().sort_by("doc_id")
    at = np.searchsorted(docs, where["doc_id"])
    order = np.lexsort((where["start"], keep_rank(nodes, task.settings["keep"])[at]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    left, right = (np.searchsorted(ids, pairs.column(c).to_numpy()) for c in ("a", "b"))
    similarity = pairs.column("similarity").to_numpy()
    made = greedy_keep(rank, left, right, similarity)
    gone = np.flatnonzero(~made.keep)
    kept = made.because_of[gone]
    keys = nodes.column("doc_key").take(pa.array(at[kept]))
    columns = {
        "doc_id": where["doc_id"][gone], "start": where["start"][gone], "because_of": keys,
        "because_doc": where["doc_id"][kept], "because_start": where["start"][kept], "because_end": where["end"][kept],
        "similarity": similarity[made.edge[gone]],
    }  # fmt: skip
    return pa.table(columns).cast(REMOVED)


def _places(task: SentencesTask, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the document and span of some sentences, ascending by id."""
    tables = []
    for part in np.unique(ids >> PART_SHIFT).tolist():
        mine = ids[(ids >> PART_SHIFT) == part] & ((1 << PART_SHIFT) - 1)
        stored = part_files.read_part(task.workdir, STAGE, "vectors", part, ["doc_id", "start", "end"])
        tables.append(stored.take(pa.array(mine)))
    table = pa.concat_tables(tables)
    return {name: table.column(name).to_numpy() for name in table.column_names}
