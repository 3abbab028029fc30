from __future__ import annotations

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


def test_domain_heavy_share_lifts_small_domains():
    natural = mixing.natural_shares(SUPPLIES)
    assert natural["law"] == pytest.approx(1.1 / 51.1)
    assert mixing.domain_heavy_share(natural, "law") == pytest.approx(natural["web"])
    assert mixing.domain_heavy_share({"a": 0.3, "b": 0.4, "c": 0.3}, "a") == 1.0
    with pytest.raises(ConfigError):
        mixing.domain_heavy_share(natural, "moon")


@given(st.integers(0, 10**15), st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda s: sum(s) > 0))
def test_split_is_exact_and_close(total, shares):
    parts = mixing.split_exactly(total, shares)
    assert sum(parts) == total
    assert all(
        abs(part - total * share / sum(shares)) < 1.01 + total * 1e-12
        for part, share in zip(parts, shares, strict=True)
    )
