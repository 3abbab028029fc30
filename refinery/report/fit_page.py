"""A fitted loss law as a page: parameters with intervals, fit over tokens, residuals over compute, how far it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from refinery.io import storage
from refinery.report import charts
from refinery.report.html import render_page
from refinery.scaling.cpt import CptFit
from refinery.scaling.parametric import Fit
from refinery.scaling.plan import MAX_EXTRAPOLATION

MAX_CURVES = 8
"""Sizes drawn as curves; of more, evenly chosen ones."""


def write_fit_page(
    path: Path, law: Fit | CptFit, body: Mapping[str, Any], runs: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """Write the page of a fit.

    Args:
        path: HTML file.
        law: the fit.
        body: from `fit_file.fit_json`.
        runs: N, D and losses that were fitted, each of shape (R,).
    """
    values = {
        "body": body,
        "form": "E + A / N^alpha + B / (D^beta N^gamma)" if isinstance(law, CptFit) else "E + A / N^alpha + B / D^beta",
        "curves": _curves(law, runs),
        "sizes": [charts.short_number(float(size)) for size in _drawn_sizes(runs[0])],
        "residuals": _residuals(law, runs),
        "spread": float(np.std(law.residuals)),
        "short": charts.short_number,
        "max_extrapolation": MAX_EXTRAPOLATION,
    }
    storage.write_atomic(str(path), render_page("fit.html", values).encode())


def _drawn_sizes(params: np.ndarray) -> np.ndarray:
    sizes = np.unique(params)
    return sizes[np.unique(np.linspace(0, len(sizes) - 1, MAX_CURVES).astype(int))]


def _curves(law: Fit | CptFit, runs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Markup:
    params, tokens, loss = runs
    chosen = _drawn_sizes(params)
    drawn, dots = [], []
    grid = np.geomspace(tokens.min(), tokens.max(), 40)
    for size in chosen:
        predicted = law.loss(size, grid)
        points = list(zip(np.log10(grid).tolist(), predicted.tolist(), strict=True))
        drawn.append(charts.Series(charts.short_number(float(size)), points))
        mine = params == size
        measured = zip(np.log10(tokens[mine]).tolist(), loss[mine].tolist(), strict=True)
        dots.append(charts.Series(charts.short_number(float(size)), sorted(measured)))
    return charts.lines(drawn, "log10 of tokens", "loss", "Fitted loss over tokens, one line per size", dots)


def _residuals(law: Fit | CptFit, runs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Markup:
    flops = np.log10(6.0 * runs[0] * runs[1])
    points = sorted(zip(flops.tolist(), law.residuals.tolist(), strict=True))
    zero = charts.Series("none", [(points[0][0], 0.0), (points[-1][0], 0.0)])
    label = "Log of measured over predicted loss, by compute"
    return charts.lines([zero], "log10 of FLOPs", "log residual", label, [charts.Series("residual", points)])
