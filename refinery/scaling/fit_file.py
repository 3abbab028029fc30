"""Fits as JSON: what ``refinery plan fit --out`` writes and plans read. Published laws by name stand beside them."""

from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.scaling.cpt import PUBLISHED_CPT, PUBLISHED_SCRATCH, CptFit, CptIntervals
from refinery.scaling.parametric import Fit, Intervals

FORMAT = "refinery.fit"
_RANGES: Mapping[str, tuple[float, float]] = {"params_range": (57e6, 16.2e9), "tokens_range": (8.2e8, 3.2e11)}
"""Of the 240 runs extracted from Chinchilla's figure (2404.10102), rounded."""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "hoffmann": {
        **{"A": 406.40, "B": 410.72, "E": 1.6934, "alpha": 0.33917084, "beta": 0.2849083, "num_runs": 240},
        "source": "Hoffmann et al. 2203.15556, the paper's own fit; 2404.10102 shows that it is biased",
    },
    "besiroglu": {
        **{"A": 482.01, "B": 2085.43, "E": 1.82, "alpha": 0.3478, "beta": 0.3658, "num_runs": 240},
        "source": "Besiroglu et al. 2404.10102, refit of Chinchilla's runs",
    },
}
REFIT = "chinchilla-refit"
"""Our own fit of the same 240 runs, with 250 resamples for the intervals; `laws/chinchilla-240.json`, written by
``refinery plan fit chinchilla-svg_extracted_data.csv --drop-highest 5 --bootstraps 250``."""
CONTRADICTION = "rounded parameters; they contradict the paper's own savings, see docs/decisions"


class Law(NamedTuple):
    """A law to plan with."""

    fit: Fit | CptFit
    intervals: Intervals | CptIntervals | None
    """Bootstrap, where the fit has one."""
    source: str
    """Where it comes from, for people."""

    @property
    def continual(self) -> bool:
        """Whether it is a law of continual pretraining."""
        return isinstance(self.fit, CptFit)


def fit_json(
    law: Fit | CptFit, intervals: Intervals | CptIntervals | None, unit: str, inputs: list[str]
) -> dict[str, Any]:
    """Return a fit as plain values: parameters, intervals, ranges, residuals, bootstrap samples."""
    names = ("B", "beta", "gamma") if isinstance(law, CptFit) else ("A", "B", "E", "alpha", "beta", "a")
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "law": {name: float(getattr(law, name)) for name in names},
        "unit": unit,
        "objective": law.objective,
        "num_runs": law.num_runs,
        "params_range": law.params_range,
        "tokens_range": law.tokens_range,
        "inputs": inputs,
        "residuals": law.residuals.tolist(),
        "intervals_95": {},
        "standard_errors": {},
        "samples": [],
    }
    if isinstance(law, CptFit):
        body["scratch"] = fit_json(law.scratch, None, unit, [])
    if intervals is not None:
        pairs = zip(intervals.low.tolist(), intervals.high.tolist(), strict=True)
        body["intervals_95"] = dict(zip(intervals.names, map(list, pairs), strict=True))
        body["standard_errors"] = dict(zip(intervals.names, intervals.standard_errors.tolist(), strict=True))
        body["samples"] = [[float(f"{x:.9g}") for x in row] for row in intervals.samples.tolist()]
    return body


def read_law(path: Path) -> Law:
    """Read a fit.

    Raises:
        ConfigError: the file cannot be read, or the fit is not in nats.
        SchemaError: it is no fit.
    """
    try:
        return _law(json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; write it with `refinery plan fit --out`") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SchemaError(f"{path} is no fit ({error!r}); write it with `refinery plan fit RUNS --out FILE`") from error


def _law(body: Mapping[str, Any], path: str) -> Law:
    if body["format"] != FORMAT:
        raise SchemaError(f"{path} is {body['format']!r}, not {FORMAT!r}; write it with `refinery plan fit --out`")
    if body["unit"] != "nats":
        raise ConfigError(f"{path} was fitted in {body['unit']}; plans are made in nats: fit again with unit nats")
    return Law(_fit(body), _intervals(body), path)


def published_law(name: str) -> Law:
    """Return a published law by name; only `REFIT` has intervals, the papers print no joint distribution.

    Raises:
        ConfigError: unknown name.
    """
    if name == REFIT:
        file = importlib.resources.files("refinery.scaling").joinpath("laws/chinchilla-240.json")
        law = _law(json.loads(file.read_text(encoding="utf-8")), file.name)
        return law._replace(source="our refit of Chinchilla's 240 runs (2404.10102)")
    if name == "scratch-2407":
        return Law(PUBLISHED_SCRATCH, None, "2407.02118, from scratch (rounded parameters)")
    if name == "cpt-2407":
        return Law(PUBLISHED_CPT, None, f"2407.02118, continued ({CONTRADICTION})")
    if name not in PUBLISHED:
        known = ", ".join([REFIT, *PUBLISHED, "scratch-2407", "cpt-2407"])
        raise ConfigError(f"law {name!r} is unknown; known: {known}")
    return Law(_as_fit(PUBLISHED[name], int(PUBLISHED[name]["num_runs"]), _RANGES), None, PUBLISHED[name]["source"])


def _fit(body: Mapping[str, Any]) -> Fit | CptFit:
    ranges: dict[str, Any] = {n: (float(body[n][0]), float(body[n][1])) for n in ("params_range", "tokens_range")}
    if "gamma" not in body["law"]:
        return _as_fit(body["law"], body["num_runs"], ranges)
    scratch = _fit(body["scratch"])
    if isinstance(scratch, CptFit):
        raise ValueError("the scratch law of a continual fit is itself continual")
    values: dict[str, Any] = {name: float(body["law"][name]) for name in ("B", "beta", "gamma")}
    return CptFit(scratch=scratch, **values, objective=math.nan, num_runs=int(body["num_runs"]), **ranges)


def _as_fit(values: Mapping[str, Any], num_runs: int, ranges: Mapping[str, Any]) -> Fit:
    given: dict[str, Any] = {name: float(values[name]) for name in ("A", "B", "E", "alpha", "beta")}
    return Fit(**given, objective=math.nan, num_runs=int(num_runs), **ranges)


def _intervals(body: Mapping[str, Any]) -> Intervals | CptIntervals | None:
    rows = body.get("samples") or []
    if len(rows) < 2:
        return None
    samples = np.array(rows, dtype=np.float64)
    names = tuple(body["intervals_95"])
    low, high = (np.array([body["intervals_95"][n][end] for n in names]) for end in (0, 1))
    errors = np.array([body["standard_errors"][n] for n in names])
    kind = CptIntervals if "gamma" in body["law"] else Intervals
    return kind(names, errors, low, high, samples)
