"""How good a classifier is, and where to cut: ranking metrics, thresholds, calibration, the Pareto keep rule.

A threshold t keeps documents with ``score >= t``. Every result depends on the multiset of rows, never on their order.

Shape legend: D documents, T distinct scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError, DataError, SchemaError
from refinery.hashing import keyed_uniform

PARETO_ALPHA = 9.0
"""GPT-3 (2005.14165, appendix A): keep when a Pareto draw exceeds 1 - score."""
PARETO_STAGE = "quality.pareto"


class PrecisionRecall(NamedTuple):
    """One point per distinct score, from the highest threshold to the lowest."""

    thresholds: np.ndarray
    """float64, shape (T,), descending."""
    precision: np.ndarray
    """float64, shape (T,)."""
    recall: np.ndarray
    """float64, shape (T,), ascending to 1."""


class Calibration(NamedTuple):
    """A non-decreasing step function from score to probability."""

    scores: np.ndarray
    """float64, ascending: first score of each block."""
    probabilities: np.ndarray
    """float64, the block's share of positives."""


class AucInterval(NamedTuple):
    """ROC AUC with its standard error."""

    auc: float
    standard_error: float
    """Hanley and McNeil, Radiology 143 (1982): from AUC and class sizes."""


def roc_auc(scores_D: np.ndarray, labels_D: np.ndarray) -> float:
    """Return the probability that a positive outscores a negative; ties count one half.

    Args:
        scores_D: float, shape (D,).
        labels_D: bool, shape (D,): True is positive.

    Raises:
        DataError: one class is empty, or a score is NaN.
        SchemaError: the shapes differ.
    """
    scores, labels = check_scores_and_labels(scores_D, labels_D)
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_ranks = ends - (counts - 1) / 2.0
    num_positive = int(labels.sum())
    num_negative = len(labels) - num_positive
    rank_sum = float(mean_ranks[inverse[labels]].sum()) if len(values) else 0.0
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def roc_auc_interval(scores_D: np.ndarray, labels_D: np.ndarray) -> AucInterval:
    """Return ROC AUC with its standard error. Arguments and errors as in `roc_auc`."""
    auc = roc_auc(scores_D, labels_D)
    positives = int(np.count_nonzero(labels_D))
    negatives = len(labels_D) - positives
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return AucInterval(auc, math.sqrt(max(variance, 0.0) / (positives * negatives)))


def precision_recall(scores_D: np.ndarray, labels_D: np.ndarray) -> PrecisionRecall:
    """Return precision and recall at every distinct score. Arguments and errors as in `roc_auc`."""
    scores, labels = check_scores_and_labels(scores_D, labels_D)
    values, inverse = np.unique(scores, return_inverse=True)
    kept = np.cumsum(np.bincount(inverse, minlength=len(values))[::-1])
    hits = np.cumsum(np.bincount(inverse, weights=labels, minlength=len(values))[::-1])
    return PrecisionRecall(values[::-1], hits / kept, hits / labels.sum())


def threshold_for_token_frac(scores_D: np.ndarray, tokens_D: np.ndarray, keep_frac: float) -> float:
    """Return the highest threshold that keeps at least `keep_frac` of all tokens.

    Documents of equal score stay together, so more than asked can be kept.

    Args:
        scores_D: float, shape (D,).
        tokens_D: int, shape (D,): tokens (or bytes) of each document.
        keep_frac: in (0, 1].

    Raises:
        ConfigError: `keep_frac` is out of bounds.
        DataError: no documents, NaN scores, negative counts or no tokens at all.
        SchemaError: the shapes differ.
    """
    if not 0 < keep_frac <= 1:
        raise ConfigError(f"keep_token_frac is {keep_frac}, outside (0, 1]; 0.1 is DCLM's")
    scores = _check_scores(scores_D)
    if tokens_D.shape != scores.shape:
        raise SchemaError(f"{scores.shape} scores and {tokens_D.shape} token counts; each document needs one of both")
    total = int(tokens_D.sum())
    if total <= 0 or (tokens_D < 0).any():
        raise DataError(f"token counts sum to {total} and may not be negative; recount the pool")
    values, inverse = np.unique(scores, return_inverse=True)
    per_value = np.zeros(len(values), dtype=np.int64)
    np.add.at(per_value, inverse, tokens_D.astype(np.int64))
    kept = np.cumsum(per_value[::-1])
    return float(values[::-1][np.searchsorted(kept, math.ceil(keep_frac * total - 1e-9))])


def threshold_for_precision(scores_D: np.ndarray, labels_D: np.ndarray, precision: float) -> float:
    """Return the lowest threshold at which precision reaches the wish: the most recall for it.

    Raises:
        ConfigError: `precision` is outside (0, 1].
        DataError: no threshold reaches it (the message names the best), or as in `roc_auc`.
        SchemaError: the shapes differ.
    """
    if not 0 < precision <= 1:
        raise ConfigError(f"precision is {precision}, outside (0, 1]")
    curve = precision_recall(scores_D, labels_D)
    reached = np.flatnonzero(curve.precision >= precision)
    if len(reached) == 0:
        raise DataError(
            f"no threshold reaches precision {precision}; the best is {curve.precision.max():.4f}; "
            "ask for less or train on harder negatives"
        )
    return float(curve.thresholds[reached[-1]])


def fit_calibration(scores_D: np.ndarray, labels_D: np.ndarray) -> Calibration:
    """Fit an isotonic calibration by pooling adjacent violators (least squares, non-decreasing).

    Arguments and errors as in `roc_auc`.
    """
    scores, labels = check_scores_and_labels(scores_D, labels_D)
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, weights=labels)
    starts: list[float] = []
    sums: list[float] = []
    sizes: list[int] = []
    for value, hit, count in zip(values.tolist(), hits.tolist(), counts.tolist(), strict=True):
        starts.append(value)
        sums.append(hit)
        sizes.append(count)
        # cross-multiplied: integers compare exactly, means would not
        while len(sums) > 1 and sums[-2] * sizes[-1] >= sums[-1] * sizes[-2]:
            starts.pop()
            last_sum, last_size = sums.pop(), sizes.pop()
            sums[-1] += last_sum
            sizes[-1] += last_size
    return Calibration(np.array(starts), np.array(sums) / np.array(sizes))


def calibrate(calibration: Calibration, scores_D: np.ndarray) -> np.ndarray:
    """Return calibrated probabilities, float64, shape (D,); scores below all seen ones get the lowest block's."""
    block = np.searchsorted(calibration.scores, np.asarray(scores_D, dtype=np.float64), side="right") - 1
    return calibration.probabilities[np.maximum(block, 0)]


def calibration_error(probabilities_D: np.ndarray, labels_D: np.ndarray, num_bins: int = 10) -> float:
    """Return the expected calibration error over equal-width bins: mean |share of positives - mean probability|."""
    probabilities, labels = check_scores_and_labels(probabilities_D, labels_D)
    bins = np.clip((probabilities * num_bins).astype(np.int64), 0, num_bins - 1)
    gaps = np.bincount(bins, weights=labels, minlength=num_bins) - np.bincount(
        bins, weights=probabilities, minlength=num_bins
    )
    return float(np.abs(gaps).sum() / len(labels))


def pareto_keep(scores_D: np.ndarray, seed: int, doc_keys_D: np.ndarray, alpha: float = PARETO_ALPHA) -> np.ndarray:
    """Return which documents the GPT-3 rule keeps: ``pareto(alpha) > 1 - score``, some of low score among them.

    Args:
        scores_D: float, shape (D,), in [0, 1].
        seed: the recipe's seed.
        doc_keys_D: uint64, shape (D,): first 64 bits of ``doc_key``.
        alpha: shape of the Lomax distribution (numpy's ``pareto``).
    Returns: bool, shape (D,). A document's answer depends on its score, its key and the seed alone.

    Raises:
        ConfigError: `alpha` is not positive.
        DataError: a score is NaN.
        SchemaError: the shapes differ.
    """
    if not 0 < alpha < math.inf:
        raise ConfigError(f"pareto alpha is {alpha}; it must be positive (GPT-3: 9)")
    scores = np.asarray(scores_D, dtype=np.float64)
    if scores.shape != doc_keys_D.shape:
        raise SchemaError(f"{scores.shape} scores and {doc_keys_D.shape} keys; each document needs one of both")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} scores are NaN; score the documents again")
    draws = keyed_uniform(seed, PARETO_STAGE, doc_keys_D) ** (-1.0 / alpha) - 1.0
    return draws > 1.0 - scores


def _check_scores(scores_D: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores_D, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise DataError(f"no scores (shape {scores.shape}); at least one document is needed")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; score the documents again")
    return scores


def check_scores_and_labels(scores_D: np.ndarray, labels_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 and bool arrays. Arguments and errors as in `roc_auc`."""
    scores, labels = _check_scores(scores_D), np.asarray(labels_D, dtype=np.bool_)
    if labels.shape != scores.shape:
        raise SchemaError(f"{scores.shape} scores and {labels.shape} labels; each document needs one of both")
    num_positive = int(labels.sum())
    if num_positive in (0, len(labels)):
        raise DataError(
            f"the hold-out has {num_positive} positives and {len(labels) - num_positive} negatives; "
            "both classes need documents: add sources or enlarge the hold-out"
        )
    return scores, labels
