"""``refinery remix``: another mix over the same shards. Parse, call, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def remix(  # noqa: PLR0913, PLR0917 - typer reads a command's options from its parameters
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="shard manifest, or the folder that holds it")],
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML file with the keys of a recipe's mix section")],
    name: Annotated[str, typer.Option(help="name of the new plan; PLAN's file name unless said")] = "",
    at_row: Annotated[int | None, typer.Option(help="go on with the new mix at this row of --base")] = None,
    base: Annotated[str, typer.Option(help="plan that --at-row continues")] = "main",
    seed: Annotated[int | None, typer.Option(help="seed of a new plan's order; the shards' own unless said")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a plan of this name")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Plan another mix over the same shards, or say which tokens would have to be packed first."""
    from refinery.stages.remix import read_mix  # noqa: PLC0415
    from refinery.stages.remix import remix as make  # noqa: PLC0415

    root = manifest.parent if manifest.name.endswith(".json") else manifest
    made = make(root, read_mix(plan), name or plan.stem, base=base, at_row=at_row, seed=seed, force=force)
    if json_:
        body = {"plan": str(made.path), "plan_hash": made.plan.plan_hash, "rows": made.plan.total_rows, **made.facts}
        sys.stdout.write(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        return
    sys.stdout.write("\n".join(made.lines()) + "\n")
    if at_row is not None:
        sys.stdout.write(
            f"  a run that has read {at_row:,} rows goes on: python -m refinery.trainer --config RUN/train/train.json "
            f"--plan {made.path.absolute()}\n"
        )
