"""Chinchilla's approach 3 on the published points, beside the published refits.

    python benchmarks/scaling_fit.py [--data FILE.csv] [--bootstraps 1000] [--all-starts] [--out FILE]

The table (epoch-research/analyzing-chinchilla, extracted from the paper's figure) is not ours to ship: give it by
--data, or REFINERY_SHARED/data/scaling/chinchilla-svg_extracted_data.csv is read. The five highest losses are dropped
(240 points), D = FLOP / 6N. Prints our fit, objective and bootstrap errors beside the published ones, approaches 1 and
2 on the same points, a continual-pretraining fit to synthetic runs with 1 % noise, a plan, and the published
contradiction of the continual-pretraining table. Exits 1 when a parameter is more than 1 % from the published grid
search, a standard error more than a third from the published one, or a time over its bound. Prints JSON; times are CPU
seconds of one process.
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

from refinery.scaling.budget_plan import BudgetRequest, plan_budget
from refinery.scaling.cpt import PUBLISHED_CPT, PUBLISHED_SCRATCH, bootstrap_cpt, fit_cpt, published_contradiction
from refinery.scaling.fit_file import Law
from refinery.scaling.frontier import fit_envelope, fit_profiles
from refinery.scaling.parametric import Fit, bootstrap, fit, objective

_PUBLISHED = {  # A, B, E, alpha, beta
    "hoffmann_rounded": (406.4, 410.7, 1.69, 0.34, 0.28),
    "hoffmann_tex": (406.40, 410.72, 1.6934, 0.33917084, 0.2849083),
    "besiroglu_paper": (482.01, 2085.43, 1.82, 0.3478, 0.3658),
    "besiroglu_grid": (477.84, 2143.86, 1.8172, 0.34731, 0.36718),
}
_PUBLISHED_ERRORS = {"A": 124.522, "B": 1293.284, "E": 0.026, "alpha": 0.015, "beta": 0.021, "a": 0.020}


_BOUNDS = {"fit_and_bootstrap": 60.0, "cpt_fit": 5.0, "plan": 1.0}
"""CPU seconds: two cores have twice as many."""


def _cpt_runs(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    params = np.repeat(np.geomspace(49e6, 5.5e9, 14), 8)
    tokens = params * np.tile(np.geomspace(0.5, 20, 8), 14)
    return params, tokens, PUBLISHED_CPT.loss(params, tokens) * np.exp(rng.normal(0.0, noise, len(params)))


def _timed(call):
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


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
    (envelope, profiles), sizes_seconds = _timed(lambda: (fit_envelope(*runs), fit_profiles(*runs)))
    cpt_runs = _cpt_runs(0.01)
    cpt, cpt_seconds = _timed(lambda: fit_cpt(PUBLISHED_SCRATCH, *cpt_runs))
    cpt_intervals, cpt_bootstrap_seconds = _timed(lambda: bootstrap_cpt(cpt, *cpt_runs, num_samples=200))
    plan, plan_seconds = _timed(lambda: plan_budget(Law(law, intervals, "this fit"), BudgetRequest(flops=1e21)))
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
        "approach_1": {"a": envelope.a, "interval_95": envelope.a_interval, "published": [0.50, 0.488, 0.502]},
        "approach_2": {"a": profiles.a, "interval_95": profiles.a_interval, "published": [0.49, 0.462, 0.534]},
        "approaches_cpu_seconds": sizes_seconds,
        "cpt_planted": {"B": PUBLISHED_CPT.B, "beta": PUBLISHED_CPT.beta, "gamma": PUBLISHED_CPT.gamma},
        "cpt_fit_at_1_percent_noise": {"B": cpt.B, "beta": cpt.beta, "gamma": cpt.gamma},
        "cpt_interval_95": dict(
            zip(cpt_intervals.names, zip(cpt_intervals.low, cpt_intervals.high, strict=True), strict=True)
        ),
        "cpt_fit_cpu_seconds": cpt_seconds,
        "cpt_bootstrap_cpu_seconds": cpt_bootstrap_seconds,
        "plan_1e21": {name: plan[name] for name in ("num_params", "num_tokens", "loss_nats", "loss_interval_nats")},
        "plan_cpu_seconds": plan_seconds,
        "bounds_cpu_seconds": _BOUNDS,
        "fit_cpu_seconds": fit_seconds,
        "bootstrap_cpu_seconds": bootstrap_seconds,
        "continual_pretraining_table_at_20_tokens_per_param": [row._asdict() for row in published_contradiction()],
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    errors = dict(zip(intervals.names, intervals.standard_errors.tolist(), strict=True))
    far = [n for n, e in _PUBLISHED_ERRORS.items() if abs(errors[n] / e - 1) > 1 / 3]
    times = {"fit_and_bootstrap": fit_seconds + bootstrap_seconds, "cpt_fit": cpt_seconds, "plan": plan_seconds}
    slow = [n for n, seconds in times.items() if seconds > _BOUNDS[n]]
    return int(np.abs(distance).max() > 0.01 or bool(far) or bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
