"""dedup_sentences: repeated lines and sentences of pool documents become cuts; what loses too much is dropped.

Where the recipe says so, repeated lines go first (`repeated_lines`). Then exact sentences: part tasks write normalised
sentence hashes, Spark counts documents per hash, and all but the first `max_copies` documents (by identity, not by
address) lose the sentence. Then, where the recipe says so, sentences of known languages are compared by embeddings
(`sentence_embeddings`). Every cut names the document that keeps its copy.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import CUTS, DECISIONS, SENTENCES
from refinery.errors import ConfigError, DataError
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels.cuts import touched
from refinery.kernels.lines import LINE_UNITS
from refinery.kernels.sentences import normalised_hash, sentence_spans
from refinery.kernels.text import text_views
from refinery.recipe import DedupSentences
from refinery.stages.containment import find_contained
from refinery.stages.decisions import decisions_table, located, reasons_where
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.repeated_lines import Spans, cut_lines, cuts_of_lines, cuts_table, spans_of_cuts
from refinery.stages.repeats import Copies, distinct_pairs, keepers_of, ranked_copies, write_repeats
from refinery.stages.sentence_embeddings import SIMILAR, pool_mask, similar_sentences
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

NAME = "dedup_sentences"
ALGORITHM_VERSION = 1
EXACT = "exact"
_ROW = 0xFFFFFFFF


@dataclass(frozen=True)
class SentencesTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    line_state: str = ""
    """Names the state of the line cuts, which sentences depend on; empty where lines are off."""


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Find repeated sentences and cut them.

    Raises:
        ConfigError: the embedding model is missing or does not know the language.
    """
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.dedup_sentences
    if section is None:
        raise ConfigError("the recipe has no dedup_sentences section; `dedup_sentences: {exact: true}` is enough")
    upto, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {**section.model_dump(mode="json"), "seed": recipe.seed}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    _refuse_earlier_cuts(recipe.workdir, upto)
    task = _task_of(run_, section, upto, seen)
    parts = sorted(seen)
    contained_facts, contained = find_contained(run_, task, parts)
    line_facts = cut_lines(run_, task, parts)
    hashed: list[dict[str, Any]] = []
    if section.exact:
        hashed = run_part_tasks(run_.spark, parts, functools.partial(hashes_part, task), run_.report_progress(NAME))
        copies = Copies("sentences", "repeats", ("tie",), section.max_copies)
        ranked = ranked_copies(run_.spark, task.workdir, parts, copies)
        write_repeats(ranked, task.workdir, parts, copies.repeats, fingerprint)
    similar, embedding_facts = similar_sentences(run_, task, parts)
    work = functools.partial(cuts_part, task, fingerprint, similar)
    results = run_part_tasks(run_.spark, parts, work, run_.report_progress(NAME))
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, upstream[-1].counts, counts)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=contained + part_entries("cuts", results, "cuts") + part_entries("decisions", results, "decisions"),
        counts=counts,
        facts={
            "num_cuts": sum(r["cuts"]["rows"] for r in results),
            **line_facts,
            **embedding_facts,
            **contained_facts,
        },
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in hashed + results)},
    )
    return commit_stage(run_, manifest, started)


def _task_of(run_: Run, section: DedupSentences, upto: tuple[str, ...], seen: dict[int, str]) -> SentencesTask:
    settings = section.model_dump(mode="json")
    lines = [settings["lines"], settings["exempt_domains"], sorted(seen.items())]
    state = fingerprint_of("lines", ALGORITHM_VERSION, lines) if section.lines != "off" else ""
    return SentencesTask(run_.workdir, run_.recipe.seed, settings, upto, run_.slice_rows, seen, state)


def _refuse_earlier_cuts(workdir: str, upto: Sequence[str]) -> None:
    """Spans are positions in the text as ingested; with cuts before this stage they would have to be mapped back."""
    earlier = [s for s in upto if part_files.part_numbers(workdir, s, "cuts")]
    if earlier:
        raise DataError(f"{NAME} must come before every other stage that cuts text, but {earlier} already did")


def hashes_part(task: SentencesTask, part: int) -> dict[str, Any]:
    """Write the distinct sentence hashes of one part's surviving pool documents, lines that were cut left out."""
    path = part_files.part_path(task.workdir, NAME, "sentences", part)
    identity = [task.settings["min_words"], task.settings["exempt_domains"]]
    print_ = fingerprint_of("sentences", ALGORITHM_VERSION, identity, task.upstream[part], task.line_state)
    found = part_files.found_part(path, print_)
    if found is None:
        tables = [SENTENCES.empty_table()]
        lines = spans_of_cuts(cuts_of_lines(task, part))
        columns = ["doc_id", "doc_key", "role", "domain", "split", "text"]
        for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
            table = piece.table.filter(pool_mask(task.settings, piece.table))
            views = text_views(table.column("text"))
            spans = sentence_spans(views)
            hashed = normalised_hash(views, spans)
            owner = np.repeat(np.arange(table.num_rows), np.diff(spans.doc_offsets))
            ids = table.column("doc_id").to_numpy()
            long = hashed.num_words >= task.settings["min_words"]
            long &= ~touched(ids[owner] & _ROW, spans.starts, spans.ends, lines)
            docs, hashes = distinct_pairs(owner[long], hashed.hashes[long])
            ties = key_prefix_uint64(table.column("doc_key").to_pylist()).view(np.int64)
            rows = pa.table({"hash": hashes.view(np.int64), "doc_id": ids[docs], "tie": ties[docs]})
            tables.append(rows.cast(SENTENCES))
        found = part_files.write_part(path, pa.concat_tables(tables), SENTENCES, print_)
    return {"sentences": located(part, found)}


def cuts_part(task: SentencesTask, fingerprint: str, similar: dict[int, list[list[Any]]], part: int) -> dict[str, Any]:
    """Write one part's cuts and decisions."""
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, fingerprint, part)
    cuts_path = part_files.part_path(task.workdir, NAME, "cuts", part)
    decisions_path = part_files.part_path(task.workdir, NAME, "decisions", part)
    cuts, decisions = part_files.found_part(cuts_path, print_), part_files.found_part(decisions_path, print_)
    if cuts is None or decisions is None:
        lines = cuts_of_lines(task, part)
        exact = _exact_cuts(task, part, spans_of_cuts(lines))
        cut = set(zip(exact.column("doc_id").to_pylist(), exact.column("start").to_pylist(), strict=True))
        rest = [row for row in similar.get(part, []) if (row[0], row[1]) not in cut]
        table = pa.concat_tables([lines, exact, _similar_cuts(rest)])
        table = table.sort_by([("doc_id", "ascending"), ("start", "ascending")])
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        sizes = documents.column("num_bytes").to_numpy()
        rows = table.column("doc_id").to_numpy() & _ROW
        lost = np.zeros(documents.num_rows, dtype=np.int64)
        np.add.at(lost, rows, table.column("end").to_numpy() - table.column("start").to_numpy())
        gone = lost > task.settings["max_removed_frac"] * sizes
        kept_cuts = table.filter(pa.array(~gone[rows]))
        lost[gone] = 0
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        reasons = reasons_where(gone, f"{NAME}.mostly_repeated")
        shortened = documents.set_column(documents.column_names.index("num_bytes"), "num_bytes", pa.array(sizes - lost))
        tallies = tally(shortened, entered, reasons)
        for reason in (*LINE_UNITS, EXACT, SIMILAR):
            tallies += tally_cuts(documents, _cut_bytes(kept_cuts, reason, len(lost)), f"{NAME}.{reason}")
        cuts = part_files.write_part(cuts_path, kept_cuts, CUTS, print_)
        decided = decisions_table(documents.column("doc_id"), entered, reasons, NAME, _causes(table, gone))
        decisions = part_files.write_part(decisions_path, decided, DECISIONS, print_, {"counts": tallies})
    return {**decisions.result, "cuts": located(part, cuts), "decisions": located(part, decisions)}


def _cut_bytes(cuts: pa.Table, reason: str, count: int) -> np.ndarray:
    mine = cuts.filter(pc.equal(cuts.column("reason"), f"{NAME}.{reason}"))
    lost = np.zeros(count, dtype=np.int64)
    lengths = mine.column("end").to_numpy() - mine.column("start").to_numpy()
    np.add.at(lost, mine.column("doc_id").to_numpy() & _ROW, lengths)
    return lost


def _causes(cuts: pa.Table, gone: np.ndarray) -> pa.Array:
    """Return for each dropped document the document that keeps its first repeated sentence."""
    causes: list[str | None] = [None] * len(gone)
    for doc_id, because_of in zip(
        cuts.column("doc_id").to_pylist(), cuts.column("because_of").to_pylist(), strict=True
    ):
        row = doc_id & _ROW
        if gone[row] and causes[row] is None:
            causes[row] = because_of
    return pa.array(causes, pa.string())


def _exact_cuts(task: SentencesTask, part: int, lines: Spans) -> pa.Table:
    keepers = keepers_of(task.workdir, "repeats", part) if task.settings["exact"] else {}
    if not keepers:
        return CUTS.empty_table()
    wanted = pa.array(sorted({doc_id for doc_id, _ in keepers}), pa.int64())
    rows: list[tuple[int, int, int, str]] = []
    for piece in read_survivors(task.workdir, part, ["doc_id", "text"], task.upto, task.slice_rows):
        table = piece.table.filter(pc.is_in(piece.table.column("doc_id"), wanted))
        views = text_views(table.column("text"))
        spans = sentence_spans(views)
        owners = np.repeat(table.column("doc_id").to_numpy(), np.diff(spans.doc_offsets))
        hashes = normalised_hash(views, spans).hashes.view(np.int64)
        gone = touched(owners & _ROW, spans.starts, spans.ends, lines)
        for at in np.flatnonzero(~gone).tolist():
            because_of = keepers.get((int(owners[at]), int(hashes[at])))
            if because_of is not None:
                rows.append((int(owners[at]), int(spans.starts[at]), int(spans.ends[at]), because_of))
    return cuts_table(rows, EXACT)


def _similar_cuts(rows: list[list[Any]]) -> pa.Table:
    return cuts_table([(r[0], r[1], r[2], r[3]) for r in rows], SIMILAR)
