"""Steps 2-5 of document dedup in Spark: the whole graph is never in one process, only one cluster is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import CANDIDATE_PAIRS, CLUSTERS, COPIES, EDGES, EXACT_KEYS, FLIPS, PART_SHIFT, RUN_SHIFT
from refinery.io import parts as part_files
from refinery.stages import dedup_pairs
from refinery.stages.dedup_clusters import HISTOGRAM_EDGES, Found, resolve_clusters, with_ranks
from refinery.stages.dedup_components import spark_components
from refinery.stages.dedup_index import Index, flips
from refinery.stages.dedup_keys import NAME, DedupTask
from refinery.stages.part_tasks import apply_groups

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from refinery.stages.workspace import Run

_NODE, _COPY, _EDGE = range(3)
_GRAPH = pa.schema(
    [
        *(("kind", pa.int32()), ("other", pa.int64()), ("jaccard", pa.float64()), ("reason", pa.string())),
        *(column.with_nullable(True) for column in EXACT_KEYS),
    ]
)


def find_in_spark(
    run_: Run, task: DedupTask, index: Index, sources: Sequence[str], fingerprint: str
) -> tuple[Found, dict[str, set[int]]]:
    """Find copies, pairs, clusters and flips, and write their tables; returns also the files written per table."""
    spark = run_.spark
    nodes = dedup_pairs.all_runs(spark, task, "exact_keys", EXACT_KEYS)
    written: dict[str, set[int]] = {}

    def stored(frame: DataFrame, name: str, schema: pa.Schema) -> DataFrame:
        """Write a table and read it back: what follows neither computes it again nor carries its plan."""
        written[name] = dedup_pairs.write_spread(task, frame, name, schema, fingerprint)
        return dedup_pairs.read_spread(spark, task, name, schema, written[name])

    copies = stored(dedup_pairs.copies_frame(nodes, task, sources), "copies", COPIES)
    candidates = dedup_pairs.pairs_frame(spark, task, index, copies).localCheckpoint()
    num_pairs = candidates.count()
    whole, old_texts = dedup_pairs.verified_frame(run_, task, candidates, fingerprint)
    pairs = stored(whole, "candidate_pairs", CANDIDATE_PAIRS)
    edges = stored(pairs.where("jaccard is not null").select("a", "b", "jaccard"), "edges", EDGES)
    clusters = resolved(nodes, copies, edges, sources, task.settings["keep"]).localCheckpoint()
    hashes = _write_clusters(task, clusters, fingerprint)
    written["clusters"] = set(hashes)
    flipped = flips(task, clusters.where(f"doc_id >= {1 << RUN_SHIFT}").toArrow().cast(CLUSTERS))
    path = part_files.part_path(task.workdir, NAME, "flips", 0)
    part_files.write_part(path, flipped, FLIPS, fingerprint_of(fingerprint, 0))
    facts = {**_facts(clusters), "num_verified_edges": edges.count(), "num_flips": flipped.num_rows}
    return Found(hashes, facts, {"num_candidate_pairs": num_pairs, "num_old_texts_read": old_texts}), written


def resolved(
    nodes: DataFrame, copies: DataFrame, edges: DataFrame, sources: Sequence[str], policy: Sequence[str]
) -> DataFrame:
    """Bring every cluster's documents, copies and edges into one partition, and decide there.

    Args:
        nodes: schema EXACT_KEYS, all documents.
        copies: schema COPIES.
        edges: schema EDGES, verified pairs of documents that are no copies.
        sources: all sources, best first.
        policy: keep policy.
    Returns: schema CLUSTERS, every document that has a duplicate.
    """
    from pyspark.sql import functions as f  # noqa: PLC0415

    links = edges.select("a", "b").union(copies.select("doc_id", "twin"))
    labels, _ = spark_components(links)
    labels = labels.withColumnRenamed("node", "doc_id").localCheckpoint()

    def rows(kind: int, frame: DataFrame, **values: Any) -> DataFrame:
        have = set(frame.columns) | set(values)
        missing = {n: f.lit(None) for n in _GRAPH.names if n not in have}
        frame = frame.withColumns({**values, **missing, "kind": f.lit(kind)})
        return frame.select("label", *_GRAPH.names)

    graph = rows(_NODE, nodes.join(labels, "doc_id"))
    graph = graph.union(rows(_COPY, copies.join(labels, "doc_id"), other=f.col("twin")))
    ends = edges.withColumnsRenamed({"a": "doc_id", "b": "other"}).join(labels, "doc_id")
    graph = graph.union(rows(_EDGE, ends)).repartition("label")
    kernel: Callable[[pa.Table], pa.Table] = functools.partial(_resolve_partition, sources, policy)
    return dedup_pairs.whole_partitions(graph, kernel, CLUSTERS, _GRAPH)


def _resolve_partition(sources: Sequence[str], policy: Sequence[str], graph: pa.Table) -> pa.Table:
    kind = graph.column("kind")
    nodes, copies, edges = (graph.filter(pc.equal(kind, k)) for k in (_NODE, _COPY, _EDGE))
    nodes = with_ranks(nodes.select(EXACT_KEYS.names).cast(EXACT_KEYS), sources).sort_by("doc_id")
    copied = copies.select(["doc_id", "other", "reason"]).rename_columns(COPIES.names).cast(COPIES)
    verified = edges.select(["doc_id", "other", "jaccard"]).rename_columns(EDGES.names).cast(EDGES)
    verified = verified.sort_by([("a", "ascending"), ("b", "ascending")])
    return resolve_clusters(nodes, copied.sort_by("doc_id"), verified, policy, 0).table


def _write_clusters(task: DedupTask, clusters: DataFrame, fingerprint: str) -> dict[int, str]:
    from pyspark.sql import functions as f  # noqa: PLC0415

    own = clusters.where(f"doc_id < {1 << RUN_SHIFT}").withColumn("part", f.shiftright("doc_id", PART_SHIFT))
    written = apply_groups(own, ["part"], functools.partial(_write_part, task.workdir, fingerprint))
    return {r["part"]: r["hash"] for r in written}


def _write_part(workdir: str, fingerprint: str, table: pa.Table) -> dict[str, Any]:
    part = table.column("part")[0].as_py()
    rows = table.select(CLUSTERS.names).sort_by("doc_id").cast(CLUSTERS)
    path = part_files.part_path(workdir, NAME, "clusters", part)
    part_files.write_part(path, rows, CLUSTERS, fingerprint_of(fingerprint, part))
    return {"part": part, "hash": fingerprint_of(rows.to_pydict())}


def _facts(clusters: DataFrame) -> dict[str, Any]:
    """Return what `Clusters.facts` returns, counted where the rows lie."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    own = clusters.where(f"doc_id < {1 << RUN_SHIFT}").groupBy("cluster_id").agg(f.first("size").alias("size"))
    sizes = own.groupBy("size").count().toArrow()
    size, count = (sizes.column(c).to_numpy().astype(np.int64) for c in ("size", "count"))
    histogram = [
        [low, int(count[(size >= low) & (size < high)].sum())]
        for low, high in zip(HISTOGRAM_EDGES, [*HISTOGRAM_EDGES[1:], 2**62], strict=True)
    ]
    return {
        "num_clusters": int(count.sum()),
        "largest_cluster": int(size.max()) if len(size) else 0,
        "cluster_sizes": histogram,
    }
