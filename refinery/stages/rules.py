"""rules: signals are facts, computed once; thresholds are policy, decided again in a pass over numbers.

One part task makes sure that the part's facts stand (`rules_facts`): signals, boundaries of Chinese words, and, where
the recipe has line rules, the lines that they cut and the signals of what they leave. Then it decides. A changed
threshold of a document rule therefore re-decides in seconds and never reads text; a changed line rule reads it again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import CUTS, DECISIONS, conform
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_labels
from refinery.kernels.decide import decide
from refinery.stages.decisions import decisions_table, located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.rules_facts import FOUND, LEFT, make_facts, row_of
from refinery.stages.rules_task import RulesTask, recipe_rules, segmentation_identity
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

NAME = "rules"
ALGORITHM_VERSION = 4
TABLES = ("decisions", "cuts")
"""What is decided; there are cuts where the recipe has line rules."""
LINE_COUNTS = ("cut", "would_cut", "would_cut_alone")


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Compute facts where they are missing, cut lines and decide every document."""
    started = time.monotonic()
    recipe = run_.recipe
    given = recipe_rules(recipe)
    _, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {**given.decided_by(), "segmentation": segmentation_identity(recipe)}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    work = functools.partial(rules_part, rules_task(run_))
    results = run_part_tasks(run_.spark, sorted(seen), work, run_.report_progress(NAME))
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, upstream[-1].counts, counts)
    facts = {
        "rule_names": [rule.name for rule in given.rules],
        "cut_by_rule": _sum_lists(results, "cut_by_rule"),
        "cut_by_rule_alone": _sum_lists(results, "cut_by_rule_alone"),
    }
    if given.line_rules:
        per_rule = {key: _sum_lists([r["line_rules"] for r in results], key) for key in LINE_COUNTS}
        facts["line_rules"] = {"names": [rule.name for rule in given.line_rules], **per_rule}
    tables = ("signals", "words", LEFT, FOUND, *TABLES)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[e for table in tables for e in part_entries(table, results, table)],
        counts=counts,
        facts=facts,
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def rules_task(run_: Run) -> RulesTask:
    """Return what the part tasks of a run's recipe need.

    Raises:
        ConfigError: as `recipe_rules`, or a stage before this one has not been run.
    """
    given = recipe_rules(run_.recipe)
    upto, _, seen = upstream_of(run_, NAME)
    return RulesTask(run_.workdir, given, upto, run_.slice_rows, seen, segmentation_identity(run_.recipe))


def rules_part(task: RulesTask, part: int) -> dict[str, Any]:
    """Make sure that one part has its facts and its decisions, and the cuts where there are line rules."""
    facts, made = make_facts(task, part)
    decided_from = (facts.signals, facts.signals_left, facts.line_findings)
    hashes = [file.content_hash for file in decided_from if file is not None]
    decisions_print = fingerprint_of(NAME, ALGORITHM_VERSION, hashes, task.rules_identity)
    files = {}
    for table in TABLES if task.line_rules else TABLES[:1]:
        files[table] = part_files.found_part(part_files.part_path(task.workdir, NAME, table, part), decisions_print)
    if not all(files.values()):
        decided = decide_part(task, part, made)
        for table, rows, schema in zip(TABLES, (decided.decisions, decided.cuts), (DECISIONS, CUTS), strict=True):
            if table in files:
                path = part_files.part_path(task.workdir, NAME, table, part)
                files[table] = part_files.write_part(path, rows, schema, decisions_print, decided.result)
    written = {**facts._asdict(), **files}
    told = {table: located(part, file) if file is not None else None for table, file in written.items()}
    decisions = files["decisions"]
    return {**(decisions.result if decisions is not None else {}), **told}


class Decided(NamedTuple):
    """What rules say about one part."""

    decisions: pa.Table
    cuts: pa.Table
    """Lines, and pieces of lines, of the documents that stay."""
    result: dict[str, Any]
    """Counts by outcome and by rule."""


def decide_part(task: RulesTask, part: int, made: Mapping[str, pa.Table] | None = None) -> Decided:
    """Decide one part from its stored facts; those that were made just now need not be read again."""
    rules, given = task.given.rules, task.given
    facts = {
        name: made[name] if made else part_files.read_part(task.workdir, NAME, name, part)
        for name in (("signals", LEFT, FOUND) if task.line_rules else ("signals",))
    }
    table = facts["signals"]
    documents = read_labels(task.workdir, part, list(TALLY_COLUMNS), task.upto)
    entered = keep_mask(task.workdir, part, table.num_rows, task.upto)
    langs, domains = documents.column("lang").to_pylist(), documents.column("domain").to_pylist()
    columns = _columns(table)
    masks = np.array([given.masks[d] for d in domains], dtype=np.int64)
    if task.line_rules:
        left = _columns(facts[LEFT])
        left["han_kana_frac"] = columns["han_kana_frac"]  # a document's script is that of the text as it came in
        after = np.array([given.after[d] for d in domains], dtype=np.int64)
        only_left = {name: np.zeros(table.num_rows) for name in left if name not in columns}
        bits = decide({**columns, **only_left}, rules, langs).rule_bits & masks & ~after
        bits |= decide(left, rules, langs).rule_bits & masks & after
    else:
        bits = decide(columns, rules, langs).rule_bits & masks
    bits = np.where(entered, bits, 0)
    first = [(b & -b).bit_length() - 1 for b in bits.tolist()]
    reasons = pa.array([rules[i].name if i >= 0 else None for i in first], pa.string())
    decisions = decisions_table(table.column("doc_id"), entered, reasons, NAME, rule_bits=bits)
    result: dict[str, Any] = {
        "cut_by_rule": [int(((bits >> i) & 1).sum()) for i in range(len(rules))],
        "cut_by_rule_alone": [int((bits == np.int64(1) << i).sum()) for i in range(len(rules))],
    }
    cuts = CUTS.empty_table()
    counts = tally(documents, entered, reasons)
    if task.line_rules:
        cuts = _cuts(facts[FOUND], entered & (bits == 0))
        counts = _tally_with_cuts(documents, entered, reasons, cuts)
        result["line_rules"] = _line_counts(facts[FOUND], cuts, [rule.name for rule in task.line_rules])
    return Decided(decisions, cuts, {**result, "counts": counts})


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the columns of signals; 0 where an earlier stage dropped the document."""
    columns = {name: table.column(name) for name in table.column_names}
    return {name: (c.fill_null(0) if c.null_count else c).to_numpy() for name, c in columns.items()}


def _cuts(found: pa.Table, stays: np.ndarray) -> pa.Table:
    """Return the cuts of the documents that stay."""
    mine = stays[row_of(found.column("doc_id").to_numpy())]
    mine = mine & pc.not_equal(found.column("action"), "drop_document").to_numpy(zero_copy_only=False)
    rows = found.filter(pa.array(mine)).select(["doc_id", "start", "end", "rule"])
    nothing = pa.nulls(rows.num_rows, pa.string())
    rows = rows.rename_columns(["doc_id", "start", "end", "reason"]).append_column("because_of", nothing)
    return conform(rows.append_column("stage", pa.repeat(pa.scalar(NAME, pa.string()), rows.num_rows)), CUTS)


def _tally_with_cuts(
    documents: pa.Table, entered: np.ndarray, reasons: pa.Array, cuts: pa.Table
) -> list[dict[str, Any]]:
    rows, lengths = row_of(cuts.column("doc_id").to_numpy()), cuts.column("end").to_numpy()
    lengths = lengths - cuts.column("start").to_numpy()
    sizes = documents.column("num_bytes").to_numpy() - np.bincount(rows, lengths, documents.num_rows).astype(np.int64)
    shortened = documents.set_column(documents.column_names.index("num_bytes"), "num_bytes", pa.array(sizes))
    counts = tally(shortened, entered, reasons)
    by_reason = cuts.column("reason").combine_chunks().dictionary_encode()
    for reason, code in sorted((name, code) for code, name in enumerate(by_reason.dictionary.to_pylist())):
        mine = by_reason.indices.to_numpy() == code
        lost = np.bincount(rows[mine], lengths[mine], documents.num_rows).astype(np.int64)
        counts += tally_cuts(documents, lost, reason)
    return counts


def _line_counts(found: pa.Table, cuts: pa.Table, names: list[str]) -> dict[str, list[int]]:
    """Return figures per line rule: spans cut in kept documents; spans of all that each, or it alone, would cut."""
    bits = found.column("line_rule_bits").to_numpy()
    tally_of = {count["values"]: count["counts"] for count in cuts.column("reason").value_counts().to_pylist()}
    return {
        "cut": [tally_of.get(name, 0) for name in names],
        "would_cut": [int(((bits >> i) & 1).sum()) for i in range(len(names))],
        "would_cut_alone": [int((bits == np.int64(1) << i).sum()) for i in range(len(names))],
    }


def _sum_lists(results: list[dict[str, Any]], key: str) -> list[int]:
    return [sum(column) for column in zip(*(r[key] for r in results), strict=True)]
