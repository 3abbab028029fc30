"""ROC and precision-recall curves with confidence bands, and how far two classifiers agree.

Bands are 95 % percentile intervals of a bootstrap that draws positives and negatives apart (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Rows are sorted first and the draws come from one fixed generator, so
a result depends on the multiset of rows alone.

Shape legend: D documents, P points, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinery.errors import DataError, SchemaError
from refinery.kernels.classifier_metrics import check_scores_and_labels

RESAMPLES = 200
POINTS = 21
_CONFIDENCE = (2.5, 97.5)
_SEED = 20_261_121


class Band(NamedTuple):
    """A curve on a fixed grid with its band."""

    x: np.ndarray
    """float64, shape (P,): false positive rate, or recall."""
    y: np.ndarray
    """float64, shape (P,): true positive rate, or precision."""
    low: np.ndarray
    high: np.ndarray


class Curves(NamedTuple):
    """Both curves of one classifier."""

    roc: Band
    precision_recall: Band


class Agreement(NamedTuple):
    """How far two score columns agree."""

    spearman: float
    """Rank correlation; 0 where one column is constant."""
    both_frac: float
    """Share of the documents that the two treat alike when each keeps the same number."""
    kappa: float
    """Cohen's kappa of those two choices; 0 is chance."""


def curves(scores_D: np.ndarray, labels_D: np.ndarray, points: int = POINTS, resamples: int = RESAMPLES) -> Curves:
    """Return the ROC curve over false positive rates and the precision over recalls, each with its band.

    Arguments and errors as in `classifier_metrics.roc_auc`.
    """
    scores, labels = check_scores_and_labels(scores_D, labels_D)
    values, inverse = np.unique(-scores, return_inverse=True)
    grid = np.linspace(0.0, 1.0, points)
    positives = np.bincount(inverse[labels], minlength=len(values))
    negatives = np.bincount(inverse[~labels], minlength=len(values))
    middle = _on_grid(positives, negatives, grid)
    draws = np.random.default_rng(_SEED)
    drawn = [
        _on_grid(_resampled(positives, draws), _resampled(negatives, draws), grid) for _ in range(max(1, resamples))
    ]
    bands = []
    for which in (0, 1):
        low, high = np.percentile([d[which] for d in drawn], _CONFIDENCE, axis=0)
        bands.append(Band(grid, middle[which], np.minimum(low, middle[which]), np.maximum(high, middle[which])))
    return Curves(*bands)


def _resampled(counts: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    total = int(counts.sum())
    return draws.multinomial(total, counts / total)


def _on_grid(positives: np.ndarray, negatives: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return true positive rates at false positive rates, and precisions at recalls; counts by descending score."""
    hits, misses = np.cumsum(positives), np.cumsum(negatives)
    recall = hits / hits[-1]
    roc = np.interp(grid, np.concatenate([[0.0], misses / misses[-1]]), np.concatenate([[0.0], recall]))
    at = np.searchsorted(recall, grid - 1e-12)
    kept = np.maximum(hits + misses, 1)
    first = np.flatnonzero(hits)[0]
    at = np.maximum(at, first)  # a recall of 0 has the precision of the highest positive
    return roc, (hits / kept)[np.minimum(at, len(hits) - 1)]


def agreement(first_D: np.ndarray, second_D: np.ndarray, num_kept: int) -> Agreement:
    """Return how far two classifiers agree on documents that both scored.

    Args:
        first_D: float, shape (D,), without NaN.
        second_D: the same of the other.
        num_kept: how many documents each keeps, its highest; ties at the cut are kept together.

    Raises:
        SchemaError: the shapes differ. DataError: no documents.
    """
    if first_D.shape != second_D.shape:
        raise SchemaError(
            f"{first_D.shape} and {second_D.shape} scores; both classifiers must score the same documents"
        )
    if len(first_D) == 0:
        raise DataError("no document was scored by both classifiers; check the languages they are for")
    left, right = _ranks(first_D), _ranks(second_D)
    spread = float(left.std() * right.std())
    spearman = float(((left - left.mean()) * (right - right.mean())).mean() / spread) if spread else 0.0
    kept = min(max(num_kept, 1), len(first_D))
    one, two = (x >= np.sort(x)[len(x) - kept] for x in (first_D, second_D))
    same = float((one == two).mean())
    chance = float(one.mean() * two.mean() + (~one).mean() * (~two).mean())
    return Agreement(spearman, same, (same - chance) / (1 - chance) if chance < 1 else 0.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[inverse]
