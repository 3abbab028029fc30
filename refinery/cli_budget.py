"""``refinery plan --flops …``: what to train for a budget. Parse, call, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from refinery.errors import ConfigError


def plan_budget(  # noqa: PLR0913, PLR0917 - typer reads a command's options from its parameters
    context: typer.Context,
    flops: Annotated[float | None, typer.Option(help="training compute C = 6 N D")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="hours of one card")] = None,
    params: Annotated[float | None, typer.Option(help="parameters N without embeddings")] = None,
    tokens: Annotated[float | None, typer.Option(help="training tokens D")] = None,
    continual: Annotated[bool, typer.Option("--continual", help="continued from a checkpoint of other text")] = False,
    fit_file: Annotated[Path | None, typer.Option("--fit", help="JSON of `plan fit --out`")] = None,
    law: Annotated[str, typer.Option(help="chinchilla-refit, besiroglu, hoffmann, scratch-2407 or cpt-2407")] = "",
    hardware: Annotated[str, typer.Option(help="a100, h100, h200, b200 or l40s")] = "h100",
    cards: Annotated[int, typer.Option(help="cards beside each other")] = 1,
    mfu: Annotated[float, typer.Option(help="share of the bfloat16 peak that training reaches")] = 0.4,
    over_train: Annotated[float, typer.Option(help="divide the optimal size by this, at the same budget")] = 1.0,
    manifest: Annotated[Path | None, typer.Option(help="shards whose tokens there are, for epochs per domain")] = None,
    share: Annotated[list[str] | None, typer.Option(help="DOMAIN=SHARE; by tokens unless said")] = None,
    replay: Annotated[float | None, typer.Option(help="share of replayed text; published unless said")] = None,
    shift: Annotated[str, typer.Option(help="of the new text from the old: weak, strong or language")] = "language",
    max_epochs: Annotated[float, typer.Option(help="refuse plans that read a domain more often")] = 4.0,
    max_extrapolation: Annotated[float, typer.Option(help="refuse plans this far beyond the fitted runs")] = 10.0,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Plan a training run from a budget: size, tokens, loss, epochs, replay, hours, memory. Or fit laws to runs."""
    if context.invoked_subcommand is not None:
        return
    from refinery.scaling.budget_plan import BudgetRequest, plan_budget, plan_text  # noqa: PLC0415
    from refinery.scaling.fit_file import published_law, read_law  # noqa: PLC0415

    chosen = read_law(fit_file) if fit_file else published_law(law or ("cpt-2407" if continual else "chinchilla-refit"))
    if continual and not chosen.continual:
        raise ConfigError(f"{chosen.source} is a law from scratch; fit runs with `plan fit --scratch FIT.json`")
    asked = BudgetRequest(
        flops=flops, gpu_hours=gpu_hours, params=params, tokens=tokens, hardware=hardware, cards=cards, mfu=mfu,
        over_train=over_train, unique_tokens=_unique_tokens(manifest) if manifest else {}, shares=_shares(share or []),
        replay=replay, shift=shift, max_epochs=max_epochs, max_extrapolation=max_extrapolation,
    )  # fmt: skip
    body = plan_budget(chosen, asked)
    sys.stdout.write((json.dumps(body, indent=1) if json_ else plan_text(body)) + "\n")


def _unique_tokens(manifest: Path) -> dict[str, float]:
    """Return the tokens of each domain of a data set; text of role replay counts as ``replay``."""
    from refinery.shards.manifest import load_manifest  # noqa: PLC0415

    found: dict[str, float] = {}
    for stream in load_manifest(manifest).streams:
        if stream.key.split == "train":
            name = "replay" if stream.key.role == "replay" else stream.key.domain
            found[name] = found.get(name, 0.0) + stream.total("tokens")
    return found


def _shares(given: list[str]) -> dict[str, float]:
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise ConfigError(f"--share {one!r} must be DOMAIN=SHARE, as in --share law=0.4") from error
    return found
