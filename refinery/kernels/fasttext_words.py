"""Which words push a fastText score most: what a classifier has learned, in words that a person can judge."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from refinery.kernels.fasttext_model import Classifier, score
from refinery.kernels.text import text_views

MAX_WORDS = 20_000
"""Words looked at: the most frequent of the model's dictionary."""
MIN_COUNT = 5


class Push(NamedTuple):
    """One word of the model's dictionary."""

    word: str
    times: int
    """Times seen in training."""
    score: float
    """Score of a document of this word alone."""


class Pushes(NamedTuple):
    """The words that decide, strongest first."""

    up: list[Push]
    down: list[Push]


def strongest_words(classifier: Classifier, num: int = 20) -> Pushes:
    """Return the words that raise and lower the score most over the training text.

    A word's strength is its frequency times the distance of its own log odds from those of the average word: a rare
    word moves few documents, however extreme it is.

    Args:
        classifier: an open model.
        num: how many of each.
    """
    words, counts = classifier.model.getVocab("replace")
    known = [(w, int(c)) for w, c in zip(words, counts, strict=True) if w != "</s>" and w.strip()]
    known.sort(key=lambda pair: (-pair[1], pair[0]))
    known = [pair for pair in known[:MAX_WORDS] if pair[1] >= MIN_COUNT] or known[:MAX_WORDS]
    if not known:
        return Pushes([], [])
    scores = score(classifier, text_views(pa.array([w.encode() for w, _ in known], pa.large_binary())))
    odds = np.array([_log_odds(float(s)) for s in scores])
    weights = np.array([c for _, c in known], dtype=np.float64)
    strength = weights * (odds - float((odds * weights).sum() / weights.sum()))
    order = np.lexsort((np.arange(len(known)), -strength))
    pushes = [Push(known[i][0], known[i][1], round(float(scores[i]), 4)) for i in order.tolist()]
    up = [p for p, i in zip(pushes, order, strict=True) if strength[i] > 0][:num]
    down = [p for p, i in zip(pushes[::-1], order[::-1], strict=True) if strength[i] < 0][:num]
    return Pushes(up, down)


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(bounded / (1 - bounded))
