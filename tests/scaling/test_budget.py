from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from refinery.cli import app
from refinery.contracts.runs import LossPoint, RunRecord, write_run_record
from refinery.errors import ConfigError
from refinery.scaling.budget import cost_of, epochs_by_domain, flops_of_hours, over_training
from refinery.scaling.kaplan import kaplan_losses
from refinery.scaling.parametric import Fit
from refinery.scaling.plan import compute_optimal, fixed_size
from refinery.scaling.repetition import RepetitionLaw
from refinery.scaling.replay import PUBLISHED, frontier_text, published_share, records_frontier, replay_frontier

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


def _swept(share: float, start: float = 2.4) -> RunRecord:
    points = []
    for step, old, new in ((0, start, 3.0), (10, 2.9 - 2.0 * share, 1.0 + 0.2 * share)):
        for stream, loss in (("web/replay/en/w0/validation", old), ("law/target/zh/w0/validation", new)):
            points.append(
                LossPoint(
                    step=step, tokens=step, stream=stream, loss_nats=loss, bits_per_byte=None, target_tokens=1,
                    learning_rate=0.0, replay_frac=share,
                )
            )  # fmt: skip
    return RunRecord(
        name=f"r{share}", status="finished", init="x", num_params=1, num_non_embedding_params=1, steps=10, tokens=10,
        sequence_length=1, final_train_loss_nats=1.0, num_skipped_steps=0, train_flops=1.0, seconds=1.0,
        points=tuple(points),
    )  # fmt: skip


def test_a_sweep_of_records_becomes_a_frontier(tmp_path):
    shares = (0.0, 0.1, 0.3, 0.5)
    found = records_frontier([(s, _swept(s)) for s in shares], "web", "law/target/zh/w0/validation")
    assert found.keeping_share == pytest.approx(0.25)
    assert [p.target_cost for p in found.points] == pytest.approx([0.0, 0.02, 0.06, 0.1])
    assert all(p.efficient for p in found.points)
    text = frontier_text(found)
    assert "share of 0.250" in text
    assert "published, weak shift: 5%" in text
    arguments = ["plan", "replay", "--old", "web", "--target", "law", "--json"]
    for s in shares:
        write_run_record(_swept(s), tmp_path / f"{s}.json")
        arguments += ["--share", f"{s}={tmp_path / f'{s}.json'}"]
    assert json.loads(CliRunner().invoke(app, arguments).output)["keeping_share"] == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="they continue different models"):
        records_frontier([(0.1, _swept(0.1)), (0.2, _swept(0.2, start=2.6)), (0.3, _swept(0.3))], "web", "law")
    with pytest.raises(ConfigError, match="names 0 of its validation streams"):
        records_frontier([(s, _swept(s)) for s in shares], "mail", "law")
