"""``refinery ablate``: show by small models whether the stages of a recipe help. Parse, call, show."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    mix: Annotated[bool, typer.Option("--mix", help="search for a mix of what all stages leave")] = False,
    mixtures: Annotated[int, typer.Option(help="with --mix: mixtures to train; 0: three times the domains")] = 0,
    goal: Annotated[list[str] | None, typer.Option(help="with --mix: SET=WEIGHT to lower; targets by default")] = None,
    bounds: Annotated[list[str] | None, typer.Option(help="with --mix: DOMAIN=LOW:HIGH of the share")] = None,
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
    share_last = not jobs
    jobs = jobs or max(1, (os.cpu_count() or 1) // threads)
    own = tuple(_own_set(given) for given in heldout or ())
    if mix:
        sizes = {
            "preset": preset, "seeds": seeds, "heldout_rows": heldout_rows,
            "jobs": jobs, "share_last": share_last, "threads": threads,
        }  # fmt: skip
        budget = parse_count(tokens) if tokens else 0
        _search(loaded, {**sizes, "own": own, "tokens": budget}, mixtures, (goal or [], bounds or []), json_)
        return
    asked = Ablation(
        arms=parse_arms(arms or _all_arms(loaded), loaded),
        preset=preset,
        seeds=seeds,
        tokens=parse_count(tokens) if tokens else None,
        heldout_rows=heldout_rows,
        jobs=jobs,
        share_last=share_last,
        threads=threads,
        own=own,
    )
    result = run_ablation(Run(loaded), asked, _teller(json_))
    folder = ablate_folder(loaded)
    body = write_ablation(folder, result)
    if json_:
        sys.stdout.write(json.dumps(body, indent=1) + "\n")
        return
    lines = [markdown(body), *findings(body), "", f"page   {folder / 'ablation.html'}  (open it in a browser)"]
    sys.stdout.write("\n".join(lines) + "\n")


def _teller(quiet: bool) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if not quiet:
            sys.stderr.write(line + "\n")

    return tell


def _search(recipe: Recipe, sizes: dict[str, Any], num: int, said: tuple[list[str], list[str]], json_: bool) -> None:
    from refinery.report.mixtures import MixQuestion, mixtures_text, search_mix, write_mixtures  # noqa: PLC0415
    from refinery.stages.ablate import ablate_folder  # noqa: PLC0415
    from refinery.stages.ablate_mix import MixSearch, mixture_data, train_mixtures  # noqa: PLC0415
    from refinery.stages.workspace import Run  # noqa: PLC0415

    if not sizes["tokens"]:
        raise ConfigError("--mix needs --tokens: the length of one training decides how large a share can be")
    told = _teller(json_)
    asked = MixSearch(**sizes, bounds={d: _range(d, v) for d, v in map(_pair, said[1])})
    data = mixture_data(Run(recipe), asked, told)
    goal = {name: _number(name, v) for name, v in map(_pair, said[0])} or dict.fromkeys(data.targets, 1.0)
    question = MixQuestion(data.bounds, data.recipe_shares, num or 3 * len(data.bounds), goal, recipe.seed)
    body = search_mix(question, lambda named: train_mixtures(data, asked, named, told))
    write_mixtures(ablate_folder(recipe), body)
    sys.stdout.write(json.dumps(body, indent=1) + "\n" if json_ else mixtures_text(body))


def _pair(given: str) -> tuple[str, str]:
    name, found, value = given.partition("=")
    if not (name and found and value):
        raise ConfigError(f"{given!r} must be NAME=VALUE, as in --goal law=1 or --bounds law=0.2:0.6")
    return name, value


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError(f"{name}={value}: {value!r} is no number") from error


def _range(name: str, value: str) -> tuple[float, float]:
    low, found, high = value.partition(":")
    if not found:
        raise ConfigError(f"{name}={value} must be DOMAIN=LOW:HIGH, as in law=0.2:0.6")
    return _number(name, low or "0"), _number(name, high or "1")


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
