"""``refinery plan``: fit loss laws to runs, and ask a law for the next run. Parse, call, show."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refinery.cli_budget import plan_budget
from refinery.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    import numpy as np

    from refinery.scaling.cpt import CptFit, CptIntervals
    from refinery.scaling.parametric import Fit, Intervals

plan_app = typer.Typer(help="Plan a training run from a budget; fit loss laws to runs.", no_args_is_help=True)
plan_app.callback(invoke_without_command=True)(plan_budget)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")]

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
    scratch: Annotated[
        Path | None, typer.Option(help="fit from scratch to freeze E, A, alpha of; the runs are continual then")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the fit to, for `plan --fit`")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page to write, with fit and residuals drawn")] = None,
    json_: AsJson = False,
) -> None:
    """Fit a loss law to runs, from scratch or (--scratch) continued; print the parameters with 95 % intervals."""
    from refinery.scaling.cpt import CptFit, bootstrap_cpt, fit_cpt  # noqa: PLC0415
    from refinery.scaling.fit_file import fit_json, read_law  # noqa: PLC0415
    from refinery.scaling.parametric import bootstrap, fit  # noqa: PLC0415

    params, tokens, loss = _read_table(inputs, stream, unit, points)
    keep = sorted(range(len(loss)), key=lambda i: (loss[i], i))[: len(loss) - drop_highest]
    keep = sorted(keep)
    runs = (params[keep], tokens[keep], loss[keep])
    law: Fit | CptFit
    intervals: Intervals | CptIntervals | None
    if scratch is None:
        law, form = fit(*runs), "L = E + A / N^alpha + B / D^beta"
        intervals = bootstrap(law, *runs, num_samples=bootstraps) if bootstraps else None
    else:
        before = read_law(scratch).fit
        if isinstance(before, CptFit):
            raise ConfigError(f"--scratch {scratch} is a law of continual pretraining; give the fit from scratch")
        law, form = fit_cpt(before, *runs), "L = E + A / N^alpha + B / (D^beta N^gamma), E, A, alpha from scratch"
        intervals = bootstrap_cpt(law, *runs, num_samples=bootstraps) if bootstraps else None
    body = fit_json(law, intervals, unit, [str(path) for path in inputs])
    if page is not None:
        from refinery.report.fit_page import write_fit_page  # noqa: PLC0415

        write_fit_page(page, law, body, runs)
    lines = [f"{form} over {law.num_runs} runs, {unit}"]
    for name, value in body["law"].items():
        low, high = body["intervals_95"].get(name, (None, None))
        lines.append(f"  {name:<6} {value:>12.5g}" + ("" if low is None else f"   95 %: {low:.5g} to {high:.5g}"))
    lines += _sizes(body, runs)
    if out is not None:
        out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    lines.append(f"compute-optimal: N ~ C^{law.a:.3f}, D ~ C^{law.b:.3f}; sum of Huber losses {law.objective:.4g}")
    _show(body, json_, "\n".join(lines))


def _sizes(body: dict[str, Any], runs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[str]:
    """Add approaches 1 and 2 to a fit where the runs allow them, and return a line for each."""
    from refinery.scaling.frontier import fit_envelope, fit_profiles  # noqa: PLC0415

    lines = []
    ways = (("envelope", "approach 1, envelope", fit_envelope), ("profiles", "approach 2, parabolas", fit_profiles))
    for key, title, approach in ways:
        try:
            sizes = approach(*runs, num_samples=200)
        except ConfigError as error:
            body[key] = {"refused": str(error)}
            continue
        low, high = sizes.a_interval
        body[key] = {**dataclasses.asdict(sizes), "residuals": sizes.residuals.tolist()}
        lines.append(f"{title}: N ~ C^{sizes.a:.3f} (95 %: {low:.3f} to {high:.3f}), {len(sizes.points)} points")
    return lines


@plan_app.command("replay")
def plan_replay(
    share: Annotated[list[str], typer.Option(help="SHARE=RUN, a run record or folder; three or more")],
    old: Annotated[str, typer.Option(help="validation stream of what was learned before, or its domain")],
    target: Annotated[str, typer.Option(help="validation stream of the new text, or its domain")],
    json_: AsJson = False,
) -> None:
    """Say from a sweep of own runs how much old text to replay: forgetting against cost on the target."""
    from refinery.scaling.replay import frontier_text, records_frontier  # noqa: PLC0415
    from refinery.scaling.runs import read_runs  # noqa: PLC0415

    sweep = []
    for one in share:
        value, _, path = one.partition("=")
        try:
            sweep.append((float(value), read_runs([Path(path)])[0]))
        except ValueError as error:
            raise ConfigError(f"--share {one!r} must be SHARE=RUN, as in --share 0.1=runs/a") from error
    found = records_frontier(sweep, old, target)
    _show(dataclasses.asdict(found), json_, frontier_text(found))


@plan_app.command("optimal")
def plan_optimal(
    flops: Annotated[float | None, typer.Option(help="training compute C = 6 N D")] = None,
    params: Annotated[float | None, typer.Option(help="parameters N without embeddings")] = None,
    fit_file: Annotated[Path | None, typer.Option("--fit", help="JSON of `plan fit --out`")] = None,
    law: Annotated[
        str, typer.Option(help="chinchilla-refit, besiroglu, hoffmann, scratch-2407 or cpt-2407")
    ] = "chinchilla-refit",
    max_extrapolation: Annotated[
        float, typer.Option(help="refuse plans beyond this many times the fitted runs")
    ] = 10.0,
    json_: AsJson = False,
) -> None:
    """Say how large a model and how many tokens: for a compute budget, for a size, or for both."""
    from refinery.scaling.fit_file import published_law, read_law  # noqa: PLC0415
    from refinery.scaling.plan import compute_optimal, fixed_size  # noqa: PLC0415

    chosen, intervals, source = read_law(fit_file) if fit_file is not None else published_law(law)
    if flops is None and params is None:
        raise ConfigError("plan optimal needs --flops C, --params N or both")
    if flops is not None and params is not None:
        plan = fixed_size(chosen, flops, params, intervals=intervals, max_extrapolation=max_extrapolation)
    else:
        budget = _flops_of_size(chosen, params) if flops is None else flops
        plan = compute_optimal(chosen, budget, intervals=intervals, max_extrapolation=max_extrapolation)
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
