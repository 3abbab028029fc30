"""What a score goes along with: length, language, share of symbols. Sums per part, so any pool fits.

A classifier is meant to read content. One whose score follows the length of a document, its language or its punctuation
has learned that instead, as when all positives are long and all negatives short. Each figure is a correlation: Pearson
with the logarithm of the length and with the symbol share, the correlation ratio eta for languages. Squared, each is
the share of the score's variance that the property explains.

Shape legend: D documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numba
import numpy as np

from refinery.kernels.char_classes import PUNCT, SPACE, class_of, class_table, decode
from refinery.kernels.text import TextViews

MOSTLY_FRAC = 0.5
"""Share of the variance from which a property counts as what the classifier mostly detects."""
MIN_DOCS = 50
_NAMES = {"length": "length", "language": "language", "symbols": "share of symbols"}


def symbol_fracs(views: TextViews) -> np.ndarray:
    """Return the share of symbols (categories P and S) among characters that are not white space: float32, (D,)."""
    out = np.zeros(views.num_docs, dtype=np.float32)
    _symbol_fracs(views.offsets, views.data, class_table(), out)
    return out


@numba.njit(cache=True, nogil=True)
def _symbol_fracs(offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, out: np.ndarray) -> None:
    for doc in range(len(offsets) - 1):
        i, end = offsets[doc], offsets[doc + 1]
        symbols, chars = 0, 0
        while i < end:
            code, width = decode(data, i, end)
            i += width
            flags = class_of(classes, code)
            chars += (flags & SPACE) == 0
            symbols += (flags & PUNCT) != 0
        if chars:
            out[doc] = symbols / chars


def bias_sums(scores_D: np.ndarray, num_bytes_D: np.ndarray, symbols_D: np.ndarray, langs: Sequence[str]) -> dict:
    """Return the sums of one part as plain JSON.

    Args:
        scores_D: float, shape (D,), without NaN.
        num_bytes_D: int, shape (D,): length.
        symbols_D: float, shape (D,): see `symbol_fracs`.
        langs: D languages.
    """
    scores = np.asarray(scores_D, dtype=np.float64)
    sums: dict[str, Any] = {"docs": len(scores), "score": [float(scores.sum()), float(np.square(scores).sum())]}
    for name, values in (("length", np.log1p(num_bytes_D)), ("symbols", np.asarray(symbols_D, dtype=np.float64))):
        sums[name] = [float(values.sum()), float(np.square(values).sum()), float((values * scores).sum())]
    names, inverse, counts = np.unique(np.array(langs, dtype=str), return_inverse=True, return_counts=True)
    by_lang: np.ndarray = np.bincount(inverse, weights=scores, minlength=len(names))
    sums["language"] = {str(n): [int(c), float(s)] for n, c, s in zip(names, counts, by_lang, strict=True)}
    return sums


def merge_bias(parts: Iterable[Mapping[str, Any]]) -> dict:
    """Add the sums of parts, in the order in which they come."""
    total: dict[str, Any] = {"docs": 0, "score": [0.0, 0.0], "length": [0.0] * 3, "symbols": [0.0] * 3, "language": {}}
    for part in parts:
        total["docs"] += part["docs"]
        for name in ("score", "length", "symbols"):
            total[name] = [a + b for a, b in zip(total[name], part[name], strict=True)]
        for lang, (docs, score) in part["language"].items():
            known = total["language"].setdefault(lang, [0, 0.0])
            known[0] += docs
            known[1] += score
    return total


def correlations(sums: Mapping[str, Any]) -> dict[str, float]:
    """Return ``length`` and ``symbols`` (in [-1, 1]) and ``language`` (in [0, 1]), rounded; 0 where nothing varies."""
    docs = sums["docs"]
    if docs < 2:
        return {"length": 0.0, "symbols": 0.0, "language": 0.0}
    total, squares = sums["score"]
    variance = squares / docs - (total / docs) ** 2
    found = {}
    for name in ("length", "symbols"):
        x, xx, xy = sums[name]
        spread = variance * (xx / docs - (x / docs) ** 2)
        covariance = xy / docs - total / docs * x / docs
        found[name] = _rounded(covariance / math.sqrt(spread)) if spread > 1e-18 else 0.0
    between = sum(s * s / n for n, s in sums["language"].values()) / docs - (total / docs) ** 2
    found["language"] = _rounded(math.sqrt(max(between, 0.0) / variance)) if variance > 1e-12 else 0.0
    return found


def call_outs(name: str, sums: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each property that explains at least `MOSTLY_FRAC` of the score's variance."""
    if sums["docs"] < MIN_DOCS:
        return []
    return [
        f"{name} mostly detects {_NAMES[what]}: it explains {value * value:.0%} of the score's variance "
        f"(correlation {value:.2f}); take positives and negatives that are alike in it, or cut per group"
        for what, value in sorted(correlations(sums).items())
        if value * value >= MOSTLY_FRAC
    ]


def _rounded(value: float) -> float:
    return round(min(1.0, max(-1.0, value)), 4)
