"""Chinchilla's approach 3 on the published points, beside the published refits.

    python benchmarks/scaling_fit.py [--data FILE.csv] [--bootstraps 1000] [--all-starts] [--out FILE]

The table (epoch-research/analyzing-chinchilla, extracted from the paper's figure) is not ours to ship: give it by
--data, or REFINERY_SHARED/data/scaling/chinchilla-svg_extracted_data.csv is read. The five highest losses are dropped
(240 points), D = FLOP / 6N. Prints our fit, objective and bootstrap errors beside the published ones, and the published
contradiction of the continual-pretraining table. Exits 1 when a parameter is more than 1 % from the published grid
search. Prints JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from refinery.scaling.cpt import published_contradiction
from refinery.scaling.parametric import Fit, bootstrap, fit, objective

_PUBLISHED = {  # A, B, E, alpha, beta
    "hoffmann_rounded": (406.4, 410.7, 1.69, 0.34, 0.28),
    "hoffmann_tex": (406.40, 410.72, 1.6934, 0.33917084, 0.2849083),
    "besiroglu_paper": (482.01, 2085.43, 1.82, 0.3478, 0.3658),
    "besiroglu_grid": (477.84, 2143.86, 1.8172, 0.34731, 0.36718),
}
_PUBLISHED_ERRORS = {"A": 124.522, "B": 1293.284, "E": 0.026, "alpha": 0.015, "beta": 0.021, "a": 0.020}


def _runs(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    params, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    keep = loss < np.sort(loss)[-5]
    return params[keep], (flops / (6 * params))[keep], loss[keep]


def main() -> int:
    root = Path(os.environ.get("REFINERY_SHARED", "."))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=root / "data/scaling/chinchilla-svg_extracted_data.csv")
    parser.add_argument("--bootstraps", type=int, default=1000)
    parser.add_argument("--all-starts", action="store_true", help="polish all 4,500 starts (about a minute)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = _runs(options.data)
    began = time.process_time()
    law = fit(*runs, num_starts=4500 if options.all_starts else 48)
    fit_seconds = time.process_time() - began
    began = time.process_time()
    intervals = bootstrap(law, *runs, num_samples=options.bootstraps)
    bootstrap_seconds = time.process_time() - began
    names = ("A", "B", "E", "alpha", "beta")
    published = {}
    for name, values in _PUBLISHED.items():
        other = Fit(**dict(zip(names, values, strict=True)), objective=0.0, num_runs=0)
        published[name] = {**dict(zip(names, values, strict=True)), "objective": objective(other, *runs), "a": other.a}
    distance = law.vector() / np.array(_PUBLISHED["besiroglu_grid"]) - 1
    report = {
        "machine": platform.processor() or platform.machine(),
        "num_runs": law.num_runs,
        "ours": {**dict(zip(names, law.vector().tolist(), strict=True)), "objective": law.objective, "a": law.a},
        "published": published,
        "distance_to_published_grid_frac": dict(zip(names, distance.tolist(), strict=True)),
        "standard_errors": dict(zip(intervals.names, intervals.standard_errors.tolist(), strict=True)),
        "interval_95": {
            name: [low, high]
            for name, low, high in zip(intervals.names, intervals.low.tolist(), intervals.high.tolist(), strict=True)
        },
        "published_standard_errors": _PUBLISHED_ERRORS,
        "num_bootstraps": options.bootstraps,
        "fit_cpu_seconds": fit_seconds,
        "bootstrap_cpu_seconds": bootstrap_seconds,
        "continual_pretraining_table_at_20_tokens_per_param": [row._asdict() for row in published_contradiction()],
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return int(np.abs(distance).max() > 0.01)


if __name__ == "__main__":
    raise SystemExit(main())
