"""dedup_sentences: repeated lines and sentences of pool documents become cuts; what loses too much is dropped.

Where the recipe says so, repeated lines go first (`repeated_lines`). Then exact sentences (`sentence_repeats`): hashes
of sentences, and of runs of them, are counted across documents; all but the best `max_copies` documents lose the
sentence. Then, where the recipe says so, sentences of known languages are compared by meaning (`sentence_embeddings`).
A document that would lose too much goes whole, and is then no reason for any other cut of a sentence: what it kept is
kept by the next best. Every cut names the span that stays, and how similar it is.

All tables but ``cuts`` hold positions in the text as the stage reads it, without what earlier stages cut; ``cuts``
holds them in the text as ingested, as everywhere.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import CAUSES, CUTS, DECISIONS, PART_SHIFT
from refinery.errors import ConfigError
from refinery.gpu.model_files import model_state
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_cuts, read_labels
from refinery.kernels.cuts import as_ingested
from refinery.kernels.lines import LINE_UNITS
from refinery.kernels.sentence_joins import JoinedCuts, join_cuts
from refinery.recipe import DedupSentences
from refinery.stages.containment import find_contained
from refinery.stages.decisions import decisions_table, located, reasons_where
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.repeated_lines import cut_lines, cuts_of_lines, spans_of_cuts
from refinery.stages.sentence_repeats import (
    Causes,
    PartLayout,
    SentencesTask,
    exact_causes,
    layout_part,
    no_causes,
    read_layout,
    write_repeats,
)
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
ALGORITHM_VERSION = 3
LINES_VERSION = 1
EXACT, SIMILAR = "exact", "similar"
MODEL = "embedding model"
_MAX_KEEPERS = 8


class Removals(NamedTuple):
    """What the stage decided before it writes: sent to every part task."""

    similar: pa.Table | None
    """Sentences that go for one of the same meaning, schema `sentence_matching.REMOVED`; None without embeddings."""
    gone: dict[int, str]
    """Documents that go whole -> doc_key of a document that keeps some of it."""


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
    documents = recipe.dedup_documents
    keep = section.keep or (documents.keep if documents is not None else ())
    sources = [i.source for i in recipe.inputs]
    recipe_slice = {
        **section.model_dump(mode="json"), "keep": list(keep), "seed": recipe.seed, "sources": sources
    }  # fmt: skip
    inputs = {m.stage: m.content_hash for m in upstream} | _models(section)
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    task = _task_of(run_, recipe_slice, upto, seen, inputs.get(MODEL, ""))
    parts = sorted(seen)
    contained_facts, contained = find_contained(run_, task, parts)
    line_facts = cut_lines(run_, task, parts)
    read = run_part_tasks(run_.spark, parts, functools.partial(layout_part, task), run_.report_progress(NAME))
    removals, facts = _removals(run_, task, parts, fingerprint)
    work = functools.partial(cuts_part, task, fingerprint, removals)
    results = run_part_tasks(run_.spark, parts, work, run_.report_progress(NAME))
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, upstream[-1].counts, counts)
    facts |= {"num_cuts": sum(r["cuts"]["rows"] for r in results), "num_dropped": len(removals.gone)}
    facts |= {"num_given_back": sum(r["given_back"] for r in results), **line_facts, **contained_facts}
    tables = contained + [
        entry for name in ("cuts", "causes", "decisions") for entry in part_entries(name, results, name)
    ]
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=tables,
        counts=counts,
        facts=facts,
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in read + results)},
    )
    return commit_stage(run_, manifest, started)


def _models(section: DedupSentences) -> dict[str, str]:
    """Return the hash of the embedding model, so that another model under the same name makes other vectors.

    Raises:
        ConfigError: the model is missing, has no safetensors, or no pinned revision.
    """
    if section.embeddings == "off":
        return {}
    return {MODEL: model_state(section.embeddings.model, section.embeddings.revision)}


def _task_of(
    run_: Run, settings: dict[str, Any], upto: tuple[str, ...], seen: dict[int, str], model: str
) -> SentencesTask:
    lines = [settings["lines"], settings["exempt_domains"], sorted(seen.items())]
    state = fingerprint_of("lines", LINES_VERSION, lines) if settings["lines"] != "off" else ""
    return SentencesTask(run_.workdir, run_.recipe.seed, settings, upto, run_.slice_rows, seen, state, model)


def _removals(run_: Run, task: SentencesTask, parts: list[int], fingerprint: str) -> tuple[Removals, dict[str, Any]]:
    """Find repeats, then which documents lose so much that they go whole, then repeats without those."""
    counted = task.settings["exact"] or task.settings["window_sentences"]
    nobody = np.empty(0, dtype=np.int64)
    if counted:
        write_repeats(run_.spark, task, parts, nobody, fingerprint_of(fingerprint, "first"))
    similar: pa.Table | None = None
    facts: dict[str, Any] = {}
    if task.settings["embeddings"] != "off":
        from refinery.stages.sentence_embeddings import similar_sentences  # noqa: PLC0415 - numba kernels of the guard

        similar, facts = similar_sentences(run_, task, parts)
    first = Removals(similar, {})
    losses = run_part_tasks(run_.spark, parts, functools.partial(losses_part, task, first))
    keepers: dict[int, dict[str, int]] = {int(doc): keys for r in losses for doc, keys in r["gone"].items()}
    gone = {doc: min(keys, key=lambda key: (keys[key] in keepers, key)) for doc, keys in keepers.items()}
    if gone:
        ids = np.array(sorted(gone), dtype=np.int64)
        if counted:
            write_repeats(run_.spark, task, parts, ids, fingerprint_of(fingerprint, "second"))
        if similar is not None:
            similar = similar.filter(pc.invert(pc.is_in(similar.column("because_doc"), pa.array(ids))))
    return Removals(similar, gone), facts


def losses_part(task: SentencesTask, removals: Removals, part: int) -> dict[str, Any]:
    """Return which documents of a part lose more than they may, each with documents that keep what it loses."""
    layout = read_layout(task.workdir, part)
    causes, joined = _part_cuts(task, removals, part, layout)
    lines = cuts_of_lines(task, part)
    lost = _lost_bytes(layout, joined, lines)
    labels = read_labels(task.workdir, part, ["num_bytes"], task.upto)
    sizes = labels.column("num_bytes").to_numpy()
    rows = np.fromiter(lost, dtype=np.int64, count=len(lost)) & ((1 << PART_SHIFT) - 1)
    bound = dict(zip(lost, (task.settings["max_removed_frac"] * sizes[rows]).tolist(), strict=True))
    gone: dict[str, dict[str, int]] = {str(doc): {} for doc, count in lost.items() if count > bound[doc]}
    docs = layout.doc_ids[causes.sentence]
    because = zip(docs.tolist(), causes.because_of.tolist(), causes.because_doc.tolist(), strict=True)
    of_lines = (
        (*row, -1) for row in zip(*(lines.column(c).to_pylist() for c in ("doc_id", "because_of")), strict=True)
    )
    for doc, key, other in (*because, *of_lines):
        found = gone.get(str(doc))
        if found is not None and len(found) < _MAX_KEEPERS:
            found[key] = other
    return {"gone": gone}


def _lost_bytes(layout: PartLayout, joined: JoinedCuts, lines: pa.Table) -> dict[int, int]:
    """Return doc_id -> bytes cut out of it."""
    docs = np.concatenate([layout.doc_ids[joined.cut], lines.column("doc_id").to_numpy()])
    lengths = lines.column("end").to_numpy() - lines.column("start").to_numpy()
    lengths = np.concatenate([(joined.ends - joined.starts)[joined.cut], lengths])
    ids, at = np.unique(docs, return_inverse=True)
    return dict(zip(ids.tolist(), np.bincount(at, lengths, len(ids)).astype(np.int64).tolist(), strict=True))


def _part_cuts(task: SentencesTask, removals: Removals, part: int, layout: PartLayout) -> tuple[Causes, JoinedCuts]:
    """Return what repeats in one part, and which bytes go for it; documents that go whole are left out."""
    causes = exact_causes(task, part, layout)
    if removals.similar is not None:
        causes = _with_similar(causes, removals.similar, part, layout)
    if removals.gone:
        left = ~np.isin(layout.doc_ids[causes.sentence], np.fromiter(removals.gone, dtype=np.int64))
        causes = Causes(*(column[left] for column in causes))
    cut = np.zeros(len(layout.doc_ids), dtype=bool)
    cut[causes.sentence] = True
    return causes, join_cuts(layout.spans, layout.layout, cut)


def _with_similar(exact: Causes, similar: pa.Table, part: int, layout: PartLayout) -> Causes:
    """Add what goes by meaning; an exact repeat of a sentence that went by meaning names what stays in its place."""
    column = {name: similar.column(name).to_numpy(zero_copy_only=False) for name in similar.column_names}
    moved = {key: row for row, key in enumerate(zip(column["doc_id"].tolist(), column["start"].tolist(), strict=True))}
    names = ("because_of", "because_doc", "because_start", "because_end", "similarity")
    kept = [np.array(getattr(exact, name)) for name in names]
    for i, key in enumerate(zip(exact.because_doc.tolist(), exact.because_start.tolist(), strict=True)):
        row = moved.get(key)
        if row is not None:
            for target, name in zip(kept, names, strict=True):
                target[i] = column[name][row]
    places = {key: i for i, key in enumerate(zip(layout.doc_ids.tolist(), layout.spans.starts.tolist(), strict=True))}
    mine = np.flatnonzero(column["doc_id"] >> PART_SHIFT == part)
    at = np.array([places[column["doc_id"][r], column["start"][r]] for r in mine.tolist()], dtype=np.int64)
    fresh = ~np.isin(at, exact.sentence)
    sentence = np.concatenate([exact.sentence, at[fresh]])
    order = np.argsort(sentence, kind="stable")
    both = (np.concatenate([old, column[name][mine[fresh]]])[order] for old, name in zip(kept, names, strict=True))
    is_exact = np.arange(len(sentence)) < len(exact.sentence)
    return Causes(sentence[order], is_exact[order], *both)


def cuts_part(task: SentencesTask, fingerprint: str, removals: Removals, part: int) -> dict[str, Any]:
    """Write one part's cuts, what caused each, and decisions."""
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, fingerprint, part)
    paths = {t: part_files.part_path(task.workdir, NAME, t, part) for t in ("cuts", "causes", "decisions")}
    files = {name: part_files.found_part(path, print_) for name, path in paths.items()}
    if not all(files.values()):
        layout = read_layout(task.workdir, part)
        causes, joined = _part_cuts(task, removals, part, layout)
        stays = joined.cut[causes.sentence]
        causes = Causes(*(column[stays] for column in causes)) if len(stays) else no_causes()
        at = causes.sentence
        rows = _Rows(layout.doc_ids[at], joined.starts[at], joined.ends[at], causes)
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        sizes = documents.column("num_bytes").to_numpy()
        ids = documents.column("doc_id").to_numpy()
        gone = np.isin(ids, np.fromiter(removals.gone, dtype=np.int64, count=len(removals.gone)))
        because = pa.array([removals.gone.get(doc) for doc in ids.tolist()], pa.string())
        lines = cuts_of_lines(task, part)
        kept = pa.array(~np.isin(lines.column("doc_id").to_numpy(), ids[gone]))
        cuts = pa.concat_tables([lines.filter(kept), rows.cuts()])
        cuts = cuts.sort_by([("doc_id", "ascending"), ("start", "ascending")])
        lost = {reason: _cut_bytes(cuts, reason, len(ids)) for reason in (*LINE_UNITS, EXACT, SIMILAR)}
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        reasons = reasons_where(gone, f"{NAME}.mostly_repeated")
        left = pa.array(sizes - sum(lost.values()))
        shortened = documents.set_column(documents.column_names.index("num_bytes"), "num_bytes", left)
        tallies = tally(shortened, entered, reasons)
        for reason, counted in lost.items():
            tallies += tally_cuts(documents, counted, f"{NAME}.{reason}")
        decided = decisions_table(documents.column("doc_id"), entered, reasons, NAME, because)
        result = {"counts": tallies, "given_back": joined.num_given_back}
        files = {
            "cuts": part_files.write_part(paths["cuts"], _as_ingested(task, part, cuts), CUTS, print_),
            "causes": part_files.write_part(paths["causes"], rows.causes_table(), CAUSES, print_),
            "decisions": part_files.write_part(paths["decisions"], decided, DECISIONS, print_, result),
        }
    told = {name: located(part, file) for name, file in files.items() if file is not None}
    return {**(files["decisions"].result if files["decisions"] else {}), **told}


def _as_ingested(task: SentencesTask, part: int, cuts: pa.Table) -> pa.Table:
    """Return cuts as positions in the text as ingested; one that crosses an earlier cut becomes several."""
    earlier = read_cuts(task.workdir, part, task.upto)
    if earlier is None:
        return cuts
    rows, starts, ends = spans_of_cuts(cuts)
    span, starts, ends = as_ingested(rows, starts, ends, spans_of_cuts(earlier))
    mapped = cuts.take(pa.array(span))
    for name, values in (("start", starts), ("end", ends)):
        mapped = mapped.set_column(mapped.column_names.index(name), name, pa.array(values))
    return mapped.sort_by([("doc_id", "ascending"), ("start", "ascending")]).cast(CUTS)


def _cut_bytes(cuts: pa.Table, reason: str, count: int) -> np.ndarray:
    """Return the bytes that each of `count` documents loses for a reason."""
    mine = cuts.filter(pc.equal(cuts.column("reason"), f"{NAME}.{reason}"))
    lost = np.zeros(count, dtype=np.int64)
    lengths = mine.column("end").to_numpy() - mine.column("start").to_numpy()
    np.add.at(lost, mine.column("doc_id").to_numpy() & ((1 << PART_SHIFT) - 1), lengths)
    return lost


class _Rows(NamedTuple):
    """What goes from one part, one row per sentence, in order."""

    doc_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    causes: Causes

    def cuts(self) -> pa.Table:
        """Return the rows of the cuts table."""
        reasons = np.where(self.causes.exact, f"{NAME}.{EXACT}", f"{NAME}.{SIMILAR}")
        return pa.table(
            {
                "doc_id": self.doc_ids,
                "start": self.starts,
                "end": self.ends,
                "stage": pa.array([NAME] * len(self.starts), pa.string()),
                "reason": pa.array(reasons.tolist(), pa.string()),
                "because_of": pa.array(self.causes.because_of.tolist(), pa.string()),
            }
        ).cast(CUTS)

    def causes_table(self) -> pa.Table:
        """Return what every cut repeats, row by row beside the cuts."""
        kept = {name: getattr(self.causes, name) for name in CAUSES.names[4:]}
        because = pa.array(self.causes.because_of.tolist(), pa.string())
        table = {"doc_id": self.doc_ids, "start": self.starts, "end": self.ends, "because_of": because, **kept}
        return pa.table(table).cast(CAUSES)
