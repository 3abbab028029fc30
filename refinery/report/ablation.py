"""What an ablation found: one JSON value, one page, one table for the docs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from refinery import __version__
from refinery.io import storage
from refinery.report import charts
from refinery.report.html import render_page
from refinery.scaling.ablation import AVERAGE, Comparison, Difference, compare
from refinery.stages.ablate import AblationResult, Measured

FORMAT = "refinery.ablation"
UNITS = {"bits_per_byte": "bits per byte", "loss_nats": "nats per token"}


def losses_of(runs: Sequence[Measured], unit: str, again: bool) -> dict[str, dict[str, list[float]]]:
    """Return arm -> held-out domain -> final loss by seed.

    Args:
        runs: what was measured.
        unit: ``bits_per_byte`` or ``loss_nats``.
        again: the second trainings of the first arm instead of the arms.
    """
    table: dict[str, dict[str, list[float]]] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        if run.again is not again:
            continue
        last = {p.stream: getattr(p, unit) for p in run.record.points if p.step == run.record.steps}
        by_role: dict[str, list[str]] = {}
        for stream in sorted(last):
            by_role.setdefault(stream.split("/")[0], []).append(stream)
        for domain, streams in by_role.items():
            for stream in streams:  # a domain of two roles is two sets
                name = domain if len(streams) == 1 else "/".join(stream.split("/")[:2])
                table.setdefault(run.arm, {}).setdefault(name, []).append(last[stream])
    return table


def compare_result(result: AblationResult, unit: str) -> Comparison:
    """Compare the arms of an ablation in one unit; arms in the order they were given."""
    losses = losses_of(result.runs, unit, again=False)
    again = losses_of(result.runs, unit, again=True)
    ordered = {arm: losses[arm] for arm in result.facts["arms"]}
    return compare(ordered, next(iter(again.values()), {}))


def as_json(result: AblationResult) -> dict[str, Any]:
    """Return everything that was found as plain values."""
    body: dict[str, Any] = {"format": FORMAT, "version": 1, "made_by": f"refinery {__version__}", **result.facts}
    for unit in UNITS:
        found = compare_result(result, unit)
        body[unit] = {
            "means": found.means,
            "against_first": _plain(found.against_first, found),
            "against_before": _plain(found.against_before, found),
            "noise": {name: dataclasses.asdict(one) for name, one in found.noise.items()},
            "losses": losses_of(result.runs, unit, again=False),
            "losses_again": losses_of(result.runs, unit, again=True),
        }
    trained = list({id(r.record): r.record for r in result.runs}.values())
    body["training"] = {
        "runs": len(trained),
        "seconds": round(sum(r.seconds for r in trained), 1),
        "flops": sum(r.train_flops for r in trained),
        "num_params": max(r.record.num_params for r in result.runs),
        "num_non_embedding_params": max(r.record.num_non_embedding_params for r in result.runs),
        "sequence_length": max(r.record.sequence_length for r in result.runs),
    }
    return body


def _plain(table: dict[str, dict[str, Difference]], found: Comparison) -> dict[str, dict[str, Any]]:
    return {
        arm: {
            name: {**dataclasses.asdict(d), "verdict": d.verdict, "within_noise": found.within_noise(d, name)}
            for name, d in row.items()
        }
        for arm, row in table.items()
    }


def markdown(body: dict[str, Any]) -> str:
    """Return the table of an ablation in Markdown: differences to the first arm in bits per byte.

    Args:
        body: from `as_json`.
    """
    found = body["bits_per_byte"]
    first, *others = list(body["arms"])
    names = list(found["means"][first])
    lines = [
        f"| arm | documents | MB | epochs, most | {' | '.join(names)} |",
        f"|---|---|---|---|{'---|' * len(names)}",
        f"| {first} | {_size(body, first)} | " + " | ".join(f"{found['means'][first][n]:.4f}" for n in names) + " |",
    ]
    if found["noise"]:
        cells = [interval_text(found["noise"][n]) for n in names]
        lines.append(f"| {first}, other seeds | {_size(body, first)} | " + " | ".join(cells) + " |")
    for arm in others:
        cells = [_marked(found["against_first"][arm][n]) for n in names]
        lines.append(f"| {arm} | {_size(body, arm)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _size(body: dict[str, Any], arm: str) -> str:
    facts = body["arms"][arm]
    most = max(facts["epochs"].values(), default=0.0)
    return f"{facts['documents']:,} | {facts['text_bytes'] / 1e6:,.1f} | {most:.2f}"


def interval_text(one: dict[str, Any]) -> str:
    """Return a difference with its interval: ``-0.0312 (-0.0410 to -0.0214)``."""
    if one["low"] is None:
        return f"{one['mean']:+.4f} (one seed)"
    return f"{one['mean']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"


def _marked(one: dict[str, Any]) -> str:
    text = interval_text(one)
    return f"**{text}**" if one["verdict"] in ("lower", "higher") and not one["within_noise"] else text


def findings(body: dict[str, Any]) -> list[str]:
    """Return a sentence per arm: what its stages did against the arm before, and where nothing was seen."""
    sentences = []
    order = list(body["arms"])
    for before, arm in itertools.pairwise(order):
        row = body["bits_per_byte"]["against_before"][arm]
        trained_as = body["arms"][arm]["trained_as"]
        if trained_as != arm:
            sentences.append(f"{arm} trains on the rows of {trained_as}: the budget never used what it removes.")
            continue
        clear = {n: d for n, d in row.items() if d["verdict"] in ("lower", "higher") and not d["within_noise"]}
        helped = [f"{n} {d['mean']:+.4f}" for n, d in clear.items() if d["verdict"] == "lower"]
        hurt = [f"{n} {d['mean']:+.4f}" for n, d in clear.items() if d["verdict"] == "higher"]
        parts = [f"lower loss on {', '.join(helped)}"] if helped else []
        parts += [f"higher loss on {', '.join(hurt)}"] if hurt else []
        if any(d["verdict"] == "one seed" for d in row.values()):
            parts = ["one seed: no interval, no conclusion"]
        sentences.append(f"{arm} against {before}: {'; '.join(parts) or 'no difference seen on any set'}.")
    return sentences


def write_ablation(folder: Path, result: AblationResult) -> dict[str, Any]:
    """Write ``ablation.json``, ``ablation.md`` and ``ablation.html`` and return the JSON value.

    Raises:
        ConfigError: arms that do not pair.
    """
    body = as_json(result)
    storage.write_atomic(str(folder / "ablation.json"), (json.dumps(body, indent=1) + "\n").encode())
    storage.write_atomic(str(folder / "ablation.md"), markdown(body).encode())
    storage.write_atomic(str(folder / "ablation.html"), render(body).encode())
    return body


def render(body: dict[str, Any]) -> str:
    """Return the page of an ablation as HTML."""
    names = list(next(iter(body["bits_per_byte"]["means"].values())))
    values = {
        "body": body,
        "names": names,
        "units": UNITS,
        "findings": findings(body),
        "interval_text": interval_text,
        "pictures": {name: _picture(body, name) for name in names},
        "average": AVERAGE,
    }
    return render_page("ablation.html", values)


def _picture(body: dict[str, Any], name: str) -> Markup:
    found = body["bits_per_byte"]
    rows = [(arm, found["against_first"][arm][name]) for arm in found["against_first"]]
    first = next(iter(body["arms"]))
    if found["noise"]:
        rows.insert(0, (f"{first}, other seeds", found["noise"][name]))
    return charts.intervals(
        [charts.Interval(arm, d["mean"], d["low"], d["high"]) for arm, d in rows],
        f"bits per byte above {first}",
        f"Difference to {first} on {name}, with 95 % intervals",
    )
