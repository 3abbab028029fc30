from __future__ import annotations

import pytest

from refinery.errors import ConfigError
from refinery.recipe import Mix
from refinery.stages.mix_plan import mix_lines, plan_streams, supplies_of, upsample_tables

AVAILABLE = {
    "law/target/zh/w0/train": 2_000_000,
    "web/pool/en/w1/train": 40_000_000,
    "web/pool/en/w3/train": 10_000_000,
    "web/pool/zh/w1/train": 1_000_000,
    "code/pool/und/w0/train": 47_000_000,
    "books/replay/en/w0/train": 30_000_000,
    "law/target/zh/w0/validation": 10_000,
}


def _planned(**settings):
    return plan_streams(Mix.model_validate(settings), supplies_of(AVAILABLE))


def test_domain_heavy_is_shown_beside_natural_shares():
    planned = _planned(stages=[{"domain_heavy": "law", "replay": 0.1}])
    facts = planned.facts()
    assert facts["natural_shares"] == {"code": 0.47, "law": 0.02, "web": 0.51}
    assert facts["asked_shares"]["law"] == pytest.approx(0.51), "the largest natural share, over ten times its own"
    assert facts["asked_shares"]["web"] / facts["asked_shares"]["code"] == pytest.approx(51 / 47)
    assert sum(facts["asked_shares"].values()) == pytest.approx(1)
    said = " ".join(mix_lines(facts))
    assert "domain_heavy gives law 51.00% of the budget; its natural share is 2.00%, the largest is 51.00%" in said


def test_auto_is_the_largest_budget_under_the_caps():
    planned = _planned(stages=[{"domain_heavy": "law", "replay": 0.1}])
    assert planned.budget_tokens == pytest.approx(4 * 2_000_000 / 0.51, rel=1e-6)
    assert max(e.epochs for e in planned.streams) <= 4 + 1e-6
    more = _planned(stages=[{"domain_heavy": "law", "replay": 0.1}], max_epochs={"law": 16})
    assert more.budget_tokens == pytest.approx(4 * planned.budget_tokens, rel=1e-6)
    late = [line for line in mix_lines(more.facts()) if "law" in line and "worth" in line]
    assert "5th 0.80" in late[0]
    assert "16th 0.39" in late[0]
    assert more.facts()["max_epochs"]["law"] == 16


def test_caps_of_code_are_shown_with_their_reason():
    facts = _planned(stages=[{"domains": {"law": 0.1, "web": 0.5, "code": 0.4}}]).facts()
    assert [(e["domain"], e["cap"]) for e in facts["share_caps"]] == [("code", 0.5)]
    assert any("code has 40.00%, at most 50%" in line and "2305.16264" in line for line in mix_lines(facts))
    with pytest.raises(ConfigError, match="over its cap"):
        _planned(stages=[{"domains": {"code": 0.6, "web": 0.4}}])
    allowed = _planned(stages=[{"domains": {"code": 0.6, "web": 0.4}}], max_shares={"code": 0.7})
    assert allowed.request.shares["code"] == 0.6


def test_copies_and_language_policy_spread_a_domain_over_its_streams():
    stages = [{"domains": {"web": 1.0}}]
    natural = {e.stream: e.tokens for e in _planned(stages=stages, budget_tokens=7_100_000).streams}
    assert natural["web/pool/en/w1/train"] == pytest.approx(4_000_000, rel=1e-3)
    assert natural["web/pool/en/w3/train"] == pytest.approx(3_000_000, rel=1e-3), "ten million in three copies"
    flat = _planned(stages=stages, budget_tokens=3_000_000, language_policy="temperature", temperature=1e9)
    assert {e.tokens for e in flat.streams} == {1_000_000}
    uni = _planned(stages=stages, budget_tokens=3_000_000, language_policy="unimax")
    assert {e.tokens for e in uni.streams} == {1_000_000}


def test_phases_add_up_to_the_shares_of_the_budget():
    planned = _planned(
        budget_tokens=1_000_000,
        stages=[
            {"share": 0.75, "domains": {"web": 0.8, "law": 0.1}, "replay": 0.1},
            {"share": 0.25, "domains": {"law": 0.6, "code": 0.2}, "replay": 0.2},
        ],
    )
    assert planned.request.shares == pytest.approx({"law": 0.225, "web": 0.6, "code": 0.05})
    assert planned.request.replay == pytest.approx(0.125)
    for share, streams in planned.stream_shares():
        assert sum(streams.values()) == pytest.approx(1), share


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": [{"domains": {"law": 0.5}, "replay": 0.4}]}, "sum to 0.9"),
        ({"stages": [{"domains": {"law": 1.0 + 2e-6}}]}, "less than or equal to 1"),
        ({"stages": [{"domains": {"law": 0.5, "web": 0.5 - 2e-6}}]}, "not 1 ± 1e-6"),
        ({"stages": [{"domain_heavy": "law", "domains": {"law": 1.0}}]}, "exactly one"),
        ({"stages": [{"replay": 1.0}]}, "exactly one"),
        ({"stages": [{"domains": {"law": 1.0}}], "upsample": {"web": {2: 2}}}, "first size is 1"),
        ({"stages": [{"domains": {"law": 1.0}}], "upsample": {"web": "fineweb9"}}, "fineweb2"),
        ({"stages": [{"domains": {"law": 1.0}}], "max_epochs": {"law": 0}}, "greater than 0"),
    ],
)
def test_settings_that_are_no_mix_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Mix.model_validate(settings)


def test_upsample_presets_are_looked_up():
    mix = Mix.model_validate({"stages": [{"domains": {"web": 1.0}}], "upsample": {"web": "fineweb2", "law": {1: 2}}})
    assert upsample_tables(mix) == {"law": {1: 2}, "web": {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}}
