"""decontaminate: what of the evaluation sets stands in the documents, with the evidence, and out it goes.

First part tasks write where n-grams of the evals stand (``matches``) and in how many documents each (``frequencies``).
The driver adds up: n-grams that the corpus is full of do not count. Then part tasks make hits of matches, and of hits
cuts and decisions, from numbers alone: another bound or policy never reads text again. Held-out documents are neither
scanned nor touched.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import CUTS, DECISIONS, FREQUENCIES, HITS, MATCHES
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_cuts, read_labels, read_survivors
from refinery.kernels.contamination import Matches
from refinery.kernels.contamination_hits import HitBounds, Hits, document_frequencies, find_hits
from refinery.kernels.contamination_scan import find_matches
from refinery.kernels.cuts import merged_spans, minus_spans, to_original
from refinery.kernels.text import text_views
from refinery.stages.decisions import decisions_table, located
from refinery.stages.decontaminate_index import (
    ITEMS_PART,
    EvalIndex,
    IndexSettings,
    UnitIndex,
    eval_warnings,
    indexed_counts,
    items_digest,
    read_evals,
    stored_index,
    write_items,
)
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.tallies import TALLY_COLUMNS, tally, tally_cuts
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)

NAME = "decontaminate"
ALGORITHM_VERSION = 1
SPAN, CONTAMINATED, MOSTLY = f"{NAME}.span", f"{NAME}.contaminated", f"{NAME}.mostly_eval"
_ROW = 0xFFFFFFFF


@dataclass(frozen=True)
class DecontaminateTask:
    """Everything a part task of this stage needs."""

    workdir: str
    settings: dict[str, Any]
    index_settings: IndexSettings
    digest: str
    """Names the state of the items that the index is built from."""
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]

    def index(self) -> EvalIndex:
        """Return the index, built once per process."""
        return stored_index(self.workdir, self.digest, self.index_settings)


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Find the evals in the documents and do what the policy says.

    Raises:
        ConfigError: no decontaminate section; an eval is missing, empty, unreadable or yields no n-gram.
    """
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.decontaminate
    if section is None:
        raise ConfigError(
            "the recipe has no decontaminate section; `decontaminate: {evals: [evals/*.jsonl]}` is enough"
        )
    upto, upstream, seen = upstream_of(run_, NAME)
    items, files = read_evals(section)
    index_settings = IndexSettings(section.ngram, section.min_item_words, section.min_item_bytes)
    digest = items_digest(items, index_settings)
    settings = section.model_dump(mode="json", exclude={"evals"})
    recipe_slice = {**settings, "evals": list(dict.fromkeys(items.column("eval").to_pylist())), "items": digest}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    items_file = write_items(recipe.workdir, items, digest)
    task = DecontaminateTask(recipe.workdir, settings, index_settings, digest, upto, run_.slice_rows, seen)
    index = task.index()
    indexed_counts(index, np.empty(0, np.int64))  # an eval without n-grams is refused before any work
    parts = sorted(seen)
    progress = run_.report_progress(NAME)
    scanned = run_part_tasks(run_.spark, parts, functools.partial(matches_part, task), progress)
    common = _common_ngrams(task, parts, index.num_ngrams, sum(r["num_docs"] for r in scanned))
    work = functools.partial(hits_part, task, fingerprint, common)
    results = run_part_tasks(run_.spark, parts, work, progress)
    eval_facts = _eval_facts(task, index, common, results)
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, upstream[-1].counts, counts)
    tables = [part_entries("items", [{"items": located(ITEMS_PART, items_file)}], "items")]
    tables += [part_entries(t, scanned, t) for t in ("matches", "frequencies")]
    tables += [part_entries(t, results, t) for t in ("hits", "cuts", "decisions")]
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[entry for entries in tables for entry in entries],
        counts=counts,
        facts={
            "evals": eval_facts,
            "num_docs_scanned": sum(r["num_docs"] for r in scanned),
            "num_hits": sum(r["hits"]["rows"] for r in results),
            "num_cuts": sum(r["cuts"]["rows"] for r in results),
            "pairs_below_bounds": sum(r["pairs_below_bounds"] for r in results),
            "index_bytes": index.num_bytes,
            "warnings": eval_warnings(recipe, files, eval_facts),
        },
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in scanned + results)},
    )
    return commit_stage(run_, manifest, started)


def matches_part(task: DecontaminateTask, part: int) -> dict[str, Any]:
    """Write where the evals' n-grams stand in one part's documents, and in how many documents each."""
    print_ = fingerprint_of("matches", ALGORITHM_VERSION, task.digest, task.upstream[part])
    matches_path = part_files.part_path(task.workdir, NAME, "matches", part)
    counts_path = part_files.part_path(task.workdir, NAME, "frequencies", part)
    matches, counts = part_files.found_part(matches_path, print_), part_files.found_part(counts_path, print_)
    if matches is None or counts is None:
        table, num_docs = _scan(task, part)
        ids, docs = document_frequencies(table.column("doc_id").to_numpy(), table.column("ngram").to_numpy())
        matches = part_files.write_part(matches_path, table, MATCHES, print_, {"num_docs": num_docs})
        frequencies = pa.table({"ngram": ids, "num_docs": docs})
        counts = part_files.write_part(counts_path, frequencies, FREQUENCIES, print_)
    return {**matches.result, "matches": located(part, matches), "frequencies": located(part, counts)}


def _scan(task: DecontaminateTask, part: int) -> tuple[pa.Table, int]:
    index = task.index()
    earlier = _by_document(read_cuts(task.workdir, part, task.upto))
    tables = [MATCHES.empty_table()]
    num_docs = 0
    for piece in read_survivors(task.workdir, part, ["doc_id", "split", "text"], task.upto, task.slice_rows):
        table = piece.table.filter(pc.not_equal(piece.table.column("split"), "validation"))
        num_docs += table.num_rows
        views, ids = text_views(table.column("text")), table.column("doc_id").to_numpy()
        for unit in index.units:
            found = find_matches(views, unit.index)
            if len(found.docs):
                tables.append(_matches_table(found, ids, unit, earlier))
    whole = pa.concat_tables(tables)
    return whole.sort_by([(name, "ascending") for name in ("doc_id", "ngram", "word")]), num_docs


def _matches_table(
    found: Matches, ids: np.ndarray, unit: UnitIndex, earlier: dict[int, tuple[np.ndarray, np.ndarray]]
) -> pa.Table:
    """Return matches as rows, their bytes as positions in the documents as ingested."""
    doc_ids, starts, ends = ids[found.docs], found.starts.copy(), found.ends.copy()
    documents, first = np.unique(doc_ids, return_index=True)  # rows are in the order of documents
    for doc_id, a, z in zip(documents.tolist(), first, np.append(first[1:], len(doc_ids)), strict=True):
        if doc_id in earlier:
            starts[a:z], ends[a:z] = to_original(starts[a:z], ends[a:z], *earlier[doc_id])
    return pa.table(
        {
            "doc_id": doc_ids,
            "word": found.words,
            "start": starts,
            "end": ends,
            "ngram": found.ngrams + unit.first_id,
            "doc_words": found.doc_words,
        }
    ).cast(MATCHES)


def _common_ngrams(task: DecontaminateTask, parts: list[int], num_ngrams: int, num_docs: int) -> np.ndarray:
    """Return the n-grams in more documents than the recipe lets count, ascending; memory is that of the evals."""
    frequency = np.zeros(num_ngrams, dtype=np.int64)
    for part in parts:
        table = part_files.read_part(task.workdir, NAME, "frequencies", part)
        frequency[table.column("ngram").to_numpy()] += table.column("num_docs").to_numpy()
    bound = max(task.settings["max_document_frac"] * num_docs, task.settings["max_documents"])
    return np.flatnonzero(frequency > bound)


def hits_part(task: DecontaminateTask, fingerprint: str, common: np.ndarray, part: int) -> dict[str, Any]:
    """Write one part's hits, cuts and decisions, from its matches."""
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, fingerprint, part)
    paths = {t: part_files.part_path(task.workdir, NAME, t, part) for t in ("hits", "cuts", "decisions")}
    found = {table: part_files.found_part(path, print_) for table, path in paths.items()}
    if not all(found.values()):
        documents = read_labels(task.workdir, part, ["doc_id", "doc_key", *TALLY_COLUMNS], task.upto)
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        hits, below = _hits(task, part, common, documents)
        cuts, reasons = _verdicts(task, part, hits, documents)
        sizes = documents.column("num_bytes").to_numpy()
        lost = _bytes_by_row(cuts, documents.num_rows)
        shortened = documents.set_column(documents.column_names.index("num_bytes"), "num_bytes", pa.array(sizes - lost))
        tallies = tally(shortened, entered, reasons) + tally_cuts(documents, lost, SPAN)
        pairs = hits.group_by(["eval", "doc_id"]).aggregate([])
        result = {
            "counts": tallies,
            "pairs_below_bounds": below,
            "documents_hit": {r["values"]: r["counts"] for r in pc.value_counts(pairs.column("eval")).to_pylist()},
        }
        decided = decisions_table(documents.column("doc_id"), entered, reasons, NAME)
        found = {
            "hits": part_files.write_part(paths["hits"], hits, HITS, print_),
            "cuts": part_files.write_part(paths["cuts"], cuts, CUTS, print_),
            "decisions": part_files.write_part(paths["decisions"], decided, DECISIONS, print_, result),
        }
    written = {table: located(part, file) for table, file in found.items() if file is not None}
    return {**(found["decisions"].result if found["decisions"] else {}), **written}


def _hits(task: DecontaminateTask, part: int, common: np.ndarray, documents: pa.Table) -> tuple[pa.Table, int]:
    """Return the part's hits, and how many pairs of document and item share n-grams without being one."""
    index = task.index()
    table = part_files.read_part(task.workdir, NAME, "matches", part)
    columns = {name: table.column(name).to_numpy() for name in MATCHES.names}
    bounds = HitBounds(task.settings["min_item_frac"], task.settings["min_run_ngrams"])
    tables, below = [HITS.empty_table()], 0
    for unit in index.units:
        ids = columns["ngram"] - unit.first_id
        mine = (ids >= 0) & (ids < unit.index.num_ngrams)
        names = ("doc_id", "word", "start", "end", "ngram", "doc_words")
        matches = Matches(*(ids[mine] if name == "ngram" else columns[name][mine] for name in names))
        own = common[(common >= unit.first_id) & (common < unit.first_id + unit.index.num_ngrams)] - unit.first_id
        hits, fewer = find_hits(matches, unit.index, index.item_words, own, bounds)
        below += fewer
        tables.append(_hits_table(hits, index, unit.index.unit, documents))
    order = [(name, "ascending") for name in ("doc_id", "doc_start", "item_number", "doc_end")]
    return pa.concat_tables(tables).sort_by(order), below


def _hits_table(hits: Hits, index: EvalIndex, unit: str, documents: pa.Table) -> pa.Table:
    words = index.words[unit]
    first = words.offsets[hits.items]
    names = index.items.select(["eval", "item", "field"]).take(pa.array(hits.items))
    return pa.table(
        {
            "doc_id": hits.docs,
            "doc_key": documents.column("doc_key").take(pa.array(hits.docs & _ROW)),
            **{name: names.column(name) for name in names.column_names},
            "item_number": hits.items,
            "doc_start": hits.doc_starts,
            "doc_end": hits.doc_ends,
            "item_start": words.starts[first + hits.item_first_words],
            "item_end": words.ends[first + hits.item_last_words],
            "item_covered_frac": hits.item_covered_fracs,
            "doc_covered_frac": hits.doc_covered_fracs,
            "num_ngrams": hits.num_ngrams,
            "longest_run": hits.longest_runs,
        }
    ).cast(HITS)


def _verdicts(task: DecontaminateTask, part: int, hits: pa.Table, documents: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Return the cuts and, per document, why it goes (null: it stays)."""
    policy, exempt = task.settings["policy"], set(task.settings["exempt_domains"])
    sizes = documents.column("num_bytes").to_numpy()
    domains = documents.column("domain")
    earlier = _by_document(read_cuts(task.workdir, part, task.upto))
    reasons: list[str | None] = [None] * documents.num_rows
    rows: list[tuple[int, int, int]] = []
    stretches = hits.select(["doc_id", "doc_start", "doc_end"]).rename_columns(["doc_id", "start", "end"])
    for doc_id, found in _by_document(stretches).items() if policy != "report" else ():
        row = doc_id & _ROW
        if domains[row].as_py() in exempt:
            continue
        if policy == "drop":
            reasons[row] = CONTAMINATED
            continue
        spans = minus_spans(merged_spans(*found), merged_spans(*earlier[doc_id]) if doc_id in earlier else [])
        if sum(z - a for a, z in spans) > task.settings["max_removed_frac"] * sizes[row]:
            reasons[row] = MOSTLY
        else:
            rows += [(doc_id, a, z) for a, z in spans]
    columns = {n: pa.array([r[i] for r in rows], pa.int64()) for i, n in enumerate(("doc_id", "start", "end"))}
    said = {"stage": [NAME] * len(rows), "reason": [SPAN] * len(rows), "because_of": pa.nulls(len(rows), pa.string())}
    return pa.table({**columns, **said}).cast(CUTS), pa.array(reasons, pa.string())


def _by_document(cuts: pa.Table | None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return (starts, ends) of the cuts of each document that has some."""
    if cuts is None:
        return {}
    ids = cuts.column("doc_id").to_numpy()
    order = np.argsort(ids, kind="stable")
    starts, ends = cuts.column("start").to_numpy()[order], cuts.column("end").to_numpy()[order]
    documents, first = np.unique(ids[order], return_index=True)
    bounds = np.append(first, len(ids)).tolist()
    return {
        doc_id: (starts[a:z], ends[a:z])
        for doc_id, a, z in zip(documents.tolist(), bounds[:-1], bounds[1:], strict=True)
    }


def _bytes_by_row(cuts: pa.Table, num_rows: int) -> np.ndarray:
    lost = np.zeros(num_rows, dtype=np.int64)
    lengths = cuts.column("end").to_numpy() - cuts.column("start").to_numpy()
    np.add.at(lost, cuts.column("doc_id").to_numpy() & _ROW, lengths)
    return lost


def _eval_facts(
    task: DecontaminateTask, index: EvalIndex, common: np.ndarray, results: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row per eval, those that matched nothing included."""
    hit = np.zeros(index.items.num_rows, dtype=bool)
    for result in results:
        if result["hits"]["rows"]:
            part = result["hits"]["part"]
            hit[part_files.read_part(task.workdir, NAME, "hits", part, ["item_number"]).column(0).to_numpy()] = True
    evals = index.items.column("eval").to_numpy(zero_copy_only=False)
    fields = index.items.column("field").to_numpy(zero_copy_only=False)
    facts = []
    for name, counts in indexed_counts(index, common).items():
        mine = evals == name
        by_field = {f: [int((mine & (fields == f)).sum()), int((mine & (fields == f) & hit).sum())]
                    for f in dict.fromkeys(fields[mine].tolist())}  # fmt: skip
        num_hit = int((mine & hit).sum())
        facts.append(
            {
                "eval": name,
                **counts,
                "items_hit": num_hit,
                "contaminated_frac": round(num_hit / counts["items"], 6),
                "documents_hit": sum(r["documents_hit"].get(name, 0) for r in results),
                "by_field": by_field,
            }
        )
    return facts
