from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.tokenization.sample import sample_mask, sample_thresholds


def _keys(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 2**64, count, dtype=np.uint64)


def test_shares_are_met_within_the_scatter_of_a_draw() -> None:
    count = 40_000
    keys, codes = _keys(count), np.arange(count) % 2
    sizes = np.where(codes == 0, 100, 300)
    totals = {"law": int(sizes[codes == 0].sum()), "web": int(sizes[codes == 1].sum())}
    thresholds = sample_thresholds(totals, {"law": 0.25, "web": 0.75}, 1_000_000)
    mask = sample_mask(keys, codes, list(thresholds.values()), seed=3)
    for code, wanted in ((0, 250_000), (1, 750_000)):
        size = sizes[codes == code][0]
        # Binomial: 4 sigma of the number of documents drawn.
        assert abs(sizes[mask & (codes == code)].sum() - wanted) < 4 * size * (wanted / size) ** 0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=4), st.integers(0, 2**32))
def test_a_documents_membership_does_not_depend_on_its_batch(cuts: list[int], seed: int) -> None:
    keys, codes = _keys(60), np.arange(60) % 3
    thresholds = [0.2, 0.5, 1.0]
    whole = sample_mask(keys, codes, thresholds, seed)
    bounds = [0, *sorted(cuts), 60]
    parts = [sample_mask(keys[a:b], codes[a:b], thresholds, seed) for a, b in pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole[codes == 2].all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 100)), min_size=1, max_size=5),
    st.integers(1, 10**9),
    st.integers(1, 10**9),
)
def test_thresholds_fill_the_sample_and_grow_with_it(domains: list[tuple[int, int]], small: int, more: int) -> None:
    total_weight = sum(weight for _, weight in domains)
    if not total_weight:
        return
    totals = {f"d{index}": size for index, (size, _) in enumerate(domains)}
    weights = {f"d{index}": weight / total_weight for index, (_, weight) in enumerate(domains)}
    first = sample_thresholds(totals, weights, small)
    drawn = sum(first[name] * totals[name] for name in totals)
    available = sum(totals[name] for name in totals if weights[name] > 0)
    assert drawn == pytest.approx(min(small, available), rel=1e-9, abs=1e-3)
    second = sample_thresholds(totals, weights, small + more)
    assert all(0 <= first[name] <= second[name] + 1e-12 <= 1 + 1e-9 for name in totals)


def test_bad_weights_are_refused() -> None:
    totals = {"law": 100, "web": 0}
    for weights, message in (
        ({"law": 0.5}, "sum to 0.5"),
        ({"law": 1.5, "web": -0.5}, "-0.5"),
        ({"law": float("nan")}, "nan"),
        ({"law": 0.5, "web": 0.5}, "'web' has sample weight 0.5 but no training text"),
        ({"law": 0.5, "news": 0.5}, "'news'"),
    ):
        with pytest.raises(ConfigError, match=message):
            sample_thresholds(totals, weights, 10)
    with pytest.raises(ConfigError, match="at least 1"):
        sample_thresholds(totals, {"law": 1.0}, 0)
    with pytest.raises(ConfigError, match="domain codes"):
        sample_mask(_keys(2), np.array([0, 5]), [0.5], 0)
    with pytest.raises(ConfigError, match="2 keys but 1"):
        sample_mask(_keys(2), np.array([0]), [0.5], 0)
    assert len(sample_mask(_keys(0), np.array([], dtype=int), [], 0)) == 0
