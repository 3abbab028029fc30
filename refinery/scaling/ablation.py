"""Paired comparison of ablation arms: differences seed by seed, with Student's interval, and the noise beside them.

Two arms of one seed start from the same weights and read their data in the same order, so the spread that seeds cause
drops out of the difference. Three seeds give a wide interval (t = 4.30 standard errors): that is the price of three
seeds, and it is shown. Intervals are per comparison; nothing corrects for the number of comparisons.

Shape legend: S seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from refinery.errors import ConfigError

AVERAGE = "average"
"""Name of the unweighted mean over domains."""
LEVEL = 0.95
"""Probability of every interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One arm less another, on one held-out set."""

    mean: float
    """Mean over seeds; negative means that the arm has the lower loss."""
    low: float | None
    """Lower end of the interval; None with one seed."""
    high: float | None
    """Upper end."""
    standard_deviation: float | None
    """Of the differences over seeds; None with one seed."""
    seeds: int
    """S."""

    @property
    def verdict(self) -> str:
        """``lower``, ``higher``, ``no difference seen``, or ``one seed`` where there is no interval."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "no difference seen"


def difference(arm: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> Difference:
    """Compare two arms whose values pair by seed.

    Args:
        arm: shape (S,), losses.
        other: shape (S,), losses of the same seeds in the same order.

    Raises:
        ConfigError: no seeds, lengths that differ, a loss that is not finite.
    """
    left, right = np.asarray(arm, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or not len(left):
        raise ConfigError(
            f"losses of shapes {left.shape} and {right.shape} do not pair; train both arms with the same seeds"
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ConfigError("a loss is not finite; lower the learning rate and train that arm again")
    deltas = left - right
    mean = float(deltas.mean())
    if len(deltas) == 1:
        return Difference(mean=mean, low=None, high=None, standard_deviation=None, seeds=1)
    spread = float(deltas.std(ddof=1))
    half = float(stdtrit(len(deltas) - 1, 0.5 + LEVEL / 2)) * spread / math.sqrt(len(deltas))
    return Difference(mean=mean, low=mean - half, high=mean + half, standard_deviation=spread, seeds=len(deltas))


Losses = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm -> held-out set -> loss by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All differences of an ablation."""

    means: dict[str, dict[str, float]]
    """Arm -> held-out set -> mean loss over seeds."""
    against_first: dict[str, dict[str, Difference]]
    """Arm -> held-out set -> the arm less the first arm."""
    against_before: dict[str, dict[str, Difference]]
    """Arm -> held-out set -> the arm less the arm before it: what the added stages did."""
    noise: dict[str, Difference]
    """Held-out set -> second training of the first arm less its first."""

    def within_noise(self, one: Difference, name: str) -> bool:
        """Say whether a difference is no larger than that of the first arm with itself."""
        twice = self.noise.get(name)
        return twice is not None and abs(one.mean) <= abs(twice.mean)


def compare(losses: Losses, again: Mapping[str, Sequence[float]]) -> Comparison:
    """Compare every arm with the first and with the one before.

    Args:
        losses: arms in order; every arm has the same held-out sets and seeds.
        again: held-out set -> losses of the second training of the first arm; empty where it was not done.

    Raises:
        ConfigError: arms measured on different sets, or as `difference`.
    """
    arms = list(losses)
    if len(arms) < 2:
        raise ConfigError(f"{len(arms)} arms are nothing to compare; give two or more")
    names = list(losses[arms[0]])
    for arm in arms:
        if list(losses[arm]) != names:
            raise ConfigError(
                f"arm {arm} was measured on {', '.join(losses[arm])}, {arms[0]} on {', '.join(names)}; "
                "measure all arms on the same held-out sets"
            )
    tables = {arm: _with_average(losses[arm]) for arm in arms}
    second = _with_average(again) if again else {}
    names = list(tables[arms[0]])
    return Comparison(
        means={arm: {n: float(tables[arm][n].mean()) for n in names} for arm in arms},
        against_first={a: {n: difference(tables[a][n], tables[arms[0]][n]) for n in names} for a in arms[1:]},
        against_before={
            a: {n: difference(tables[a][n], tables[b][n]) for n in names}
            for b, a in itertools.pairwise(arms)
        },
        noise={n: difference(second[n], tables[arms[0]][n]) for n in names} if second else {},
    )


def _with_average(losses: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    table = {name: np.asarray(values, dtype=np.float64) for name, values in losses.items()}
    if len({values.shape for values in table.values()}) != 1:
        raise ConfigError("held-out sets have different numbers of seeds; train the missing runs")
    return {**table, AVERAGE: np.mean(list(table.values()), axis=0)} if len(table) > 1 else table
