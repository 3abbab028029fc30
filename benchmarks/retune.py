"""Time of `refinery retune`: decide every document of a run again from its stored signals.

    python benchmarks/retune.py [--documents N] [--out FILE]

Makes N short synthetic documents (100,000 by default), runs ingest and rules on them, changes a threshold and plans the
change. Prints JSON: seconds and CPU seconds of the planning in this process (bound: 5 s for 100,000 documents on two
cores; no session is needed), beside what computing the signals took. Exits 1 when the bound is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from refinery.recipe import Recipe, parse_recipe
from refinery.stages.pipeline import run_recipe
from refinery.stages.retune import plan_retune
from refinery.stages.workspace import Run

_BOUND_S_PER_100K = 5.0


def _documents(path: Path, count: int) -> None:
    rng = np.random.default_rng(20261121)
    words = np.array(["".join(rng.choice(list("etaoinshrdlucm"), int(rng.integers(2, 10)))) for _ in range(20_000)])
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            chosen = words[rng.integers(0, len(words), int(rng.integers(40, 120)))]
            text = " ".join(["the", "and", *chosen]) + "."
            out.write(json.dumps({"id": str(number), "text": text}) + "\n")


def _recipe(folder: Path, presets: list[str]) -> Recipe:
    values: dict[str, Any] = {
        "name": "retune", "seed": 1, "workdir": str(folder / "run"), "ingest": {"part_bytes": 8 * 2**20},
        "inputs": [{"source": "made", "domain": "web", "format": "jsonl", "paths": [str(folder / "made.jsonl")]}],
        "rules": {"presets": presets},
    }  # fmt: skip
    return parse_recipe(values)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _documents(folder / "made.jsonl", options.documents)
        done = run_recipe(Run(_recipe(folder, ["gopher"])), stages=["ingest", "rules"])
        rule = {"name": "words", "signal": "num_words", "min": 80, "source": "of the benchmark"}
        preset = {"name": "longer", "doc": "of the benchmark", "rules": [rule]}
        (folder / "longer.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
        started, cpu = time.monotonic(), time.process_time()
        found = plan_retune(_recipe(folder, ["gopher", str(folder / "longer.yaml")]))
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
        figures = {
            "documents": found.num_docs,
            "newly_dropped": found.total(kept=False)[0],
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "bound_s": _BOUND_S_PER_100K * options.documents / 100_000,
            "signals_cpu_seconds": done["rules"].volatile["part_seconds"],
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if cpu_seconds <= 2 * figures["bound_s"] else 1


if __name__ == "__main__":
    sys.exit(main())
