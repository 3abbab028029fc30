"""What every job shares: flags, session, exit code."""

from __future__ import annotations

import argparse
import sys

from refinery.errors import RefineryError, exit_code_of
from refinery.recipe import load_recipe
from refinery.stages.pipeline import run_recipe, selected_stages
from refinery.stages.workspace import Run


def run_job(stage: str | None) -> int:
    """Run one stage of a recipe, or all of them, under spark-submit."""
    parser = argparse.ArgumentParser(description=f"Run {stage or 'all stages'} of a recipe.")
    parser.add_argument("--recipe", required=True, help="path of the recipe")
    parser.add_argument("--force", action="store_true", help="redo the stage although it is up to date")
    if stage is None:
        parser.add_argument("--from", dest="first", default=None, help="first stage to run")
        parser.add_argument("--to", dest="last", default=None, help="last stage to run")
    given = parser.parse_args()
    try:
        recipe = load_recipe(given.recipe)
        stages = [stage] if stage else selected_stages(recipe, given.first, given.last)
        done = run_recipe(Run(recipe), stages=stages, force=stages if given.force else ())
    except Exception as error:  # the exit code must survive whatever Spark wraps the error in
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        if not isinstance(error, RefineryError) and exit_code_of(error) == 1:
            raise
        return exit_code_of(error)
    for name, manifest in done.items():
        sys.stdout.write(f"{name} {manifest.content_hash}\n")
    return 0
