"""``refinery ablate``: show by small models whether the stages of a recipe help. Parse, call, show."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refinery.errors import ConfigError

if TYPE_CHECKING:
    from refinery.recipe import Input, Recipe


def ablate(  # noqa: PLR0913, PLR0917 - typer reads a command's options from its parameters
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file")],
    arms: Annotated[str, typer.Option(help="arms by comma: raw, a+b, or +c for the arm before and c")] = "",
    preset: Annotated[str, typer.Option(help="model of the proxies")] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="trainings per arm; 3 is the least that says something")] = 3,
    tokens: Annotated[str, typer.Option(help="tokens of one training, as 2e6 or 2M; the most that all arms have")] = "",
    heldout: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a held-out set of your own")] = None,
    heldout_rows: Annotated[int, typer.Option(min=1, help="rows of held-out text per domain")] = 256,
    jobs: Annotated[int, typer.Option(min=0, help="trainers beside each other; 0: as many as threads allow")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one trainer")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Train proxy models on what sets of stages leave, and compare them on the same held-out text."""
    from refinery.init import parse_count  # noqa: PLC0415
    from refinery.recipe import load_recipe  # noqa: PLC0415
    from refinery.report.ablation import findings, markdown, write_ablation  # noqa: PLC0415
    from refinery.stages.ablate import Ablation, ablate_folder, run_ablation  # noqa: PLC0415
    from refinery.stages.ablate_arms import parse_arms  # noqa: PLC0415
    from refinery.stages.workspace import Run  # noqa: PLC0415

    loaded = load_recipe(recipe)
    asked = Ablation(
        arms=parse_arms(arms or _all_arms(loaded), loaded),
        preset=preset,
        seeds=seeds,
        tokens=parse_count(tokens) if tokens else None,
        heldout_rows=heldout_rows,
        jobs=jobs or max(1, (os.cpu_count() or 1) // threads),
        threads=threads,
        own=tuple(_own_set(given) for given in heldout or ()),
    )
    told = (lambda _: None) if json_ else (lambda line: sys.stderr.write(line + "\n") and None)
    result = run_ablation(Run(loaded), asked, told)
    folder = ablate_folder(loaded)
    body = write_ablation(folder, result)
    if json_:
        sys.stdout.write(json.dumps(body, indent=1) + "\n")
        return
    lines = [markdown(body), *findings(body), "", f"page   {folder / 'ablation.html'}  (open it in a browser)"]
    sys.stdout.write("\n".join(lines) + "\n")


def _all_arms(recipe: Recipe) -> str:
    """Return raw and then one stage more at a time, of the stages that the recipe has."""
    from refinery.stages.ablate_arms import ARM_STAGES  # noqa: PLC0415

    present = [s for s in ARM_STAGES if getattr(recipe, s) is not None]
    if "screen" in present and "rules" in present:
        present.remove("screen")  # rules brings it
    return ",".join(["raw", *(f"+{s}" for s in present)])


def _own_set(given: str) -> Input:
    from refinery.init import describe_source  # noqa: PLC0415
    from refinery.recipe import Input  # noqa: PLC0415

    name, found, path = given.partition("=")
    if not (found and name and path):
        raise ConfigError(f"--heldout {given!r} must be NAME=PATH, as in --heldout contracts=mine/contracts.jsonl")
    seen = describe_source(path, "pool", domain=name)
    return Input(
        source=f"heldout-{name}", domain=name, role="pool", format=seen.format, paths=(path,),
        text_field=seen.text_field, id_field=seen.id_field,
    )  # fmt: skip
