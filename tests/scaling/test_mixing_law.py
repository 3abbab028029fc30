from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.scaling.mixing_law import best_mix, fit_mixing, simplex_mixtures

DOMAINS = ("law", "docs", "web")
BOUNDS = [(0.05, 0.8)] * 3


def _losses(shares, floor, slopes, noise=0.0, seed=0):
    exact = floor + np.exp(shares @ np.asarray(slopes))
    return exact + np.random.default_rng(seed).normal(0, noise, len(shares)) if noise else exact


@settings(max_examples=15)
@given(st.floats(0.5, 2.5), st.lists(st.floats(-2.0, 1.0), min_size=3, max_size=3), st.integers(0, 1000))
def test_planted_laws_predict_unseen_mixtures(floor, slopes, seed):
    shares = simplex_mixtures(14, BOUNDS, seed)
    losses = _losses(shares, floor, slopes)
    law = fit_mixing(shares, losses, DOMAINS)
    unseen = simplex_mixtures(50, BOUNDS, seed + 1)
    truth = _losses(unseen, floor, slopes)
    assert np.abs(law.loss(unseen) - truth).max() < 1e-3 + 0.01 * np.ptp(truth)
    assert law.heldout_mae <= law.mean_mae + 1e-9


def test_noise_is_reported_as_heldout_error():
    shares = simplex_mixtures(30, BOUNDS, 3)
    exact = fit_mixing(shares, _losses(shares, 1.0, (-1.5, 0.2, 0.6)), DOMAINS)
    noisy = fit_mixing(shares, _losses(shares, 1.0, (-1.5, 0.2, 0.6), 0.01), DOMAINS)
    nothing = fit_mixing(shares, 2.0 + np.random.default_rng(1).normal(0, 0.01, 30), DOMAINS)
    assert exact.heldout_mae < 1e-4
    assert 0.004 < noisy.heldout_mae < 0.03
    assert noisy.useful
    assert not nothing.useful


def test_best_mix_is_the_minimum_of_a_fine_grid():
    shares = simplex_mixtures(20, BOUNDS, 4)
    planted = {"law": (1.0, (-2.0, 0.5, 0.3)), "web": (1.2, (0.6, 0.1, -1.5))}
    losses = {name: _losses(shares, *law) for name, law in planted.items()}
    laws = {name: fit_mixing(shares, values, DOMAINS) for name, values in losses.items()}
    goal = {"law": 2.0, "web": 1.0}
    bounds = {"docs": (0.2, 0.3)}
    found = best_mix(laws, goal, bounds, (shares, losses), num_samples=20)
    grid = [(a / 200, b / 200, 1 - (a + b) / 200) for a in range(201) for b in range(201 - a)]
    ranges = dict(zip(DOMAINS, laws["law"].shares_range, strict=True)) | bounds
    inside = [r for r in grid if all(low - 1e-9 <= x <= high + 1e-9 for x, (low, high) in
                                     zip(r, ranges.values(), strict=True))]  # fmt: skip
    worth = [sum(w * float(_losses(np.array([r]), *planted[n])[0]) for n, w in goal.items()) / 3 for r in inside]
    assert found.loss == pytest.approx(min(worth), abs=2e-3)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert 0.2 - 1e-9 <= found.shares["docs"] <= 0.3 + 1e-9
    assert "docs" in found.bound
    assert found.loss_interval[0] <= found.loss + 1e-3
    assert found.loss_interval[1] >= found.loss - 1e-3


def test_intervals_widen_with_noise_and_hold_the_truth():
    shares = simplex_mixtures(24, BOUNDS, 5)
    goals = {"law": (1.0, (-1.0, 0.4, 0.5)), "web": (1.0, (0.5, 0.3, -1.0))}
    widths = []
    for noise in (0.001, 0.02):
        losses = {n: _losses(shares, *law, noise=noise, seed=i) for i, (n, law) in enumerate(goals.items())}
        laws = {n: fit_mixing(shares, values, DOMAINS) for n, values in losses.items()}
        found = best_mix(laws, {"law": 1.0, "web": 1.0}, {}, (shares, losses), num_samples=60)
        low, high = found.intervals["law"]
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_mixtures_are_even_nested_and_inside():
    rows = simplex_mixtures(40, [(0.1, 0.5), (0.0, 0.6), (0.2, 0.9)], 9, first=(0.3, 0.4, 0.3))
    assert rows[0].tolist() == [0.3, 0.4, 0.3]
    assert np.allclose(rows.sum(axis=1), 1.0)
    assert (rows >= [0.1, 0.0, 0.2]).all()
    assert (rows <= [0.5 + 1e-9, 0.6 + 1e-9, 0.9 + 1e-9]).all()
    assert np.array_equal(rows[:10], simplex_mixtures(10, [(0.1, 0.5), (0.0, 0.6), (0.2, 0.9)], 9, (0.3, 0.4, 0.3)))


def test_unusable_runs_and_bounds_are_refused():
    shares = simplex_mixtures(8, BOUNDS, 1)
    good = _losses(shares, 1.0, (-1.0, 0.2, 0.3))
    for change, message in [
        ((shares[:4], good[:4]), "5 is the least"),
        ((shares * 1.1, good), "must sum to 1"),
        ((shares, np.where(np.arange(8) == 2, math.nan, good)), "loss of run 2"),
        ((np.tile([0.2, 0.3, 0.5], (8, 1)), good), "hardly varies"),
    ]:
        with pytest.raises(ConfigError, match=message):
            fit_mixing(*change, DOMAINS)
    laws = {"law": fit_mixing(shares, good, DOMAINS)}
    for goal, bounds, message in [
        ({"mail": 1.0}, {}, "name mail"),
        ({"law": 1.0}, {"law": (0.0, 1.0)}, "leave the fitted range"),
        (
            {"law": 1.0},
            {d: (r[0], r[0]) for d, r in zip(DOMAINS, laws["law"].shares_range, strict=True)},
            "no mix fits",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            best_mix(laws, goal, bounds, (shares, {"law": good}))
    with pytest.raises(ConfigError, match="no mix fits"):
        simplex_mixtures(3, [(0.6, 0.7), (0.6, 0.7)], 1)
