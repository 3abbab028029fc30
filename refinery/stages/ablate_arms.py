"""Arms of an ablation: which stages each of them runs, and the folders in which stages that arms share run once.

An arm is a set of stages, always in the order of a run. Arms share their beginnings: the folder of ``screen, rules,
quality`` links to the tables of ``screen, rules`` and adds one stage, so a stage runs once for all arms behind it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from refinery.errors import ConfigError
from refinery.recipe import STAGE_ORDER, Recipe

ARM_STAGES = ("screen", "rules", "quality", "select", "dedup_documents", "dedup_sentences", "decontaminate")
"""Stages that an arm may have: those that decide about documents."""
DEFAULT_ARMS = "raw,rules,rules+quality,+select,+dedup_documents,+dedup_sentences"


@dataclass(frozen=True)
class Arm:
    """One way to make training data."""

    name: str
    """As the user wrote it."""
    stages: tuple[str, ...]
    """Deciding stages, in order; empty for the raw documents."""

    @property
    def folder(self) -> str:
        """Name of the arm's folder."""
        return folder_of(self.stages)


def folder_of(stages: tuple[str, ...]) -> str:
    """Return the folder name of a set of stages."""
    return "-".join(stages) or "raw"


def parse_arms(text: str, recipe: Recipe) -> tuple[Arm, ...]:
    """Read arms as they are given on the command line.

    Args:
        text: names parted by commas: ``raw``; ``a+b`` for these stages; ``+c`` for the arm before and one more. rules
            brings screen along where the recipe has it and no arm names screen itself.
        recipe: has the sections of the stages.
    Returns: the arms in the order given; the first is what the others are compared with.

    Raises:
        ConfigError: fewer than two arms, an unknown stage, one without a section, the same arm twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    brings_screen = recipe.screen is not None and not any("screen" in name.split("+") for name in names)
    arms: list[Arm] = []
    for name in names:
        before = set(arms[-1].stages) if name.startswith("+") and arms else set()
        wanted = before | {_checked(stage, name, recipe) for stage in name.split("+") if stage and name != "raw"}
        if "rules" in wanted and brings_screen:
            wanted.add("screen")
        arms.append(Arm(name, tuple(s for s in STAGE_ORDER if s in wanted)))
    if len(arms) < 2:
        raise ConfigError(f"{len(arms)} arms are nothing to compare; give two or more, for example {DEFAULT_ARMS}")
    for i, arm in enumerate(arms):
        same = next((other.name for other in arms[:i] if other.stages == arm.stages), None)
        if same is not None:
            raise ConfigError(
                f"arms {same} and {arm.name} run the same stages; name each once, noise is measured without being asked"
            )
    return tuple(arms)


def _checked(stage: str, arm: str, recipe: Recipe) -> str:
    if stage not in ARM_STAGES:
        near = difflib.get_close_matches(stage, [*ARM_STAGES, "raw"], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"arm {arm} names {stage}; known stages: {', '.join(ARM_STAGES)}{hint}")
    if getattr(recipe, stage) is None:
        raise ConfigError(f"arm {arm} needs section {stage}, which recipe {recipe.name} does not have; add it")
    return stage


def shared_beginnings(arms: Iterable[Arm]) -> list[tuple[str, ...]]:
    """Return every beginning of every arm, shorter ones first: the last stage of each runs in the folder of its own."""
    found = {arm.stages[: n + 1] for arm in arms for n in range(len(arm.stages))}
    return sorted(found, key=lambda stages: (len(stages), [STAGE_ORDER.index(s) for s in stages]))


def recipe_with(recipe: Recipe, workdir: Path, stages: Iterable[str], **sections: object) -> Recipe:
    """Return the recipe of one folder: only the given deciding stages, and what `sections` replaces."""
    kept = set(stages)
    left_out = dict.fromkeys(s for s in ARM_STAGES if s not in kept)
    return recipe.model_copy(update={**left_out, "workdir": str(workdir), **sections})


def link_stage(source: Path, target: Path, stage: str) -> None:
    """Make a stage's folder of one run visible in another; nothing is copied.

    Raises:
        ConfigError: the file system has no links.
    """
    place = target / stage
    wanted = (source / stage).resolve()
    if place.is_symlink():
        if place.resolve() == wanted:
            return
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(wanted, target_is_directory=True)
    except OSError as error:
        raise ConfigError(
            f"cannot link {place} to {wanted} ({error.strerror}); give --workdir on a file system with links"
        ) from error
