from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from refinery.errors import ConfigError
from refinery.scaling.parametric import Fit, bootstrap, fit, huber_lse, objective


def _runs(law: Fit, noise: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    params = np.repeat(np.geomspace(5e7, 1e10, 7), 7)
    tokens = np.tile(np.geomspace(1e9, 3e11, 7), 7)
    return params, tokens, law.loss(params, tokens) * np.exp(noise * rng.standard_normal(len(params)))


def test_gradient_is_that_of_the_objective() -> None:
    rng = np.random.default_rng(0)
    offsets, design = rng.normal(size=(3, 9)), rng.normal(size=(3, 9, 4))
    log_loss, weights = rng.normal(size=9), rng.integers(0, 3, 9).astype(float)
    for theta in rng.normal(size=(5, 4)):
        scale = abs(huber_lse(theta, offsets, design, log_loss, weights)[1]).max()
        error = check_grad(
            lambda t: huber_lse(t, offsets, design, log_loss, weights)[0],
            lambda t: huber_lse(t, offsets, design, log_loss, weights)[1],
            theta,
        )
        assert error < 1e-3 * scale


@settings(max_examples=8)
@given(st.floats(0.25, 0.5), st.floats(0.25, 0.5), st.floats(1.2, 2.2), st.floats(100, 900), st.floats(300, 3000))
def test_planted_parameters_are_recovered(alpha: float, beta: float, E: float, A: float, B: float) -> None:
    planted = Fit(A=A, B=B, E=E, alpha=alpha, beta=beta, objective=0.0, num_runs=0)
    found = fit(*_runs(planted), num_starts=12)
    np.testing.assert_allclose(found.vector(), planted.vector(), rtol=0.01)
    assert found.a + found.b == pytest.approx(1.0)


def test_intervals_hold_the_planted_parameters_and_are_seeded() -> None:
    planted = Fit(A=400.0, B=1500.0, E=1.8, alpha=0.35, beta=0.36, objective=0.0, num_runs=0)
    runs = _runs(planted, noise=0.003, seed=4)
    law = fit(*runs)
    first = bootstrap(law, *runs, num_samples=60)
    again = bootstrap(law, *runs, num_samples=30)
    np.testing.assert_array_equal(first.samples[:30], again.samples)
    assert np.all(first.low[:5] < planted.vector())
    assert np.all(planted.vector() < first.high[:5])


def test_allocation_minimises_the_loss_of_a_budget() -> None:
    law = Fit(A=482.01, B=2085.43, E=1.82, alpha=0.3478, beta=0.3658, objective=0.0, num_runs=0)
    flops = 5.76e23
    params = law.G * (flops / 6) ** law.a
    tokens = (flops / 6) ** law.b / law.G
    assert params * tokens * 6 == pytest.approx(flops)
    sizes = params * np.array([0.9, 1.0, 1.1])
    losses = law.loss(sizes, flops / 6 / sizes)
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]
    assert params == pytest.approx(72e9, rel=0.05)  # 2404.10102: 72B, 1.33T tokens


def test_published_refit_on_the_extracted_data(shared_data) -> None:
    with (shared_data / "scaling" / "chinchilla-svg_extracted_data.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    params, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    keep = loss < np.sort(loss)[-5]
    assert keep.sum() == 240
    params, tokens, loss = params[keep], (flops / (6 * params))[keep], loss[keep]
    law = fit(params, tokens, loss)
    np.testing.assert_allclose(law.vector(), [477.8, 2143.0, 1.8172, 0.3473, 0.3672], rtol=0.01)
    assert law.objective <= 0.0010183
    assert law.a == pytest.approx(0.513, abs=0.005)
    assert objective(law, params, tokens, loss) == pytest.approx(law.objective, rel=1e-9)
    published = Fit(A=482.01, B=2085.43, E=1.8172, alpha=0.3478, beta=0.3658, objective=0.0, num_runs=0)
    assert objective(published, params, tokens, loss) > law.objective


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d, y: (n[:5], d[:5], y[:5]), "5 runs"),
        (lambda n, d, y: (n, d, np.where(np.arange(len(y)) == 3, np.nan, y)), "loss of run 3"),
        (lambda n, d, y: (np.full_like(n, 1e8), d, y), "N varies only"),
        (lambda n, d, y: (n, np.full_like(d, 1e9), y), "D varies only"),
        (lambda n, d, y: (n, d[:-1], y), "one of each"),
        (lambda n, d, y: (-n, d, y), "N of run 0"),
    ],
)
def test_unusable_runs_are_refused(change, message: str) -> None:
    law = Fit(A=400.0, B=1500.0, E=1.8, alpha=0.35, beta=0.36, objective=0.0, num_runs=0)
    with pytest.raises(ConfigError, match=message):
        fit(*change(*_runs(law)))
