from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.scaling.frontier import fit_envelope, fit_profiles


def _runs(alpha, beta, budgets=(1e18, 1e19, 1e20, 1e21), sizes=9):
    """Runs of a planted law on profiles of equal compute around its optimum."""
    best = [(alpha * 400 / (beta * 400)) ** (1 / (alpha + beta)) * (c / 6) ** (beta / (alpha + beta)) for c in budgets]
    params = np.concatenate([n * np.geomspace(0.25, 4, sizes) for n in best])
    tokens = np.repeat(budgets, sizes) / (6 * params)
    return params, tokens, 1.7 + 400 / params**alpha + 400 / tokens**beta


@settings(max_examples=12)
@given(st.floats(0.28, 0.45), st.floats(0.28, 0.45))
def test_profiles_recover_the_exponent_of_a_planted_law(alpha, beta):
    law = fit_profiles(*_runs(alpha, beta), num_samples=20)
    assert law.a == pytest.approx(beta / (alpha + beta), abs=0.02)
    assert law.a + law.b == pytest.approx(1.0)
    assert len(law.points) == 4
    assert np.abs(law.residuals).max() < 0.1


def test_envelope_recovers_the_exponent_from_curves():
    params = np.repeat(np.geomspace(1e7, 1e10, 40), 60)
    tokens = np.tile(np.geomspace(1e8, 1e12, 60), 40)
    law = fit_envelope(params, tokens, 1.7 + 400 / params**0.34 + 400 / tokens**0.3, num_samples=20)
    assert law.a == pytest.approx(0.3 / 0.64, abs=0.06)


def test_published_exponents_on_the_extracted_data(shared_data):
    path = shared_data / "scaling" / "chinchilla-svg_extracted_data.csv"
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    params, flops, loss = (np.array([float(r[c]) for r in rows]) for c in ("Model Size", "Training FLOP", "loss"))
    keep = loss < np.sort(loss)[-5]
    runs = (params[keep], (flops / (6 * params))[keep], loss[keep])
    profiles, envelope = fit_profiles(*runs, num_samples=100), fit_envelope(*runs, num_samples=100)
    assert profiles.a == pytest.approx(0.49, abs=0.03)
    assert profiles.a_interval[0] < 0.49 < profiles.a_interval[1]
    assert envelope.a == pytest.approx(0.50, abs=0.03)
    budgets = np.array([p.flops for p in profiles.points])
    for published in (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21):
        assert np.abs(np.log(budgets / published)).min() < 0.12, published


def test_far_budgets_and_unusable_runs_are_refused():
    runs = _runs(0.34, 0.3)
    law = fit_profiles(*runs, num_samples=5)
    with pytest.raises(ConfigError, match="outside the fitted compute"):
        law.num_params(1e24)
    assert law.num_params(1e24, max_extrapolation=1e6) > law.num_params(1e21)
    with pytest.raises(ConfigError, match="three are the least"):
        fit_profiles(*(x[:18] for x in runs))
    with pytest.raises(ConfigError, match="it must be finite"):
        fit_envelope(runs[0], runs[1], np.where(np.arange(36) == 3, np.nan, runs[2]))
    with pytest.raises(ConfigError, match="train more sizes"):
        fit_envelope(*(x[:1] for x in runs))
