"""The command line: parse, call, show. No logic of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from refinery import cli_train, forecast
from refinery.cli_ablate import ablate
from refinery.cli_bands import bands
from refinery.cli_calibrate import calibrate
from refinery.cli_export import export_app
from refinery.cli_health import health
from refinery.cli_plan import plan_app
from refinery.cli_remix import remix
from refinery.cli_retune import retune
from refinery.contracts.manifest import StageManifest
from refinery.errors import ConfigError, RefineryError, exit_code_of
from refinery.forecast_text import actual_text, full_text, short_text
from refinery.recipe import Recipe, load_recipe
from refinery.stages.pipeline import STAGES, run_recipe, selected_stages, stage_status
from refinery.stages.workspace import Run, load_stage

_MOST_PLACES = 20
"""Unreadable records that a run names at its end."""
app = typer.Typer(
    name="refinery",
    help="From raw text to packed token shards to a trained model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(export_app, name="export")
app.add_typer(plan_app, name="plan")
app.command()(calibrate)
app.command()(remix)
app.command()(health)
app.command()(retune)
app.command()(bands)
app.command()(ablate)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe file")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value instead of text")]


def main() -> None:
    """Run the command line; errors that are meant become one line and their exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app(standalone_mode=True)
    except RefineryError as error:
        _fail(f"{type(error).__name__}: {error}", error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", 130)
    except Exception as error:
        code = exit_code_of(error)
        if code == 1 or os.environ.get("REFINERY_TRACEBACK"):
            raise
        _fail(_worker_message(str(error)), code)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(message.rstrip() + "\n")
    sys.exit(code)


def _worker_message(text: str) -> str:
    """Return the line of a worker's traceback that names our error."""
    lines = [line for line in text.splitlines() if re.match(r"refinery\.errors\.\w+: ", line)]
    return lines[-1].removeprefix("refinery.errors.") if lines else text


@app.command()
def run(
    recipe: RecipePath,
    first: Annotated[str | None, typer.Option("--from", help="first stage to run")] = None,
    last: Annotated[str | None, typer.Option("--to", help="last stage to run")] = None,
    force: Annotated[list[str] | None, typer.Option(help="stage to redo although it is up to date")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and run nothing")] = False,
    json_: AsJson = False,
) -> None:
    """Run a recipe: every stage that is not up to date, then the report."""
    loaded = load_recipe(recipe)
    stages = selected_stages(loaded, first, last)
    expected = forecast.forecast_run(loaded, stages)
    if dry_run:
        rows = [r for r in stage_status(loaded) if r["stage"] in stages]
        _show({"stages": rows, "forecast": expected.to_json()}, json_, full_text(expected))
        return
    if not json_:
        sys.stderr.write(short_text(expected) + "\n")
    seconds: dict[str, float] = {}
    forecast.store(loaded.workdir, expected)
    done = _run_stages(loaded, stages, force or [], quiet=json_, seconds=seconds)
    actual = forecast.actual_of(loaded, expected, seconds)
    forecast.store(loaded.workdir, expected, actual)
    page = _write_report(loaded)
    results = [{"stage": name, "content_hash": m.content_hash} for name, m in done.items()]
    if json_:
        _show({"stages": results, "report": page, "forecast": {**expected.to_json(), "actual": actual}}, True, "")
    else:
        _closing_lines(loaded, recipe, page)
        sys.stdout.write(f"\n{actual_text(actual)}\n" if actual["stages"] else "")


def _run_stages(
    recipe: Recipe, stages: list[str], force: list[str], *, quiet: bool, seconds: dict[str, float] | None = None
) -> dict[str, StageManifest]:
    with _progress(quiet=quiet) as (progress, told):

        def noted(name: str, manifest: StageManifest, taken: float, fresh: bool) -> None:
            if seconds is not None and not fresh:
                seconds[name] = taken
            told(name, manifest, taken, fresh)

        return run_recipe(Run(recipe, progress=progress), stages=stages, force=force, told=noted)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Callable[[str, int, int], None] | None, Callable[..., None]]]:
    """Yield listeners: a bar on a terminal, plain lines elsewhere, nothing with --json."""
    if quiet:
        yield None, lambda *_: None
        return
    if not sys.stderr.isatty():
        yield None, _tell_line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{stage} (parts)", total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress, lambda *facts: bars.console.print(_stage_line(*facts), highlight=False)


def _tell_line(*facts: Any) -> None:
    sys.stderr.write(_stage_line(*facts) + "\n")


def _stage_line(name: str, manifest: StageManifest, seconds: float, fresh: bool) -> str:
    kept = [c for c in manifest.counts if c.kind == "kept"]
    dropped = sum(c.docs for c in manifest.counts if c.kind == "dropped")
    docs, tokens = sum(c.docs for c in kept), sum(c.tokens for c in kept)
    facts = [f"{docs:,} documents kept"] if kept else []
    facts += [f"{dropped:,} dropped"] if dropped else []
    facts += [f"{tokens:,} tokens"] if tokens else []
    if name == "train":
        facts = [f"{s.split('/')[0]} {loss:.3f} nats" for s, loss in manifest.facts["final_losses"].items()]
    when = "up to date" if fresh else f"{seconds:.1f} s"
    return f"{name:<16} {when:>10}  {', '.join(facts)}"


def _closing_lines(recipe: Recipe, path: Path, page: str) -> None:
    made = stage_status(recipe)
    last = next((r for r in reversed(made) if r["complete"] and r.get("tokens_kept")), None)
    sys.stdout.write(f"\nMade in {recipe.workdir}:\n")
    if last:
        sys.stdout.write(f"  {last['docs_kept']:,} documents, {last['tokens_kept']:,} tokens kept\n")
    if any(r["stage"] == "pack" and r["complete"] for r in made):
        sys.stdout.write(f"  shards   {recipe.workdir}/pack/shards/manifest.json\n")
    if any(r["stage"] == "train" and r["complete"] for r in made):
        sys.stdout.write(f"  model    {recipe.workdir}/train\n")
    sys.stdout.write(f"  report   {page}  (open it in a browser)\n")
    sys.stdout.write(_unreadable_lines(recipe))
    sys.stdout.write("\nTry next:\n")
    sys.stdout.write(f"  refinery status {path}        what stands\n")
    sys.stdout.write(f"  refinery explain {path} KEY   why a document stayed or went (keys are in the report)\n")
    sys.stdout.write(f"  change a threshold in {path} and run it again: only what depends on it is redone\n")


def _unreadable_lines(recipe: Recipe) -> str:
    """Return what ingest could not read, by reason and with the first places; "" where it read everything."""
    manifest = load_stage(recipe.workdir, "ingest")
    reasons = manifest.facts.get("bad_records", {}) if manifest else {}
    if not manifest or not reasons:
        return ""
    lines = ["\nNot readable, counted and passed over:"]
    for source, counts in reasons.items():
        lines.append(f"  {source}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()))
    listed = manifest.facts.get("bad_listed", [])
    lines += [f"    {source} {path} at {offset}: {reason}" for source, path, offset, reason in listed[:_MOST_PLACES]]
    if len(listed) > _MOST_PLACES:
        lines.append(f"    … more places are in {recipe.workdir}/ingest/_stage.json and in the report")
    return "\n".join(lines) + "\n"


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        force: Annotated[bool, typer.Option("--force", help="redo it although it is up to date")] = False,
        json_: AsJson = False,
    ) -> None:
        done = _run_stages(load_recipe(recipe), [name], [name] if force else [], quiet=json_)
        if json_:
            _show({"stage": name, "content_hash": done[name].content_hash}, True, "")

    command.__doc__ = f"Run the stage {name} of a recipe."
    return command


for _name in STAGES:
    if _name != "train":
        app.command(_name)(_stage_command(_name))
app.command()(cli_train.sample)


@app.command()
def train(
    recipe: RecipePath,
    force: Annotated[bool, typer.Option("--force", help="redo it although it is up to date")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="only write train.json, for torchrun")] = False,
    json_: AsJson = False,
) -> None:
    """Run the stage train of a recipe, on one device; `--prepare` leaves the training to torchrun."""
    if prepare:
        cli_train.show_prepared(recipe, as_json=json_)
    else:
        _stage_command("train")(recipe, force, json_)


@app.command()
def status(recipe: RecipePath, json_: AsJson = False) -> None:
    """Show which stages of a recipe stand, and their totals."""
    rows = stage_status(load_recipe(recipe))
    lines = []
    for row in rows:
        if not row["complete"]:
            lines.append(f"{row['stage']:<16} to do")
            continue
        lines.append(
            f"{row['stage']:<16} complete  kept {row['docs_kept']:>10,} docs {row['bytes_kept'] / 1e6:>10,.1f} MB "
            f"{row['tokens_kept']:>12,} tokens  dropped {row['docs_dropped']:>8,}  {row['seconds']:>8.1f} s"
        )
    _show(rows, json_, "\n".join(lines))


@app.command()
def report(recipe: RecipePath, json_: AsJson = False) -> None:
    """Write the HTML report of a run, whatever stages stand."""
    page = _write_report(load_recipe(recipe))
    _show({"report": page}, json_, page)


def _write_report(recipe: Recipe) -> str:
    from refinery.report.page import write_report  # noqa: PLC0415

    return str(write_report(recipe.workdir, recipe))


@app.command()
def explain(recipe: RecipePath, doc_key: str, json_: AsJson = False) -> None:
    """Say what became of one document, stage by stage, and why."""
    from refinery.report.explain import explain as explain_document  # noqa: PLC0415
    from refinery.report.explain import explain_text  # noqa: PLC0415

    facts = explain_document(load_recipe(recipe).workdir, doc_key)
    _show(facts, json_, explain_text(facts))


@app.command()
def verify(
    manifest: Annotated[Path, typer.Argument(help="shard manifest, its folder, or a foreign .bin, .idx or prefix")],
    full: Annotated[bool, typer.Option("--full", help="hash every byte")] = False,
    level: Annotated[str, typer.Option(help="start, sample, full or audit")] = "sample",
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer that will be used with the shards")] = None,
    json_: AsJson = False,
) -> None:
    """Check shards against their manifest; refuse any that does not match (exit code 4)."""
    from refinery.shards.verify import check_foreign, is_foreign, verify_dataset  # noqa: PLC0415

    if is_foreign(manifest):
        pair = check_foreign(manifest)
        _show(pair, json_, f"sound: {pair['sequences']:,} sequences, {pair['tokens']:,} tokens of {pair['dtype']}")
        return

    encode = None
    if tokenizer is not None:
        from refinery.tokenization.encode import open_encoder  # noqa: PLC0415

        encode = lambda text: open_encoder(tokenizer).encode_text(text).tolist()  # noqa: E731
    root = manifest.parent if manifest.name.endswith(".json") else manifest
    found = verify_dataset(root, "full" if full else level, encode)
    facts = {
        "content_hash": found.content_hash,
        "streams": {s.name: {"rows": s.rows, "tokens": s.total("tokens")} for s in found.streams},
    }
    rows = "\n".join(f"  {n}: {v['rows']:,} rows, {v['tokens']:,} tokens" for n, v in facts["streams"].items())  # type: ignore[attr-defined]
    _show(facts, json_, f"intact: {found.content_hash}\n{rows}")


@app.command()
def init(  # noqa: PLR0913, PLR0917 - typer reads a command's options from its parameters
    out: Annotated[Path, typer.Argument(metavar="OUT.yaml", help="recipe to write")],
    target: Annotated[list[str] | None, typer.Option(help="[DOMAIN=]PATH of text that is wanted as it is")] = None,
    pool: Annotated[list[str] | None, typer.Option(help="[DOMAIN=]PATH of text to filter and choose from")] = None,
    replay: Annotated[list[str] | None, typer.Option(help="[DOMAIN=]PATH of general text against forgetting")] = None,
    input_: Annotated[list[str] | None, typer.Option("--input", help="PATH of the given --role and --domain")] = None,
    role: Annotated[str, typer.Option(help="role of --input: target, pool or replay")] = "pool",
    domain: Annotated[str, typer.Option(help="domain of --input; the file's name unless said")] = "",
    name: Annotated[str, typer.Option(help="name of the run; the recipe's file name unless said")] = "",
    workdir: Annotated[str, typer.Option(help="folder of the run; runs/NAME unless said")] = "",
    languages: Annotated[str, typer.Option(help="languages to keep, as zh,en; all unless said")] = "",
    budget_tokens: Annotated[str, typer.Option(help="tokens to train on, as 2e9 or 2B, or auto")] = "auto",
    tokenizer: Annotated[str, typer.Option(help="an existing tokenizer, or a tokenizer recipe")] = "",
    train: Annotated[bool, typer.Option("--train/--no-train", help="train a model at the end")] = True,
    force: Annotated[bool, typer.Option("--force", help="write over files that exist")] = False,
    json_: AsJson = False,
) -> None:
    """Write a commented recipe from flags, or from a few questions where none are given."""
    from refinery.init import Answers, ask, describe_source, parse_count, with_unique_names, write_recipe  # noqa: PLC0415

    given = [*(("target", p) for p in target or ()), *(("pool", p) for p in pool or ())]
    given += [("replay", p) for p in replay or ()]
    if not given and not input_:
        if not sys.stdin.isatty():
            raise ConfigError("init has no input: name a path with --target, --pool, --replay or --input")
        answers = ask(lambda question, default: typer.prompt(question, default=default, show_default=bool(default)),
                      name or out.stem)  # fmt: skip
    else:
        sources = [describe_source(path, kind) for kind, path in given]
        sources += [describe_source(path, role, domain) for path in input_ or ()]
        answers = Answers(
            name=name or out.stem,
            sources=with_unique_names(sources),
            workdir=workdir,
            languages=tuple(re.findall(r"[A-Za-z-]+", languages)),
            budget_tokens=None if budget_tokens == "auto" else parse_count(budget_tokens),
            tokenizer=tokenizer,
            train=train,
        )
    files = [str(path) for path in write_recipe(out, answers, force=force)]
    lines = [f"written: {', '.join(files)}", f"try next: refinery run {out} --dry-run"]
    _show({"recipe": str(out), "files": files}, json_, "\n".join(lines))


@app.command()
def doctor(json_: AsJson = False) -> None:
    """Check this machine: Java, memory, disk, GPU, versions; say what to do about what is missing."""
    from refinery.doctor import checks  # noqa: PLC0415

    rows = checks()
    lines = [
        f"{'ok  ' if r['ok'] else 'LOOK'}  {r['name']:<14} {r['found']}{'' if r['ok'] else '  ->  ' + r['remedy']}"
        for r in rows
    ]
    _show(rows, json_, "\n".join(lines))
    if any(r["needed"] and not r["ok"] for r in rows):
        raise ConfigError("this machine cannot run a recipe yet; see the lines marked LOOK")


def _show(value: Any, as_json: bool, text: str) -> None:
    sys.stdout.write((json.dumps(value, indent=1, ensure_ascii=False, default=str) if as_json else text) + "\n")


if __name__ == "__main__":
    main()
