"""screen: the language of every document, and which languages, licences, sources and hosts are wanted."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, LANGUAGE
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import read_labels, read_survivors
from refinery.kernels.langid import detect, find_model, open_language_model, script_shares
from refinery.kernels.text import text_views
from refinery.recipe import Screen
from refinery.stages.decisions import decisions_table, located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.tallies import TALLY_COLUMNS, tally
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)

NAME = "screen"
ALGORITHM_VERSION = 1
LANGUAGE_VERSION = 1
"""Changes when the language of a document could; thresholds never touch it."""


@dataclass(frozen=True)
class ScreenTask:
    """Everything a part task of this stage needs."""

    workdir: str
    settings: dict[str, Any]
    blocked_hosts: frozenset[str]
    slice_rows: int
    upstream: dict[int, str]
    model_sha256: str


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Detect languages where they are missing and decide every document."""
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.screen
    if section is None:
        raise ConfigError("the recipe has no screen section; `screen: {languages: [zh, en]}` is enough")
    _, upstream, seen = upstream_of(run_, NAME)
    model = open_language_model(find_model(storage.local_path(section.model) if section.model else None))
    hosts = read_hosts(section.blocked_hosts)
    recipe_slice = {**section.model_dump(mode="json"), "model": model.sha256, "blocked_hosts": sorted(hosts)}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    settings = section.model_dump(mode="json")
    task = ScreenTask(recipe.workdir, settings, hosts, run_.slice_rows, seen, model.sha256)
    results = run_part_tasks(run_.spark, sorted(seen), functools.partial(screen_part, task), run_.report_progress(NAME))
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, upstream[-1].counts, counts)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=part_entries("language", results, "language") + part_entries("decisions", results, "decisions"),
        counts=counts,
        facts={"languages": _languages(results)},
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def read_hosts(path: str | None) -> frozenset[str]:
    """Read a host list: one host a line (the layout of the UT1 lists), ``#`` starts a comment.

    Raises:
        ConfigError: the file does not exist or names no host.
    """
    if path is None:
        return frozenset()
    file = storage.local_path(path)
    if not file.is_file():
        raise ConfigError(f"screen.blocked_hosts: {path} does not exist")
    lines = (line.split("#")[0].strip().lower() for line in file.read_text(encoding="utf-8").splitlines())
    hosts = frozenset(line for line in lines if line)
    if not hosts:
        raise ConfigError(f"screen.blocked_hosts: {path} names no host; take the key out instead")
    return hosts


def is_blocked(url: str | None, hosts: frozenset[str]) -> bool:
    """Say whether a URL's host, or a domain above it, is in the list."""
    if not url or not hosts:
        return False
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return False
    labels = host.split(".")
    return any(".".join(labels[i:]) in hosts for i in range(len(labels)))


def screen_part(task: ScreenTask, part: int) -> dict[str, Any]:
    """Make sure that one part has its languages and its decisions."""
    print_ = fingerprint_of("language", LANGUAGE_VERSION, task.model_sha256, task.upstream[part])
    path = part_files.part_path(task.workdir, NAME, "language", part)
    language = part_files.found_part(path, print_) or part_files.write_part(path, _detect(task, part), LANGUAGE, print_)
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, language.content_hash, task.settings, sorted(task.blocked_hosts))
    path = part_files.part_path(task.workdir, NAME, "decisions", part)
    decisions = part_files.found_part(path, print_)
    if decisions is None:
        table, result = _decide(task, part)
        decisions = part_files.write_part(path, table, DECISIONS, print_, result)
    return {**decisions.result, "language": located(part, language), "decisions": located(part, decisions)}


def _detect(task: ScreenTask, part: int) -> pa.Table:
    path = task.settings["model"]
    model = open_language_model(find_model(storage.local_path(path) if path else None))
    tables = [LANGUAGE.empty_table()]
    for piece in read_survivors(task.workdir, part, ["doc_id", "text"], (), task.slice_rows):
        views = text_views(piece.table.column("text"))
        found, shares = detect(model, views), script_shares(views)
        columns = {
            "doc_id": piece.table.column("doc_id"),
            "lang": found.lang.cast(pa.string()),
            "confidence": found.confidence,
            "second_lang": found.second_lang.cast(pa.string()),
            "second_confidence": found.second_confidence,
            "han_frac": shares.han,
            "kana_frac": shares.kana,
            "latin_frac": shares.latin,
            "cyrillic_frac": shares.cyrillic,
        }
        tables.append(pa.table(columns).cast(LANGUAGE))
    return pa.concat_tables(tables)


def _decide(task: ScreenTask, part: int) -> tuple[pa.Table, dict[str, Any]]:
    columns = ["doc_id", "url", "license", *TALLY_COLUMNS]
    documents = read_labels(task.workdir, part, columns, (NAME,))
    language = part_files.read_part(task.workdir, NAME, "language", part, ["lang", "confidence"])
    settings = Screen(**task.settings)
    rows = documents.append_column("confidence", language.column("confidence")).to_pylist()
    reasons = [_reason(settings, task.blocked_hosts, row) for row in rows]
    array = pa.array([f"{NAME}.{r}" if r else None for r in reasons], pa.string())
    entered = np.ones(documents.num_rows, dtype=bool)
    decisions = decisions_table(documents.column("doc_id"), entered, array, NAME)
    return decisions, {"counts": tally(documents, entered, array)}


def _reason(settings: Screen, hosts: frozenset[str], row: dict[str, Any]) -> str | None:
    """Return why a document goes, the cheapest and most certain reason first."""
    if row["source"] in settings.deny_sources:
        return "source"
    license_ = row["license"]
    if license_ in settings.deny_licenses or (settings.allow_licenses and license_ not in settings.allow_licenses):
        return "license"
    if is_blocked(row["url"], hosts):
        return "host"
    if row["domain"] in settings.exempt_domains or not settings.languages:
        return None
    if row["lang"] not in settings.languages:
        return "language"
    return "confidence" if row["confidence"] < settings.min_confidence else None


def _languages(results: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return documents and bytes per detected language, the tail included."""
    total: dict[str, list[int]] = {}
    for result in results:
        for row in result["counts"]:
            sums = total.setdefault(row["lang"] or "und", [0, 0])
            sums[0] += row["docs"]
            sums[1] += row["bytes"]
    return dict(sorted(total.items()))
