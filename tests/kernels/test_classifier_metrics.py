from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, DataError, SchemaError
from refinery.kernels import classifier_metrics as metrics

rows = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def arrays(pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score / 8 for score, _ in pairs], dtype=np.float32), np.array([label for _, label in pairs])


@given(rows)
def test_auc_is_the_share_of_ordered_pairs(pairs):
    scores, labels = arrays(pairs)
    wins = [float(p > n) + 0.5 * float(p == n) for p in scores[labels] for n in scores[~labels]]
    assert metrics.roc_auc(scores, labels) == pytest.approx(np.mean(wins))
    assert metrics.roc_auc(-scores, labels) == pytest.approx(1 - np.mean(wins))
    assert metrics.roc_auc_interval(scores, labels).standard_error >= 0


@given(rows)
def test_precision_and_recall_are_those_of_counting(pairs):
    scores, labels = arrays(pairs)
    curve = metrics.precision_recall(scores, labels)
    for threshold, precision, recall in zip(*curve, strict=True):
        kept = scores >= threshold
        assert precision == pytest.approx(labels[kept].mean())
        assert recall == pytest.approx(labels[kept].sum() / labels.sum())
    assert curve.recall[-1] == 1.0


@given(rows, st.floats(0.01, 1.0))
def test_a_token_threshold_keeps_just_enough(pairs, keep_frac):
    scores, _ = arrays(pairs)
    tokens = np.arange(1, len(scores) + 1)
    threshold = metrics.threshold_for_token_frac(scores, tokens, keep_frac)
    assert tokens[scores >= threshold].sum() >= keep_frac * tokens.sum() - 1e-6
    assert tokens[scores > threshold].sum() < keep_frac * tokens.sum()


@given(rows, st.floats(0.05, 1.0))
def test_a_precision_threshold_is_the_lowest_that_reaches_it(pairs, precision):
    scores, labels = arrays(pairs)
    reaching = [t for t in np.unique(scores) if labels[scores >= t].mean() >= precision]
    if not reaching:
        with pytest.raises(DataError, match="best is"):
            metrics.threshold_for_precision(scores, labels, precision)
    else:
        assert metrics.threshold_for_precision(scores, labels, precision) == min(reaching)


@given(rows)
def test_calibration_is_the_isotonic_least_squares_fit(pairs):
    scores, labels = arrays(pairs)
    fitted = metrics.calibrate(metrics.fit_calibration(scores, labels), scores)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(fitted[order]) >= 0).all()
    assert fitted.mean() == pytest.approx(labels.mean())
    # the min-max formula of isotonic regression, per distinct score
    values = np.unique(scores)
    for j, value in enumerate(values):
        best = max(
            min(labels[(scores >= low) & (scores <= high)].mean() for high in values[j:]) for low in values[: j + 1]
        )
        assert fitted[scores == value][0] == pytest.approx(best)


def test_calibration_extends_to_unseen_scores_and_lowers_the_error():
    rng = np.random.default_rng(3)
    truth = rng.random(4000)
    labels = rng.random(4000) < truth
    scores = truth**3  # ranked well, calibrated badly
    fitted = metrics.fit_calibration(scores, labels)
    assert metrics.calibration_error(metrics.calibrate(fitted, scores), labels) < 0.01
    assert metrics.calibration_error(scores, labels) > 0.1
    assert metrics.calibrate(fitted, np.array([-1.0, 2.0])).tolist() == [
        fitted.probabilities[0],
        fitted.probabilities[-1],
    ]


def test_the_pareto_rule_keeps_its_share():
    keys = np.arange(200_000, dtype=np.uint64)
    for score in (0.0, 0.5, 0.9):
        kept = metrics.pareto_keep(np.full(200_000, score), 1, keys).mean()
        expected = (2.0 - score) ** -9.0  # P(Lomax(9) > 1 - score)
        assert abs(kept - expected) < 4 * np.sqrt(expected * (1 - expected) / 200_000)
    assert metrics.pareto_keep(np.ones(1000), 1, keys[:1000]).all()


def test_the_pareto_rule_reads_its_row_alone():
    scores, keys = np.linspace(0, 1, 100), np.arange(100, dtype=np.uint64)
    whole = metrics.pareto_keep(scores, 5, keys)
    parts = [metrics.pareto_keep(scores[k : k + 7], 5, keys[k : k + 7]) for k in range(0, 100, 7)]
    assert (whole == np.concatenate(parts)).all()
    assert (whole != metrics.pareto_keep(scores, 6, keys)).any()


def test_bad_input_has_a_clear_error():
    scores, labels = np.array([0.1, 0.9]), np.array([False, True])
    with pytest.raises(DataError, match="2 positives and 0 negatives"):
        metrics.roc_auc(scores, np.array([True, True]))
    with pytest.raises(DataError, match="NaN"):
        metrics.roc_auc(np.array([np.nan, 1.0]), labels)
    with pytest.raises(DataError, match="no scores"):
        metrics.roc_auc(np.array([]), np.array([]))
    with pytest.raises(SchemaError, match="labels"):
        metrics.roc_auc(scores, labels[:1])
    with pytest.raises(ConfigError, match="keep_token_frac"):
        metrics.threshold_for_token_frac(scores, np.array([1, 1]), 0.0)
    with pytest.raises(SchemaError, match="token counts"):
        metrics.threshold_for_token_frac(scores, np.array([1]), 0.5)
    with pytest.raises(DataError, match="sum to 0"):
        metrics.threshold_for_token_frac(scores, np.array([0, 0]), 0.5)
    with pytest.raises(ConfigError, match="precision"):
        metrics.threshold_for_precision(scores, labels, 1.5)
    with pytest.raises(ConfigError, match="alpha"):
        metrics.pareto_keep(scores, 1, np.array([1, 2], dtype=np.uint64), 0.0)
    with pytest.raises(DataError, match="NaN"):
        metrics.pareto_keep(np.array([np.nan]), 1, np.array([1], dtype=np.uint64))
