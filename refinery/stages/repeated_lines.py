"""The lines of dedup_sentences: exact repeats of lines or paragraphs across documents, in the manner of CCNet.

Part tasks hash the lines of all documents; Spark counts documents per hash. Held-out, target and replay documents are
counted and keep theirs; a pool document loses a line once ``max_copies`` documents before it hold the same one. The
order is that of document dedup: validation, target, replay, pool, then quality where it was scored, then the key.
Sentences are compared afterwards, on what the lines left.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import CUTS, LINES
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.lines import FORMAT_VERSION, line_spans
from refinery.kernels.text import text_views
from refinery.stages.decisions import located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.repeats import STAGE, Copies, distinct_pairs, keepers_of, ranked_copies, write_repeats

if TYPE_CHECKING:
    from refinery.stages.sentence_repeats import SentencesTask
    from refinery.stages.workspace import Run

MAX_SHOWN = 20
"""Lines on the page: the most repeated ones."""
SHOWN_CHARS = 160
_ROLES = {"target": 1, "replay": 2, "pool": 3}
_POOL = 3 << 32
"""Lowest `rank` of documents that may lose lines."""
_ROW = 0xFFFFFFFF
Spans = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(rows, starts, ends) of cuts in one part."""


def cut_lines(run: Run, task: SentencesTask, parts: list[int]) -> dict[str, Any]:
    """Write the line cuts of all parts and return facts for the report; nothing where the recipe has lines off."""
    settings = task.settings["lines"]
    if settings == "off":
        return {}
    progress = run.report_progress(STAGE)
    hashed = run_part_tasks(run.spark, parts, functools.partial(lines_part, task), progress)
    copies = Copies("lines", "line_repeats", ("rank", "tie"), settings["max_copies"], f"rank >= {_POOL}")
    ranked = ranked_copies(run.spark, task.workdir, parts, copies).persist()
    try:
        write_repeats(ranked, task.workdir, parts, copies.repeats, task.line_state)
        counted = ranked.groupBy("hash").agg({"doc_id": "count", "lost": "bool_or"}).where("`bool_or(lost)`")
        counted = counted.withColumnRenamed("count(doc_id)", "documents")
        num_repeated = counted.count()
        top = counted.orderBy(counted.documents.desc(), "hash").limit(MAX_SHOWN).collect()
    finally:
        ranked.unpersist()
    shown = {int(row["hash"]): int(row["documents"]) for row in top}
    results = run_part_tasks(run.spark, parts, functools.partial(line_cuts_part, task, sorted(shown)))
    texts: dict[int, str] = {}
    for result in results:
        for hash_, text in result["texts"].items():
            texts[int(hash_)] = min(text, texts.get(int(hash_), text))
    return {
        "lines": {
            "unit": settings["unit"],
            "num_lines": sum(r["lines"]["rows"] for r in hashed),
            "num_repeated": num_repeated,
            "num_spans": sum(r["line_cuts"]["rows"] for r in results),
            "most_repeated": [{"documents": n, "text": texts[h]} for h, n in shown.items()],
        }
    }


def lines_part(task: SentencesTask, part: int) -> dict[str, Any]:
    """Write the distinct line hashes of one part's surviving documents, with their place in the keep order."""
    settings = task.settings["lines"]
    path = part_files.part_path(task.workdir, STAGE, "lines", part)
    identity = [settings["unit"], settings["min_letters"], task.settings["exempt_domains"], FORMAT_VERSION]
    print_ = fingerprint_of("lines", identity, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        tables = [LINES.empty_table()]
        scores = None
        if "quality" in task.upto:
            scores = part_files.read_part(task.workdir, "quality", "quality", part, ["score"]).column("score")
        columns = ["doc_id", "doc_key", "role", "domain", "split", "text"]
        for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
            quality = scores.take(pa.array(piece.rows)) if scores is not None else None
            ranks = _ranks(piece.table, quality)
            mine = counted_mask(task, piece.table)
            tables.append(_line_rows(piece.table.filter(pa.array(mine)), ranks[mine], settings))
        found = part_files.write_part(path, pa.concat_tables(tables), LINES, print_)
    return {"lines": located(part, found)}


def counted_mask(task: SentencesTask, table: pa.Table) -> np.ndarray:
    """Return bool, shape (rows,): documents of any role, but of no exempt domain."""
    exempt = pa.array(task.settings["exempt_domains"], pa.string())
    return ~pc.is_in(table.column("domain"), exempt).to_numpy(zero_copy_only=False)


def _ranks(table: pa.Table, quality: pa.ChunkedArray | None) -> np.ndarray:
    """Return int64 that sorts documents as dedup keeps them: role and split above, quality below, unscored last."""
    roles = np.array([_ROLES[role] for role in table.column("role").to_pylist()], dtype=np.int64)
    held_out = pc.equal(table.column("split"), "validation").to_numpy(zero_copy_only=False)
    worst = np.full(table.num_rows, _ROW, dtype=np.int64)
    if quality is not None:
        scores = quality.fill_null(-1.0).to_numpy().astype(np.float64)
        worst = np.where(scores >= 0, np.rint((1.0 - scores) * 2.0**31), worst).astype(np.int64)
    return (np.where(held_out, 0, roles) << 32) | worst


def _line_rows(table: pa.Table, ranks: np.ndarray, settings: dict[str, Any]) -> pa.Table:
    spans = line_spans(text_views(table.column("text")), settings["unit"])
    owner = np.repeat(np.arange(table.num_rows), np.diff(spans.doc_offsets))
    long = spans.num_letters >= settings["min_letters"]
    docs, hashes = distinct_pairs(owner[long], spans.hashes[long])
    keys = key_prefix_uint64(table.column("doc_key").to_pylist())
    ties = (keys ^ np.uint64(1 << 63)).view(np.int64)  # signed order is that of the keys
    return pa.table(
        {
            "hash": hashes.view(np.int64),
            "doc_id": table.column("doc_id").to_numpy()[docs],
            "tie": ties[docs],
            "rank": ranks[docs],
        }
    ).cast(LINES)


def line_cuts_part(task: SentencesTask, shown: list[int], part: int) -> dict[str, Any]:
    """Write the lines that one part's documents lose; return how the lines to show read here."""
    path = part_files.part_path(task.workdir, STAGE, "line_cuts", part)
    print_ = fingerprint_of("line_cuts", task.line_state, shown, part)
    found = part_files.found_part(path, print_)
    if found is None:
        settings = task.settings["lines"]
        keepers = keepers_of(task.workdir, "line_repeats", part)
        wanted = pa.array(sorted({doc_id for doc_id, _ in keepers}), pa.int64())
        rows: list[tuple[int, int, int, str]] = []
        texts: dict[int, str] = {}
        for piece in read_survivors(task.workdir, part, ["doc_id", "text"], task.upto, task.slice_rows):
            table = piece.table.filter(pc.is_in(piece.table.column("doc_id"), wanted))
            views = text_views(table.column("text"))
            spans = line_spans(views, settings["unit"])
            owners = np.repeat(np.arange(table.num_rows), np.diff(spans.doc_offsets))
            ids = table.column("doc_id").to_numpy()[owners]
            for at in np.flatnonzero(spans.num_letters >= settings["min_letters"]).tolist():
                hash_ = int(spans.hashes[at].astype(np.int64))
                because_of = keepers.get((int(ids[at]), hash_))
                if because_of is None:
                    continue
                rows.append((int(ids[at]), int(spans.starts[at]), int(spans.ends[at]), because_of))
                if hash_ in shown:
                    first = views.offsets[owners[at]]
                    raw = bytes(views.data[first + spans.starts[at] : first + spans.ends[at]])
                    text = raw.decode().strip()[:SHOWN_CHARS]
                    texts[hash_] = min(text, texts.get(hash_, text))
        found = part_files.write_part(path, cuts_table(rows, settings["unit"]), CUTS, print_, {"texts": texts})
    return {"texts": found.result["texts"], "line_cuts": located(part, found)}


def cuts_of_lines(task: SentencesTask, part: int) -> pa.Table:
    """Return the line cuts of one part; empty where the recipe has lines off."""
    if task.settings["lines"] == "off":
        return CUTS.empty_table()
    return part_files.read_part(task.workdir, STAGE, "line_cuts", part)


def spans_of_cuts(cuts: pa.Table) -> Spans:
    """Return cuts as the arrays that `refinery.kernels.cuts.touched` takes."""
    return (
        cuts.column("doc_id").to_numpy() & _ROW,
        cuts.column("start").to_numpy(),
        cuts.column("end").to_numpy(),
    )


def cuts_table(rows: list[tuple[int, int, int, str]], reason: str) -> pa.Table:
    """Build a cuts table of (doc_id, start, end, because_of) rows."""
    doc_ids, starts, ends, because = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "doc_id": pa.array(doc_ids, pa.int64()),
            "start": pa.array(starts, pa.int64()),
            "end": pa.array(ends, pa.int64()),
            "stage": pa.array([STAGE] * len(rows), pa.string()),
            "reason": pa.array([f"{STAGE}.{reason}"] * len(rows), pa.string()),
            "because_of": pa.array(because, pa.string()),
        }
    ).cast(CUTS)
