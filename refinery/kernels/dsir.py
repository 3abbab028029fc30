"""Importance resampling (DSIR, 2302.03169): pick pool documents that look like a target.

    table[b]  = ln(p_target[b] + 1e-8) - ln(p_raw[b] + 1e-8)       p = counts / sum, over hashed n-grams (`ngrams`)
    weight(d) = sum over the n-grams of d of table[bucket]         no length normalisation, as in the library;
                                                                   `chunk_weights` brings long documents to one scale,
                                                                   `mean_weights` all
    key(d)    = round(weight(d), 4 places) + Gumbel(seed, text_hash of d)

The k documents of largest key are a sample without replacement in proportion to exp(weight) (Gumbel top-k). Keys do not
depend on k, so picks are *nested*: a smaller budget takes a subset of a larger one's. Smoothing follows
``data-selection`` 1.0.3 (1e-8 after normalising; optional pseudo-counts on the target before it).

Where it helps: a raw, mixed pool and a target domain. Where published ablations show no gain: filtered web text towards
Wikipedia as a general quality filter.

Shape legend: D documents, B buckets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError, DataError, SchemaError
from refinery.hashing import keyed_uniform
from refinery.kernels.ngrams import WeightSums, weight_sums
from refinery.kernels.text import TextViews

SMOOTHING = 1e-8
CHUNK_WORDS = 128
"""Length of the paper's examples, in words."""
WEIGHT_STEP = 1e-4
"""Weights are multiples of this before keys are drawn: what a float sum may differ by between builds is far smaller."""
GUMBEL_STAGE = "select.gumbel"
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)

_FEW_NGRAMS_PER_BUCKET = 10
_COLLAPSED_SAMPLE_FRAC = 0.01


class Diagnostics(NamedTuple):
    """What the weights of a pool of D documents say about the selection."""

    num_docs: int
    effective_sample_size: float
    """(sum w)^2 / sum w^2 for w = exp(log weight): between 1 and D, in documents."""
    log_weight_quantiles: dict[float, float]
    """Quantile (`QUANTILES`) -> log weight."""
    top_percent_weight_frac: float
    """Share of the total weight in the 1 % of documents that weigh most (one document at least)."""
    warnings: list[str]
    """Sentences for a person; empty when nothing is odd."""


class StrongBuckets(NamedTuple):
    """Buckets that decide most, strongest first."""

    buckets: np.ndarray
    """int64, shape (num,)."""
    pulls: np.ndarray
    """float64, shape (num,): (p_target - p_raw) * table, in nats per n-gram: how much more an average target n-gram
    gains through this bucket than an average pool n-gram. The pulls of all buckets add up to the symmetric KL."""
    log_ratios: np.ndarray
    """float64, shape (num,): positive attracts, negative repels."""


def fit_log_ratio(
    target_counts_B: np.ndarray, raw_counts_B: np.ndarray, target_pseudo_count: float = 0.0
) -> np.ndarray:
    """Fit the bag models of target and raw pool and return their log ratio.

    Args:
        target_counts_B: int64, shape (B,): n-gram counts of the target documents.
        raw_counts_B: int64, shape (B,): the same of the pool, or of a sample of it.
        target_pseudo_count: Laplace smoothing: added to every target count before normalising; 0 as in the library.
    Returns: float64, shape (B,), read-only.

    Raises:
        ConfigError: the pseudo-count is negative or not finite.
        DataError: the target or the pool holds no words.
        SchemaError: the shapes differ.
    """
    if not 0 <= target_pseudo_count < math.inf:
        raise ConfigError(f"target_pseudo_count is {target_pseudo_count}; it must be finite and not negative (0, or 1)")
    if target_counts_B.shape != raw_counts_B.shape or target_counts_B.ndim != 1:
        raise SchemaError(
            f"bucket counts have shapes {target_counts_B.shape} and {raw_counts_B.shape}; "
            "count both with one num_buckets"
        )
    for name, counts in (("target", target_counts_B), ("raw pool", raw_counts_B)):
        if counts.sum() <= 0:
            raise DataError(
                f"the {name} holds 0 words, at least 1 is needed; "
                "check the recipe's sources and that split=train is not empty"
            )
    target = _shares(target_counts_B.astype(np.float64) + target_pseudo_count)
    table = np.log(target + SMOOTHING) - np.log(_shares(raw_counts_B) + SMOOTHING)
    table.flags.writeable = False
    return table


def log_importance(views: TextViews, log_ratio_B: np.ndarray) -> np.ndarray:
    """Return the log importance weight of each document; 0 for one without words.

    Args:
        views: D documents.
        log_ratio_B: see `fit_log_ratio`.
    Returns: float64, shape (D,), unrounded. (`ngrams.weight_sums` gives the number of words beside it.)

    Raises:
        SchemaError: the table is not a float64 vector.
    """
    return weight_sums(views, log_ratio_B).sums


def chunk_weights(weights: WeightSums, chunk_words: int = CHUNK_WORDS) -> np.ndarray:
    """Scale log weights to those of an average stretch of `chunk_words` words; shorter documents keep theirs.

    DSIR's paper cuts its pool into 128-word pieces; its sum over whole documents grows with length (-168,000 to 102,000
    nats on documents of 11 KB in ``benchmarks/dsir.py``), so that the longest documents decide and the noise nothing.

    Args:
        weights: from `ngrams.weight_sums` with the log ratio as table.
        chunk_words: length of the stretch.
    Returns: float64, shape (D,).

    Raises:
        ConfigError: `chunk_words` is not positive.
    """
    if chunk_words < 1:
        raise ConfigError(f"chunk_words is {chunk_words}; it must be positive ({CHUNK_WORDS} as in the paper)")
    return weights.sums * np.minimum(1.0, chunk_words / np.maximum(weights.num_words, 1))


def mean_weights(weights: WeightSums, chunk_words: int = CHUNK_WORDS) -> np.ndarray:
    """Return the mean log weight of a document's n-grams, times the 2 c - 1 n-grams of a stretch of c words.

    DSIR itself sums (2302.03169, section 3), so that length takes part in the choice: the longer of two documents
    of one kind lies farther from zero. Here it takes none. The factor is the same for all documents; it brings weights
    to the scale on which the paper's pieces of 128 words meet Gumbel noise. The mean of few n-grams is coarse: set a
    least number of words beside it.

    Args:
        weights: from `ngrams.weight_sums` with the log ratio as table; w words have 2 w - 1 n-grams.
        chunk_words: length c of the stretch.
    Returns: float64, shape (D,); 0 for a document without words.

    Raises:
        ConfigError: `chunk_words` is not positive.
    """
    if chunk_words < 1:
        raise ConfigError(f"chunk_words is {chunk_words}; it must be positive ({CHUNK_WORDS} as in the paper)")
    return weights.sums * ((2 * chunk_words - 1) / np.maximum(2 * weights.num_words - 1, 1))


def round_weights(log_weights_D: np.ndarray) -> np.ndarray:
    """Round log weights to multiples of 1e-4: float64, shape (D,)."""
    return np.rint(np.asarray(log_weights_D, dtype=np.float64) / WEIGHT_STEP) * WEIGHT_STEP


def gumbel_keys(
    log_weights_D: np.ndarray, seed: int, text_hashes_D: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Draw the selection keys: larger key, earlier pick. Equal texts get equal keys.

    Args:
        log_weights_D: float64, shape (D,); rounded here.
        seed: the recipe's seed.
        text_hashes_D: uint64, shape (D,): the first 64 bits of ``text_hash``.
        temperature: scale of the noise; 0 ranks by weight alone (the library's ``top_k=True``).
    Returns: float64, shape (D,).

    Raises:
        ConfigError: the temperature is negative or not finite.
        DataError: a weight is not finite.
        SchemaError: the shapes differ.
    """
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"the temperature is {temperature}; it must be finite and not negative (1 is Gumbel top-k)")
    if log_weights_D.shape != text_hashes_D.shape:
        raise SchemaError(
            f"{log_weights_D.shape} weights and {text_hashes_D.shape} text hashes; each document needs one of both"
        )
    _check_finite(log_weights_D)
    uniform = keyed_uniform(seed, GUMBEL_STAGE, text_hashes_D)
    return round_weights(log_weights_D) - temperature * np.log(-np.log(uniform))


def pick_order(keys_D: np.ndarray, doc_keys_D: np.ndarray) -> np.ndarray:
    """Return document indices from first to last pick; equal keys go by smaller `doc_keys_D` (uint64).

    Returns: int64, shape (D,): every prefix is the selection for that budget.
    """
    return np.lexsort((doc_keys_D, -keys_D))


def kl_reduction(target_counts_B: np.ndarray, raw_counts_B: np.ndarray, selected_counts_B: np.ndarray) -> float:
    """Return KL(target || raw) - KL(target || selected) in nats per n-gram (2302.03169, section 5).

    Positive: the selection is closer to the target than the pool is. All distributions get the same 1e-8 smoothing.

    Raises:
        DataError: one of the three holds no words.
    """
    for name, counts in (("target", target_counts_B), ("raw", raw_counts_B), ("selected", selected_counts_B)):
        if counts.sum() <= 0:
            raise DataError(f"the {name} documents hold 0 words, so no KL divergence exists; check the selection")
    return _kl(target_counts_B, raw_counts_B) - _kl(target_counts_B, selected_counts_B)


def weight_moments(log_weights_D: np.ndarray) -> list[float]:
    """Return [documents, largest weight, sum of w, sum of w^2] with w = exp(log weight - largest): a part's share of
    the effective sample size.

    Raises:
        DataError: a weight is not finite.
    """
    weights = np.asarray(log_weights_D, dtype=np.float64)
    _check_finite(weights)
    if not len(weights):
        return [0.0, 0.0, 0.0, 0.0]
    largest = float(weights.max())
    scaled = np.exp(np.sort(weights) - largest)
    return [float(len(weights)), largest, float(scaled.sum()), float(np.square(scaled).sum())]


def effective_sample_size(moments: Iterable[Sequence[float]]) -> float:
    """Return (sum w)^2 / sum w^2 over the parts that `weight_moments` describes; 0 for none."""
    known = [m for m in moments if m[0]]
    if not known:
        return 0.0
    largest = max(m[1] for m in known)
    total = sum(m[2] * math.exp(m[1] - largest) for m in known)
    return total**2 / sum(m[3] * math.exp(2 * (m[1] - largest)) for m in known)


def assign_targets(log_weights_TD: np.ndarray, shares_T: Sequence[float]) -> np.ndarray:
    """Return for each document the target that it most likely came from: int64, shape (D,).

    Args:
        log_weights_TD: float64, shape (T, D): log importance weights for T targets.
        shares_T: the share wanted of each; the prior. Ties go to the first.
    """
    return np.argmax(log_weights_TD + np.log(np.asarray(shares_T))[:, None], axis=0)


def balanced_keys(
    keys_D: np.ndarray, knots_K: np.ndarray, positions_K: np.ndarray, largest_position: float
) -> np.ndarray:
    """Put the order keys of one target's documents on a scale that all targets share.

    A document's place is what its target has taken before it, over the target's share: so every prefix of the common
    order holds the targets in the wanted proportions, and the order inside a target stays.

    Args:
        keys_D: uint64, shape (D,): smaller is taken first.
        knots_K: uint64, shape (K,), ascending: keys at which the place is known.
        positions_K: float64, shape (K,), ascending.
        largest_position: of all targets; the scale.
    Returns: uint64, shape (D,).
    """
    places = np.interp(keys_D.astype(np.float64), knots_K.astype(np.float64), positions_K)
    cells = np.minimum(places / max(largest_position, 1e-300) * 2.0**40, 2.0**40 - 1).astype(np.uint64)
    return (cells << np.uint64(24)) | (keys_D >> np.uint64(40))


def diagnose(
    log_weights_D: np.ndarray,
    num_target_ngrams: int | None = None,
    num_buckets: int | None = None,
    whole: tuple[int, float] | None = None,
) -> Diagnostics:
    """Describe the weights of a pool.

    Args:
        log_weights_D: float64, shape (D,), of the pool or of a sample of it.
        whole: documents and effective sample size of the pool, where the weights are a sample.
        num_target_ngrams: n-grams that the target model was fitted on, for the warning about small targets.
        num_buckets: B, for the same warning.
    Returns: see `Diagnostics`. Weights of 1e-300 and 1e+300 are fine: everything stays in logarithms.

    Raises:
        DataError: there are no documents, or a weight is not finite.
    """
    weights = np.asarray(log_weights_D, dtype=np.float64)
    if len(weights) == 0:
        raise DataError("no document to diagnose: the pool is empty after the earlier stages; loosen their rules")
    _check_finite(weights)
    descending = np.sort(weights)[::-1]
    scaled = np.exp(descending - descending[0])
    sampled = float(scaled.sum() ** 2 / np.square(scaled).sum())
    num_docs, effective = whole if whole is not None else (len(weights), sampled)
    num_top = max(1, len(weights) // 100)
    quantiles = dict(zip(QUANTILES, np.quantile(weights, QUANTILES).tolist(), strict=True))
    warnings = []
    if num_docs > 1 and descending[0] - descending[-1] < WEIGHT_STEP:
        warnings.append(
            f"all {num_docs} log weights equal {descending[0]:.4f}: target and pool look the same, "
            "so the selection is a uniform sample"
        )
    elif num_docs >= 100 and effective < _COLLAPSED_SAMPLE_FRAC * num_docs:
        warnings.append(
            f"the weights collapse on few documents: effective sample size {effective:.1f} of {num_docs}; "
            "beyond those the order follows the weight alone, noise changes little; set chunk_words to 128 or "
            "length to mean, or add target text"
        )
    if num_target_ngrams is not None and num_buckets and num_target_ngrams < _FEW_NGRAMS_PER_BUCKET * num_buckets:
        warnings.append(
            f"the target has {num_target_ngrams} n-grams for {num_buckets} buckets, fewer than "
            f"{_FEW_NGRAMS_PER_BUCKET} each; add target text or set target_pseudo_count to 1"
        )
    return Diagnostics(num_docs, effective, quantiles, float(scaled[:num_top].sum() / scaled.sum()), warnings)


def strongest_buckets(target_counts_B: np.ndarray, raw_counts_B: np.ndarray, num: int = 20) -> StrongBuckets:
    """Return the buckets that separate target from pool most; name them with `ngrams.bucket_words`."""
    table = fit_log_ratio(target_counts_B, raw_counts_B)
    pulls = (_shares(target_counts_B) - _shares(raw_counts_B)) * table
    order = np.lexsort((np.arange(len(pulls)), -pulls))[:num]
    return StrongBuckets(order, pulls[order], table[order])


def _shares(counts_B: np.ndarray) -> np.ndarray:
    return counts_B / counts_B.sum()


def _kl(counts_B: np.ndarray, other_B: np.ndarray) -> float:
    p, q = _shares(counts_B) + SMOOTHING, _shares(other_B) + SMOOTHING
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * (np.log(p) - np.log(q))))


def _check_finite(log_weights_D: np.ndarray) -> None:
    bad = np.count_nonzero(~np.isfinite(log_weights_D))
    if bad:
        raise DataError(f"{bad} of {len(log_weights_D)} log weights are not finite; recompute the importance table")
