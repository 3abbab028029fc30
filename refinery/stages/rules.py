"""rules: signals are facts, computed once; thresholds are policy, decided again in a pass over numbers.

One part task makes sure that the part's ``signals`` stand, and the boundaries of its Chinese words, and then decides. A
changed threshold therefore re-decides in seconds and never reads text.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, WORDS
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels.boundaries import pack_boundaries
from refinery.kernels.decide import decide
from refinery.kernels.preset import Rule, load_preset, load_rules
from refinery.kernels.segmentation import ALGORITHM_VERSION as SEGMENTATION_VERSION
from refinery.kernels.segmentation import segment_han
from refinery.kernels.segmentation_dictionary import dictionary_identity
from refinery.kernels.signals import ALGORITHM_VERSION as SIGNALS_VERSION
from refinery.kernels.signals import signal_batch, signal_schema, signals
from refinery.kernels.signals_datatrove import ALGORITHM_VERSION as DATATROVE_VERSION
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS, datatrove_signals
from refinery.kernels.text import text_views
from refinery.recipe import Recipe
from refinery.stages.decisions import decisions_table, located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.tallies import TALLY_COLUMNS, tally
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)

NAME = "rules"
ALGORITHM_VERSION = 3


@dataclass(frozen=True)
class RulesTask:
    """Everything one part task needs."""

    workdir: str
    rules: tuple[Rule, ...]
    masks: dict[str, int]
    """Domain -> which rules hold for it, one bit a rule."""
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    """Part -> hash of its documents and of the decisions before this stage."""
    rules_identity: str
    segmentation: str | None
    """What word boundaries are a function of besides the text; None = none are made."""

    def wants_datatrove(self) -> bool:
        """Whether a rule asks for a signal over datatrove's words, which cost more than all others together."""
        named = {spec.name for spec in DATATROVE_SIGNALS}
        return any(rule.signal in named for rule in self.rules)


def signals_schema() -> pa.Schema:
    """Return the schema of the signals table: ``doc_id`` and one column per signal."""
    return pa.schema([pa.field("doc_id", pa.int64(), nullable=False), *signal_schema()])


def recipe_rules(recipe: Recipe) -> tuple[tuple[Rule, ...], dict[str, int]]:
    """Return the rules of all presets that a recipe names, and which of them hold for each domain.

    Returns: (rules in order, domain -> bit mask over the rules).

    Raises:
        ConfigError: no rules section, an unknown preset or signal.
    """
    section = recipe.rules
    if section is None:
        raise ConfigError("the recipe has no rules section; `rules: {presets: [gopher]}` is enough")
    wanted = {i.domain: section.by_domain.get(i.domain, section.presets) for i in recipe.inputs}
    names = list(dict.fromkeys([*section.presets, *(n for presets in section.by_domain.values() for n in presets)]))
    rules = load_rules(names)
    owner = [name for name in names for _ in load_preset(name).rules]
    masks = {d: sum(1 << i for i, name in enumerate(owner) if name in presets) for d, presets in wanted.items()}
    return rules, dict(sorted(masks.items()))


def segmentation_identity(recipe: Recipe) -> str | None:
    """Return what identifies the segmentation that a recipe stores: its version and its dictionary; None for none.

    Raises:
        ConfigError: the package with the dictionary is not installed.
    """
    wanted = recipe.rules is not None and recipe.rules.segment_chinese
    return fingerprint_of("words", SEGMENTATION_VERSION, dictionary_identity()) if wanted else None


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Compute signals where they are missing and decide every document."""
    started = time.monotonic()
    recipe = run_.recipe
    rules, masks = recipe_rules(recipe)
    _, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {**_decided_by(rules, masks), "segmentation": segmentation_identity(recipe)}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    work = functools.partial(rules_part, rules_task(run_))
    results = run_part_tasks(run_.spark, sorted(seen), work, run_.report_progress(NAME))
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, upstream[-1].counts, counts)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[e for table in ("signals", "words", "decisions") for e in part_entries(table, results, table)],
        counts=counts,
        facts={
            "rule_names": [rule.name for rule in rules],
            "cut_by_rule": _sum_lists(results, "cut_by_rule"),
            "cut_by_rule_alone": _sum_lists(results, "cut_by_rule_alone"),
        },
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def rules_task(run_: Run) -> RulesTask:
    """Return what the part tasks of a run's recipe need.

    Raises:
        ConfigError: as `recipe_rules`, or a stage before this one has not been run.
    """
    rules, masks = recipe_rules(run_.recipe)
    upto, _, seen = upstream_of(run_, NAME)
    identity = fingerprint_of(_decided_by(rules, masks))
    segmentation = segmentation_identity(run_.recipe)
    return RulesTask(run_.workdir, rules, masks, upto, run_.slice_rows, seen, identity, segmentation)


def signals_fingerprint(task: RulesTask, part: int) -> str:
    """Return what the signals of one part are a function of: the text, and the words that they count."""
    told = [task.segmentation] if task.segmentation is not None else []
    told += ["datatrove", str(DATATROVE_VERSION)] if task.wants_datatrove() else []
    return fingerprint_of("signals", SIGNALS_VERSION, task.upstream[part], *told)


def _decided_by(rules: tuple[Rule, ...], masks: dict[str, int]) -> dict[str, Any]:
    return {"rules": [rule._asdict() | {"langs": list(rule.langs)} for rule in rules], "masks": masks}


def rules_part(task: RulesTask, part: int) -> dict[str, Any]:
    """Make sure that one part has its signals, its word boundaries where they are wanted, and its decisions."""
    signals_file, words_file = _facts(task, part)
    decisions_print = fingerprint_of(NAME, ALGORITHM_VERSION, signals_file.content_hash, task.rules_identity)
    path = part_files.part_path(task.workdir, NAME, "decisions", part)
    decisions_file = part_files.found_part(path, decisions_print)
    if decisions_file is None:
        table, result = decide_part(task, part)
        decisions_file = part_files.write_part(path, table, DECISIONS, decisions_print, result)
    return {
        **decisions_file.result,
        "signals": located(part, signals_file),
        "words": located(part, words_file) if words_file is not None else None,
        "decisions": located(part, decisions_file),
    }


def _facts(task: RulesTask, part: int) -> tuple[part_files.PartFile, part_files.PartFile | None]:
    """Return a part's signals and word boundaries; what is missing of them is made in one pass over the text."""
    signals_print = signals_fingerprint(task, part)
    words_print = fingerprint_of("words", task.upstream[part], task.segmentation)
    wanted = task.segmentation is not None
    signals_path = part_files.part_path(task.workdir, NAME, "signals", part)
    words_path = part_files.part_path(task.workdir, NAME, "words", part)
    signals_file = part_files.found_part(signals_path, signals_print)
    words_file = part_files.found_part(words_path, words_print) if wanted else None
    if not wanted:
        storage.remove(words_path)  # later stages read the boundaries that lie there
    if signals_file is None or (wanted and words_file is None):
        computed, boundaries = _compute(task, part)
        signals_file = part_files.write_part(signals_path, computed, signals_schema(), signals_print)
        if wanted:
            words_file = part_files.write_part(words_path, boundaries, WORDS, words_print)
    return signals_file, words_file


def _compute(task: RulesTask, part: int) -> tuple[pa.Table, pa.Table]:
    """Return the part's signals and word boundaries, aligned; null for documents that an earlier stage dropped.

    Boundaries are of the text as ingested: no stage before this one cuts.
    """
    ids = part_files.read_part(task.workdir, "ingest", "documents", part, ["doc_id"]).column("doc_id")
    rows: list[np.ndarray] = []
    batches: list[pa.RecordBatch] = []
    bitmaps: list[pa.Array] = []
    for piece in read_survivors(task.workdir, part, ["text"], task.upto, task.slice_rows):
        views = text_views(piece.table.column("text"))
        found = segment_han(views) if task.segmentation is not None else None
        if found is None or not found.has_han.any():
            bitmaps.append(pa.nulls(views.num_docs, pa.large_binary()))
            computed = signals(views)
        else:
            bitmaps.append(pack_boundaries(views, found.boundaries, found.has_han))
            computed = signals(views, found.boundaries)
        batches.append(signal_batch(computed | (datatrove_signals(views) if task.wants_datatrove() else {})))
        rows.append(piece.rows)
    place = np.full(len(ids), -1, dtype=np.int64)
    seen = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
    place[seen] = np.arange(len(seen))
    index = pa.array(place, mask=place < 0)
    aligned = pa.Table.from_batches(batches, signal_schema()).take(index)
    boundaries = pa.chunked_array(bitmaps, pa.large_binary()).take(index)
    return (
        pa.table({"doc_id": ids, **{name: aligned.column(name) for name in aligned.column_names}}),
        pa.table({"doc_id": ids, "boundaries": boundaries}),
    )


def decide_part(task: RulesTask, part: int) -> tuple[pa.Table, dict[str, Any]]:
    """Decide one part from its stored signals.

    Returns: (the decisions table, counts by outcome and by rule).
    """
    table = part_files.read_part(task.workdir, NAME, "signals", part)
    documents = read_labels(task.workdir, part, list(TALLY_COLUMNS), task.upto)
    entered = keep_mask(task.workdir, part, table.num_rows, task.upto)
    columns = {name: table.column(name).fill_null(0).to_numpy() for name in table.column_names}
    bits = decide(columns, task.rules, documents.column("lang").to_pylist()).rule_bits
    bits &= np.array([task.masks[d] for d in documents.column("domain").to_pylist()], dtype=np.int64)
    bits = np.where(entered, bits, 0)
    first = [(b & -b).bit_length() - 1 for b in bits.tolist()]
    reasons = pa.array([task.rules[i].name if i >= 0 else None for i in first], pa.string())
    decisions = decisions_table(table.column("doc_id"), entered, reasons, NAME, rule_bits=bits)
    result = {
        "counts": tally(documents, entered, reasons),
        "cut_by_rule": [int(((bits >> i) & 1).sum()) for i in range(len(task.rules))],
        "cut_by_rule_alone": [int((bits == np.int64(1) << i).sum()) for i in range(len(task.rules))],
    }
    return decisions, result


def _sum_lists(results: list[dict[str, Any]], key: str) -> list[int]:
    return [sum(column) for column in zip(*(r[key] for r in results), strict=True)]
