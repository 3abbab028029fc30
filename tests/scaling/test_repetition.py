from __future__ import annotations

import itertools

import pytest

from refinery.errors import ConfigError
from refinery.scaling.repetition import RepetitionLaw, best_epochs


def test_published_values() -> None:
    law = RepetitionLaw()
    assert law.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, abs=1e-9)
    assert law.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, abs=1e-9)


def test_epochs_are_worth_less_and_less_and_sum_to_the_effective_tokens() -> None:
    law = RepetitionLaw()
    values = [law.epoch_value(k) for k in range(1, 41)]
    assert values[0] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert sum(values[:4]) * 1e9 == pytest.approx(law.effective_tokens(4e9, 1e9))
    assert sum(values[:4]) > 3.6  # four epochs are close to free
    assert law.effective_tokens(1e15, 1e9) < 16.5e9


def test_fresh_tokens_count_in_full() -> None:
    law = RepetitionLaw()
    assert law.effective_tokens(5e9, 25e9) == 5e9
    assert law.loss(1e8, 5e9, 25e9) == law.loss(1e8, 5e9, 5e9)


def test_best_epochs_is_a_minimum_and_repeats_when_data_are_short() -> None:
    law = RepetitionLaw()
    plan = best_epochs(9.3e21, 25e9)
    assert plan.num_params * plan.num_tokens * 6 == pytest.approx(9.3e21)
    for factor in (0.9, 1.1):
        other = law.loss(plan.num_params * factor, plan.num_tokens / factor, 25e9)
        assert other >= plan.loss_nats
    assert 4 < plan.epochs < 16
    assert plan.num_params < law.optimal_params(9.3e21 / 6 / 8.67e9) * 2
    assert best_epochs(1e18, 1e13).epochs < 1


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        RepetitionLaw().loss(bad, 1e9, 1e9)
    with pytest.raises(ConfigError, match="must be finite"):
        best_epochs(1e20, bad)
    with pytest.raises(ConfigError, match="count from 1"):
        RepetitionLaw().epoch_value(0)
