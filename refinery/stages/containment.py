"""Which documents stand inside others (a chapter in a book): a report, nothing is dropped or cut.

The containment of A in B is |A and B| / |A| over sets of hashed word n-grams (Broder, "On the resemblance and
containment of documents", 1997). Part tasks sample n-grams by the value of their hash, one in ``sample_every``, so two
documents sample the same ones; n-grams in more than ``max_documents`` documents are boilerplate and find nobody. Spark
counts what pairs share on these narrow rows, and pairs whose sample promises half of what is asked are compared whole.
Documents of all roles and both splits are asked: a training document inside a held-out one is worth knowing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import PartEntry, fingerprint_of
from refinery.contracts.tables import CONTAINMENT, SAMPLED_NGRAMS
from refinery.hashing import splitmix64_array
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.jaccard import pair_common
from refinery.kernels.shingles import FORMAT_VERSION, shingle_sets
from refinery.kernels.text import text_views
from refinery.stages.decisions import located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.repeated_lines import counted_mask
from refinery.stages.repeats import STAGE
from refinery.stages.session import read_table
from refinery.stages.shingle_pairs import ShingleSource, compared_pairs
from refinery.stages.workspace import part_entries

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from refinery.stages.sentence_repeats import SentencesTask
    from refinery.stages.workspace import Run

MAX_SHOWN = 20
"""Pairs on the page: those with most n-grams in common."""
_SLACK_FRAC = 0.5
_PAIR = pa.schema([
    ("a", pa.int64()), ("b", pa.int64()), ("common", pa.int64()), ("a_ngrams", pa.int64()), ("b_ngrams", pa.int64()),
])  # fmt: skip


def find_contained(run: Run, task: SentencesTask, parts: list[int]) -> tuple[dict[str, Any], list[PartEntry]]:
    """Write the containment table; return facts for the report and manifest entries; both empty where it is off."""
    settings = task.settings["containment"]
    if settings == "off":
        return {}, []
    state = fingerprint_of("containment", settings, task.settings["exempt_domains"], sorted(task.upstream.items()))
    sampled = run_part_tasks(run.spark, parts, functools.partial(sample_part, task), run.report_progress(STAGE))
    pairs = _promising_pairs(read_table(
        run.spark, task.workdir, STAGE, "sampled_ngrams", ["hash", "doc_id"], parts
    ), settings).persist()  # fmt: skip
    try:
        num_pairs = pairs.count()
        source = ShingleSource(task.workdir, STAGE, task.upto, task.slice_rows, settings["ngram"], "words", state)
        compare = functools.partial(_contained, settings["min_frac"])
        found = compared_pairs(run, source, pairs, compare, _PAIR) if num_pairs else _PAIR.empty_table()
    finally:
        pairs.unpersist()
    table = _directed(run, task, parts, found)
    path = part_files.part_path(task.workdir, STAGE, "containment", 0)
    written = part_files.write_part(path, table, CONTAINMENT, state)
    splits = pc.not_equal(table.column("a_split"), table.column("b_split"))
    facts = {
        "num_documents": sum(r["num_documents"] for r in sampled),
        "num_compared": num_pairs,
        "num_pairs": table.num_rows,
        "num_contained": len(pc.unique(table.column("a"))),
        "num_across_splits": int(pc.sum(splits).as_py() or 0),
        "most_contained": _shown(table),
    }
    return {"containment": facts}, part_entries("containment", [{"c": located(0, written)}], "c")


def sample_part(task: SentencesTask, part: int) -> dict[str, Any]:
    """Write the sampled n-grams of one part's documents."""
    settings = task.settings["containment"]
    path = part_files.part_path(task.workdir, STAGE, "sampled_ngrams", part)
    identity = [settings[k] for k in ("ngram", "min_ngrams", "sample_every")]
    print_ = fingerprint_of("sampled", FORMAT_VERSION, identity, task.settings["exempt_domains"], task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        tables, asked = [SAMPLED_NGRAMS.empty_table()], 0
        for piece in read_survivors(task.workdir, part, ["doc_id", "domain", "text"], task.upto, task.slice_rows):
            table = piece.table.filter(pa.array(counted_mask(task, piece.table)))
            sets = shingle_sets(text_views(table.column("text")), settings["ngram"], "words")
            sizes = np.diff(sets.offsets)
            large = sizes >= settings["min_ngrams"]
            asked += int(large.sum())
            mine = np.repeat(large, sizes)
            mine &= splitmix64_array(sets.hashes) % np.uint64(settings["sample_every"]) == 0
            ids = np.repeat(table.column("doc_id").to_numpy(), sizes)
            rows = pa.table({"hash": sets.hashes[mine].astype(np.int64), "doc_id": ids[mine]})
            tables.append(rows.cast(SAMPLED_NGRAMS))
        found = part_files.write_part(path, pa.concat_tables(tables), SAMPLED_NGRAMS, print_, {"num_documents": asked})
    return {"num_documents": found.result["num_documents"]}


def _promising_pairs(rows: DataFrame, settings: dict[str, Any]) -> DataFrame:
    """Return (a, b), a < b, of documents that share so many sampled n-grams that one may be inside the other."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    counts = rows.groupBy("hash").agg(f.count("*").alias("documents"))
    rare = rows.join(counts.where(f.col("documents") <= settings["max_documents"]), "hash")
    sizes = rare.groupBy("doc_id").agg(f.count("*").alias("size"))
    shared = rare.where("documents > 1").select("hash", "doc_id")
    left, right = (shared.withColumnRenamed("doc_id", side) for side in ("a", "b"))
    common = left.join(right, "hash").where("a < b").groupBy("a", "b").agg(f.count("*").alias("common"))
    for side in ("a", "b"):
        common = common.join(sizes.select(f.col("doc_id").alias(side), f.col("size").alias(f"{side}_size")), side)
    # A few sampled n-grams say little: one less than promised is let through, and the whole sets decide.
    asked = f.lit(_SLACK_FRAC * settings["min_frac"]) * f.least("a_size", "b_size") - f.lit(1.0)
    return common.where(f.col("common") >= asked).select("a", "b")


def _contained(
    min_frac: float, offsets: np.ndarray, hashes: np.ndarray, left: np.ndarray, right: np.ndarray
) -> dict[str, np.ndarray]:
    common = pair_common(offsets, hashes, left, right)
    sizes = np.diff(offsets)
    a, b = sizes[left], sizes[right]
    return {"common": common, "a_ngrams": a, "b_ngrams": b, "keep": common >= min_frac * np.minimum(a, b)}


def _directed(run: Run, task: SentencesTask, parts: list[int], pairs: pa.Table) -> pa.Table:
    """Return the containment table: `a` is the smaller set, or the smaller key of equal ones; in the order of keys."""
    ids = np.unique(np.concatenate([pairs.column("a").to_numpy(), pairs.column("b").to_numpy()]))
    if not len(ids):
        return CONTAINMENT.empty_table()
    columns = ["doc_id", "doc_key", "split"]
    documents = read_table(run.spark, task.workdir, "ingest", "documents", columns, parts)
    named = documents.join(run.spark.createDataFrame(pa.table({"doc_id": ids})), "doc_id").toArrow()
    known = {row["doc_id"]: row for row in named.select(columns).to_pylist()}
    rows = []
    for pair in pairs.to_pylist():
        sides = [(pair[f"{s}_ngrams"], known[pair[s]]["doc_key"], pair[s]) for s in ("a", "b")]
        (size, key, a), (other_size, other_key, b) = sorted(sides)
        rows.append(
            {
                "a": a, "b": b, "a_key": key, "b_key": other_key, "a_split": known[a]["split"],
                "b_split": known[b]["split"], "containment": pair["common"] / size,
                "jaccard": pair["common"] / (size + other_size - pair["common"]), "a_ngrams": size,
                "b_ngrams": other_size,
            }
        )  # fmt: skip
    rows.sort(key=lambda row: (row["a_key"], row["b_key"]))
    return pa.Table.from_pylist(rows, schema=CONTAINMENT)


def _shown(table: pa.Table) -> list[dict[str, Any]]:
    """Return the pairs with most n-grams in common; doc_ids, which depend on the partitioning, stay out of facts."""
    rows = table.drop_columns(["a", "b"]).to_pylist()
    rows.sort(key=lambda r: (-r["containment"] * r["a_ngrams"], r["a_key"], r["b_key"]))
    return rows[:MAX_SHOWN]
