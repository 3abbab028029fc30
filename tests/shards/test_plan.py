from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, IntegrityError
from refinery.shards import order, plan
from refinery.shards.plan import MixPlan, PlanStage
from tests.shards import datasets

LAW, WEB, REPLAY = "law/target/zh/w0/train", "web/pool/en/w0/train", "general/replay/en/w1/train"
SHARES = {LAW: 0.3, WEB: 0.6, REPLAY: 0.1}


def test_weights_turn_token_shares_into_row_shares(shared_dataset):
    _, manifest = shared_dataset
    weights = dict(plan.weights_from_shares(SHARES, manifest))
    assert sum(weights.values()) == order.MAX_TOTAL_WEIGHT
    loss_tokens = {
        name: weight * manifest.stream(name).total("loss_tokens") / manifest.stream(name).rows
        for name, weight in weights.items()
    }
    total = sum(loss_tokens.values())
    for name, share in SHARES.items():
        assert loss_tokens[name] / total == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({LAW: 0.5, WEB: 0.4}, "0.9"),
        ({LAW: -0.5, WEB: 1.5}, "negative"),
        ({LAW: 0.5, "moon": 0.5}, "moon"),
        ({LAW: 0.5, "law/target/zh/w0/validation": 0.5}, "validation"),
        ({LAW: 1e-9, WEB: 1 - 1e-9}, LAW),
    ],
)
def test_shares_that_cannot_be_planned_are_refused(shared_dataset, shares, message):
    with pytest.raises(ConfigError, match=message):
        plan.weights_from_shares(shares, shared_dataset[1])


def test_realised_numbers_equal_a_count_of_the_rows(shared_dataset):
    _, manifest = shared_dataset
    mixed = plan.first_plan(manifest, 5, [(900, SHARES), (500, {LAW: 0.5, WEB: 0.5})])
    refs = order.rows_for(mixed, manifest, 0, mixed.total_rows)
    for entry in plan.realise(mixed, manifest):
        index = [stream.name for stream in manifest.streams].index(entry.stream)
        mine = refs.stream_index == index
        num_rows = manifest.streams[index].rows
        assert entry.rows == mine.sum() == entry.full_epochs * num_rows + entry.rows_of_last_epoch
        repeats = np.flatnonzero(mine & (refs.epoch == 1))
        assert entry.first_repeat_row == (int(repeats[0]) if len(repeats) else -1)
        assert entry.epochs == pytest.approx(entry.rows / num_rows)


@given(
    st.integers(0, 1500),
    st.dictionaries(st.sampled_from([LAW, WEB, REPLAY]), st.integers(1, 1000), min_size=1),
    st.integers(1, 800),
)
def test_appended_stage_continues_every_stream_where_it_was(shared_dataset, start_row, weights, num_rows):
    _, manifest = shared_dataset
    before = plan.first_plan(manifest, 5, [(900, SHARES), (600, {LAW: 0.9, WEB: 0.1})])
    after = plan.append_stage(before, start_row, num_rows, weights)
    assert after.total_rows == start_row + num_rows
    assert sum(plan.draws_at(after, after.total_rows).values()) == after.total_rows
    old = order.rows_for(before, manifest, 0, start_row)
    new = order.rows_for(after, manifest, 0, after.total_rows)
    for one, two in zip(old, new, strict=True):
        assert one.tolist() == two[:start_row].tolist()
    for index, stream in enumerate(manifest.streams):
        mine = new.stream_index == index
        draws = new.epoch[mine] * stream.rows
        rows_of = {}
        for epoch, row in zip(new.epoch[mine].tolist(), new.row[mine].tolist(), strict=True):
            rows_of.setdefault(epoch, []).append(row)
        for epoch, rows in rows_of.items():  # nothing lost, nothing repeated inside an epoch
            assert len(set(rows)) == len(rows)
            if epoch < max(rows_of):
                assert len(rows) == stream.rows
        assert (np.diff(draws) >= 0).all()


def test_stages_must_join_and_be_drawable(shared_dataset):
    _, manifest = shared_dataset
    base = {"seed": 1, "sequence_length": 32, "content_hash": manifest.content_hash}
    weights = ((LAW, 1), (WEB, 2))
    for stages in (
        (),
        (PlanStage(5, 10, weights),),
        (PlanStage(0, 10, weights), PlanStage(11, 10, weights)),
        (PlanStage(0, 0, weights),),
        (PlanStage(0, 2**43, weights),),
        (PlanStage(0, 10, ()),),
        (PlanStage(0, 10, ((LAW, 0),)),),
        (PlanStage(0, 10, ((WEB, 1), (LAW, 1))),),
        (PlanStage(0, 10, ((LAW, 2**20), (WEB, 1))),),
    ):
        with pytest.raises(ConfigError):
            MixPlan(stages=stages, **base)
    good = MixPlan(stages=(PlanStage(0, 10, weights),), **base)
    with pytest.raises(ConfigError, match="begin at row 11"):
        plan.append_stage(good, 11, 5, {LAW: 1})
    held_out = MixPlan(stages=(PlanStage(0, 10, (("law/target/zh/w0/validation", 1),)),), **base)
    with pytest.raises(ConfigError, match="not a train stream"):
        plan.check_plan(held_out, manifest)


def test_plan_file_round_trips_and_refuses_edits(shared_dataset, tmp_path):
    _, manifest = shared_dataset
    mixed = plan.first_plan(manifest, 5, [(900, SHARES)])
    path = tmp_path / "plan.json"
    path.write_bytes(plan.plan_bytes(mixed))
    assert plan.load_plan(path) == mixed
    document = json.loads(path.read_text())
    for change in ({"seed": 6}, {"extra": 1}, {"version": 2}, {"stages": 3}):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(IntegrityError):
            plan.load_plan(path)
    path.write_text("[]")
    with pytest.raises(IntegrityError):
        plan.load_plan(path)
    with pytest.raises(IntegrityError, match="no such plan"):
        plan.load_plan(tmp_path / "none.json")


def test_changed_file_set_is_refused_under_an_old_plan(shared_dataset, tmp_path):
    _, manifest = shared_dataset
    mixed = plan.first_plan(manifest, 5, [(900, SHARES)])
    streams = {key: count + 1 for key, count in datasets.STREAMS.items()}
    changed = datasets.build(tmp_path, streams=streams)
    with pytest.raises(IntegrityError, match="remix"):
        plan.check_plan(mixed, changed)
