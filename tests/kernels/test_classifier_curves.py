from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import DataError, SchemaError
from refinery.kernels import score_bias
from refinery.kernels.classifier_curves import agreement, curves
from refinery.kernels.text import views_of


def sample(num: int, shift: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2 == 0
    return 1 / (1 + np.exp(-(rng.normal(size=num) + shift * labels))), labels


def test_curves_lie_inside_their_bands_and_bands_narrow_with_more_documents():
    narrow, wide = (curves(*sample(n, 1.5)) for n in (4000, 100))
    for found in (narrow, wide):
        for band in found:
            assert (band.low <= band.y).all()
            assert (band.y <= band.high).all()
            assert band.y.min() >= 0
            assert band.y.max() <= 1
    assert np.mean(narrow.roc.high - narrow.roc.low) < 0.5 * np.mean(wide.roc.high - wide.roc.low)
    truth = curves(*sample(200_000, 1.5, seed=9), resamples=1)
    inside = (narrow.roc.low <= truth.roc.y) & (truth.roc.y <= narrow.roc.high)
    assert inside.mean() > 0.7


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
def test_points_are_those_of_counting_in_any_order_of_rows(pairs):
    labels = np.array([label for _, label in pairs])
    if labels.all() or not labels.any():
        return
    scores = np.array([score / 6 for score, _ in pairs])
    found = curves(scores, labels, resamples=3)
    again = curves(scores[::-1], labels[::-1], resamples=3)
    for one, two in zip(found, again, strict=True):
        for left, right in zip(one, two, strict=True):
            np.testing.assert_array_equal(left, right)
    for recall, precision in zip(found.precision_recall.x[1:], found.precision_recall.y[1:], strict=True):
        kept = [scores >= t for t in np.unique(scores)[::-1]]
        first = next(k for k in kept if labels[k].sum() / labels.sum() >= recall - 1e-12)
        assert precision == pytest.approx(labels[first].mean())
    assert found.roc.y[-1] == 1.0


def test_agreement_of_equal_opposite_and_unrelated_scores():
    scores = np.linspace(0, 1, 200)
    same = agreement(scores, scores**3, 50)
    assert (same.spearman, same.both_frac, same.kappa) == (pytest.approx(1), 1.0, pytest.approx(1))
    assert agreement(scores, -scores, 50).spearman == pytest.approx(-1)
    rng = np.random.default_rng(0)
    assert abs(agreement(rng.random(5000), rng.random(5000), 1000).kappa) < 0.05
    assert agreement(scores, np.ones(200), 10).spearman == 0.0
    with pytest.raises(SchemaError):
        agreement(scores, scores[1:], 5)
    with pytest.raises(DataError):
        agreement(scores[:0], scores[:0], 5)


def test_one_class_or_nan_is_refused():
    with pytest.raises(DataError, match="positives"):
        curves(np.ones(3), np.ones(3, dtype=bool))
    with pytest.raises(DataError, match="NaN"):
        curves(np.array([np.nan, 1]), np.array([True, False]))


def test_symbol_shares_are_those_of_counting():
    found = score_bias.symbol_fracs(views_of(["a, b!", "", "。。中文", " \n"]))
    np.testing.assert_allclose(found, [0.5, 0, 0.5, 0])


def test_a_score_that_follows_length_language_or_symbols_is_called_out():
    rng = np.random.default_rng(2)
    sizes = rng.integers(100, 100_000, 400)
    symbols = rng.random(400)
    langs = ["zh" if k % 2 else "en" for k in range(400)]
    noise = rng.random(400) * 0.1
    by_length, by_lang = (
        np.log1p(sizes) / 12 * 0.9 + noise,
        np.array([0.8 if k % 2 else 0.1 for k in range(400)]) + noise,
    )
    for scores, what in ((by_length, "length"), (by_lang, "language"), (symbols * 0.9 + noise, "share of symbols")):
        parts = [
            score_bias.bias_sums(scores[s], sizes[s], symbols[s], langs[s]) for s in (slice(0, 150), slice(150, None))
        ]
        sums = score_bias.merge_bias(parts)
        whole = score_bias.correlations(score_bias.bias_sums(scores, sizes, symbols, langs))
        assert score_bias.correlations(sums) == pytest.approx(whole, abs=1e-4)
        assert [line for line in score_bias.call_outs("edu", sums) if what in line]
        assert len(score_bias.call_outs("edu", sums)) == 1
        assert whole["length"] == pytest.approx(np.corrcoef(scores, np.log1p(sizes))[0, 1], abs=1e-3)
    random = score_bias.bias_sums(noise, sizes, symbols, langs)
    assert score_bias.call_outs("edu", random) == []
    assert score_bias.correlations(score_bias.bias_sums(np.ones(9), sizes[:9], symbols[:9], langs[:9])) == {
        "length": 0.0, "symbols": 0.0, "language": 0.0,
    }  # fmt: skip
