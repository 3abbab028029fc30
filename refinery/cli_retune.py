"""``refinery retune``: what the thresholds of the recipe as it is now would change. Parse, call, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refinery.recipe import load_recipe

if TYPE_CHECKING:
    from refinery.stages.retune import Retuning

_MOST_ROWS = 40


def retune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file, with its thresholds changed")],
    commit: Annotated[bool, typer.Option("--commit", help="decide so: run the rules stage afterwards")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Say what changed rules would keep and drop, from stored signals and without reading text."""
    from refinery.stages.pipeline import run_recipe  # noqa: PLC0415
    from refinery.stages.retune import plan_retune, retuning_json  # noqa: PLC0415
    from refinery.stages.workspace import Run  # noqa: PLC0415

    loaded = load_recipe(recipe)
    found = plan_retune(loaded)
    if json_:
        value = retuning_json(found) | {"committed": commit}
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(retuning_text(found, str(recipe), committed=commit) + "\n")
    if commit:
        run_recipe(Run(loaded), stages=["rules"])


def retuning_text(found: Retuning, recipe: str, *, committed: bool) -> str:
    """Return what a retuning says, as text for a terminal."""
    if not found.changed_parts:
        return f"{found.num_docs:,} documents decided again: no decision changes."
    (more_docs, more_bytes), (less_docs, less_bytes) = found.total(kept=True), found.total(kept=False)
    lines = [
        f"{found.num_docs:,} documents decided again: {more_docs:,} more kept ({more_bytes / 1e6:,.2f} MB), "
        f"{less_docs:,} more dropped ({less_bytes / 1e6:,.2f} MB)",
        "",
        f"{'source':<24} {'was':<34} {'becomes':<34} {'documents':>10} {'MB':>10} {'tokens':>12}",
    ]
    for change in found.changes[:_MOST_ROWS]:
        tokens = "not known" if change.tokens is None else f"~{change.tokens:,}"
        lines.append(
            f"{change.source:<24.24} {change.before or 'kept':<34.34} {change.after or 'kept':<34.34} "
            f"{change.docs:>10,} {change.bytes / 1e6:>10,.2f} {tokens:>12}"
        )
    if len(found.changes) > _MOST_ROWS:
        lines.append(f"… and {len(found.changes) - _MOST_ROWS} more rows; --json has them all")
    if found.redo:
        lines.append("\nTo do again afterwards:")
    for redo in found.redo:
        joins = ", and its joins over all parts" if redo.whole else ""
        lines.append(f"  {redo.stage:<16} {len(redo.parts)} of {found.num_parts} parts{joins}")
    if not committed:
        lines.append(f"\nNothing is written yet. Go on with: refinery retune {recipe} --commit, or run the recipe.")
    return "\n".join(lines)
