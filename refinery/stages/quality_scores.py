"""quality, second half: one pass over the text scores it, then everything goes by numbers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import DECISIONS, QUALITY, quality_holdout_schema, quality_scores_schema
from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import Survivors, keep_mask, read_labels, read_survivors
from refinery.kernels.classifier_metrics import Calibration, calibrate, pareto_keep
from refinery.kernels.fasttext_model import Classifier, score
from refinery.kernels.preparation import preparation_digest, prepare
from refinery.kernels.score_bias import bias_sums, symbol_fracs
from refinery.kernels.score_expression import evaluate
from refinery.kernels.text import text_views
from refinery.stages.budget_cut import KeyColumns
from refinery.stages.chinese_words import with_words
from refinery.stages.decisions import decisions_table, located, reasons_where
from refinery.stages.quality_models import STAGE, Member, drawn_rows, held_out, open_member, prepared_from
from refinery.stages.tallies import TALLY_COLUMNS, tally

FORMAT_VERSION = 2
HISTOGRAM_BINS = 50
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ScoreTask:
    """Everything a part task of scoring, combining or deciding needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    """The quality section."""
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    members: tuple[Member, ...]
    calibrations: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """Classifier -> first scores and probabilities of its steps."""
    thresholds: dict[str, float]
    """Group -> lowest score that stays; empty before it is known, and for Pareto."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the classifiers, each a column."""
        return tuple(dict.fromkeys(m.column for m in self.members))

    @property
    def expression(self) -> str:
        """How the classifiers make one score."""
        return self.settings["combine"] or self.columns[0]

    @property
    def models(self) -> list[list[Any]]:
        """What scores depend on."""
        return [
            [
                m.name,
                m.column,
                m.sha256,
                m.preparation,
                preparation_digest(m.preparation),
                list(m.languages),
                m.rates,
                labels,
            ]
            for m in self.members
            for labels in [[m.settings[key] for key in ("label_values", "preset", "positive_label")]]
        ]


def score_part(task: ScoreTask, part: int) -> dict[str, Any]:
    """Score one part's pool documents and its hold-out with every classifier."""
    print_ = fingerprint_of("scores", FORMAT_VERSION, task.seed, task.models, task.upstream[part])
    tables = {"scores": quality_scores_schema(task.columns), "holdout": quality_holdout_schema(task.columns)}
    paths = {name: part_files.part_path(task.workdir, STAGE, name, part) for name in tables}
    found = {name: part_files.found_part(path, print_) for name, path in paths.items()}
    if found["scores"] is None or found["holdout"] is None:
        scores, holdout, nan_docs = _scored(task, part)
        found["holdout"] = part_files.write_part(paths["holdout"], holdout, tables["holdout"], print_)
        result = {"nan_docs": nan_docs}
        found["scores"] = part_files.write_part(paths["scores"], scores, tables["scores"], print_, result)
    written = {name: file for name, file in found.items() if file is not None}
    return {**written["scores"].result, **{name: located(part, file) for name, file in written.items()}}


def _scored(task: ScoreTask, part: int) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    ids = part_files.read_part(task.workdir, "ingest", "documents", part, ["doc_id"]).column("doc_id")
    scores = {name: np.full(len(ids), np.nan, dtype=np.float32) for name in task.columns}
    symbols = np.full(len(ids), np.nan, dtype=np.float32)
    nan_docs = dict.fromkeys(task.columns, 0)
    held = [quality_holdout_schema(task.columns).empty_table()]
    opened = {member.name: open_member(member) for member in task.members}
    columns = ["doc_id", "role", "source", "split", "lang", "text_hash", "num_bytes", "text"]
    segmented = any(m.preparation == "segmented" for m in task.members)
    columns = with_words(task.workdir, part, columns, task.upto, wanted=segmented)
    for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
        pool = pc.equal(piece.table.column("role"), "pool").to_numpy(zero_copy_only=False)
        judging = _holdout_rows(task, piece.table)
        wanted = np.flatnonzero(pool | judging)
        table = piece.table.take(pa.array(wanted))
        made, failed = _score_views(task, opened, Survivors(piece.rows[wanted], table))
        for name in task.columns:
            scores[name][piece.rows[pool]] = made[name][pool[wanted]]
            nan_docs[name] += int(failed[name])
        symbols[piece.rows[pool]] = symbol_fracs(text_views(piece.table.column("text").filter(pa.array(pool))))
        rows = pa.array(np.flatnonzero(judging[wanted]))
        narrow = table.select(["doc_id", "source", "lang", "text_hash", "num_bytes"]).take(rows)
        values = {f"score_{name}": pa.array(made[name], from_pandas=True).take(rows) for name in task.columns}
        held.append(pa.table({**{c: narrow.column(c) for c in narrow.column_names}, **values}).cast(held[0].schema))
    aligned = {"doc_id": ids, "symbol_frac": pa.array(symbols, from_pandas=True)}
    aligned |= {f"score_{name}": pa.array(values, from_pandas=True) for name, values in scores.items()}
    return pa.table(aligned), pa.concat_tables(held), nan_docs


def _holdout_rows(task: ScoreTask, table: pa.Table) -> np.ndarray:
    keys = key_prefix_uint64(table.column("text_hash").to_pylist())
    drawn = np.zeros(table.num_rows, dtype=bool)
    for member in task.members:
        drawn |= drawn_rows(task.seed, member.rates, table, member.languages)
    return drawn & held_out(task.seed, keys)


def _score_views(
    task: ScoreTask, opened: dict[str, Classifier], piece: Survivors
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return each classifier's scores, and how many of them came out as NaN where there should be a number."""
    table, lines = piece.table, {}
    for preparation in sorted({m.preparation for m in task.members}):
        views, boundaries = prepared_from(piece, preparation)
        lines[preparation] = prepare(views, preparation, boundaries)
    made = {name: np.full(table.num_rows, np.nan, dtype=np.float32) for name in task.columns}
    failed = dict.fromkeys(task.columns, 0)
    for member in task.members:
        mine = np.ones(table.num_rows, dtype=bool)
        if member.languages:
            langs = pa.array(member.languages, pa.string())
            mine = pc.is_in(table.column("lang"), langs).to_numpy(zero_copy_only=False)
        found = score(opened[member.name], lines[member.preparation], mine)
        made[member.column][mine] = found[mine]
        failed[member.column] += int(np.isnan(found[mine]).sum())
    return made, failed


def combine_part(task: ScoreTask, part: int) -> dict[str, Any]:
    """Write one part's combined scores, and sum what thresholds and the report need."""
    path = part_files.part_path(task.workdir, STAGE, "quality", part)
    asked = [task.expression, task.calibrations, task.settings["cut_by"], task.settings["exempt_domains"]]
    print_ = fingerprint_of("combined", FORMAT_VERSION, task.models, asked, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        columns, documents = _columns_of(task, part)
        combined = combined_scores(task, columns)
        outside = np.flatnonzero((combined < -_TOLERANCE) | (combined > 1 + _TOLERANCE) | np.isinf(combined))
        if len(outside):
            raise ConfigError(
                f"combine: {task.expression!r} gives {combined[outside[0]]:.4g} for document "
                f"{documents.column('doc_key')[int(outside[0])].as_py()}; scores lie in [0, 1]: divide or bound it"
            )
        scores = np.clip(combined, 0.0, 1.0).astype(np.float32)
        table = pa.table({"doc_id": documents.column("doc_id"), "score": pa.array(scores, from_pandas=True)})
        result = _sums(task, columns, documents, scores)
        found = part_files.write_part(path, table, QUALITY, print_, result)
    return {**found.result, "quality": located(part, found)}


def combined_scores(task: ScoreTask, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return the expression's value, float64, shape (docs,); NaN where a document has none."""
    steps = {n: Calibration(np.array(s), np.array(p)) for n, (s, p) in task.calibrations.items()}
    return evaluate(task.expression, columns, {n: functools.partial(calibrate, c) for n, c in steps.items()})


def _columns_of(task: ScoreTask, part: int) -> tuple[dict[str, np.ndarray], pa.Table]:
    table = part_files.read_part(task.workdir, STAGE, "scores", part)
    columns = {n: table.column(f"score_{n}").to_numpy().astype(np.float64) for n in task.columns}
    documents = read_labels(
        task.workdir, part, ["doc_id", "doc_key", "source", "domain", "lang", "num_bytes"], task.upto
    )
    return columns, documents.append_column("symbol_frac", table.column("symbol_frac"))


def _sums(task: ScoreTask, columns: dict[str, np.ndarray], documents: pa.Table, scores: np.ndarray) -> dict[str, Any]:
    known = ~np.isnan(scores)
    deciding = known & ~_exempt(task, documents)
    sizes = documents.column("num_bytes").to_numpy()
    groups = groups_of(task.settings["cut_by"], documents)
    sources = np.array(documents.column("source").to_pylist(), dtype=object)
    histograms = {
        str(s): np.bincount(
            np.minimum((scores[deciding & (sources == s)] * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1),
            minlength=HISTOGRAM_BINS,
        ).tolist()
        for s in np.unique(sources[deciding].astype(str))
    }
    langs = [lang or "und" for lang in documents.column("lang").to_pylist()]
    symbols = documents.column("symbol_frac").to_numpy()
    bias = {}
    for name, values in {**columns, "": scores}.items():
        mine = np.flatnonzero(~np.isnan(values) & ~np.isnan(symbols))
        bias[name] = bias_sums(values[mine], sizes[mine], symbols[mine], [langs[i] for i in mine.tolist()])
    return {
        "bytes": {str(g): int(sizes[deciding & (groups == g)].sum()) for g in np.unique(groups[deciding].astype(str))},
        "docs": int(deciding.sum()),
        "not_scored": int((~np.isnan(symbols) & ~known).sum()),
        "range": [float(scores[deciding].min()), float(scores[deciding].max())] if deciding.any() else [],
        "histograms": histograms,
        "bias": bias,
    }


def groups_of(cut_by: list[str] | tuple[str, ...], documents: pa.Table) -> np.ndarray:
    """Return object, shape (rows,): the group in which each document is cut: ``zh``, ``web``, ``web/zh`` or nothing."""
    named = [[v or "und" for v in documents.column(c).to_pylist()] for c in ("domain", "lang") if c in cut_by]
    if not named:
        return np.full(documents.num_rows, "", dtype=object)
    return np.array(["/".join(labels) for labels in zip(*named, strict=True)], dtype=object)


def order_columns(task: ScoreTask, part: int) -> KeyColumns:
    """Return groups, order keys (highest score first) and bytes of the documents that the cut decides about."""
    documents = read_labels(task.workdir, part, ["domain", "lang", "num_bytes"], task.upto)
    scores = part_files.read_part(task.workdir, STAGE, "quality", part, ["score"]).column("score").to_numpy()
    mine = ~np.isnan(scores) & ~_exempt(task, documents)
    sizes = documents.column("num_bytes").to_numpy()[mine]
    return KeyColumns(groups_of(task.settings["cut_by"], documents)[mine], score_keys(scores[mine]), sizes)


def score_keys(scores: np.ndarray) -> np.ndarray:
    """Map float32 scores in [0, 1] to uint64 keys; a higher score has a smaller key. `key_score` undoes it."""
    bits = (scores.astype(np.float32) + np.float32(0.0)).view(np.uint32).astype(np.uint64)
    return (np.uint64(0xFFFFFFFF) - bits) << np.uint64(32)


def key_score(key: int) -> float:
    """Return the score of a key of `score_keys`."""
    return float(np.array([0xFFFFFFFF - (key >> 32)], dtype=np.uint32).view(np.float32)[0])


def _exempt(task: ScoreTask, documents: pa.Table) -> np.ndarray:
    domains = pa.array(task.settings["exempt_domains"], pa.string())
    return pc.is_in(documents.column("domain"), domains).to_numpy(zero_copy_only=False)


def decide_part(task: ScoreTask, part: int) -> dict[str, Any]:
    """Write one part's decisions: scored documents below the cut go, unless their domain is exempt."""
    path = part_files.part_path(task.workdir, STAGE, "decisions", part)
    alpha = task.settings["pareto_alpha"]
    asked = [
        task.thresholds,
        alpha,
        task.seed if alpha else 0,
        task.settings["cut_by"],
        task.settings["exempt_domains"],
    ]
    combined = [task.expression, task.calibrations]
    print_ = fingerprint_of("decided", FORMAT_VERSION, asked, combined, task.models, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", "doc_key", *TALLY_COLUMNS], task.upto)
        scores = part_files.read_part(task.workdir, STAGE, "quality", part, ["score"]).column("score").to_numpy()
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        low = _low(task, scores, documents) & ~_exempt(task, documents)
        reasons = reasons_where(low, f"{STAGE}.low_score")
        table = decisions_table(documents.column("doc_id"), entered, reasons, STAGE)
        mine = np.flatnonzero(~np.isnan(scores) & ~_exempt(task, documents) & ~low)
        groups = groups_of(task.settings["cut_by"], documents)[mine].astype(str)
        sizes = documents.column("num_bytes").to_numpy()[mine]
        kept = {str(g): int(sizes[groups == g].sum()) for g in np.unique(groups)}
        result = {"counts": tally(documents, entered, reasons), "kept": kept}
        found = part_files.write_part(path, table, DECISIONS, print_, result)
    return {**found.result, "decisions": located(part, found)}


def _low(task: ScoreTask, scores: np.ndarray, documents: pa.Table) -> np.ndarray:
    known = ~np.isnan(scores)
    if task.settings["pareto_alpha"] is None:
        groups = groups_of(task.settings["cut_by"], documents).tolist()
        return known & (scores < np.array([task.thresholds.get(g, 0.0) for g in groups], dtype=np.float32))
    keys = key_prefix_uint64(documents.column("doc_key").to_pylist())
    low = np.zeros(len(scores), dtype=bool)
    low[known] = ~pareto_keep(scores[known], task.seed, keys[known], task.settings["pareto_alpha"])
    return low
