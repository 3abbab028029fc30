"""Which documents hold the same piece of text, counted on hashes: the shuffle behind repeated sentences and lines."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from refinery.contracts.tables import PART_SHIFT, REPEATS
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.stages.part_tasks import apply_groups
from refinery.stages.session import read_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

STAGE = "dedup_sentences"


@dataclass(frozen=True)
class Copies:
    """Where hashed pieces stand, who may keep them, and where the repeats go."""

    pieces: str
    """Table with the columns ``hash``, ``doc_id`` and those of `order`."""
    repeats: str
    """Table of `REPEATS` that is written."""
    order: tuple[str, ...]
    """Columns by which documents keep their copy, smallest first; ``doc_id`` breaks what ties are left."""
    max_copies: int
    loses: str = "true"
    """SQL condition on the columns of `order`: documents for which it is false are counted, but lose nothing."""


def distinct_pairs(owners: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct (owner, hash), sorted by both; int64 and uint64, shape (pieces,), like what is passed."""
    order = np.lexsort((hashes, owners))  # three to five times as fast as np.unique over rows
    owners, hashes = owners[order], hashes[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(owners) != 0) | (hashes[1:] != hashes[:-1])
    return owners[first], hashes[first]


def ranked_copies(spark: SparkSession, workdir: str, parts: list[int], copies: Copies) -> DataFrame:
    """Return (hash, doc_id, lost, keeper) of every document that holds a piece with more than ``max_copies`` copies."""
    from pyspark.sql import functions as f  # noqa: PLC0415
    from pyspark.sql.window import Window  # noqa: PLC0415

    rows = read_table(spark, workdir, STAGE, copies.pieces, ["hash", "doc_id", *copies.order], parts)
    frequent = rows.groupBy("hash").count().where(f.col("count") > copies.max_copies).select("hash")
    order = Window.partitionBy("hash").orderBy(*copies.order, "doc_id")
    ranked = rows.join(frequent, "hash").withColumn("place", f.row_number().over(order))
    ranked = ranked.withColumn("keeper", f.first("doc_id").over(order))
    lost = (f.col("place") > copies.max_copies) & f.expr(copies.loses)
    return ranked.select("hash", "doc_id", "keeper", lost.alias("lost"))


def write_repeats(ranked: DataFrame, workdir: str, parts: list[int], table: str, fingerprint: str) -> None:
    """Write, per part, which document loses which piece and who keeps it."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    keys = read_table(ranked.sparkSession, workdir, "ingest", "documents", ["doc_id", "doc_key"], parts)
    keys = keys.select(f.col("doc_id").alias("keeper"), f.col("doc_key").alias("because_of"))
    lost = ranked.where("lost").join(keys, "keeper").select("doc_id", "hash", "because_of")
    located_rows = lost.withColumn("part", f.shiftright("doc_id", PART_SHIFT))
    written = apply_groups(located_rows, ["part"], functools.partial(_write_part, workdir, table, fingerprint))
    mine = {r["part"] for r in written}
    for part in part_files.part_numbers(workdir, STAGE, table):
        if part not in mine:
            storage.remove(part_files.part_path(workdir, STAGE, table, part))


def _write_part(workdir: str, table: str, fingerprint: str, rows: pa.Table) -> dict[str, Any]:
    part = rows.column("part")[0].as_py()
    sorted_rows = rows.select(REPEATS.names).sort_by([("doc_id", "ascending"), ("hash", "ascending")])
    part_files.write_part(part_files.part_path(workdir, STAGE, table, part), sorted_rows, REPEATS, fingerprint)
    return {"part": part}


def keepers_of(workdir: str, table: str, part: int) -> dict[tuple[int, int], str]:
    """Return (doc_id, hash) -> key of the document that keeps the piece, of all that documents of a part lose."""
    if not storage.exists(part_files.part_path(workdir, STAGE, table, part)):
        return {}
    rows = part_files.read_part(workdir, STAGE, table, part)
    columns = (rows.column(name).to_pylist() for name in ("doc_id", "hash", "because_of"))
    return {(doc_id, hash_): key for doc_id, hash_, key in zip(*columns, strict=True)}
