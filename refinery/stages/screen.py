"""screen: the language of every document, and which languages, licences, sources, hosts and URLs are wanted."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, LANGUAGE
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.blocklists import Blocklist, read_blocklist
from refinery.io.survivors import read_labels, read_survivors
from refinery.kernels.chinese_script import CHINESE, chinese_scripts
from refinery.kernels.langid import LanguageModel, detect, find_model, open_language_model, script_shares
from refinery.kernels.line_languages import (
    OTHER_CONFIDENCE,
    choose_lines,
    line_languages,
    line_scripts,
    shares_by_language,
)
from refinery.kernels.text import TextViews, text_views
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
ALGORITHM_VERSION = 2
LANGUAGE_VERSION = 2
"""Changes when the language of a document could; thresholds never touch it."""


@dataclass(frozen=True)
class ScreenTask:
    """Everything a part task of this stage needs."""

    workdir: str
    settings: dict[str, Any]
    blocklist: Blocklist
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
    blocklist = read_blocklist(section.blocked_hosts, section.blocked_url_words)
    listed = {"blocked_hosts": blocklist.identity(), "blocked_url_words": sorted(blocklist.words)}
    recipe_slice = {**section.model_dump(mode="json"), "model": model.sha256, **listed}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    settings = section.model_dump(mode="json")
    task = ScreenTask(recipe.workdir, settings, blocklist, run_.slice_rows, seen, model.sha256)
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
        facts={"languages": _languages(results), "line_languages": shares_by_language(_line_sums(results))},
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def screen_part(task: ScreenTask, part: int) -> dict[str, Any]:
    """Make sure that one part has its languages and its decisions."""
    print_ = fingerprint_of("language", LANGUAGE_VERSION, task.model_sha256, task.upstream[part])
    path = part_files.part_path(task.workdir, NAME, "language", part)
    language = part_files.found_part(path, print_)
    if language is None:
        table, sums = _detect(task, part)
        language = part_files.write_part(path, table, LANGUAGE, print_, {"line_languages": sums})
    listed = [task.blocklist.identity(), sorted(task.blocklist.words)]
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, language.content_hash, task.settings, listed)
    path = part_files.part_path(task.workdir, NAME, "decisions", part)
    decisions = part_files.found_part(path, print_)
    if decisions is None:
        table, result = _decide(task, part)
        decisions = part_files.write_part(path, table, DECISIONS, print_, result)
    return {
        **decisions.result,
        **language.result,
        "language": located(part, language),
        "decisions": located(part, decisions),
    }


def _detect(task: ScreenTask, part: int) -> tuple[pa.Table, dict[str, dict[str, float]]]:
    """Return the language table, and by line language what the chosen lines of the part add up to."""
    path = task.settings["model"]
    model = open_language_model(find_model(storage.local_path(path) if path else None))
    tables = [LANGUAGE.empty_table()]
    sums: dict[str, dict[str, float]] = {}
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
            "chinese_script": _chinese_script(views, found.lang),
            "other_script_frac": line_scripts(views).other_script_frac(),
            **_lines(model, views, found.lang, sums),
        }
        tables.append(pa.table(columns).cast(LANGUAGE))
    return pa.concat_tables(tables), sums


def _chinese_script(views: TextViews, lang: pa.DictionaryArray) -> pa.Array:
    """Return string: Hans or Hant for Chinese documents whose characters tell, null for all others."""
    script = np.where(_is_any(lang, CHINESE), chinese_scripts(views), 0)
    return pa.array(np.array([None, "Hans", "Hant"], dtype=object)[script], pa.string())


def _is_any(lang: pa.DictionaryArray, wanted: tuple[str, ...]) -> np.ndarray:
    return pc.is_in(lang.cast(pa.string()), pa.array(wanted)).to_numpy(zero_copy_only=False)


def _lines(
    model: LanguageModel, views: TextViews, lang: pa.DictionaryArray, sums: dict[str, dict[str, float]]
) -> dict[str, pa.Array]:
    """Return the columns on chosen lines, and add the lines to `sums`; an unsure line counts as its document's own."""
    chosen = choose_lines(views)
    label, confidence = line_languages(model, chosen)
    own = pc.fill_null(lang.indices, -1).to_numpy(zero_copy_only=False)[chosen.doc]
    other = (label >= 0) & (own >= 0) & (label != own) & (confidence >= OTHER_CONFIDENCE)
    names = np.array([*model.languages.to_pylist(), None], dtype=object)
    weights = chosen.weights(np.diff(views.offsets))
    for name, weight in zip(names[np.where(other, label, own)], weights.tolist(), strict=True):
        row = sums.setdefault(name or "und", {"lines": 0, "bytes": 0.0, "squares": 0.0})
        row["lines"] += 1
        row["bytes"] += weight
        row["squares"] += weight * weight
    first = np.full(views.num_docs, -1, dtype=np.int64)
    first[chosen.doc[other][::-1]] = label[other][::-1]
    return {
        "chosen_lines": pa.array(np.bincount(chosen.doc, minlength=views.num_docs), pa.int32()),
        "other_lines": pa.array(np.bincount(chosen.doc[other], minlength=views.num_docs), pa.int32()),
        "other_lang": pa.array(names[first], pa.string()),
    }


def _decide(task: ScreenTask, part: int) -> tuple[pa.Table, dict[str, Any]]:
    columns = ["doc_id", "url", "license", *TALLY_COLUMNS]
    documents = read_labels(task.workdir, part, columns, (NAME,))
    language = part_files.read_part(task.workdir, NAME, "language", part, ["confidence", "chinese_script"])
    settings = Screen(**task.settings)
    for name in language.column_names:
        documents = documents.append_column(name, language.column(name))
    reasons = [_reason(settings, task.blocklist, row) for row in documents.to_pylist()]
    array = pa.array([f"{NAME}.{r}" if r else None for r in reasons], pa.string())
    entered = np.ones(documents.num_rows, dtype=bool)
    decisions = decisions_table(documents.column("doc_id"), entered, array, NAME)
    return decisions, {"counts": tally(documents, entered, array)}


def _reason(settings: Screen, blocklist: Blocklist, row: dict[str, Any]) -> str | None:
    """Return why a document goes, the cheapest and most certain reason first."""
    source, license_ = row["source"], row["license"]
    if source in settings.deny_sources or (settings.allow_sources and source not in settings.allow_sources):
        return "source"
    if license_ in settings.deny_licenses or (settings.allow_licenses and license_ not in settings.allow_licenses):
        return "license"
    blocked = blocklist.reason(row["url"])
    if blocked:
        return blocked
    if row["domain"] in settings.exempt_domains or not settings.languages:
        return None
    script = f"{row['lang']}-{row['chinese_script']}"
    if row["lang"] not in settings.languages and script not in settings.languages:
        return "language"
    return "confidence" if row["confidence"] < settings.min_confidence else None


def _line_sums(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    total: dict[str, dict[str, float]] = {}
    for result in results:
        for name, row in result["line_languages"].items():
            sums = total.setdefault(name, dict.fromkeys(row, 0))
            for key, value in row.items():
                sums[key] += value
    return total


def _languages(results: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return documents and bytes per detected language, the tail included."""
    total: dict[str, list[int]] = {}
    for result in results:
        for row in result["counts"]:
            sums = total.setdefault(row["lang"] or "und", [0, 0])
            sums[0] += row["docs"]
            sums[1] += row["bytes"]
    return dict(sorted(total.items()))
