from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, IntegrityError
from refinery.shards import order
from refinery.shards.plan import MixPlan, PlanStage, draws_at, first_plan, integer_weights

GOLDEN = Path(__file__).parent.parent / "golden" / "order-v1.json"
EIGHT = [0.70, 0.15, 0.10, 0.03, 0.015, 0.004, 0.0009, 0.0001]
WEIGHTS = st.lists(st.integers(1, 2**17), min_size=1, max_size=8).map(lambda w: sorted(w, reverse=True))


def _eight():
    rates = {f"s{i}": Fraction(share) for i, share in enumerate(EIGHT)}
    return sorted((w for _, w in integer_weights(rates)), reverse=True)


@given(WEIGHTS, st.integers(0, 10**12))
def test_vectorised_mix_equals_the_scalar_one(weights, k0):
    index, number = order.draws(weights, k0, 40)
    assert [order.draw(weights, k0 + i) for i in range(40)] == list(zip(index.tolist(), number.tolist(), strict=True))


@given(WEIGHTS, st.integers(0, 2**42))
def test_draw_numbers_continue_what_was_drawn_before(weights, k0):
    before = order.draws_before(weights, k0)
    assert sum(before) == k0
    index, number = order.draws(weights, k0, 64)
    for i in range(len(weights)):
        mine = number[index == i]
        assert mine.tolist() == list(range(before[i], before[i] + len(mine)))
    assert order.draws_before(weights, k0 + 64) == [b + int((index == i).sum()) for i, b in enumerate(before)]


def test_integers_do_not_overflow_at_the_bounds():
    weights = [2**20 - 3, 1, 1, 1]
    k0 = order.MAX_ROWS - 8
    index, number = order.draws(weights, k0, 8)
    assert [order.draw(weights, k0 + i) for i in range(8)] == list(zip(index.tolist(), number.tolist(), strict=True))


def test_every_prefix_and_batch_keeps_the_ratio_on_the_eight_domain_plan():
    weights = _eight()
    index, _ = order.draws(weights, 0, 200_000)
    ideal = np.array(weights) / sum(weights)
    drawn = np.cumsum(index[:, None] == np.arange(8), axis=0)
    deviation = np.abs(drawn - np.arange(1, 200_001)[:, None] * ideal)
    assert deviation.max() <= 1.0
    batches = (index[: 781 * 256].reshape(781, 256)[:, :, None] == np.arange(8)).sum(axis=1)
    assert np.abs(batches - 256 * ideal).max() <= 1.2


def test_prefixes_of_random_plans_stay_close_to_the_ratio():
    rng = np.random.default_rng(0)
    for num_streams in (2, 5, 16, 32):
        weights = sorted((int(w) + 1 for w in rng.dirichlet(np.full(num_streams, 0.5)) * 2**19), reverse=True)
        index, _ = order.draws(weights, 0, 20_000)
        drawn = np.cumsum(index[:, None] == np.arange(num_streams), axis=0)
        ideal = np.arange(1, 20_001)[:, None] * (np.array(weights) / sum(weights))
        assert np.abs(drawn - ideal).max() < 1.5


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection_and_scalar_equals_vectorised(n, key):
    moved = order.permute_array(key, n, np.arange(n))
    assert sorted(moved.tolist()) == list(range(n))
    assert [order.permute(key, n, p) for p in range(n)] == moved.tolist()


def test_permutation_of_a_large_domain_looks_random():
    n = 2**15 + 123
    moved = order.permute_array(order.epoch_key(5, 0), n, np.arange(n))
    assert len(np.unique(moved)) == n
    parity = np.mean((moved[1:] ^ moved[:-1]) & 1)
    assert abs(parity - 0.5) < 4 * 0.5 / np.sqrt(n)
    blocks = np.histogram2d(np.arange(n) * 8 // n, moved * 8 // n, bins=(8, 8))[0]
    chi_square = ((blocks - n / 64) ** 2 / (n / 64)).sum()
    assert 15 < chi_square < 110  # 49 degrees of freedom
    second = order.permute_array(order.epoch_key(5, 1), n, np.arange(n))
    assert np.mean(second == moved) < 0.001
    assert abs(np.corrcoef(second, moved)[0, 1]) < 4 / np.sqrt(n)


def _plan(manifest, rows=3000, seed=3):
    shares = {"law/target/zh/w0/train": 0.3, "web/pool/en/w0/train": 0.6, "general/replay/en/w1/train": 0.1}
    return first_plan(manifest, seed, [(rows, shares)])


def test_each_epoch_reads_every_row_once_in_another_order(shared_dataset):
    _, manifest = shared_dataset
    plan = _plan(manifest)
    refs = order.rows_for(plan, manifest, 0, plan.total_rows)
    for i, stream in enumerate(manifest.streams):
        mine = refs.stream_index == i
        if stream.key.split == "validation":
            assert not mine.any()
            continue
        epochs = [refs.row[mine & (refs.epoch == e)] for e in range(int(refs.epoch[mine].max()) + 1)]
        for rows in epochs[:-1]:
            assert sorted(rows.tolist()) == list(range(stream.rows))
        assert len(set(epochs[-1].tolist())) == len(epochs[-1])
        if len(epochs) > 2:
            assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_any_world_size_and_micro_batch_read_the_same_rows(shared_dataset, world_size, micro_batch):
    _, manifest = shared_dataset
    plan = _plan(manifest)
    for k0 in (0, 64, 512):
        whole = order.rows_for(plan, manifest, k0, 64)
        slots = order.slot_permutation(plan.seed, k0, 64)
        seen = []
        for rank in range(world_size):
            mine = slots[rank::world_size]
            for begin in range(0, len(mine), micro_batch):
                for k in mine[begin : begin + micro_batch]:
                    one = order.rows_for(plan, manifest, k0 + int(k), 1)
                    seen.append((int(one.stream_index[0]), int(one.epoch[0]), int(one.row[0])))
        assert sorted(seen) == sorted(zip(*(column.tolist() for column in whole), strict=True))


def test_slots_mix_streams_over_strided_ranks():
    index, _ = order.draws([1, 1], 0, 256)
    assert len(set(index[::2].tolist())) == 1
    slots = order.slot_permutation(1, 0, 256)
    assert sorted(slots.tolist()) == list(range(256))
    assert 30 < index[slots][::2].sum() < 98
    assert slots.tolist() != order.slot_permutation(1, 256, 256).tolist()


@given(st.integers(1, 2999), st.integers(0, 7))
def test_restart_at_any_row_continues_the_sequence(shared_dataset, k, seed):
    _, manifest = shared_dataset
    plan = _plan(manifest, seed=seed)
    whole = order.rows_for(plan, manifest, 0, 3000)
    rest = order.rows_for(plan, manifest, k, 3000 - k)
    for full, tail in zip(whole, rest, strict=True):
        assert full[k:].tolist() == tail.tolist()


def test_rows_outside_the_plan_and_foreign_plans_are_refused(shared_dataset):
    _, manifest = shared_dataset
    plan = _plan(manifest)
    with pytest.raises(ConfigError, match="outside"):
        order.rows_for(plan, manifest, 2999, 2)
    other = MixPlan(seed=1, sequence_length=32, content_hash="00", stages=plan.stages)
    with pytest.raises(IntegrityError, match="remix"):
        order.rows_for(other, manifest, 0, 1)
    old = MixPlan(seed=1, sequence_length=32, content_hash=manifest.content_hash, stages=plan.stages, order_version=0)
    with pytest.raises(IntegrityError, match="order version"):
        order.rows_for(old, manifest, 0, 1)
    unknown = MixPlan(
        seed=1, sequence_length=32, content_hash=manifest.content_hash, stages=(PlanStage(0, 9, (("moon", 1),)),)
    )
    with pytest.raises(ConfigError, match="moon"):
        order.rows_for(unknown, manifest, 0, 1)
    with pytest.raises(ConfigError):
        order.permute(1, 0, 0)
    assert len(order.rows_for(plan, manifest, 5, 0).row) == 0
    assert draws_at(plan, 0) == dict.fromkeys(draws_at(plan, 9), 0)


def golden_order():
    """What `order-v1.json` must hold: changes only with ORDER_VERSION."""
    index, number = order.draws([700, 200, 99, 1], 10**12, 32)
    key = order.epoch_key(order.stream_key(20261121, "law/target/zh/w0/train"), 3)
    return {
        "order_version": order.ORDER_VERSION,
        "mix": {
            "weights": [700, 200, 99, 1],
            "k0": 10**12,
            "index": index.tolist(),
            "number": number.tolist(),
        },
        "permutation": {"key": key, "n": 1000, "first": order.permute_array(key, 1000, np.arange(32)).tolist()},
        "large": {"key": key, "n": 10**9, "first": order.permute_array(key, 10**9, np.arange(8)).tolist()},
        "slots": {"seed": 20261121, "k0": 4096, "order": order.slot_permutation(20261121, 4096, 16).tolist()},
    }


def test_order_equals_the_golden_vector():
    assert golden_order() == json.loads(GOLDEN.read_text())
