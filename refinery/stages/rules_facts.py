"""What the rules stage measures: signals, word boundaries, lines that line rules cut, and the signals of what is left.

One pass over a part's text. Everything here is a fact that decisions are made from; nothing here decides about a
document.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import LINE_FINDINGS, PART_SHIFT, WORDS
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import read_labels, read_survivors
from refinery.kernels.boundaries import cut_boundaries, pack_boundaries
from refinery.kernels.cuts import kept_bytes, without_bytes
from refinery.kernels.line_rules import ACTIONS, LineFindings, LineRule, find_lines, line_presets
from refinery.kernels.line_rules import ALGORITHM_VERSION as LINES_VERSION
from refinery.kernels.preset import CJK_MIN_FRAC, LINE_SIGNALS
from refinery.kernels.segmentation import segment_han
from refinery.kernels.signals import ALGORITHM_VERSION as SIGNALS_VERSION
from refinery.kernels.signals import Passes, signal_batch, signal_schema, signals
from refinery.kernels.signals_datatrove import ALGORITHM_VERSION as DATATROVE_VERSION
from refinery.kernels.signals_datatrove import datatrove_signals
from refinery.kernels.text import TextViews, text_views
from refinery.stages.rules_task import RulesTask

STAGE = "rules"
LEFT = "signals_left"
"""Table of the signals of what line rules left."""
FOUND = "line_findings"
"""Table of the lines that line rules cut, edit or trip over, in documents that stay and in those that go."""


class PartFacts(NamedTuple):
    """The files of one part; None where the recipe asks for none."""

    signals: part_files.PartFile
    words: part_files.PartFile | None
    signals_left: part_files.PartFile | None
    line_findings: part_files.PartFile | None


def signals_schema() -> pa.Schema:
    """Return the schema of the signals table: ``doc_id`` and one column per signal."""
    return pa.schema([pa.field("doc_id", pa.int64(), nullable=False), *signal_schema()])


def signals_left_schema(rules: tuple[LineRule, ...]) -> pa.Schema:
    """Return the schema of ``signals_left``: signals, `LINE_SIGNALS` of each preset, lines that trip over each rule."""
    types = {name: pa.int32() if name.startswith("num_") else pa.float32() for name in LINE_SIGNALS}
    presets = [pa.field(f"{p}.{name}", types[name]) for p in line_presets(rules) for name in LINE_SIGNALS]
    trips = [pa.field(rule.name, pa.int32()) for rule in rules if rule.action == "drop_document"]
    return pa.schema([*signals_schema(), *presets, *trips])


def signals_fingerprint(task: RulesTask, part: int) -> str:
    """Return what the signals of one part are a function of: the text, and the words that they count."""
    told = [task.segmentation] if task.segmentation is not None else []
    told += [] if task.passes_before == "ngrams" else [task.passes_before]
    told += ["datatrove", str(DATATROVE_VERSION)] if task.wants_datatrove else []
    return fingerprint_of("signals", SIGNALS_VERSION, task.upstream[part], *told)


def lines_fingerprint(task: RulesTask, part: int) -> str:
    """Return what the findings of line rules, and the signals of what they leave, are a function of."""
    rules = [rule._asdict() | {"langs": list(rule.langs), "phrases": list(rule.phrases)} for rule in task.line_rules]
    told = [rules, task.line_masks, task.passes_before, task.passes_left]
    return fingerprint_of("lines", LINES_VERSION, signals_fingerprint(task, part), *told)


def make_facts(task: RulesTask, part: int) -> tuple[PartFacts, dict[str, pa.Table]]:
    """Return a part's facts; if any is missing, all are made in one pass over the text and returned as tables, too."""
    schemas = {"signals": signals_schema()}
    prints = {"signals": signals_fingerprint(task, part)}
    if task.segmentation is not None:
        schemas["words"] = WORDS
        prints["words"] = fingerprint_of("words", task.upstream[part], task.segmentation)
    if task.line_rules:
        schemas |= {LEFT: signals_left_schema(task.line_rules), FOUND: LINE_FINDINGS}
        prints |= dict.fromkeys((LEFT, FOUND), lines_fingerprint(task, part))
    paths = {t: part_files.part_path(task.workdir, STAGE, t, part) for t in ("signals", "words", LEFT, FOUND, "cuts")}
    wanted = {*schemas, "cuts"} if task.line_rules else schemas.keys()
    for table in paths.keys() - wanted:
        storage.remove(paths[table])  # later stages read the boundaries and cuts that lie there
    found = {table: part_files.found_part(paths[table], prints[table]) for table in schemas}
    tables = {} if all(found.values()) else _compute(task, part)
    files = {
        table: found[table] or part_files.write_part(paths[table], tables[table], schema, prints[table])
        for table, schema in schemas.items()
    }
    return PartFacts(files["signals"], files.get("words"), files.get(LEFT), files.get(FOUND)), tables


def _compute(task: RulesTask, part: int) -> dict[str, pa.Table]:
    """Return all tables of facts; aligned ones are null for documents that an earlier stage dropped.

    Boundaries are of the text as ingested: no stage before this one cuts.
    """
    labels = read_labels(task.workdir, part, ["doc_id", "domain", "lang"], task.upto)
    ids = labels.column("doc_id")
    rows: list[np.ndarray] = []
    columns: dict[str, list[Any]] = {"signals": [], "words": [], LEFT: [], FOUND: [LINE_FINDINGS.empty_table()]}
    for piece in read_survivors(task.workdir, part, ["text"], task.upto, task.slice_rows):
        views = text_views(piece.table.column("text"))
        found = segment_han(views) if task.segmentation is not None else None
        boundaries = found.boundaries if found is not None and found.has_han.any() else None
        packed = pa.nulls(views.num_docs, pa.large_binary())
        if found is not None and boundaries is not None:
            packed = pack_boundaries(views, boundaries, found.has_han)
        before = _measure(task, views, boundaries, task.passes_before)
        columns["signals"].append(signal_batch(before))
        columns["words"].append(packed)
        rows.append(piece.rows)
        if task.line_rules:
            masks = line_masks(task, labels.take(pa.array(piece.rows)), before["han_kana_frac"])
            findings = find_lines(views, task.line_rules, masks)
            columns[LEFT].append(_left(task, views, boundaries, before, findings))
            columns[FOUND].append(_findings_table(task, ids.take(pa.array(piece.rows)).to_numpy(), findings))
    place = np.full(len(ids), -1, dtype=np.int64)
    seen = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
    place[seen] = np.arange(len(seen))
    index = pa.array(place, mask=place < 0)
    boundaries_of = pa.chunked_array(columns["words"], pa.large_binary()).take(index)
    tables = {"words": pa.table({"doc_id": ids, "boundaries": boundaries_of})}
    aligned_tables = {"signals": signals_schema()}
    if task.line_rules:
        aligned_tables[LEFT] = signals_left_schema(task.line_rules)
    for table, schema in aligned_tables.items():
        aligned = pa.Table.from_batches(columns[table], pa.schema(list(schema)[1:])).take(index)
        tables[table] = pa.table({"doc_id": ids, **{name: aligned.column(name) for name in aligned.column_names}})
    return {**tables, FOUND: pa.concat_tables(columns[FOUND])}


def _measure(
    task: RulesTask, views: TextViews, boundaries: np.ndarray | None, passes: Passes
) -> dict[str, np.ndarray]:
    """Return the signals that the recipe's rules can ask for."""
    found = signals(views, boundaries, passes=passes)
    return found | datatrove_signals(views) if task.wants_datatrove and passes != "characters" else found


def line_masks(task: RulesTask, labels: pa.Table, han_kana_frac: np.ndarray) -> np.ndarray:
    """Return int64, shape (D,): the line rules that hold for each document, by domain, script and language."""
    masks = np.array([task.line_masks[d] for d in labels.column("domain").to_pylist()], dtype=np.int64)
    cjk = han_kana_frac >= np.float32(CJK_MIN_FRAC)
    langs = labels.column("lang").to_pylist()
    for index, rule in enumerate(task.line_rules):
        holds = np.ones(len(masks), dtype=bool) if rule.scripts == "any" else cjk if rule.scripts == "cjk" else ~cjk
        if rule.langs:
            holds = holds & np.array([lang is None or lang in rule.langs for lang in langs], dtype=bool)
        masks[~holds] &= ~np.int64(1 << index)
    return masks


def _left(
    task: RulesTask,
    views: TextViews,
    boundaries: np.ndarray | None,
    before: dict[str, np.ndarray],
    findings: LineFindings,
) -> pa.RecordBatch:
    """Return the signals of what line rules left, and what they took.

    Documents that lost nothing have their signals already, where those are whole.
    """
    cut = findings.is_cut
    docs, starts, ends = findings.docs[cut], findings.starts[cut], findings.ends[cut]
    presets = line_presets(task.line_rules)
    preset_of = np.array([presets.index(r.preset) for r in task.line_rules], dtype=np.int64)
    cells = docs * len(presets) + preset_of[findings.rules[cut]]
    lost = np.bincount(cells, ends - starts, views.num_docs * len(presets)).reshape(views.num_docs, len(presets))
    again = np.unique(docs) if task.passes_before == "ngrams" else np.arange(views.num_docs)
    left = _shortened(views, boundaries, again, (docs, starts, ends))
    after = _measure(task, *left, task.passes_left)
    columns = {}
    for name, values in after.items():  # without n-grams in both or in neither: no column is whole for some alone
        columns[name] = before[name].copy() if name in before else np.empty_like(values)
        columns[name][again] = values
    batch = signal_batch(columns)
    extra = {}
    for preset, name in enumerate(presets):
        words, size = np.maximum(findings.num_words, 1), np.maximum(before["num_bytes"], 1)
        extra[f"{name}.cut_word_frac"] = (findings.cut_words[:, preset] / words).astype(np.float32)
        extra[f"{name}.cut_byte_frac"] = (lost[:, preset] / size).astype(np.float32)
        extra[f"{name}.num_line_sentences"] = columns["num_sentences"] + findings.open_lines.astype(np.int32)
    for index, rule in enumerate(task.line_rules):
        if rule.action == ACTIONS[2]:
            extra[rule.name] = findings.trips[:, index].astype(np.int32)
    arrays = [*batch.columns, *(pa.array(values) for values in extra.values())]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(list(signals_left_schema(task.line_rules))[1:]))


def _shortened(
    views: TextViews,
    boundaries: np.ndarray | None,
    docs: np.ndarray,
    cuts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[TextViews, np.ndarray | None]:
    """Return some documents without their cuts, and the word boundaries of what is left."""
    rows = np.arange(views.num_docs)
    kept = kept_bytes(views, rows, *cuts)
    if kept is None and len(docs) == views.num_docs:
        return views, boundaries
    keep, lengths = kept or (np.ones(views.offsets[-1] - views.offsets[0], dtype=bool), np.diff(views.offsets))
    begins = views.offsets - views.offsets[0]
    for doc in np.setdiff1d(rows, docs, assume_unique=True):
        keep[begins[doc] : begins[doc + 1]] = False
    left = text_views(without_bytes(views, keep, lengths[docs]))
    if boundaries is None:
        return left, None
    return left, cut_boundaries(boundaries[views.offsets[0] : views.offsets[-1]], keep)


def _findings_table(task: RulesTask, ids: np.ndarray, findings: LineFindings) -> pa.Table:
    names = pa.array([rule.name for rule in task.line_rules], pa.string())
    return pa.table(
        {
            "doc_id": ids[findings.docs],
            "start": findings.starts,
            "end": findings.ends,
            "rule": names.take(pa.array(findings.rules)),
            "action": pa.array(ACTIONS, pa.string()).take(pa.array(findings.done)),
            "line_rule_bits": findings.bits,
        }
    ).cast(LINE_FINDINGS)


def row_of(doc_ids: np.ndarray) -> np.ndarray:
    """Return the rows inside the part of documents."""
    return doc_ids & ((1 << PART_SHIFT) - 1)
