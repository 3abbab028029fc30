"""The exact half of dedup_sentences: which sentences, and runs of them, stand in more documents than may keep them.

Text is read once: a part task writes the layout of every sentence (span, hash, white space behind it) and the distinct
hashes per document. Spark counts documents per hash and ranks the holders by the keep policy; everything after that
works on the layout, without text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import LAYOUT, PART_SHIFT, SENTENCE_REPEATS, SENTENCES
from refinery.hashing import splitmix64_array
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import read_survivors
from refinery.kernels.cuts import touched
from refinery.kernels.sentence_joins import SentenceLayout, sentence_layout
from refinery.kernels.sentences import (
    RepeatUnits,
    SentenceHashes,
    SentenceSpans,
    normalised_hash,
    repeat_units,
    sentence_spans,
)
from refinery.kernels.text import text_views
from refinery.stages.decisions import located
from refinery.stages.part_tasks import apply_groups
from refinery.stages.repeated_lines import cuts_of_lines, spans_of_cuts
from refinery.stages.session import read_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

STAGE = "dedup_sentences"
LAYOUT_VERSION = 3


@dataclass(frozen=True)
class SentencesTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    """The recipe's section; ``keep`` is filled in, ``sources`` lists the inputs in order."""
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    line_state: str = ""
    """Names the state of the line cuts, which sentences depend on; empty where lines are off."""
    model_state: str = ""
    """What the vectors are a function of beside the text: hash of the model's files; empty where embeddings are off."""


class PartLayout(NamedTuple):
    """The sentences of one part's pool documents."""

    doc_ids: np.ndarray
    """int64, shape (S,): the document of each sentence; ascending."""
    spans: SentenceSpans
    """Of the documents that have sentences, in order."""
    hashes: np.ndarray
    """uint64, shape (S,)."""
    words: np.ndarray
    """int32, shape (S,)."""
    layout: SentenceLayout


class Causes(NamedTuple):
    """Which sentences of a part repeat which: C rows, sorted by sentence, one per sentence."""

    sentence: np.ndarray
    """int64, shape (C,): index into the layout."""
    exact: np.ndarray
    """bool, shape (C,): True for an exact repeat, False for one of the same meaning."""
    because_of: np.ndarray
    """object, shape (C,): doc_key of the document that keeps it."""
    because_doc: np.ndarray
    """int64, shape (C,): its doc_id."""
    because_start: np.ndarray
    """int64, shape (C,): what it keeps: the sentence, or the run of sentences."""
    because_end: np.ndarray
    """int64, shape (C,)."""
    similarity: np.ndarray
    """float64, shape (C,): to what is kept; 1 for an exact repeat."""


def pool_mask(settings: dict[str, Any], table: pa.Table) -> pa.ChunkedArray:
    """Return which documents may lose sentences: pool, train split, and of no exempt domain."""
    exempt = pc.is_in(table.column("domain"), pa.array(settings["exempt_domains"], pa.string()))
    pool = pc.and_(pc.equal(table.column("role"), "pool"), pc.equal(table.column("split"), "train"))
    return pc.and_(pool, pc.invert(exempt))


def _units(settings: dict[str, Any], hashes: np.ndarray, words: np.ndarray, doc_offsets: np.ndarray) -> RepeatUnits:
    return repeat_units(
        hashes, words, doc_offsets,
        exact=settings["exact"], min_words=settings["min_words"], window=settings["window_sentences"],
    )  # fmt: skip


def layout_part(task: SentencesTask, part: int) -> dict[str, Any]:
    """Write the sentences of one part's surviving pool documents, and the distinct hashes of what can repeat."""
    names = ("layout", "sentences")
    paths = [part_files.part_path(task.workdir, STAGE, name, part) for name in names]
    identity = [task.settings[k] for k in ("exact", "window_sentences", "min_words", "exempt_domains")]
    print_ = fingerprint_of("sentences", LAYOUT_VERSION, identity, task.upstream[part], task.line_state)
    found = [part_files.found_part(path, print_) for path in paths]
    if all(found):
        return {name: located(part, file) for name, file in zip(names, found, strict=True) if file}
    layouts, counted = [LAYOUT.empty_table()], [SENTENCES.empty_table()]
    columns = ["doc_id", "role", "domain", "split", "text"]
    lines = spans_of_cuts(cuts_of_lines(task, part))
    for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
        table = piece.table.filter(pool_mask(task.settings, piece.table))
        views = text_views(table.column("text"))
        spans = sentence_spans(views)
        ids = table.column("doc_id").to_numpy()
        owners = np.repeat(ids, np.diff(spans.doc_offsets))
        gone = touched(owners & ((1 << PART_SHIFT) - 1), spans.starts, spans.ends, lines)
        hashes, words, layout = _without(
            gone, owners, spans, normalised_hash(views, spans), sentence_layout(views, spans)
        )
        columns_of = {
            "doc_id": owners, "start": spans.starts, "end": spans.ends, "hash": hashes.view(np.int64), "words": words,
            **layout._asdict(),
        }  # fmt: skip
        layouts.append(pa.table(columns_of).cast(LAYOUT))
        units = _units(task.settings, hashes, words, spans.doc_offsets)
        order = np.lexsort((units.first, units.hashes, units.owner))
        owner, value = units.owner[order], units.hashes[order]
        first = order[np.r_[True, (owner[1:] != owner[:-1]) | (value[1:] != value[:-1])][: len(order)]]
        columns_of = {
            "hash": units.hashes[first].view(np.int64), "doc_id": ids[units.owner[first]],
            "start": spans.starts[units.first[first]], "end": spans.ends[units.first[first] + units.size[first] - 1],
        }  # fmt: skip
        counted.append(pa.table(columns_of).cast(SENTENCES))
    written = {}
    for name, path, tables, schema in zip(names, paths, (layouts, counted), (LAYOUT, SENTENCES), strict=True):
        written[name] = located(part, part_files.write_part(path, pa.concat_tables(tables), schema, print_))
    return written


def _without(
    gone: np.ndarray, owners: np.ndarray, spans: SentenceSpans, hashed: SentenceHashes, layout: SentenceLayout
) -> tuple[np.ndarray, np.ndarray, SentenceLayout]:
    """Make sentences of which a line is cut already into ones that repeat nothing and that no join touches."""
    alone = splitmix64_array(owners.view(np.uint64) ^ splitmix64_array(spans.starts.view(np.uint64)))
    hashes = np.where(gone, alone, hashed.hashes)
    words = np.where(gone, 0, hashed.num_words).astype(np.int32)
    space, newlines = np.where(gone, 0, layout.space), np.where(gone, 2, layout.newlines)
    return hashes, words, SentenceLayout(space.astype(np.int32), newlines.astype(np.int8), layout.leans & ~gone)


def read_layout(workdir: str, part: int) -> PartLayout:
    """Read what `layout_part` wrote.

    Raises:
        IntegrityError: the part is missing or damaged.
    """
    table = part_files.read_part(workdir, STAGE, "layout", part)
    columns = {name: table.column(name).to_numpy() for name in table.column_names if name != "leans"}
    doc_ids = columns["doc_id"]
    bounds = np.flatnonzero(np.diff(doc_ids)) + 1
    offsets = np.concatenate([[0], bounds, [len(doc_ids)]]) if len(doc_ids) else np.zeros(1)
    leans = table.column("leans").to_numpy(zero_copy_only=False)
    return PartLayout(
        doc_ids,
        SentenceSpans(offsets.astype(np.int64), columns["start"], columns["end"]),
        columns["hash"].view(np.uint64),
        columns["words"],
        SentenceLayout(columns["space"], columns["newlines"].astype(np.int8), leans),
    )


def sentence_texts(task: SentencesTask, part: int, table: pa.Table) -> list[str]:
    """Read the text of some sentences of one part, in their order.

    Args:
        task: the stage's task.
        part: part number.
        table: columns doc_id, start and end; ascending by doc_id.
    """
    ids, starts, ends = (table.column(c).to_numpy() for c in ("doc_id", "start", "end"))
    wanted = pa.array(np.unique(ids))
    texts: list[str] = []
    for piece in read_survivors(task.workdir, part, ["doc_id", "text"], task.upto, task.slice_rows):
        mine = piece.table.filter(pc.is_in(piece.table.column("doc_id"), wanted))
        for doc_id, text in zip(*(mine.column(c).to_pylist() for c in ("doc_id", "text")), strict=True):
            raw = text.encode()
            first, last = np.searchsorted(ids, doc_id), np.searchsorted(ids, doc_id, side="right")
            texts.extend(raw[a:b].decode() for a, b in zip(starts[first:last], ends[first:last], strict=True))
    return texts


def order_columns(spark: SparkSession, task: SentencesTask, parts: Sequence[int]) -> DataFrame:
    """Return what the keep policy looks at, one row per document: doc_id, doc_key, and columns by which it orders."""
    from pyspark.sql import functions as f  # noqa: PLC0415

    columns = ["doc_id", "doc_key", "num_bytes", "date", "source"]
    docs = read_table(spark, task.workdir, "ingest", "documents", columns, parts)
    sources = task.settings["sources"]
    rank = f.array_position(f.array(*(f.lit(source) for source in sources)), f.col("source"))
    docs = docs.withColumn("source_rank", rank).withColumn("priority", f.lit(0).cast("long")).drop("source")
    if "quality" in task.settings["keep"]:
        scores = read_table(spark, task.workdir, "quality", "quality", ["doc_id", "score"], parts)
        return docs.join(scores.withColumnRenamed("score", "quality"), "doc_id", "left")
    return docs.withColumn("quality", f.lit(None).cast("float"))


def write_repeats(spark: SparkSession, task: SentencesTask, parts: list[int], gone: np.ndarray, print_: str) -> None:
    """Write, per part, which document loses which sentence or run, and who keeps it.

    Args:
        spark: the session.
        task: the stage's task.
        parts: part numbers.
        gone: int64: documents that leave whole; they neither keep nor count.
        print_: fingerprint of what is written.
    """
    from pyspark.sql import functions as f  # noqa: PLC0415
    from pyspark.sql.window import Window  # noqa: PLC0415

    rows = read_table(spark, task.workdir, STAGE, "sentences", SENTENCES.names, parts)
    if len(gone):
        rows = rows.join(spark.createDataFrame(pa.table({"doc_id": gone})), "doc_id", "left_anti")
    copies = task.settings["max_copies"]
    frequent = rows.groupBy("hash").count().where(f.col("count") > copies).select("hash")
    holders = rows.join(frequent, "hash").join(order_columns(spark, task, parts), "doc_id")
    keys = {
        "quality": f.col("quality").desc_nulls_last(),
        "longest": f.col("num_bytes").desc(),
        "newest": f.col("date").desc_nulls_last(),
        "source_order": f.col("source_rank"),
        "smallest_key": f.col("doc_key"),
    }
    order = Window.partitionBy("hash").orderBy(*(keys[rule] for rule in task.settings["keep"]), f.col("doc_key"))
    kept = f.struct(f.col("doc_key"), f.col("doc_id"), f.col("start"), f.col("end"))
    ranked = holders.withColumn("place", f.row_number().over(order)).withColumn("kept", f.first(kept).over(order))
    lost = ranked.where(f.col("place") > copies).select(
        "doc_id",
        "hash",
        f.col("kept.doc_key").alias("because_of"),
        f.col("kept.doc_id").alias("because_doc"),
        f.col("kept.start").alias("because_start"),
        f.col("kept.end").alias("because_end"),
        f.shiftright("doc_id", PART_SHIFT).alias("part"),
    )
    written = apply_groups(lost, ["part"], functools.partial(_write_part_repeats, task.workdir, print_))
    mine = {r["part"] for r in written}
    for part in part_files.part_numbers(task.workdir, STAGE, "sentence_repeats"):
        if part not in mine:
            storage.remove(part_files.part_path(task.workdir, STAGE, "sentence_repeats", part))


def _write_part_repeats(workdir: str, print_: str, table: pa.Table) -> dict[str, Any]:
    part = table.column("part")[0].as_py()
    rows = table.select(SENTENCE_REPEATS.names).sort_by([("doc_id", "ascending"), ("hash", "ascending")])
    part_files.write_part(
        part_files.part_path(workdir, STAGE, "sentence_repeats", part), rows, SENTENCE_REPEATS, print_
    )
    return {"part": part}


def exact_causes(task: SentencesTask, part: int, layout: PartLayout) -> Causes:
    """Return which sentences of a part go because they, or a run that they are in, repeat."""
    path = part_files.part_path(task.workdir, STAGE, "sentence_repeats", part)
    if not storage.exists(path) or not (task.settings["exact"] or task.settings["window_sentences"]):
        return no_causes()
    repeats = part_files.read_part(task.workdir, STAGE, "sentence_repeats", part)
    units = _units(task.settings, layout.hashes, layout.words, layout.spans.doc_offsets)
    ours = pa.table(
        {
            "doc_id": layout.doc_ids[units.first],
            "hash": units.hashes.view(np.int64),
            "first": units.first,
            "size": units.size,
        }
    )
    found = ours.join(repeats, ["doc_id", "hash"], join_type="inner").combine_chunks()
    first, size = found.column("first").to_numpy(), found.column("size").to_numpy()
    row = np.repeat(np.arange(len(first)), size)
    step = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    sentence = first[row] + step
    order = np.lexsort((first[row], size[row], sentence))  # its own repeat before a run's, the earlier run first
    _, pick = np.unique(sentence[order], return_index=True)
    chosen = order[pick]
    kept = found.take(pa.array(row[chosen]))
    places = [kept.column(c).to_numpy() for c in ("because_doc", "because_start", "because_end")]
    return Causes(
        sentence[chosen],
        np.ones(len(chosen), dtype=bool),
        kept.column("because_of").to_numpy(zero_copy_only=False),
        places[0],
        places[1],
        places[2],
        np.ones(len(chosen)),
    )


def no_causes() -> Causes:
    """Return causes of nothing."""
    none = np.empty(0, dtype=np.int64)
    return Causes(none, np.empty(0, dtype=bool), np.empty(0, dtype=object), none, none, none, np.empty(0))
