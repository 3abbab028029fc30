"""Forgetting with and without replay: continue a finished run's model on a new domain twice and compare.

    python benchmarks/replay.py --first-run runs/demo [--recipe recipes/demo-cpt.yaml] [--steps 60]

Prints validation loss per stream before and after (nats per token), from the trainer's own forgetting files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = {"replay 0.25": ("0.25", "0.75"), "no replay": ("0", "1")}


def run_arm(recipe: str, first_run: str, folder: Path, replay: str, target: str) -> dict[str, list[float]]:
    """Run one arm; return stream -> [loss at step 0, loss at the end]."""
    settings = {"REFINERY_FIRST_RUN": first_run, "REFINERY_WORKDIR": str(folder)}
    settings |= {"REPLAY": replay, "TARGET_SHARE": target}
    command = [sys.executable, "-m", "refinery.cli", "run", recipe]
    subprocess.run(command, check=True, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    points = json.loads((folder / "train" / "run.json").read_text())["points"]
    losses: dict[str, list[float]] = {}
    for point in points:
        losses.setdefault(point["stream"], []).append(point["loss_nats"])
    return {stream: [values[0], values[-1]] for stream, values in losses.items()}


def main() -> None:
    """Run both arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-run", required=True, help="workdir of a finished run")
    parser.add_argument("--recipe", default="recipes/demo-cpt.yaml")
    parser.add_argument("--out", default="", help="folder for the two runs; a temporary one by default")
    given = parser.parse_args()
    root = Path(given.out or tempfile.mkdtemp())
    results = {
        name: run_arm(given.recipe, str(Path(given.first_run).resolve()), root / name.replace(" ", "-"), *shares)
        for name, shares in ARMS.items()
    }
    print(f"{'stream':<40} {'start':>8} " + " ".join(f"{name:>14}" for name in results))
    for stream in sorted(next(iter(results.values()))):
        start = next(iter(results.values()))[stream][0]
        ends = " ".join(f"{r[stream][1]:>8.4f} {r[stream][1] - r[stream][0]:>+.3f}" for r in results.values())
        print(f"{stream:<40} {start:>8.4f} {ends}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
