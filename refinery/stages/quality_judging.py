"""quality: how good the classifiers are on documents that none of them learned from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from refinery.errors import ConfigError, DataError
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.kernels.classifier_curves import Band, agreement, curves
from refinery.kernels.classifier_metrics import (
    calibrate,
    calibration_error,
    fit_calibration,
    roc_auc_interval,
    threshold_for_precision,
)
from refinery.kernels.fasttext_model import score_documents
from refinery.kernels.fasttext_words import strongest_words
from refinery.kernels.score_expression import check_expression
from refinery.kernels.text import views_of
from refinery.recipe import Quality, QualityClassifier
from refinery.stages.quality_models import STAGE, held_out, labelled_sample, open_member
from refinery.stages.quality_scores import ScoreTask, combined_scores

_DIGITS = 6
MIN_OF_CLASS = 20
"""Fewer held-out documents of a class make every figure here a guess: said as a warning."""


class HoldOut:
    """Held-out documents with every classifier's score: the rows of the holdout tables, then those of labelled files.

    Per row: source, language, 64 bits of the text's hash, and a score per classifier, NaN where it gives none.
    """

    def __init__(self, task: ScoreTask, section: Quality) -> None:
        tables = [part_files.read_part(task.workdir, STAGE, "holdout", p) for p in sorted(task.upstream)]
        table = pa.concat_tables(tables)
        self._section = section
        self.sources: list[str] = table.column("source").to_pylist()
        self.langs: list[str] = [lang or "und" for lang in table.column("lang").to_pylist()]
        keys = [key_prefix_uint64(table.column("text_hash").to_pylist())]
        scores = {n: [table.column(f"score_{n}").to_numpy().astype(np.float64)] for n in task.columns}
        labelled: list[tuple[str, bool]] = []
        for member in task.members:
            rows = labelled_sample(task.seed, QualityClassifier(**member.settings))
            mine = [(good, key, text) for good, key, text in rows if held_out(task.seed, np.array([key], np.uint64))[0]]
            if not mine:
                continue
            found = score_documents(open_member(member), views_of([text for _, _, text in mine]))
            labelled += [(member.column, good) for good, _, _ in mine]
            keys.append(np.array([key for _, key, _ in mine], dtype=np.uint64))
            for name, values in scores.items():
                own = found.astype(np.float64) if name == member.column else np.full(len(mine), np.nan)
                values.append(own)
        self._labelled = labelled
        self.sources += [""] * len(labelled)
        self.langs += ["und"] * len(labelled)
        self.keys = np.concatenate(keys)
        self.scores = {name: np.concatenate(values) for name, values in scores.items()}

    def truth(self, name: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Return (judged, positive), bool per row, for one classifier, or for all together."""
        chosen = [c for c in self._section.each() if name in (None, c.name)]
        good = {s for c in chosen for s in c.positives}
        bad = {s for c in chosen for s in c.negatives} - good
        tables = len(self.sources) - len(self._labelled)
        judged = np.array([s in good or s in bad for s in self.sources[:tables]], dtype=bool)
        positive = np.array([s in good for s in self.sources[:tables]], dtype=bool)
        judged = np.concatenate([judged, [name in (None, n) for n, _ in self._labelled]]).astype(bool)
        return judged, np.concatenate([positive, [g for _, g in self._labelled]]).astype(bool)


def fit_calibrations(hold: HoldOut) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return the isotonic calibration of every classifier whose hold-out has both classes."""
    found = {}
    for name, scores in hold.scores.items():
        rows, positive = _rows(hold, name, scores)
        if positive.any() and not positive.all():
            fitted = fit_calibration(scores[rows], positive)
            found[name] = tuple(fitted.scores.tolist()), tuple(fitted.probabilities.tolist())
    return found


def _rows(hold: HoldOut, name: str | None, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    judged, positive = hold.truth(name)
    rows = np.flatnonzero(judged & ~np.isnan(scores))
    return rows, positive[rows]


def judge(task: ScoreTask, hold: HoldOut) -> dict[str, Any]:
    """Return what the hold-out says of each classifier, of the combined score, and of how far classifiers agree."""
    combined = combined_scores(task, hold.scores) if len(hold.keys) else np.empty(0)
    facts: dict[str, Any] = {"held_out": _figures(hold, None, combined)}
    facts["classifiers"] = {name: {"held_out": _figures(hold, name, s)} for name, s in hold.scores.items()}
    for member in task.members:
        pushes = strongest_words(open_member(member))
        told = {side: [list(p) for p in found] for side, found in pushes._asdict().items()}
        facts["classifiers"][member.column].setdefault("words", {})[member.name] = told
    facts["agreement"] = [
        {"first": a, "second": b, **found}
        for a, b in itertools.combinations(hold.scores, 2)
        if (found := _agreement(hold, a, b)) is not None
    ]
    return facts


def _figures(hold: HoldOut, name: str | None, scores: np.ndarray) -> dict[str, Any]:
    rows, positive = _rows(hold, name, scores)
    facts: dict[str, Any] = {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    if not positive.any() or positive.all():
        return facts
    mine = scores[rows]
    interval = roc_auc_interval(mine, positive)
    half = hold.keys[rows] & np.uint64(1) == 0
    fitted = fit_calibration(mine, positive)
    drawn = curves(mine, positive)
    facts |= {
        "roc_auc": round(interval.auc, _DIGITS),
        "roc_auc_standard_error": round(interval.standard_error, _DIGITS),
        "roc": _listed(drawn.roc),
        "precision_recall": _listed(drawn.precision_recall),
        "calibration": np.round(np.stack([fitted.scores, fitted.probabilities], axis=1), 4).tolist(),
        "calibration_error": round(calibration_error(np.clip(mine, 0, 1), positive), 4),
    }
    if all(0 < positive[side].sum() < side.sum() for side in (half, ~half)):
        crossed = calibrate(fit_calibration(mine[half], positive[half]), mine[~half])
        facts["calibration_error_isotonic"] = round(calibration_error(crossed, positive[~half]), 4)
    return facts


def _listed(band: Band) -> list[list[float]]:
    return np.round(np.stack(band, axis=1), 4).tolist()


def _agreement(hold: HoldOut, first: str, second: str) -> dict[str, Any] | None:
    both = np.flatnonzero(~np.isnan(hold.scores[first]) & ~np.isnan(hold.scores[second]))
    if not len(both):
        return None
    _, positive = hold.truth(None)
    found = agreement(hold.scores[first][both], hold.scores[second][both], int(positive[both].sum()))
    return {"docs": len(both), **{k: round(v, 4) for k, v in found._asdict().items()}}


def precision_thresholds(task: ScoreTask, hold: HoldOut, section: Quality, groups: list[str]) -> dict[str, float]:
    """Return the lowest threshold of each group at which the hold-out has the wanted precision.

    A language whose hold-out has both classes gets its own; every other group gets that of the whole hold-out, because
    the domains of positives are seldom those of the pool.

    Raises:
        DataError: the hold-out has not both classes, or no threshold is that precise.
    """
    wanted = float(section.precision or 0)
    scores = combined_scores(task, hold.scores) if len(hold.keys) else np.empty(0)
    rows, positive = _rows(hold, None, scores)
    if not positive.any() or positive.all():
        raise DataError(
            f"a cut by precision needs held-out documents of both classes, there are {int(positive.sum())} positives "
            f"and {int((~positive).sum())} negatives; name more training text, or cut by keep_token_frac"
        )
    langs = np.array([hold.langs[i] for i in rows.tolist()], dtype=object)
    found = {}
    for group in groups:
        mine = langs == group.rpartition("/")[2] if "lang" in section.cut_by else np.zeros(len(rows), dtype=bool)
        few = min(int(positive[mine].sum()), int((~positive[mine]).sum())) < MIN_OF_CLASS
        use = np.ones(len(rows), dtype=bool) if few else mine
        value = section.by_group.get(group, wanted)
        found[group] = threshold_for_precision(scores[rows[use]], positive[use], value)
    return found


def check_combine(section: Quality) -> None:
    """Check the expression before any work.

    Raises:
        ConfigError: it cannot be read, or wants a calibration that no hold-out can give.
    """
    if section.combine is None:
        return
    each = {c.name: c for c in section.each()}
    _, wanted = check_expression(section.combine, list(each))
    for name in sorted(wanted):
        if not each[name].positives and each[name].labelled is None:
            raise ConfigError(
                f"combine: calibrated({name}) needs positives and negatives of {name} to calibrate by; name them"
            )


def warnings_of(facts: Mapping[str, Any], section: Quality) -> list[str]:
    """Return what a person should know of the classifiers before trusting them."""
    told = []
    for name, one in facts["classifiers"].items():
        held = one["held_out"]
        counts = held["positives"], held["negatives"]
        if sum(counts) > 0 and min(counts) < MIN_OF_CLASS:
            told.append(
                f"{name} was judged by {counts[0]} positives and {counts[1]} negatives only; name more training text"
            )
        if "roc_auc" in held and held["roc_auc"] < 0.7:
            told.append(f"{name} barely tells its classes apart (ROC AUC {held['roc_auc']:.3f}); look at its words")
    threaded = [c.name for c in section.each() if c.threads > 1]
    if threaded:
        told.append(f"{', '.join(threaded)} trained with several threads: another run gives another model")
    return told
