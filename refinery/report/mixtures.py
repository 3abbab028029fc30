"""A search for a mix: proxies on a simplex, the law through them, the best mix, and a check run on top."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinery import __version__
from refinery.errors import ConfigError
from refinery.io import storage
from refinery.report.ablation import interval_text, losses_of
from refinery.scaling.ablation import difference
from refinery.scaling.mixing_law import MixingFit, best_mix, fit_mixing, simplex_mixtures
from refinery.stages.ablate import Measured
from refinery.stages.ablate_mix import mixture_names

FORMAT = "refinery.mixtures"
UNIT = "bits_per_byte"
BEST = "best"

Train = Callable[[Mapping[str, Mapping[str, float]]], Sequence[Measured]]
"""Trains mixtures by name."""


@dataclasses.dataclass(frozen=True)
class MixQuestion:
    """What is asked of a search."""

    bounds: Mapping[str, tuple[float, float]]
    """Domain -> lowest and highest share."""
    recipe_shares: Mapping[str, float]
    """The recipe's own mix."""
    num: int
    """Mixtures to train, the recipe's among them."""
    goal: Mapping[str, float]
    """Held-out set -> weight of its loss."""
    seed: int = 0


def search_mix(asked: MixQuestion, train: Train) -> dict[str, Any]:
    """Train mixtures, fit the law of every held-out set, find the best mix and train it as a check.

    Args:
        asked: bounds, goal, number.
        train: trains mixtures and returns their losses; called for the search and again for the check.
    Returns: plain values.

    Raises:
        ConfigError: too few mixtures for the domains, an unknown held-out set in the goal, bounds without a mix.
    """
    domains = sorted(asked.bounds)
    if asked.num < len(domains) + 2:
        raise ConfigError(
            f"{asked.num} mixtures cannot fix a law of {len(domains)} domains, {len(domains) + 2} is the least; "
            "raise --mixtures (three times the domains is better)"
        )
    first = _inside(np.array([asked.recipe_shares.get(d, 0.0) for d in domains]), asked.bounds, domains)
    table = simplex_mixtures(asked.num, [asked.bounds[d] for d in domains], asked.seed, first.tolist())
    named = {
        name: dict(zip(domains, row.tolist(), strict=True))
        for name, row in zip(mixture_names(asked.num), table, strict=True)
    }
    measured = losses_of(train(named), UNIT, again=False)
    sets = list(measured[next(iter(named))])
    losses = {s: np.array([np.mean(measured[name][s]) for name in named]) for s in sets}
    laws = {s: fit_mixing(table, losses[s], domains) for s in sets}
    goal = dict(asked.goal) or dict.fromkeys(sets, 1.0)
    best = best_mix(laws, goal, _reached(asked.bounds, table, domains), (table, losses))
    checked = losses_of(train({BEST: best.shares, "recipe": named["recipe"]}), UNIT, again=False)
    return {
        "format": FORMAT,
        "version": 1,
        "made_by": f"refinery {__version__}",
        "unit": UNIT,
        "goal": goal,
        "bounds": {d: list(asked.bounds[d]) for d in domains},
        "mixtures": {name: {"shares": named[name], "losses": measured[name]} for name in named},
        "laws": {s: _plain(law) for s, law in laws.items()},
        "best": dataclasses.asdict(best),
        "check": _check(checked, laws, goal, np.array([best.shares[d] for d in domains])),
    }


def _inside(shares: np.ndarray, bounds: Mapping[str, tuple[float, float]], domains: Sequence[str]) -> np.ndarray:
    """Return the recipe's mix, which the search begins with and is compared with; the bounds must hold it."""
    held = all(bounds[d][0] - 1e-9 <= s <= bounds[d][1] + 1e-9 for d, s in zip(domains, shares, strict=True))
    if not held:
        pairs = zip(domains, shares, strict=True)
        shown = ", ".join(f"{d} {s:.3f} of {bounds[d][0]:.3f} to {bounds[d][1]:.3f}" for d, s in pairs)
        raise ConfigError(
            f"the recipe's own mix lies outside the bounds ({shown}); widen them, lower --tokens, or raise "
            "mix.max_epochs"
        )
    return shares / shares.sum()


def _reached(
    bounds: Mapping[str, tuple[float, float]], table: np.ndarray, domains: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return the bounds, drawn in to what the mixtures reached: further out the law would be guessing."""
    return {
        d: (max(bounds[d][0], float(table[:, j].min())), min(bounds[d][1], float(table[:, j].max())))
        for j, d in enumerate(domains)
    }


def _plain(law: MixingFit) -> dict[str, Any]:
    return {
        "floor": law.floor,
        "slopes": dict(zip(law.domains, law.slopes.tolist(), strict=True)),
        "heldout_mae": law.heldout_mae,
        "mean_mae": law.mean_mae,
        "useful": law.useful,
        "residuals": law.residuals.tolist(),
        "shares_range": {d: list(r) for d, r in zip(law.domains, law.shares_range, strict=True)},
    }


def _check(
    checked: Mapping[str, Mapping[str, Sequence[float]]],
    laws: Mapping[str, MixingFit],
    goal: Mapping[str, float],
    shares: np.ndarray,
) -> dict[str, Any]:
    def worth(name: str) -> np.ndarray:
        whole = sum(goal.values())
        return sum((w / whole * np.asarray(checked[name][s]) for s, w in goal.items()), start=np.zeros(1))

    gain = difference(worth(BEST), worth("recipe"))
    return {
        "measured": {s: float(np.mean(values)) for s, values in checked[BEST].items()},
        "predicted": {s: float(law.loss(shares)) for s, law in laws.items()},
        "against_recipe": {**dataclasses.asdict(gain), "verdict": gain.verdict},
    }


def mixtures_text(body: Mapping[str, Any]) -> str:
    """Return what a search found, for people."""
    lines = [f"{len(body['mixtures'])} mixtures, goal: " + ", ".join(f"{s} x {w:g}" for s, w in body["goal"].items())]
    for name, law in body["laws"].items():
        held = f"error on unseen mixtures {law['heldout_mae']:.4f}, predicting their mean {law['mean_mae']:.4f}"
        lines.append(f"  {name:<18} {held}{'' if law['useful'] else '   NOT BETTER THAN THE MEAN: no law, only noise'}")
    best = body["best"]
    low, high = best["loss_interval"]
    lines.append(f"best mix (goal {best['loss']:.4f}, 95 %: {low:.4f} to {high:.4f})")
    for domain, share in best["shares"].items():
        low, high = best["intervals"][domain]
        edge = "   on its bound" if domain in best["bound"] else ""
        lines.append(f"  {domain:<18} {share:.3f}   95 %: {low:.3f} to {high:.3f}{edge}")
    check = body["check"]
    for name, value in check["measured"].items():
        lines.append(f"check run on {name}: {value:.4f}, predicted {check['predicted'][name]:.4f}")
    gain = check["against_recipe"]
    lines.append(f"best against the recipe's mix, on the goal: {interval_text(gain)}, {gain['verdict']}")
    return "\n".join(lines) + "\n"


def write_mixtures(folder: Path, body: Mapping[str, Any]) -> None:
    """Write ``mixtures.json`` and ``mixtures.txt``."""
    storage.write_atomic(str(folder / "mixtures.json"), (json.dumps(body, indent=1) + "\n").encode())
    storage.write_atomic(str(folder / "mixtures.txt"), mixtures_text(body).encode())
