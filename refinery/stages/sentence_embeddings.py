"""The embedding half of dedup_sentences: which sentences say the same, verified and guarded.

Part tasks embed sentences of known languages and write vectors beside their text; the driver sorts them into coarse
cells, compares inside cells, asks the guard (numbers, negations, duties, names), and keeps greedily in an order by
identity. Bounded by ``max_sentences``: about 2 kB of memory each.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import PART_SHIFT, VECTORS
from refinery.hashing import key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.components import greedy_keep
from refinery.kernels.cuts import touched
from refinery.kernels.sentence_guard import veto
from refinery.kernels.sentences import normalised_hash, sentence_spans
from refinery.kernels.text import text_views
from refinery.stages.decisions import located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.repeated_lines import Spans, cuts_of_lines, spans_of_cuts

if TYPE_CHECKING:
    from refinery.stages.dedup_sentences import SentencesTask
    from refinery.stages.workspace import Run

STAGE = "dedup_sentences"
SIMILAR = "similar"
VECTORS_VERSION = 1
LANGUAGE_SAMPLE = 200
"""Sentences on which a model's knowledge of a language is checked."""
_CELL_ROWS = 2000


def similar_sentences(
    run: Run, task: SentencesTask, parts: list[int]
) -> tuple[dict[int, list[list[Any]]], dict[str, Any]]:
    """Return, per part, the sentences that go as [doc_id, start, end, because_of], and facts for the report.

    Raises:
        ConfigError: the model is missing, or does not know a language that it is asked for.
    """
    settings = task.settings["embeddings"]
    if settings == "off":
        return {}, {}
    counted = run_part_tasks(run.spark, parts, functools.partial(count_part, task))
    total = sum(r["sentences"] for r in counted)
    rate = min(1.0, settings["max_sentences"] / max(total, 1))
    run_part_tasks(run.spark, parts, functools.partial(vectors_part, task, rate), run.report_progress(STAGE))
    tables = [part_files.read_part(task.workdir, STAGE, "vectors", p) for p in parts]
    table = pa.concat_tables(tables)
    removed, facts = _compare(table, settings, task.seed)
    facts |= {"num_sentences": total, "num_embedded": table.num_rows, "model": settings["model"]}
    by_part: dict[int, list[list[Any]]] = {}
    for row in removed:
        by_part.setdefault(row[0] >> PART_SHIFT, []).append(row)
    return by_part, {"embeddings": facts}


def pool_mask(settings: dict[str, Any], table: pa.Table) -> pa.ChunkedArray:
    """Return which documents may lose sentences: pool, train split, and of no exempt domain."""
    exempt = pc.is_in(table.column("domain"), pa.array(settings["exempt_domains"], pa.string()))
    pool = pc.and_(pc.equal(table.column("role"), "pool"), pc.equal(table.column("split"), "train"))
    return pc.and_(pool, pc.invert(exempt))


def _chosen(task: SentencesTask, table: pa.Table, rate: float, lines: Spans) -> pa.Table:
    """Return the sentences of pool documents that are known, neither short nor long, and drawn by document.

    Sentences of which a line is cut already are left out.
    """
    settings = task.settings["embeddings"]
    pool = pool_mask(task.settings, table)
    known = pc.is_in(table.column("lang"), pa.array(settings["languages"], pa.string()))
    drawn = keyed_uniform(task.seed, "sentences", key_prefix_uint64(table.column("doc_key").to_pylist())) < rate
    table = table.filter(pc.and_(pc.and_(pool, known), pa.array(drawn)))
    views = text_views(table.column("text"))
    spans = sentence_spans(views)
    owners = np.repeat(np.arange(table.num_rows), np.diff(spans.doc_offsets))
    words = normalised_hash(views, spans).num_words
    gone = touched(table.column("doc_id").to_numpy()[owners] & 0xFFFFFFFF, spans.starts, spans.ends, lines)
    good = np.flatnonzero((words >= settings["min_words"]) & (words <= settings["max_words"]) & ~gone)
    first = views.offsets[:-1][owners[good]]
    starts, ends = spans.starts[good], spans.ends[good]
    texts = [bytes(views.data[f + s : f + e]).decode() for f, s, e in zip(first, starts, ends, strict=True)]
    docs = pa.array(owners[good])
    return pa.table(
        {
            "doc_id": table.column("doc_id").take(docs),
            "doc_key": table.column("doc_key").take(docs),
            "lang": table.column("lang").take(docs),
            "start": starts,
            "end": ends,
            "text": pa.array(texts, pa.large_string()),
        }
    )


_COLUMNS = ("doc_id", "doc_key", "role", "domain", "split", "lang", "text")


def count_part(task: SentencesTask, part: int) -> dict[str, Any]:
    """Count the sentences of one part that could be embedded."""
    pieces = read_survivors(task.workdir, part, _COLUMNS, task.upto, task.slice_rows)
    lines = spans_of_cuts(cuts_of_lines(task, part))
    return {"sentences": sum(_chosen(task, p.table, 1.0, lines).num_rows for p in pieces)}


def vectors_part(task: SentencesTask, rate: float, part: int) -> dict[str, Any]:
    """Embed the chosen sentences of one part; the batches are a function of the part alone."""
    settings = task.settings["embeddings"]
    path = part_files.part_path(task.workdir, STAGE, "vectors", part)
    identity = [settings, task.settings["exempt_domains"], rate, task.seed, task.line_state]
    print_ = fingerprint_of("vectors", VECTORS_VERSION, identity, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        pieces = read_survivors(task.workdir, part, _COLUMNS, task.upto, task.slice_rows)
        lines = spans_of_cuts(cuts_of_lines(task, part))
        chosen = [_chosen(task, piece.table, rate, lines) for piece in pieces]
        table = pa.concat_tables(chosen) if chosen else VECTORS.empty_table()
        vectors = _embed(settings, table) if table.num_rows else np.empty((0, 1), np.float32)
        raw = [row.tobytes() for row in vectors.astype("<f4")]
        columns = {name: table.column(name) for name in ("doc_id", "doc_key", "start", "end", "text")}
        whole = pa.table({**columns, "vector": pa.array(raw, pa.large_binary())})
        found = part_files.write_part(path, whole, VECTORS, print_)
    return {"vectors": located(part, found)}


def _embed(settings: dict[str, Any], table: pa.Table) -> np.ndarray:
    from refinery.gpu.embed import open_embedder  # noqa: PLC0415 - torch is loaded only where embeddings are on

    embedder = open_embedder(settings["model"], settings["device"])
    texts = table.column("text").to_pylist()
    languages = table.column("lang").to_pylist()
    for language in sorted(set(languages)):
        sample = [t for t, lang in zip(texts, languages, strict=True) if lang == language][:LANGUAGE_SAMPLE]
        embedder.check_language(language, sample)
    return embedder.encode(texts)


def _compare(table: pa.Table, settings: dict[str, Any], seed: int) -> tuple[list[list[Any]], dict[str, Any]]:
    """Return the sentences that go, and how many pairs were found and vetoed."""
    from refinery.gpu.kmeans import assign_cells, spherical_kmeans  # noqa: PLC0415
    from refinery.gpu.neighbours import pairs_in_cells  # noqa: PLC0415

    if table.num_rows < 2:
        return [], {"num_pairs": 0, "num_vetoed": 0, "num_removed": 0}
    flat = np.frombuffer(b"".join(table.column("vector").to_pylist()), dtype="<f4")
    vectors = flat.reshape(table.num_rows, -1)
    num_cells = max(1, table.num_rows // _CELL_ROWS)
    probes = min(2, num_cells)  # near a border a copy can fall into the next cell
    centroids = spherical_kmeans(vectors, num_cells, seed=seed % 2**31)
    cells = assign_cells(vectors, centroids, num_probe=probes, device=settings["device"])
    found = pairs_in_cells(vectors, cells, settings["similarity"], device=settings["device"])
    doc_ids = table.column("doc_id").to_numpy()
    texts = table.column("text").to_pylist()
    across = np.flatnonzero(doc_ids[found.left] != doc_ids[found.right])
    allowed = np.array(
        [veto(texts[a], texts[b]) == 0 for a, b in zip(found.left[across], found.right[across], strict=True)],
        dtype=bool,
    )
    edges = across[allowed] if len(across) else across
    keys = table.column("doc_key").to_pylist()
    starts = table.column("start").to_numpy()
    order = np.lexsort((starts, np.array(keys)))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    made = greedy_keep(rank, found.left[edges], found.right[edges], found.similarity[edges].astype(np.float64))
    ends = table.column("end").to_numpy()
    gone = np.flatnonzero(~made.keep)
    rows: list[list[Any]] = [[int(doc_ids[i]), int(starts[i]), int(ends[i]), keys[made.because_of[i]]] for i in gone]
    facts = {"num_pairs": len(across), "num_vetoed": int((~allowed).sum()), "num_removed": len(gone)}
    return rows, facts
