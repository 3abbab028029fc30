"""``refinery train`` and ``refinery sample``. Parse, call, show; torch is loaded in processes of their own only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from refinery.recipe import load_recipe


def sample(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="recipe of a finished run, or its workdir")],
    prompt: Annotated[list[str] | None, typer.Option(help="text to go on from; may be given more than once")] = None,
    per_domain: Annotated[int, typer.Option(min=1, help="without a prompt: held-out documents of each domain")] = 2,
    tokens: Annotated[int, typer.Option(help="most tokens to append")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.0,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Show how the model of a run goes on: from prompts, or from the beginnings of held-out documents."""
    folder = Path(load_recipe(run_folder).workdir) if run_folder.suffix in (".yaml", ".yml") else run_folder
    command = [sys.executable, "-m", "refinery.trainer.sample", "--run", str(folder), "--tokens", str(tokens)]
    command += ["--temperature", str(temperature), "--seed", str(seed), "--per-domain", str(per_domain)]
    command += [f"--prompt={text}" for text in prompt or ()] + (["--json"] if json_ else [])
    done = subprocess.run(command, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.returncode)


def show_prepared(recipe: Path, *, as_json: bool) -> None:
    """Write the ``train.json`` of a recipe and say how to train with it on several devices."""
    from refinery.stages.train import prepare  # noqa: PLC0415 - as late as the other stages

    path = prepare(load_recipe(recipe))
    text = f"{path}\ntry next: torchrun --nproc-per-node 8 -m refinery.trainer --config {path}"
    sys.stdout.write((json.dumps({"train_file": str(path)}) if as_json else text) + "\n")
