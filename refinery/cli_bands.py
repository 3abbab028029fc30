"""``refinery bands``: what a choice of LSH bands finds and costs. Parse, call, show."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from refinery.kernels.lsh import CURVE_JACCARDS, PRESETS, collision_curve, resolve_bands


def bands(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[BANDS]...", help="such as 14x8, auto or datasketch:128")
    ] = None,
    jaccard: Annotated[float, typer.Option(min=0.4, max=0.95, help="bound that auto and datasketch aim at")] = 0.8,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")] = False,
) -> None:
    """Print which share of the pairs of each similarity the bands of `dedup_documents` make candidates."""
    chosen = names or [*PRESETS, "auto", "datasketch:128"]
    rows: list[dict[str, Any]] = []
    for name in chosen:
        found = resolve_bands(name, jaccard)
        shape = f"{found.num_bands}x{found.rows_per_band}"
        rows.append({"name": name, "bands": shape, "hashes": found.num_hashes, "curve": collision_curve(found)})
    if json_:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    header = "".join(f"{j:>8.2f}" for j in CURVE_JACCARDS)
    sys.stdout.write(f"{'bands':<24}{'hashes':>7}{header}\n")
    for row in rows:
        label = row["bands"] if row["name"] == row["bands"] else f"{row['bands']} ({row['name']})"
        shares = "".join(f"{share:>8.1%}" for _, share in row["curve"])
        sys.stdout.write(f"{label:<24}{row['hashes']:>7}{shares}\n")
