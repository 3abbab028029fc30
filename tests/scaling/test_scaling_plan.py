from __future__ import annotations

import math

import numpy as np
import pytest

from refinery.errors import ConfigError
from refinery.scaling.cpt import PUBLISHED_CPT
from refinery.scaling.parametric import Fit, Intervals
from refinery.scaling.plan import compute_optimal, fixed_size, tokens_for_loss

LAW = Fit(
    A=477.8, B=2143.4, E=1.8172, alpha=0.3473, beta=0.3672, objective=0.0, num_runs=240,
    params_range=(5.7e7, 1.6e10), tokens_range=(8e8, 3.2e11),
)  # fmt: skip


def test_optimal_plan_is_the_lowest_of_its_budget() -> None:
    plan = compute_optimal(LAW, 5.76e23)
    assert plan.num_params * plan.num_tokens * 6 == pytest.approx(5.76e23)
    assert plan.loss_given_up_nats == 0.0
    assert 15 < plan.tokens_per_param < 25
    assert 1 < plan.extrapolation < 10
    for factor in (0.8, 1.25):
        assert fixed_size(LAW, 5.76e23, plan.num_params * factor).loss_nats > plan.loss_nats


def test_over_training_states_what_it_costs() -> None:
    plan = fixed_size(LAW, 1e22, 1e9)
    assert plan.loss_given_up_nats == pytest.approx(plan.loss_nats - compute_optimal(LAW, 1e22).loss_nats)
    assert plan.loss_given_up_nats > 0


def test_far_extrapolation_is_refused_unless_meant() -> None:
    with pytest.raises(ConfigError, match="beyond the largest fitted run"):
        compute_optimal(LAW, 1e27)
    assert compute_optimal(LAW, 1e27, max_extrapolation=math.inf).extrapolation > 10


def test_interval_comes_from_the_bootstrap() -> None:
    samples = np.column_stack([np.tile(LAW.vector(), (50, 1)), np.full(50, LAW.a)])
    samples[:, 2] += np.linspace(-0.02, 0.02, 50)
    intervals = Intervals(("A", "B", "E", "alpha", "beta", "a"), *(np.zeros(6) for _ in range(3)), samples)
    plan = compute_optimal(LAW, 1e21, intervals=intervals)
    assert plan.loss_interval_nats is not None
    assert plan.loss_interval_nats[0] < plan.loss_nats < plan.loss_interval_nats[1]


@pytest.mark.parametrize("law", [LAW, PUBLISHED_CPT])
def test_tokens_for_loss_inverts_the_law(law) -> None:
    tokens = tokens_for_loss(law, 1e9, 2.6)
    assert float(law.loss(1e9, tokens)) == pytest.approx(2.6)
    with pytest.raises(ConfigError, match="never reach"):
        tokens_for_loss(law, 1e9, 1.6)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="flops is"):
        compute_optimal(LAW, float("nan"))
    flat = Fit(A=1.0, B=1.0, E=1.0, alpha=0.3, beta=-0.1, objective=0.0, num_runs=9)
    with pytest.raises(ConfigError, match="must be > 0"):
        compute_optimal(flat, 1e20)
