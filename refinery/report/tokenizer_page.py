"""The page of a vocabulary's health report: one HTML file, no script, pictures inline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from refinery.io import storage
from refinery.report import charts
from refinery.report.html import render_page


def write_health(folder: Path, report: Mapping[str, Any], costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``health.json`` and ``health.html`` and return the JSON value.

    Args:
        folder: where to write.
        report: of `refinery.tokenization.health.health`.
        costs: parameters of the vocabulary by trainer preset.
    """
    body = {**report, "parameter_costs": [dict(row) for row in costs]}
    text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
    storage.write_atomic(str(folder / "health.json"), text.encode())
    storage.write_atomic(str(folder / "health.html"), render_health(body).encode())
    return body


def render_health(body: Mapping[str, Any]) -> str:
    """Return the page of a health report as HTML; every text in it is escaped."""
    values = {"health": body, "pictures": _pictures(body["plots"]), "white": _runs(body)}
    return render_page("tokenizer.html", values)


def _pictures(plots: Mapping[str, Any]) -> dict[str, Markup]:
    ranked = [(math.log10(rank), math.log10(uses)) for rank, uses in plots["rank_uses"]]
    lengths = [(str(size), float(count)) for size, count in enumerate(plots["tokens_by_bytes"])][1:]
    used = [(str(size), float(count)) for size, count in enumerate(plots["uses_by_bytes"])][1:]
    return {
        "ranks": charts.lines(
            [charts.Series("uses", ranked)], "rank of the token, powers of ten", "uses, powers of ten", "Uses by rank"
        ),
        "lengths": charts.histogram(lengths, "bytes of a token, 24 and more last", "tokens", "Tokens by length"),
        "used": charts.histogram(used, "bytes of a token, 24 and more last", "uses in the text", "Uses by length"),
    }


def _runs(body: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    found = body["white_space_and_digits"]
    names = {
        "tokens_of_spaces": "spaces",
        "tokens_of_tabs": "tabs",
        "tokens_of_line_ends": "line ends",
        "tokens_of_digits": "digits",
    }
    return [(name, found[key]) for key, name in names.items()]
