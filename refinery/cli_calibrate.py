"""``refinery calibrate``: see what a similarity threshold would call the same. Parse, call, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from refinery.recipe import load_recipe


def calibrate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file")],
    sentences: Annotated[int, typer.Option(min=2, max=200_000, help="sentences of the sample")] = 5000,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="pairs shown per bin of similarity")] = 20,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Embed a sample of sentences and write pairs by similarity to a page, so that a person can pick the threshold."""
    from refinery.report.calibration import write_calibration  # noqa: PLC0415
    from refinery.stages.calibrate import calibration  # noqa: PLC0415 - torch is loaded only here

    loaded = load_recipe(recipe)
    found = calibration(loaded, sentences, pairs)
    page = write_calibration(loaded.workdir, found)
    bins = [{key: value for key, value in row.items() if key != "pairs"} for row in found["bins"]]
    planted = [{key: value for key, value in row.items() if key != "pairs"} for row in found["planted"]]
    body = {"page": page, "model": found["model"], "bins": bins, "planted": planted}
    lines = [f"{row['low']:.3f} to {row['high']:.3f}  {row['count']:>8} pairs" for row in reversed(bins)]
    lines += [
        f"{row['language']} {row['kind']:<10} {row['above']} of {row['count']} above {found['similarity']}, "
        f"{row['caught']} of those spared by the guard"
        for row in planted
    ]
    text = json.dumps(body, indent=1, ensure_ascii=False) if json_ else "\n".join([*lines, f"page: {page}"])
    sys.stdout.write(text + "\n")
