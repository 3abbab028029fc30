from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.scaling.budget import cost_of, epochs_by_domain, flops_of_hours, over_training
from refinery.scaling.kaplan import kaplan_losses
from refinery.scaling.parametric import Fit
from refinery.scaling.plan import compute_optimal, fixed_size
from refinery.scaling.repetition import RepetitionLaw
from refinery.scaling.replay import PUBLISHED, published_share, replay_frontier

LAW = Fit(
    A=477.8, B=2143.4, E=1.8172, alpha=0.3473, beta=0.3672, objective=0.0, num_runs=240,
    params_range=(5.7e7, 1.6e10), tokens_range=(8e8, 3.2e11),
)  # fmt: skip


@given(st.floats(1.0, 1e6), st.sampled_from(["a100", "h100", "h200", "b200"]), st.floats(0.05, 1.0))
def test_hours_and_flops_invert_each_other(hours, name, mfu):
    flops = flops_of_hours(hours, name, mfu)
    plan = compute_optimal(LAW, flops, max_extrapolation=math.inf)
    assert cost_of(plan, name, mfu).card_hours == pytest.approx(hours)
    assert cost_of(plan, name, mfu, cards=8).hours == pytest.approx(hours / 8)


def test_memory_is_sixteen_bytes_per_parameter():
    cost = cost_of(fixed_size(LAW, 1e22, 7e9), "h100", 0.4)
    assert cost.state_bytes == pytest.approx(112e9)
    assert cost.min_cards == 2


def test_epochs_are_counted_and_capped():
    unique, shares = {"law": 1e9, "web": 1e11}, {"law": 0.2, "web": 0.8}
    found = epochs_by_domain(2e10, unique, shares)
    assert found["law"].epochs == pytest.approx(4.0)
    assert found["web"].epochs == pytest.approx(0.16)
    assert found["web"].effective_tokens == pytest.approx(1.6e10)
    assert found["law"].effective_tokens == pytest.approx(RepetitionLaw().effective_tokens(4e9, 1e9))
    with pytest.raises(ConfigError, match=r"reads them 8.0 times, the bound is 4: add 1,000,000,000 tokens"):
        epochs_by_domain(4e10, unique, shares)
    assert epochs_by_domain(4e10, unique, shares, max_epochs=8)["law"].epochs == pytest.approx(8.0)
    with pytest.raises(ConfigError, match="unknown domains: mail"):
        epochs_by_domain(1e9, unique, {"mail": 1.0})
    with pytest.raises(ConfigError, match=r"sum to 0.5"):
        epochs_by_domain(1e9, unique, {"web": 0.5})


def test_over_training_weighs_loss_against_inference():
    optimal = compute_optimal(LAW, 1e22)
    small = fixed_size(LAW, 1e22, optimal.num_params / 3)
    weighed = over_training(LAW, small, optimal)
    assert weighed.inference_saved_frac == pytest.approx(2 / 3)
    assert weighed.loss_given_up_nats == pytest.approx(small.loss_nats - optimal.loss_nats)
    assert weighed.tokens_for_optimal_loss is not None
    assert float(LAW.loss(small.num_params, weighed.tokens_for_optimal_loss)) == pytest.approx(optimal.loss_nats)
    assert weighed.break_even_tokens is not None
    assert weighed.extra_train_flops == pytest.approx(
        weighed.break_even_tokens * 2 * (optimal.num_params - small.num_params)
    )
    never = over_training(LAW, fixed_size(LAW, 1e22, 1e7, max_extrapolation=math.inf), optimal)
    assert never.tokens_for_optimal_loss is None
    with pytest.raises(ConfigError, match="under-training"):
        over_training(LAW, fixed_size(LAW, 1e22, 2 * optimal.num_params), optimal)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flops_of_hours(0.0, "h100", 0.4), "must be finite and > 0"),
        (lambda: flops_of_hours(1.0, "h1000", 0.4), "known: a100"),
        (lambda: flops_of_hours(1.0, "h100", 1.4), "mfu 1.4"),
        (lambda: cost_of(compute_optimal(LAW, 1e21), "h100", 0.4, cards=0), "0 cards"),
        (lambda: published_share("huge"), "known: weak, strong, language"),
        (lambda: kaplan_losses(0.0, 1e9), "num_params is 0.0"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_published_replay_is_a_frontier_with_its_recommendation():
    assert [published_share(p.shift)[0] for p in PUBLISHED] == [0.05, 0.25, 0.30]
    german = PUBLISHED[1].rows
    found = replay_frontier([r[0] for r in german], [r[1] for r in german], [r[2] for r in german], old_start=2.30)
    assert [p.efficient for p in found.points][0] and found.points[-1].efficient  # noqa: PT018, RUF015 - both ends
    assert 0.25 < found.keeping_share < 0.50
    assert found.slope < 0


def test_keeping_share_is_where_the_curve_crosses():
    shares = [0.0, 0.1, 0.2, 0.4]
    found = replay_frontier(shares, [3.0, 2.5, 2.3, 2.2], [1.0, 1.01, 1.03, 1.1], old_start=2.4)
    assert found.keeping_share == pytest.approx(0.15)
    assert replay_frontier(shares, [3.0, 2.9, 2.8, 2.7], [1.0, 1.1, 1.2, 1.3], 2.4).keeping_share is None
    dominated = replay_frontier(shares, [3.0, 3.1, 2.3, 2.2], [1.0, 1.01, 1.03, 1.1], 2.4)
    assert [p.efficient for p in dominated.points] == [True, False, True, True]
    with pytest.raises(ConfigError, match="three different shares"):
        replay_frontier([0.1, 0.1, 0.2], [1.0] * 3, [1.0] * 3, 2.0)
    with pytest.raises(ConfigError, match="losses finite"):
        replay_frontier([0.1, 0.3, 0.2], [1.0, np.nan, 1.0], [1.0] * 3, 2.0)


def test_kaplan_wants_larger_models_than_chinchilla():
    small = kaplan_losses(1e8, 1e10)
    large = kaplan_losses(1e9, 1e10)
    assert large.joint < small.joint
    assert small.joint >= max(small.of_params, small.of_tokens) - 0.2
    assert kaplan_losses(8.8e13, 5.4e13).of_params == pytest.approx(1.0)
    assert kaplan_losses(8.8e13, 5.4e13).of_tokens == pytest.approx(1.0)
