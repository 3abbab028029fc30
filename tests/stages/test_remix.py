from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.cli import app
from refinery.errors import ConfigError, IntegrityError
from refinery.recipe import Mix
from refinery.shards.order import rows_for
from refinery.shards.plan import draws_at, load_plan, plan_bytes
from refinery.stages.remix import read_mix, remix
from refinery.stages.row_plan import continued_plan, new_plan, realised_facts
from tests.shards import datasets

LAW, WEB, GENERAL = "law/target/zh/w0/train", "web/pool/en/w0/train", "general/replay/en/w1/train"


def _mix(law=0.5, web=0.3, replay=0.2, **settings):
    return Mix.model_validate({"stages": [{"domains": {"law": law, "web": web}, "replay": replay}], **settings})


def _phases(law, web, replay):
    shares = {LAW: law, WEB: web, GENERAL: replay}
    return [(1.0, {name: share for name, share in shares.items() if share})]


@pytest.fixture
def packed(tmp_path):
    """A data set whose web stream was packed in part: as much again lies unpacked."""
    manifest = datasets.build(tmp_path)
    tokens = {s.name: s.total("tokens") for s in manifest.streams}
    available = {**tokens, WEB: 2 * tokens[WEB], "news/pool/en/w0/train": 5_000}
    manifest = datasets.build(tmp_path, unhashed={"available_tokens": available, "packed_tokens": tokens})
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "main.json").write_bytes(
        plan_bytes(new_plan(manifest, 7, _phases(0.2, 0.7, 0.1), 4_000, {}))
    )
    return tmp_path, manifest, tokens


def test_a_new_mix_inside_the_ceiling_is_a_new_plan_over_the_same_shards(packed):
    root, manifest, tokens = packed
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.bin")}
    made = remix(root, _mix(budget_tokens=5_000), "second")
    assert made.path == root / "plan" / "second.json"
    plan = load_plan(made.path)
    refs = rows_for(plan, manifest, 0, plan.total_rows)
    counts = dict(zip(*np.unique(refs.stream_index, return_counts=True), strict=True))
    for entry in made.facts["realised"]:
        index = [s.name for s in manifest.streams].index(entry["stream"])
        assert counts[index] == entry["rows"]
    domains = made.facts["domains"]
    assert domains["law"]["share"] == pytest.approx(0.5, abs=0.01)
    assert domains["replay"]["share"] == pytest.approx(0.2, abs=0.01)
    assert sum(d["loss_tokens"] for d in domains.values()) == pytest.approx(5_000, rel=0.02)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.bin")} == before
    assert tokens[LAW] > 0


def test_first_repeated_row_of_a_domain_is_where_its_stream_begins_again(packed):
    root, manifest, _ = packed
    made = remix(root, _mix(law=0.2, web=0.1, replay=0.7), "small")
    plan, wrap = made.plan, made.facts["domains"]["replay"]["first_repeat_row"]
    stream = manifest.stream(GENERAL)
    assert draws_at(plan, wrap)[GENERAL] == stream.rows
    assert draws_at(plan, wrap + 1)[GENERAL] == stream.rows + 1
    assert made.facts["domains"]["replay"]["epochs"] == pytest.approx(4.0, abs=0.1), "auto goes to the cap"


def test_beyond_the_ceiling_says_what_is_missing_where_and_how_to_pack_it(packed):
    root, _, tokens = packed
    budget = 2 * tokens[WEB]
    with pytest.raises(ConfigError) as refused:
        remix(root, _mix(law=0.1, web=0.8, replay=0.1, budget_tokens=budget), "more")
    message = str(refused.value)
    missing = round(0.8 * budget) - tokens[WEB]
    assert f"web lacks {missing:,} tokens ({tokens[WEB]:,} are packed)" in message
    assert "refinery run RECIPE --from mix --to pack" in message
    assert not (root / "plan" / "more.json").exists()
    largest = int(message.rpartition("lower budget_tokens to ")[2].replace(",", ""))
    assert largest == pytest.approx(tokens[WEB] / 0.8, rel=0.01)
    remix(root, _mix(law=0.1, web=0.8, replay=0.1, budget_tokens=largest), "more")
    auto = remix(root, _mix(law=0.1, web=0.8, replay=0.1), "auto")
    assert auto.facts["budget_tokens"] == pytest.approx(largest, abs=2), "auto stays inside"


def test_a_domain_of_which_nothing_is_packed_is_named(packed):
    root, _, _ = packed
    wanted = Mix.model_validate({"budget_tokens": 4_000, "stages": [{"domains": {"law": 0.5, "news": 0.5}}]})
    with pytest.raises(ConfigError, match=r"news lacks 2,000 tokens \(0 are packed\)"):
        remix(root, wanted, "news")


def test_infeasible_and_unknown_mixes_are_refused_before_anything_is_written(packed):
    root, _, _ = packed
    for mix, message in (
        (_mix(budget_tokens=10**9), "infeasible"),
        (_mix(law=0.7, web=0.3, replay=0.0, max_shares={"law": 0.5}), "over its cap"),
        (Mix.model_validate({"stages": [{"domains": {"moon": 1.0}}]}), "no tokens for moon"),
        (_mix(upsample={"web": "fineweb2"}), "weight buckets"),
    ):
        with pytest.raises(ConfigError, match=message):
            remix(root, mix, "refused")
    for name in ("main", "../x", "", ".hidden"):
        with pytest.raises(ConfigError, match="plan"):
            remix(root, _mix(), name)
    assert [p.name for p in (root / "plan").iterdir()] == ["main.json"]


def test_a_plan_of_another_content_is_not_replaced_unless_forced(packed):
    root, _, _ = packed
    first = remix(root, _mix(budget_tokens=3_000), "own")
    assert remix(root, _mix(budget_tokens=3_000), "own").plan == first.plan
    with pytest.raises(ConfigError, match="--force"):
        remix(root, _mix(budget_tokens=2_000), "own")
    assert remix(root, _mix(budget_tokens=2_000), "own", force=True).plan != first.plan


@given(
    at=st.integers(1, 120),
    shares=st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8)),
    budget=st.integers(200, 6_000),
)
def test_a_continued_plan_loses_and_repeats_nothing(shared_dataset, at, shares, budget):
    """Rows before are as they were; rows after go on in every stream's own order; draws add up per domain."""
    _, manifest = shared_dataset
    base = new_plan(manifest, 7, _phases(0.2, 0.7, 0.1), 4_000, {})
    at = min(at, base.total_rows)
    phases = _phases(*(share / sum(shares) for share in shares))
    plan = continued_plan(base, at, manifest, phases, budget, {})
    before, after = rows_for(base, manifest, 0, at), rows_for(plan, manifest, 0, plan.total_rows)
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old, new[:at])
    rows_of = {s.name: s.rows for s in manifest.streams}
    drawn = draws_at(plan, plan.total_rows)
    assert sum(drawn.values()) == plan.total_rows == len(after.row)
    for index, stream in enumerate(manifest.streams):
        mine = after.stream_index == index
        assert int(mine.sum()) == drawn.get(stream.name, 0)
        epochs, rows = after.epoch[mine], after.row[mine]
        assert (np.diff(epochs) >= 0).all()
        for epoch in np.unique(epochs):  # every epoch reads each row once, whole but for the last
            seen = rows[epochs == epoch]
            assert len(np.unique(seen)) == len(seen)
            if epoch < epochs[-1]:
                assert len(seen) == rows_of[stream.name]
        assert drawn.get(stream.name, 0) <= 4 * rows_of[stream.name] + 1
    facts = realised_facts(plan, manifest)
    assert sum(d["rows"] for d in facts["domains"].values()) == plan.total_rows


def test_a_used_up_stream_cannot_be_continued(packed):
    root, manifest, _ = packed
    all_general = new_plan(manifest, 7, [(1.0, {GENERAL: 1.0})], 10**9, {})
    assert all_general.total_rows == 4 * manifest.stream(GENERAL).rows
    (root / "plan" / "general.json").write_bytes(plan_bytes(all_general))
    with pytest.raises(ConfigError, match="replay"):
        remix(root, _mix(law=0.5, web=0.2, replay=0.3, budget_tokens=2_000), "x", base="general",
              at_row=all_general.total_rows)  # fmt: skip
    made = remix(root, _mix(law=0.5, web=0.5, replay=0.0, budget_tokens=2_000), "x", base="general",
                 at_row=all_general.total_rows)  # fmt: skip
    assert draws_at(made.plan, made.plan.total_rows)[GENERAL] == all_general.total_rows


def test_rows_outside_the_base_plan_and_foreign_plans_are_refused(packed):
    root, manifest, _ = packed
    for at_row in (0, 10**6):
        with pytest.raises(ConfigError, match="at-row"):
            remix(root, _mix(budget_tokens=900), "x", at_row=at_row)
    with pytest.raises(ConfigError, match="keeps its seed"):
        remix(root, _mix(budget_tokens=900), "x", at_row=5, seed=1)
    path = root / "plan" / "main.json"
    path.write_bytes(path.read_bytes().replace(b'"seed":7', b'"seed":8'))
    with pytest.raises(IntegrityError, match="plan_hash"):
        remix(root, _mix(budget_tokens=900), "x", at_row=5)
    with pytest.raises(IntegrityError, match="no such plan"):
        remix(root, _mix(budget_tokens=900), "x", at_row=5, base="moon")
    assert manifest.content_hash


def test_command_prints_shares_natural_shares_and_how_to_go_on(packed, tmp_path):
    from typer.testing import CliRunner

    root, _, _ = packed
    request = tmp_path / "anneal.yaml"
    request.write_text("budget_tokens: 2000\nstages: [{domains: {law: 0.8}, replay: 0.2}]\n")
    said = CliRunner().invoke(app, ["remix", str(root), str(request), "--at-row", "64"])
    assert said.exit_code == 0, said.output
    assert "law" in said.output
    assert "natural" in said.output
    assert "first repeated row" in said.output or "no repeat" in said.output
    assert "--plan" in said.output
    plan = load_plan(root / "plan" / "anneal.json")
    assert [stage.start_row for stage in plan.stages] == [0, 64]
    as_json = CliRunner().invoke(app, ["remix", str(root), str(request), "--name", "j", "--json"])
    assert json.loads(as_json.output)["domains"]["law"]["share"] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("text", ["stages: [", "- 1", "stages: []", "budget: 3", "stages: [{domains: {a: 0.5}}]"])
def test_requests_that_are_no_mix_are_refused(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.yaml"):
        read_mix(path)


def test_the_mix_section_of_a_recipe_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nmix: {stages: [{domains: {law: 1.0}}]}\n")
    assert read_mix(path).stages[0].domains == {"law": 1.0}
