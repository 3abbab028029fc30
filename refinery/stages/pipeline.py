"""The stages by name, in order, and how a run takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from refinery.contracts.manifest import StageManifest
from refinery.errors import ConfigError
from refinery.io import storage
from refinery.io.blocklists import read_blocklist
from refinery.recipe import STAGE_ORDER, Recipe
from refinery.stages import (
    decontaminate,
    dedup_documents,
    dedup_sentences,
    ingest,
    mix,
    pack,
    quality,
    rules,
    screen,
    select,
    tokenize,
    train,
)
from refinery.stages.quality_judging import check_combine
from refinery.stages.workspace import Run, forget_stage, hold_lock, load_stage

StageFunction = Callable[..., StageManifest]

STAGES: dict[str, StageFunction] = {
    "ingest": ingest.run,
    "screen": screen.run,
    "rules": rules.run,
    "quality": quality.run,
    "select": select.run,
    "dedup_documents": dedup_documents.run,
    "dedup_sentences": dedup_sentences.run,
    "decontaminate": decontaminate.run,
    "tokenize": tokenize.run,
    "mix": mix.run,
    "pack": pack.run,
    "train": train.run,
}


def run_stage(run_: Run, name: str, *, force: bool = False) -> StageManifest:
    """Run one stage of a recipe.

    Raises:
        ConfigError: the recipe does not have the stage, or an earlier one has not been run.
    """
    if name not in run_.recipe.stages() or name not in STAGES:
        raise ConfigError(f"recipe {run_.recipe.name} has no stage {name}; it has {', '.join(run_.recipe.stages())}")
    if name == "train":
        run_.stop_session()  # the trainer gets the memory
    if force and name != "train":  # the trainer sets an earlier model aside itself
        forget_stage(run_.workdir, name)
    return STAGES[name](run_, force=force)


def selected_stages(recipe: Recipe, first: str | None, last: str | None) -> list[str]:
    """Return the data and training stages of a recipe between two names, both included.

    Raises:
        ConfigError: a name that the recipe does not have.
    """
    stages = [s for s in recipe.stages() if s in STAGES]
    for name in (first, last):
        if name is not None and name not in stages:
            raise ConfigError(f"recipe {recipe.name} has no stage {name}; it has {', '.join(stages)}")
    start = stages.index(first) if first else 0
    end = stages.index(last) + 1 if last else len(stages)
    if start >= end:
        raise ConfigError(f"--from {first} comes after --to {last}; the order is {', '.join(stages)}")
    return stages[start:end]


def run_recipe(
    run_: Run,
    *,
    stages: Sequence[str] | None = None,
    force: Sequence[str] = (),
    told: Callable[[str, StageManifest, float, bool], None] | None = None,
) -> dict[str, StageManifest]:
    """Run stages in one Spark session; what is up to date is left alone.

    Args:
        run_: recipe and session.
        stages: which; all by default.
        force: stages to redo although they are up to date.
        told: called after each stage with its name, manifest, seconds and whether it was already up to date.
    """
    names = list(stages) if stages is not None else selected_stages(run_.recipe, None, None)
    unknown = sorted(set(force) - set(STAGE_ORDER))
    if unknown:
        raise ConfigError(f"--force names unknown stages {unknown}; known: {', '.join(STAGES)}")
    check_recipe(run_.recipe, names)
    done: dict[str, StageManifest] = {}
    with hold_lock(run_.workdir):
        path = storage.join(run_.workdir, "recipe.json")
        storage.write_atomic(path, run_.recipe.canonical().encode())
        try:
            for name in names:
                before = load_stage(run_.workdir, name) if name not in force else None
                started = time.monotonic()
                done[name] = run_stage(run_, name, force=name in force)
                fresh = before is not None and before.volatile == done[name].volatile
                if told:
                    told(name, done[name], time.monotonic() - started, fresh)
        finally:
            run_.stop_session()
    return done


def check_recipe(recipe: Recipe, stages: Sequence[str]) -> None:
    """Check before any work what a stage would only find at its start, perhaps hours later.

    Raises:
        ConfigError: an unknown preset or signal, no dictionary, a missing tokenizer, tokenizer recipe, classifier or
            host list; a workdir on an object store for stages that need a mounted folder.
    """
    mounted = [name for name in ("quality", "tokenize", "pack", "train") if name in stages]
    if mounted and not storage.is_local(recipe.workdir):
        raise ConfigError(
            f"{', '.join(mounted)} need a workdir on a mounted folder, not {recipe.workdir}: models, vocabularies and "
            "shards are read in place; mount the store, or run the stages before them there"
        )
    if "rules" in stages:
        rules.recipe_rules(recipe)
        rules.segmentation_identity(recipe)
    if "screen" in stages and recipe.screen:
        read_blocklist(recipe.screen.blocked_hosts, recipe.screen.blocked_url_words)
    if "tokenize" in stages:
        tokenize.check_origin(recipe)
    if "quality" in stages and recipe.quality:
        check_combine(recipe.quality)
        gone = [c.model for c in recipe.quality.each() if c.model and not storage.exists(c.model)]
        if gone:
            raise ConfigError(f"quality: model {gone[0]} does not exist")


def stage_status(recipe: Recipe) -> list[dict[str, Any]]:
    """Return for each stage of a recipe whether it is complete, and its totals."""
    rows: list[dict[str, Any]] = []
    for name in recipe.stages():
        if name not in STAGES:
            continue
        manifest = load_stage(recipe.workdir, name)
        row: dict[str, Any] = {"stage": name, "complete": manifest is not None}
        if manifest is not None:
            kept = [c for c in manifest.counts if c.kind == "kept"]
            row |= {
                "docs_kept": sum(c.docs for c in kept),
                "docs_dropped": sum(c.docs for c in manifest.counts if c.kind == "dropped"),
                "bytes_kept": sum(c.bytes for c in kept),
                "tokens_kept": sum(c.tokens for c in kept),
                "seconds": manifest.volatile.get("seconds"),
                "content_hash": manifest.content_hash,
            }
        rows.append(row)
    return rows
