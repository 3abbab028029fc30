"""quality: fastText classifiers over pool documents, trained on sources of the recipe or given.

Training sees documents of ``split = train`` only; one in ten is held out by the hash of its text and judges. One pass
over the text writes a score per classifier, and how they combine and where the cut lies are passes over numbers: a
changed threshold reads no text.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refinery.contracts.manifest import StageManifest, merge_counts
from refinery.errors import ConfigError, DataError
from refinery.hashing import sha256_hex
from refinery.io import storage
from refinery.kernels.score_bias import call_outs, correlations, merge_bias
from refinery.recipe import Quality
from refinery.stages.budget_cut import budget_limits
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.quality_judging import (
    HoldOut,
    check_combine,
    fit_calibrations,
    judge,
    precision_thresholds,
    warnings_of,
)
from refinery.stages.quality_models import STAGE, TrainingTask, make_models, plan_members
from refinery.stages.quality_scores import (
    ScoreTask,
    combine_part,
    decide_part,
    key_score,
    order_columns,
    score_part,
)
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)

NAME = STAGE
ALGORITHM_VERSION = 2
MISSED_FRAC = 0.05
"""Kept beyond the share that was asked, from which a cut is called coarse."""


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Train or open the classifiers, score the pool, decide.

    Raises:
        ConfigError: what the recipe asks for cannot be done. DataError: a class, a hold-out or the pool is empty, or
            scores are NaN or all the same. IntegrityError: a model is damaged or of another preparation.
    """
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.quality
    if section is None:
        raise ConfigError("the recipe has no quality section; name positives, negatives and keep_token_frac")
    check_combine(section)
    upto, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {**section.model_dump(mode="json"), "seed": recipe.seed, "files": _files(section)}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    members = plan_members(section, upstream[-1].counts)
    training = TrainingTask(recipe.workdir, recipe.seed, upto, run_.slice_rows, seen, members)
    members, models = make_models(run_, training)
    settings = section.model_dump(mode="json")
    task = ScoreTask(recipe.workdir, recipe.seed, settings, upto, run_.slice_rows, seen, members, {}, {})
    parts = sorted(seen)
    scored = run_part_tasks(run_.spark, parts, functools.partial(score_part, task), run_.report_progress(NAME))
    _check_numbers(scored)
    hold = HoldOut(task, section)
    task = ScoreTask(**{**task.__dict__, "calibrations": fit_calibrations(hold)})
    combined = run_part_tasks(run_.spark, parts, functools.partial(combine_part, task))
    thresholds = _thresholds(run_, task, section, hold, combined)
    task = ScoreTask(**{**task.__dict__, "thresholds": thresholds})
    decided = run_part_tasks(run_.spark, parts, functools.partial(decide_part, task))
    counts = merge_counts(r["counts"] for r in decided)
    check_conservation(NAME, upstream[-1].counts, counts)
    tables = (("scores", scored), ("holdout", scored), ("quality", combined), ("decisions", decided))
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[entry for name, results in tables for entry in part_entries(name, results, name)],
        counts=counts,
        facts={"models": models, **_facts(task, section, hold, combined, decided)},
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in scored + combined + decided)},
    )
    return commit_stage(run_, manifest, started)


def _files(section: Quality) -> dict[str, str]:
    """Return the hashes of the files that the section names: models and labelled text."""
    named = [c.model for c in section.each() if c.model is not None]
    named += [p for c in section.each() if c.labelled is not None for p in c.labelled.paths if storage.exists(p)]
    missing = [c.model for c in section.each() if c.model is not None and not storage.exists(c.model)]
    if missing:
        raise ConfigError(f"quality: model {missing[0]} does not exist; correct the path")
    return {path: sha256_hex(storage.read_bytes(path)) for path in named}


def _check_numbers(scored: Iterable[Mapping[str, Any]]) -> None:
    total: dict[str, int] = {}
    for result in scored:
        for name, docs in result["nan_docs"].items():
            total[name] = total.get(name, 0) + docs
    bad = {name: docs for name, docs in total.items() if docs}
    if bad:
        raise DataError(
            f"scores are NaN: {', '.join(f'{docs} of classifier {name}' for name, docs in sorted(bad.items()))}; its "
            "model is damaged or its training diverged: lower learning_rate and train again, or take another model"
        )


def _thresholds(
    run_: Run, task: ScoreTask, section: Quality, hold: HoldOut, combined: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the lowest score that stays, by group; nothing for a Pareto cut."""
    sizes: dict[str, int] = {}
    for result in combined:
        for group, size in result["bytes"].items():
            sizes[group] = sizes.get(group, 0) + size
    if not sizes:
        raise DataError(
            "quality found 0 pool documents to score; sources of role pool are empty after the stages before, or no "
            "classifier is for their languages"
        )
    unknown = sorted(set(section.by_group) - set(sizes))
    if unknown:
        raise ConfigError(f"quality.by_group names {unknown}, the pool has the groups {sorted(sizes)}; correct them")
    if section.pareto_alpha is not None:
        return {}
    if section.threshold is not None:
        return {group: section.by_group.get(group, section.threshold) for group in sorted(sizes)}
    if section.precision is not None:
        return precision_thresholds(task, hold, section, sorted(sizes))
    lowest, highest = _range(combined)
    docs = sum(r["docs"] for r in combined)
    shares = {group: section.by_group.get(group, section.keep_token_frac or 1.0) for group in sizes}
    if lowest == highest and docs > 1 and min(shares.values()) < 1:
        raise DataError(
            f"all {docs} scores equal {lowest:.6g}, so no share of the pool can be cut off; look at the classifier's "
            "training text, or leave the stage out"
        )
    wanted = {group: -int(-shares[group] * size // 1) for group, size in sizes.items()}
    reader = functools.partial(order_columns, task)
    limits = budget_limits(run_.spark, sorted(task.upstream), reader, wanted)
    return {group: max(0.0, key_score(limit)) for group, limit in sorted(limits.items())}


def _missed_shares(
    section: Quality, combined: Sequence[Mapping[str, Any]], decided: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a sentence for each group in which equal scores kept clearly more than the share that was asked."""
    if section.keep_token_frac is None:
        return []
    told = []
    for group in sorted({g for r in combined for g in r["bytes"]}):
        whole = sum(r["bytes"].get(group, 0) for r in combined)
        kept = sum(r["kept"].get(group, 0) for r in decided) / max(whole, 1)
        asked = section.by_group.get(group, section.keep_token_frac)
        if kept > asked + MISSED_FRAC:
            told.append(
                f"the cut{' of ' + group if group else ''} keeps {kept:.0%} of the text, {asked:.0%} were asked: many "
                "documents have the very score of the cut; use raw scores in combine, or a mean with them"
            )
    return told


def _range(combined: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    ranges = [r["range"] for r in combined if r["range"]]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _facts(
    task: ScoreTask,
    section: Quality,
    hold: HoldOut,
    combined: Sequence[Mapping[str, Any]],
    decided: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    facts = judge(task, hold)
    told = warnings_of(facts, section) + _missed_shares(section, combined, decided)
    for name in (*task.columns, ""):
        sums = merge_bias(r["bias"][name] for r in combined)
        shown = correlations(sums)
        if name:
            facts["classifiers"][name]["correlations"] = shown
            told += call_outs(name, sums)
        else:
            facts["correlations"] = shown
            told += call_outs("the combined score", sums) if len(task.columns) > 1 else []
    histograms: dict[str, list[int]] = {}
    for result in combined:
        for source, heights in result["histograms"].items():
            known = histograms.setdefault(source, [0] * len(heights))
            histograms[source] = [a + b for a, b in zip(known, heights, strict=True)]
    lowest, highest = _range(combined)
    if lowest == highest:
        told.append(f"all scores equal {lowest:.6g}: the classifiers tell nothing about this pool")
    not_scored = sum(r["not_scored"] for r in combined)
    if not_scored:
        told.append(f"{not_scored} documents of the pool have no score, as no classifier is for them; they stay")
    return {
        **facts,
        "expression": task.expression,
        "threshold": task.thresholds.get("") if list(task.thresholds) == [""] else None,
        "thresholds": task.thresholds,
        "pareto_alpha": section.pareto_alpha,
        "histograms": dict(sorted(histograms.items())),
        "not_scored": not_scored,
        "warnings": told,
    }
