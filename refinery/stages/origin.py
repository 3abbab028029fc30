"""Where packed text comes from, for the data set card: sources, funnel, licences, what was done against duplicates."""

from __future__ import annotations

from refinery.contracts.manifest import StageManifest
from refinery.recipe import Recipe
from refinery.shards.card import CardFacts
from refinery.stages.workspace import need_stage


def card_facts(recipe: Recipe) -> CardFacts:
    """Return what the stage manifests before pack and the recipe say about the text.

    Raises:
        ConfigError: a stage before pack has not been run.
    """
    stages = recipe.stages()
    done = {name: need_stage(recipe.workdir, name) for name in stages[: stages.index("pack")]}
    return CardFacts(
        name=recipe.name,
        sources=tuple((i.source, i.domain, i.role, i.license or "") for i in recipe.inputs),
        funnel=tuple((name, *_passed(manifest)) for name, manifest in done.items()),
        licences=done["mix"].facts["licences"],
        dedup=_dedup(recipe),
        decontamination=_decontamination(recipe),
    )


def _passed(manifest: StageManifest) -> tuple[int, int, int]:
    """Return documents in, documents kept, bytes kept."""
    kept = [c for c in manifest.counts if c.kind == "kept"]
    dropped = sum(c.docs for c in manifest.counts if c.kind == "dropped")
    documents = sum(c.docs for c in kept)
    return documents + dropped, documents, sum(c.bytes for c in kept)


def _dedup(recipe: Recipe) -> str:
    said = []
    if recipe.dedup_documents is not None:
        section = recipe.dedup_documents
        said.append(
            f"documents, exact and near (true Jaccard of {section.ngram}-grams of {section.unit} at least "
            f"{section.jaccard:g}, every pair verified)"
        )
    if recipe.dedup_sentences is not None:
        section_ = recipe.dedup_sentences
        said.append(f"sentences that stand in more than {section_.max_copies} documents")
    return "; ".join(said)


def _decontamination(recipe: Recipe) -> str:
    section = recipe.decontaminate
    if section is None:
        return ""
    names = [e if isinstance(e, str) else e.name or ", ".join(e.paths) for e in section.evals]
    shown = ", ".join(name.replace("\\", "/").rpartition("/")[2] for name in names)
    done = {"cut": "matching passages cut out", "drop": "matching documents dropped", "report": "reported only"}
    return f"{section.ngram}-grams of {shown}; {done[section.policy]}"
