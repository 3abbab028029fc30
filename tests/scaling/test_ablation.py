from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from refinery.errors import ConfigError
from refinery.scaling.ablation import AVERAGE, compare, difference

LOSSES = st.lists(st.floats(0.5, 5.0), min_size=2, max_size=8)


@given(LOSSES, st.integers(0, 2**32 - 1))
def test_interval_is_the_paired_t_interval(losses, seed):
    arm = np.array(losses)
    other = arm + np.random.default_rng(seed).normal(0.05, 0.02, len(arm))
    found = difference(arm, other)
    low, high = stats.ttest_rel(arm, other).confidence_interval(0.95)
    assert found.mean == pytest.approx(float((arm - other).mean()))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_three_seeds_cost_four_standard_errors():
    found = difference([1.0, 1.1, 1.2], [1.1, 1.15, 1.4])
    assert found.high is not None
    assert found.standard_deviation is not None
    assert (found.high - found.mean) / (found.standard_deviation / math.sqrt(3)) == pytest.approx(4.3027, abs=1e-4)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(5)
    draws = rng.normal(-0.1, 0.03, (4000, 3))
    found = [difference(row, np.zeros(3)) for row in draws]
    inside = sum(d.low <= -0.1 <= d.high for d in found) / len(found)
    assert 0.94 < inside < 0.96


def test_verdicts():
    assert difference([1.0, 1.01, 0.99], [1.2, 1.2, 1.2]).verdict == "lower"
    assert difference([1.2, 1.21, 1.19], [1.0, 1.0, 1.0]).verdict == "higher"
    assert difference([1.0, 1.3, 0.7], [1.0, 1.0, 1.01]).verdict == "no difference seen"
    one = difference([1.0], [1.2])
    assert (one.verdict, one.low) == ("one seed", None)


@pytest.mark.parametrize(
    ("arm", "other", "message"),
    [
        ([1.0, 2.0], [1.0], "do not pair"),
        ([], [], "do not pair"),
        ([1.0, math.nan], [1.0, 1.0], "not finite"),
    ],
)
def test_losses_that_do_not_compare_are_refused(arm, other, message):
    with pytest.raises(ConfigError, match=message):
        difference(arm, other)


def test_compare_has_first_before_average_and_noise():
    losses = {
        "raw": {"law": [1.0, 1.1], "web": [2.0, 2.2]},
        "rules": {"law": [0.9, 1.0], "web": [2.0, 2.2]},
        "+select": {"law": [0.7, 0.8], "web": [2.4, 2.6]},
    }
    found = compare(losses, {"law": [1.02, 1.1], "web": [2.0, 2.3]})
    assert found.against_first["+select"]["law"].mean == pytest.approx(-0.3)
    assert found.against_before["+select"]["law"].mean == pytest.approx(-0.2)
    assert found.against_before["+select"][AVERAGE].mean == pytest.approx(0.1)
    assert found.noise["law"].mean == pytest.approx(0.01)
    assert found.means["raw"][AVERAGE] == pytest.approx(1.575)
    assert not found.within_noise(found.against_before["+select"]["law"], "law")
    assert found.within_noise(found.against_before["rules"]["web"], "web")


def test_arms_measured_on_other_sets_are_refused():
    with pytest.raises(ConfigError, match="measured on law, raw on law, web"):
        compare({"raw": {"law": [1.0], "web": [1.0]}, "rules": {"law": [1.0]}}, {})
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare({"raw": {"law": [1.0]}}, {})
