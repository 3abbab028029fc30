"""What every job shares: flags, session, exit code."""

from __future__ import annotations

import os
import sys


def run_job(stage: str | None) -> int:
    """Run one stage of a recipe, or all of them, under spark-submit."""
    _make_ready()
    import argparse  # noqa: PLC0415 (imports wait until this process is ready for them)

    from refinery.errors import RefineryError, exit_code_of  # noqa: PLC0415
    from refinery.io import storage  # noqa: PLC0415
    from refinery.recipe import load_recipe  # noqa: PLC0415
    from refinery.stages.pipeline import run_recipe, selected_stages  # noqa: PLC0415
    from refinery.stages.workspace import Run  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=f"Run {stage or 'all stages'} of a recipe.")
    parser.add_argument("--recipe", required=True, help="path of the recipe")
    parser.add_argument("--force", action="store_true", help="redo the stage although it is up to date")
    if stage is None:
        parser.add_argument("--from", dest="first", default=None, help="first stage to run")
        parser.add_argument("--to", dest="last", default=None, help="last stage to run")
    given = parser.parse_args()
    try:
        recipe = load_recipe(given.recipe)
        if storage.is_local(recipe.workdir):  # named in full: executors run in folders of their own
            full = str(storage.local_path(recipe.workdir).absolute())
            recipe = recipe.model_copy(update={"workdir": full})
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


def _make_ready() -> None:
    """Take the folder of the script off the path, and share compiled kernels of an archive.

    Python puts that folder first, and in it `select` and `tokenize` are jobs: whatever imports the standard library's
    modules of these names would get a job.
    """
    scripts = os.path.dirname(os.path.abspath(sys.argv[0]))  # noqa: PTH100, PTH120 (a path entry is a string)
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != scripts]  # noqa: PTH100
    from refinery.stages.archive_cache import use_archive_cache  # noqa: PLC0415

    use_archive_cache()
