from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels import mixing
from refinery.kernels.mixing import MixRequest, StreamSupply

SUPPLIES = [
    StreamSupply(stream="law/zh", domain="law", role="target", unique_tokens=1_000_000),
    StreamSupply(stream="law/en", domain="law", role="target", unique_tokens=100_000),
    StreamSupply(stream="web/en", domain="web", role="pool", unique_tokens=50_000_000),
    StreamSupply(stream="general/en", domain="web", role="replay", unique_tokens=8_000_000),
]
REQUEST = MixRequest(shares={"law": 0.2, "web": 0.6}, replay=0.2)


def _by_stream(mixed):
    return {entry.stream: entry.tokens for entry in mixed}


def test_tokens_add_up_to_the_budget_and_follow_the_shares():
    mixed = _by_stream(mixing.plan_mix(SUPPLIES, 10_000_001, REQUEST))
    assert sum(mixed.values()) == 10_000_001
    assert mixed["law/zh"] + mixed["law/en"] == 2_000_000
    assert mixed["web/en"] == 6_000_001
    assert mixed["general/en"] == 2_000_000
    assert mixed["law/zh"] == pytest.approx(10 * mixed["law/en"], rel=1e-5)


def test_infeasible_plan_names_domain_shortfall_and_remedies_that_work():
    with pytest.raises(ConfigError) as caught:
        mixing.plan_mix(SUPPLIES, 30_000_000, REQUEST)
    message = str(caught.value)
    assert "law is 1,600,000 tokens short" in message
    assert "lower the share to 0.146666" in message
    assert "raise max_epochs to 5.46" in message
    assert "budget_tokens to 22,000,000" in message
    assert mixing.largest_budget(SUPPLIES, REQUEST) == 22_000_000
    mixing.plan_mix(SUPPLIES, 22_000_000, REQUEST)
    mixing.plan_mix(SUPPLIES, 30_000_000, MixRequest(shares=REQUEST.shares, replay=0.2, max_epochs={"law": 5.46}))
    lower = {"law": 0.146666, "web": 0.653334}
    mixing.plan_mix(SUPPLIES, 30_000_000, MixRequest(shares=lower, replay=0.2))


@given(
    st.lists(st.integers(1, 10**9), min_size=1, max_size=6),
    st.sampled_from(mixing.LANGUAGE_POLICIES),
    st.integers(0, 10**6),
)
def test_largest_budget_is_feasible_and_keeps_every_cap(sizes, policy, seed):
    rng = np.random.default_rng(seed)
    supplies = [
        StreamSupply(
            stream=f"s{i}", domain=f"d{i % 2}", role="pool", unique_tokens=size, upsample=float(rng.uniform(1, 5))
        )
        for i, size in enumerate(sizes)
    ]
    names = sorted({supply.domain for supply in supplies})
    share = float(rng.uniform(0.05, 0.95))
    shares = {"d0": 1.0} if len(names) == 1 else {"d0": share, "d1": 1 - share}
    request = MixRequest(shares=shares, language_policy=policy, max_epochs={"d0": 2.5})
    budget = mixing.largest_budget(supplies, request)
    mixed = mixing.plan_mix(supplies, budget, request)
    assert sum(entry.tokens for entry in mixed) == budget
    for entry in mixed:
        cap = request.max_epochs.get(entry.domain, 4.0)
        assert entry.tokens <= cap * entry.unique_tokens * (1 + 1e-9) + 2


def test_shares_must_add_up_and_name_known_domains():
    with pytest.raises(ConfigError, match=r"1\.1"):
        mixing.plan_mix(SUPPLIES, 1000, MixRequest(shares={"law": 0.5, "web": 0.4}, replay=0.2))
    with pytest.raises(ConfigError, match="moon"):
        mixing.plan_mix(SUPPLIES, 1000, MixRequest(shares={"moon": 0.5, "web": 0.5}))
    with pytest.raises(ConfigError, match="replay"):
        mixing.plan_mix(SUPPLIES, 1000, MixRequest(shares={"replay": 1.0}))
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        mixing.plan_mix(SUPPLIES, 1000, MixRequest(shares={"law": -0.5, "web": 1.5}))
    with pytest.raises(ConfigError, match="policy"):
        mixing.plan_mix(SUPPLIES, 1000, MixRequest(shares={"law": 1.0}, language_policy="loud"))
    with pytest.raises(ConfigError, match="budget"):
        mixing.plan_mix(SUPPLIES, 0, REQUEST)


def test_capped_streams_pass_their_excess_to_the_others():
    spread = mixing.fill_under_caps(np.array([0.5, 0.3, 0.2]), np.array([10.0, 100.0, 100.0]), 60.0)
    assert spread.tolist() == pytest.approx([10, 30, 20])
    with pytest.raises(ConfigError):
        mixing.fill_under_caps(np.array([1.0]), np.array([10.0]), 60.0)


def test_unimax_and_temperature_follow_their_papers():
    assert mixing.unimax_weights(np.array([1.0, 10.0, 1000.0]), 90, 2).tolist() == pytest.approx(
        [2 / 90, 20 / 90, 68 / 90]
    )
    assert mixing.unimax_weights(np.array([100.0, 100.0]), 10, 1).tolist() == [0.5, 0.5]
    assert mixing.temperature_weights(np.array([1.0, 3.0]), 1).tolist() == [0.25, 0.75]
    assert mixing.temperature_weights(np.array([1.0, 16.0]), 4).tolist() == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(ConfigError):
        mixing.temperature_weights(np.array([1.0]), 0.5)


def test_value_of_epochs_adds_up_to_the_data_constrained_law():
    r = mixing.R_STAR_TOKENS
    for epochs in (1, 4, 16, 40):
        law = 1 + r * (1 - math.exp(-(epochs - 1) / r))
        assert sum(mixing.epoch_value(e) for e in range(1, epochs + 1)) == pytest.approx(law)
    assert mixing.epoch_value(5) == pytest.approx(0.797, abs=0.001)
    assert mixing.epoch_value(16) == pytest.approx(0.390, abs=0.001)


def test_domain_heavy_shares_lift_small_domains_and_are_no_rule_for_large_ones():
    natural = mixing.natural_shares(SUPPLIES)
    assert natural["law"] == pytest.approx(1.1 / 51.1)
    two = {"law": 0.3, "web": 0.7}
    small = {"law": 0.02, "web": 0.6, "code": 0.38}
    shares = mixing.domain_heavy_shares(small, "law", replay=0.1)
    assert shares["law"] == pytest.approx(0.6)  # the largest natural share, over ten times its own
    assert shares["web"] / shares["code"] == pytest.approx(0.6 / 0.38)
    assert sum(shares.values()) == pytest.approx(0.9)
    many = {"law": 0.05, **{f"d{i}": 0.95 / 19 for i in range(19)}}
    assert mixing.domain_heavy_shares(many, "law")["law"] == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="small domains"):
        mixing.domain_heavy_shares(two, "law")
    with pytest.raises(ConfigError, match="moon"):
        mixing.domain_heavy_shares(natural, "moon")


def test_code_and_dialogue_have_caps_with_reasons():
    supplies = [
        mixing.StreamSupply(stream=f"{d}/pool/en/w0/train", domain=d, role="pool", unique_tokens=10**9)
        for d in ("code", "dialogue", "web")
    ]
    for domain, share, reason in (("code", 0.6, "2305.16264"), ("dialogue", 0.2, "openings of a conversation")):
        shares = {domain: share, "web": 1 - share}
        with pytest.raises(ConfigError, match=reason) as refused:
            mixing.plan_mix(supplies, 1000, mixing.MixRequest(shares=shares))
        assert f"max_shares: {{{domain}: {share:g}}}" in str(refused.value)
        raised = mixing.MixRequest(shares=shares, max_shares={domain: share})
        assert sum(e.tokens for e in mixing.plan_mix(supplies, 1000, raised)) == 1000
    own = mixing.MixRequest(shares={"web": 0.9, "code": 0.1}, max_shares={"web": 0.5})
    with pytest.raises(ConfigError, match="set by max_shares"):
        mixing.plan_mix(supplies, 1000, own)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_copies_follow_the_steps_of_the_table(sizes):
    for table in mixing.UPSAMPLE_TABLES.values():
        expected = [table[max(step for step in table if step <= size)] for size in sizes]
        assert mixing.copies_of_cluster(np.array(sizes), table).tolist() == expected
    with pytest.raises(ConfigError):
        mixing.copies_of_cluster(np.array(sizes), {2: 2})


def test_fineweb2_presets_hold_the_published_steps():
    sizes = np.array([1, 2, 3, 4, 5, 99, 100, 999, 1000])
    assert mixing.copies_of_cluster(sizes, mixing.UPSAMPLE_TABLES["fineweb2"]).tolist() == [1, 2, 3, 3, 5, 5, 8, 8, 1]
    tuned = mixing.copies_of_cluster(np.array([3, 5, 10, 30, 59, 60]), mixing.UPSAMPLE_TABLES["fineweb2_cmn_hani"])
    assert tuned.tolist() == [4, 6, 9, 6, 2, 1]


def test_upsampled_streams_are_read_in_proportion_to_their_copies():
    supplies = [
        mixing.StreamSupply(
            stream=f"web/pool/en/w{n}/train", domain="web", role="pool", unique_tokens=1_000_000, upsample=n
        )
        for n in (1, 2, 3)
    ]
    planned = mixing.plan_mix(supplies, 600_000, mixing.MixRequest(shares={"web": 1.0}))
    assert [e.tokens for e in planned] == [100_000, 200_000, 300_000]
    limited = [dataclasses.replace(s, capacity_tokens=150_000) for s in supplies]
    assert [e.tokens for e in mixing.plan_mix(limited, 400_000, mixing.MixRequest(shares={"web": 1.0}))] == [
        100_000, 150_000, 150_000]  # fmt: skip
    assert mixing.largest_budget(limited, mixing.MixRequest(shares={"web": 1.0})) == 450_000


@given(st.integers(0, 10**15), st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda s: sum(s) > 0))
def test_split_is_exact_and_close(total, shares):
    parts = mixing.split_exactly(total, shares)
    assert sum(parts) == total
    assert all(
        abs(part - total * share / sum(shares)) < 1.01 + total * 1e-12
        for part, share in zip(parts, shares, strict=True)
    )
