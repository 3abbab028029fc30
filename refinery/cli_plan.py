"""``refinery plan``: fit loss laws to runs, and ask a law for the next run. Parse, call, show."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refinery.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    import numpy as np

    from refinery.scaling.cpt import CptFit
    from refinery.scaling.parametric import Fit, Intervals

plan_app = typer.Typer(help="Fit loss laws to runs, and plan the next run from one.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")]

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
_COLUMNS = {
    "params": ("params", "num_params", "N", "Model Size"),
    "tokens": ("tokens", "num_tokens", "D", "Training Tokens"),
    "flops": ("flops", "FLOP", "C", "Training FLOP"),
    "loss": ("loss", "loss_nats", "L"),
}


@plan_app.command("fit")
def plan_fit(  # noqa: PLR0913, PLR0917 - typer reads a command's options from its parameters
    inputs: Annotated[
        list[Path], typer.Argument(metavar="RUNS…|CSV", help="run.json files, folders of runs, or a CSV")
    ],
    stream: Annotated[str, typer.Option(help="validation stream of run records")] = "",
    unit: Annotated[str, typer.Option(help="nats or bits_per_byte")] = "nats",
    points: Annotated[str, typer.Option(help="final or all points of run records")] = "final",
    drop_highest: Annotated[int, typer.Option(min=0, help="leave out this many runs of highest loss")] = 0,
    bootstraps: Annotated[int, typer.Option(min=0, help="resamples for the intervals; 0 for none")] = 200,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the fit to, for `plan optimal --fit`")] = None,
    json_: AsJson = False,
) -> None:
    """Fit L = E + A / N^alpha + B / D^beta to runs; print the parameters with 95 % intervals."""
    from refinery.scaling.parametric import bootstrap, fit  # noqa: PLC0415

    params, tokens, loss = _read_table(inputs, stream, unit, points)
    keep = sorted(range(len(loss)), key=lambda i: (loss[i], i))[: len(loss) - drop_highest]
    keep = sorted(keep)
    runs = (params[keep], tokens[keep], loss[keep])
    law = fit(*runs)
    intervals = bootstrap(law, *runs, num_samples=bootstraps) if bootstraps else None
    body = _fit_json(law, intervals, unit, [str(path) for path in inputs])
    if out is not None:
        out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    lines = [f"L = E + A / N^alpha + B / D^beta over {law.num_runs} runs, {unit}"]
    for name, value in body["law"].items():
        low, high = body["intervals_95"].get(name, (None, None))
        lines.append(f"  {name:<6} {value:>12.5g}" + ("" if low is None else f"   95 %: {low:.5g} to {high:.5g}"))
    lines.append(f"compute-optimal: N ~ C^{law.a:.3f}, D ~ C^{law.b:.3f}; sum of Huber losses {law.objective:.4g}")
    _show(body, json_, "\n".join(lines))


@plan_app.command("optimal")
def plan_optimal(
    flops: Annotated[float | None, typer.Option(help="training compute C = 6 N D")] = None,
    params: Annotated[float | None, typer.Option(help="parameters N without embeddings")] = None,
    fit_file: Annotated[Path | None, typer.Option("--fit", help="JSON of `plan fit --out`")] = None,
    law: Annotated[
        str, typer.Option(help="published law: besiroglu, hoffmann, scratch-2407 or cpt-2407")
    ] = "besiroglu",
    max_extrapolation: Annotated[
        float, typer.Option(help="refuse plans beyond this many times the fitted runs")
    ] = 10.0,
    json_: AsJson = False,
) -> None:
    """Say how large a model and how many tokens: for a compute budget, for a size, or for both."""
    from refinery.scaling.plan import compute_optimal, fixed_size  # noqa: PLC0415

    chosen, source = _read_law(fit_file) if fit_file is not None else _published_law(law)
    if flops is None and params is None:
        raise ConfigError("plan optimal needs --flops C, --params N or both")
    if flops is not None and params is not None:
        plan = fixed_size(chosen, flops, params, max_extrapolation=max_extrapolation)
    else:
        budget = _flops_of_size(chosen, params) if flops is None else flops
        plan = compute_optimal(chosen, budget, max_extrapolation=max_extrapolation)
    body = {**dataclasses.asdict(plan), "tokens_per_param": plan.tokens_per_param, "law": source}
    text = (
        f"N = {plan.num_params:.4g} parameters, D = {plan.num_tokens:.4g} tokens ({plan.tokens_per_param:.1f} per "
        f"parameter), C = {plan.flops:.4g} FLOPs\nexpected loss {plan.loss_nats:.4f} nats"
    )
    text += f", {plan.loss_given_up_nats:.4f} above the optimum of that budget" if plan.loss_given_up_nats > 0 else ""
    text += f"\n{plan.extrapolation:.2g} times the largest fitted run; law: {source}"
    _show(body, json_, text)


def _flops_of_size(law: Fit | CptFit, params: float | None) -> float:
    """Return the budget whose optimum is a size: N = G (C / 6)^a turned round."""
    if params is None or not (math.isfinite(params) and params > 0):
        raise ConfigError(f"--params is {params}, it must be finite and > 0")
    return float(6.0 * (params / law.G) ** (1.0 / law.a))


def _fit_json(law: Fit, intervals: Intervals | None, unit: str, inputs: list[str]) -> dict[str, Any]:
    names = ("A", "B", "E", "alpha", "beta", "a")
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
        "intervals_95": {},
        "standard_errors": {},
    }
    if intervals is not None:
        pairs = zip(intervals.low.tolist(), intervals.high.tolist(), strict=True)
        body["intervals_95"] = dict(zip(intervals.names, map(list, pairs), strict=True))
        body["standard_errors"] = dict(zip(intervals.names, intervals.standard_errors.tolist(), strict=True))
    return body


def _read_law(path: Path) -> tuple[Fit, str]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise SchemaError(f"{path} is {body['format']!r}, not {FORMAT!r}; write it with `refinery plan fit --out`")
        if body["unit"] != "nats":
            raise ConfigError(f"{path} was fitted in {body['unit']}; plans are made in nats: fit again with unit nats")
        ranges = {name: (float(body[name][0]), float(body[name][1])) for name in ("params_range", "tokens_range")}
        return _as_fit(body["law"], body["num_runs"], ranges), str(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; write it with `refinery plan fit --out`") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SchemaError(f"{path} is no fit ({error!r}); write it with `refinery plan fit RUNS --out FILE`") from error


def _published_law(name: str) -> tuple[Fit | CptFit, str]:
    from refinery.scaling.cpt import PUBLISHED_CPT, PUBLISHED_SCRATCH  # noqa: PLC0415

    if name == "scratch-2407":
        return PUBLISHED_SCRATCH, "2407.02118, from scratch (rounded parameters)"
    if name == "cpt-2407":
        return PUBLISHED_CPT, "2407.02118, continued (rounded parameters; they contradict the paper's own savings)"
    if name not in PUBLISHED:
        raise ConfigError(f"law {name!r} is unknown; known: {', '.join([*PUBLISHED, 'scratch-2407', 'cpt-2407'])}")
    return _as_fit(PUBLISHED[name], int(PUBLISHED[name]["num_runs"]), _RANGES), str(PUBLISHED[name]["source"])


def _as_fit(values: Mapping[str, Any], num_runs: int, ranges: Mapping[str, tuple[float, float]]) -> Fit:
    from refinery.scaling.parametric import Fit  # noqa: PLC0415

    return Fit(
        A=float(values["A"]),
        B=float(values["B"]),
        E=float(values["E"]),
        alpha=float(values["alpha"]),
        beta=float(values["beta"]),
        objective=math.nan,
        num_runs=num_runs,
        params_range=ranges["params_range"],
        tokens_range=ranges["tokens_range"],
    )


def _read_table(inputs: list[Path], stream: str, unit: str, points: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return N, D and losses from one CSV or from run records."""
    if any(path.suffix.lower() == ".csv" for path in inputs):
        if len(inputs) > 1:
            raise ConfigError(f"{len(inputs)} inputs with a CSV among them; give one CSV, or run records only")
        return _read_csv(inputs[0])
    from refinery.scaling.runs import loss_table, read_runs  # noqa: PLC0415

    records = read_runs(inputs)
    streams = sorted({point.stream for record in records for point in record.points})
    if not stream and len(streams) != 1:
        raise ConfigError(f"say which validation stream to fit with --stream; the runs have {', '.join(streams)}")
    table = loss_table(records, stream or streams[0], unit=unit, points=points)
    return table.num_params, table.num_tokens, table.loss


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read columns params, tokens (or flops = 6 N D) and loss, or those of the extracted Chinchilla table."""
    import numpy as np  # noqa: PLC0415

    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give a CSV with columns params, tokens and loss")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    header = list(rows[0]) if rows else []
    found = {name: next((c for c in known if c in header), None) for name, known in _COLUMNS.items()}
    if not (found["params"] and found["loss"] and (found["tokens"] or found["flops"])):
        raise SchemaError(f"{path} has columns {header}; params, tokens (or flops) and loss are needed")
    columns: dict[str, np.ndarray] = {}
    for name, column in found.items():
        try:
            columns[name] = np.array([float(row[column]) for row in rows if column is not None])
        except (TypeError, ValueError) as error:
            raise SchemaError(f"{path}, column {column}: {error}; every row needs a number") from error
    tokens = columns["tokens"] if found["tokens"] else columns["flops"] / (6.0 * columns["params"])
    return columns["params"], tokens, columns["loss"]


def _show(value: Any, as_json: bool, text: str) -> None:
    sys.stdout.write((json.dumps(value, indent=1, ensure_ascii=False) if as_json else text) + "\n")
