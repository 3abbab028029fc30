"""Connected components of a graph that is too large for one process, in plain DataFrames.

Alternating large-star and small-star (Kiveris et al., "Connected Components in MapReduce and Beyond", SoCC 2014):
large-star hangs each larger neighbour of a node on the node's smallest neighbour, small-star each smaller one. Every
round is a few shuffles of (int64, int64); a chain of n nodes halves at each round, so 20 rounds settle a million.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refinery.errors import IntegrityError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MAX_ROUNDS = 100


def spark_components(links: DataFrame) -> tuple[DataFrame, int]:
    """Return the connected components of an edge list.

    Args:
        links: two int64 columns; order, direction and repeats do not matter.
    Returns: (rows of (node, label), every node of an edge once, label the smallest node of its component; rounds).

    Raises:
        IntegrityError: not settled after `MAX_ROUNDS` rounds.
    """
    from pyspark.sql import functions as f  # noqa: PLC0415

    first, second = links.columns
    ends = links.select(f.col(first).alias("u"), f.col(second).alias("v")).where("u <> v")
    loops = links.where(f.col(first) == f.col(second)).select(f.col(first).alias("u"))
    edges = ends.select(f.greatest("u", "v").alias("u"), f.least("u", "v").alias("v")).distinct().localCheckpoint()
    before = None
    for round_ in range(1, MAX_ROUNDS + 1):
        edges = _small_star(_large_star(edges)).localCheckpoint()
        state = edges.agg(f.count("*"), f.sum(f.hash("u", "v").cast("decimal(38,0)"))).first()
        if state == before:
            labels = edges.select(f.col("u").alias("node"), f.col("v").alias("label"))
            roots = edges.select("v").union(loops).distinct()
            roots = roots.select(f.col("v").alias("node"), f.col("v").alias("label"))
            lonely = roots.join(labels.select("node"), "node", "left_anti")
            return labels.union(lonely), round_
        before = state
    raise IntegrityError(f"components did not settle in {MAX_ROUNDS} rounds; the edge list changes while it is read")


def _large_star(edges: DataFrame) -> DataFrame:
    """Hang every larger neighbour of each node on the smallest of the node and its neighbours."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    both = edges.union(edges.select(f.col("v").alias("u"), f.col("u").alias("v")))
    least = both.groupBy("u").agg(f.least(f.col("u"), f.min("v")).alias("m"))
    # of a node's neighbours only the larger ones are moved: those rows are the edges, seen from their smaller end
    larger = edges.select(f.col("v").alias("u"), f.col("u").alias("w"))
    return larger.join(least, "u").select(f.col("w").alias("u"), f.col("m").alias("v")).distinct()


def _small_star(edges: DataFrame) -> DataFrame:
    """Hang every smaller neighbour of each node, and the node, on the smallest of them."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    least = edges.groupBy("u").agg(f.min("v").alias("m"))
    moved = edges.join(least, "u").where("v <> m").select(f.col("v").alias("u"), f.col("m").alias("v"))
    return moved.union(least.select("u", f.col("m").alias("v"))).distinct()
