"""select: importance resampling (DSIR, 2302.03169) of pool documents towards one or several target domains.

Hashed word uni- and bigram bags of target and pool give a log importance weight per document; Gumbel noise from
(seed, text_hash) turns weights into keys; the largest keys stay. Keys are nested: a smaller budget's picks are a
subset of a larger one's, so `mix` can take its exact budget from them after dedup. With several targets each document
belongs to the one that it most likely came from, and the keys are put on one scale, so that every budget holds the
targets in their shares.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refinery.contracts.manifest import CountRow, StageManifest, merge_counts
from refinery.errors import ConfigError
from refinery.kernels.dsir import fit_log_ratio
from refinery.recipe import Recipe, Select
from refinery.stages.budget_cut import budget_limits
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.select_diagnostics import (
    check_budget,
    check_languages,
    choice_facts,
    placed_knots,
    quality_overlap,
    strongest_ngrams,
    weight_facts,
)
from refinery.stages.select_weights import (
    GROUP,
    MAX_SAMPLED,
    STAGE,
    SelectTask,
    balance_part,
    count_part,
    decide_part,
    order_columns,
    sum_counts,
    weigh_part,
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
ESTIMATED_BYTES_PER_TOKEN = 4.0
"""Before the tokenizer exists: English 4.0-4.7, Chinese 4-5 with a vocabulary that knows it."""


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Weigh the pool against the targets and keep the best keys.

    Raises:
        ConfigError: no cut can be computed. DataError: target or pool have no words, the pool lacks a target's
            languages, or has less than is wanted.
    """
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.select
    if section is None:
        raise ConfigError("the recipe has no select section; `select: {target: DOMAIN, keep_frac: 0.3}` is enough")
    upto, upstream, seen = upstream_of(run_, NAME)
    budget = _budget(recipe, section, upstream[-1].counts)
    recipe_slice = {**section.model_dump(mode="json"), "seed": recipe.seed, "budget": budget}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    settings, shares = section.model_dump(mode="json"), section.target_shares()
    task = SelectTask(recipe.workdir, recipe.seed, settings, upto, run_.slice_rows, seen, shares)
    warnings = check_languages(task, upstream[-1].counts)
    task, counts, tables = _weigh(run_, task, upstream[-1].counts)
    weighed = tables[task.final_table]
    warnings += check_budget(task, weighed, budget, recipe.mix)
    parts = sorted(seen)
    limits = budget_limits(run_.spark, parts, functools.partial(order_columns, task), {GROUP: budget})
    task = SelectTask(**{**task.__dict__, "limit": limits[GROUP]})
    tables["decisions"] = run_part_tasks(run_.spark, parts, functools.partial(decide_part, task))
    decided = merge_counts(r["counts"] for r in tables["decisions"])
    check_conservation(NAME, upstream[-1].counts, decided)
    facts = _facts(run_, task, tables, counts, warnings)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[entry for name, results in tables.items() if name != "counted" for entry in _entries(name, results)],
        counts=decided,
        facts={**facts, "budget_docs" if section.keep_docs is not None else "budget_bytes": budget},
        volatile={"part_seconds": sum(r["cpu_seconds"] for results in tables.values() for r in results)},
    )
    return commit_stage(run_, manifest, started)


def _entries(name: str, results: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    return part_entries(name, results, name)


def _weigh(
    run_: Run, task: SelectTask, before: Sequence[CountRow]
) -> tuple[SelectTask, dict[str, np.ndarray], dict[str, list[dict[str, Any]]]]:
    """Fit the ratio and write weights and final keys; return the task with both, the counts, results by table."""
    parts, section = sorted(task.upstream), task.settings
    counted = run_part_tasks(run_.spark, parts, functools.partial(count_part, task), run_.report_progress(NAME))
    counts = {name: sum_counts(counted, name) for name in [*(f"target:{t}" for t in task.targets), "raw"]}
    pseudo = section["target_pseudo_count"]
    ratios = np.stack([fit_log_ratio(counts[f"target:{name}"], counts["raw"], pseudo) for name in task.targets])
    docs = sum(c.docs for c in before if c.kind == "kept" and c.role == "pool")
    rate = min(1.0, MAX_SAMPLED / max(1, docs))
    task = SelectTask(**{**task.__dict__, "log_ratios": ratios.tobytes(), "sample_rate": rate})
    weighed = run_part_tasks(run_.spark, parts, functools.partial(weigh_part, task), run_.report_progress(NAME))
    tables = {"counted": counted, task.final_table: weighed}
    if len(task.targets) > 1:
        task = SelectTask(**{**task.__dict__, "knots": placed_knots(task, weighed)})
        tables["importance"] = run_part_tasks(run_.spark, parts, functools.partial(balance_part, task))
    return task, counts, tables


def _facts(
    run_: Run,
    task: SelectTask,
    tables: Mapping[str, list[dict[str, Any]]],
    counts: Mapping[str, np.ndarray],
    warnings: Sequence[str],
) -> dict[str, Any]:
    selected = sum_counts(tables["decisions"], "selected")
    of_choice = choice_facts(task, tables["decisions"], counts, selected)
    of_weights = weight_facts(task, tables[task.final_table], counts)
    for name, row in of_choice["targets"].items():
        row["target_docs"] = sum(r["docs"][name] for r in tables["counted"])
        row["target_ngrams"] = int(counts[f"target:{name}"].sum())
    overlap = quality_overlap(run_, task)
    return {
        **of_choice,
        **of_weights,
        "short_docs": sum(r["short"] for r in tables[task.final_table]),
        "strongest_ngrams": strongest_ngrams(run_, task, counts),
        **({"quality_overlap": overlap} if overlap is not None else {}),
        "warnings": [*warnings, *of_choice["warnings"], *of_weights["warnings"]],
    }


def _budget(recipe: Recipe, section: Select, counts: Sequence[CountRow]) -> int:
    """Return how much pool text to keep: documents, the share of bytes asked for, or an over-sample of mix's need."""
    if section.keep_docs is not None:
        return section.keep_docs
    pool = sum(
        c.bytes
        for c in counts
        if c.kind == "kept" and c.role == "pool" and c.split == "train" and c.domain not in section.exempt_domains
    )
    if section.keep_frac is not None:
        return int(section.keep_frac * pool)
    if recipe.mix is None or recipe.mix.budget_tokens == "auto":
        raise ConfigError("select needs keep_frac, or a mix with budget_tokens as a number to work out what is needed")
    if any(s.domain_heavy for s in recipe.mix.stages):
        raise ConfigError("mix.domain_heavy is known after dedup only: give select.keep_frac")
    domains = {i.domain for i in recipe.inputs if i.role == "pool"} - set(section.exempt_domains)
    share = sum(s.share * v for s in recipe.mix.stages for d, v in s.domains.items() if d in domains)
    return int(recipe.mix.budget_tokens * share * section.oversample * ESTIMATED_BYTES_PER_TOKEN)
