"""The forgetting curve with and without replay: continue a finished run's model on law text twice and compare.

    python benchmarks/replay.py [--first-run runs/demo] [--recipe recipes/demo-cpt.yaml] [--out DIR]

The first run is made by ``recipes/demo.yaml`` if its folder holds no model. Then the recipe runs twice, with a fifth of
the tokens replayed from the first run's domains and with none; everything is on text that Python carries, a few minutes
on two cores. Prints, for every validation stream, the loss in nats per token at each validation of both arms, and the
pages on which each arm's curves are plotted. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = {"replay 0.2": ("0.2", "0.8"), "no replay": ("0", "1")}
FIRST_RECIPE = "recipes/demo.yaml"

Curves = dict[str, list[tuple[int, float]]]


def run_recipe(recipe: str, workdir: Path, settings: dict[str, str]) -> None:
    """Run a recipe in a folder; what it prints goes to stderr."""
    command = [sys.executable, "-m", "refinery.cli", "run", recipe]
    environment = {**os.environ, **settings, "REFINERY_WORKDIR": str(workdir)}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr.fileno())


def read_curves(workdir: Path) -> Curves:
    """Return (step, nats per token) of every validation stream of a trained run."""
    curves: Curves = {}
    for point in json.loads((workdir / "train" / "run.json").read_text(encoding="utf-8"))["points"]:
        curves.setdefault(point["stream"], []).append((point["step"], point["loss_nats"]))
    return curves


def table(arms: dict[str, Curves]) -> str:
    """Return the curves for people: per stream one line for each arm, the change since step 0 at the end."""
    first = next(iter(arms.values()))
    steps = [step for step, _ in next(iter(first.values()))]
    lines = [f"{'nats per token after step':<44}" + "".join(f"{step:>8}" for step in steps) + "  change"]
    for stream in sorted(first):
        lines.append(stream)
        for name, curves in arms.items():
            losses = [loss for _, loss in curves[stream]]
            lines.append(f"  {name:<42}" + "".join(f"{loss:>8.3f}" for loss in losses)
                         + f"  {losses[-1] - losses[0]:+.3f}")
    return "\n".join(lines)


def forgotten(curves: Curves) -> float:
    """Return the mean rise, nats, of the streams that are not the new domain's (role target)."""
    changes = [curve[-1][1] - curve[0][1] for stream, curve in curves.items() if stream.split("/")[1] != "target"]
    return sum(changes) / len(changes)


def main() -> int:
    """Run what is missing, then both arms; print curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-run", default="runs/demo", help="workdir of a finished run, made if there is none")
    parser.add_argument("--recipe", default="recipes/demo-cpt.yaml")
    parser.add_argument("--out", default="", help="folder for the two runs; a temporary one by default")
    given = parser.parse_args()
    first_run = Path(given.first_run).resolve()
    if not (first_run / "train" / "model" / "config.json").is_file():
        run_recipe(FIRST_RECIPE, first_run, {})
    root = Path(given.out or tempfile.mkdtemp()).resolve()
    arms: dict[str, Curves] = {}
    for name, (replay, target) in ARMS.items():
        workdir = root / name.replace(" ", "-")
        run_recipe(given.recipe, workdir, {
            "REFINERY_FIRST_RUN": str(first_run), "REPLAY": replay, "TARGET_SHARE": target})
        arms[name] = read_curves(workdir)
        sys.stderr.write(f"curves of {name}: {workdir}/report/index.html\n")
    sys.stdout.write(table(arms) + "\n")
    rises = {name: round(forgotten(curves), 4) for name, curves in arms.items()}
    sys.stdout.write(json.dumps({"benchmark": "replay", "forgotten_nats": rises, "curves": arms}) + "\n")
    return 0 if rises["replay 0.2"] < rises["no replay"] else 1


if __name__ == "__main__":
    sys.exit(main())
