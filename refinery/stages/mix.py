"""mix: token shares, replay and epoch caps under a budget, as a plan; and which documents the plan needs packed.

Shards are pure in stream = (domain, role, language, weight bucket, split), so the ratio is a plan over rows, not a
bake. Of a stream that the plan reads less than once, the documents with the smallest keys are packed; keys are a
function of (seed, doc_key), so a smaller budget's documents are a subset of a larger one's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import CountRow, StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, SELECTION
from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_labels
from refinery.kernels.mixing import MixRequest, StreamSupply, largest_budget, natural_shares, plan_mix
from refinery.recipe import Mix, Recipe
from refinery.shards.manifest import StreamKey
from refinery.stages.budget_cut import EVERYTHING, KeyColumns, budget_limits
from refinery.stages.decisions import decisions_table, located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.tallies import LABELS, TALLY_COLUMNS, tally
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    need_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)

NAME = "mix"
ALGORITHM_VERSION = 1


@dataclass(frozen=True)
class MixTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    upto: tuple[str, ...]
    upstream: dict[int, str]
    """Part -> hash of its documents, decisions so far and tokens."""
    limits: dict[str, int]
    """Stream -> largest selection key packed; streams that are not named are not packed."""


def stream_name(domain: str, role: str, lang: str | None, split: str) -> str:
    """Return the name of the stream that a document belongs to."""
    return StreamKey(domain=domain, role=role, lang=lang or "und", weight_bucket=0, split=split).name


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Plan the mix and choose the documents that it needs.

    Raises:
        ConfigError: the shares and caps cannot give the budget; the message names the limiting domain and remedies.
    """
    started = time.monotonic()
    recipe = run_.recipe
    mix = _section(recipe)
    tokens = need_stage(recipe.workdir, "tokenize")
    upto, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {**mix.model_dump(mode="json"), "seed": recipe.seed}
    inputs = {m.stage: m.content_hash for m in [*upstream, tokens]}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    ceilings, facts = plan_streams(mix, tokens.counts)
    counted = tokens.part_hashes("tokens")
    seen = {part: fingerprint_of(before, counted[part]) for part, before in seen.items()}
    task = MixTask(recipe.workdir, recipe.seed, upto, seen, {})
    limits = _limits(run_, task, ceilings, tokens.counts)
    task = MixTask(**{**task.__dict__, "limits": limits})
    results = run_part_tasks(run_.spark, sorted(seen), functools.partial(selection_part, task), None)
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, tokens.counts, counts)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=part_entries("selection", results, "selection") + part_entries("decisions", results, "decisions"),
        counts=counts,
        facts=facts,
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def _section(recipe: Recipe) -> Mix:
    if recipe.mix is None:
        raise ConfigError("the recipe has no mix section; say token shares per domain")
    return recipe.mix


def supplies_of(counts: Sequence[CountRow]) -> list[StreamSupply]:
    """Return what each train stream has, from the counts of the tokenize stage."""
    unique: dict[str, list[Any]] = {}
    for row in counts:
        if row.kind == "kept" and row.split == "train":
            name = stream_name(row.domain, row.role, row.lang, row.split)
            unique.setdefault(name, [row.domain, row.role, 0])[2] += row.tokens
    return [
        StreamSupply(stream=name, domain=domain, role=role, unique_tokens=tokens)
        for name, (domain, role, tokens) in sorted(unique.items())
        if tokens
    ]


def plan_streams(mix: Mix, counts: Sequence[CountRow]) -> tuple[dict[str, int], dict[str, Any]]:
    """Plan tokens per stream over all phases.

    Returns: (unique tokens to pack per train stream, facts for the manifest: budget, token shares per phase and
        stream, natural shares, epochs).

    Raises:
        ConfigError: infeasible shares, caps or budget.
    """
    supplies = supplies_of(counts)
    domains = sorted({d for stage in mix.stages for d in stage.domains})
    shares = {d: sum(s.share * s.domains.get(d, 0.0) for s in mix.stages) for d in domains}
    replay = sum(s.share * s.replay for s in mix.stages)
    request = MixRequest(shares=shares, replay=replay, max_epochs=mix.max_epochs)
    budget = largest_budget(supplies, request) if mix.budget_tokens == "auto" else mix.budget_tokens
    planned = plan_mix(supplies, budget, request)
    of_domain: dict[str, int] = {}
    for entry in planned:
        of_domain[entry.domain] = of_domain.get(entry.domain, 0) + entry.tokens
    phases = []
    for stage in mix.stages:
        wanted = {**stage.domains, "replay": stage.replay}
        phases.append(
            {
                "share": stage.share,
                "streams": {
                    e.stream: wanted[e.domain] * e.tokens / of_domain[e.domain]
                    for e in planned
                    if wanted.get(e.domain, 0.0) > 0
                },
            }
        )
    ceilings = {e.stream: min(e.unique_tokens, e.tokens) for e in planned if e.tokens}
    facts = {
        "budget_tokens": budget,
        "phases": phases,
        "natural_shares": natural_shares(supplies),
        "asked_shares": {**shares, "replay": replay},
        "streams": [
            {
                "stream": e.stream,
                "domain": e.domain,
                "tokens": e.tokens,
                "unique_tokens": e.unique_tokens,
                "epochs": e.epochs,
            }
            for e in planned
        ],
    }
    return ceilings, facts


def _limits(run_: Run, task: MixTask, ceilings: Mapping[str, int], counts: Sequence[CountRow]) -> dict[str, int]:
    """Return for each packed stream the largest selection key that goes in; validation streams go in whole."""
    limits = dict.fromkeys(
        {
            stream_name(c.domain, c.role, c.lang, c.split)
            for c in counts
            if c.kind == "kept" and c.split == "validation"
        },
        EVERYTHING,
    )
    available = {s.stream: s.unique_tokens for s in supplies_of(counts)}
    limits |= {s: EVERYTHING for s, ceiling in ceilings.items() if ceiling >= available[s]}
    cut = {s: ceilings[s] for s in sorted(set(ceilings) - set(limits))}
    return limits | budget_limits(run_.spark, sorted(task.upstream), functools.partial(key_columns, task), cut)


def key_columns(task: MixTask, part: int) -> KeyColumns:
    """Return stream, selection key and tokens of the documents of one part that came in."""
    names, keys, tokens, entered = _part_columns(task, part)
    return KeyColumns(names[entered], keys[entered], tokens[entered])


def _part_columns(task: MixTask, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return stream names, selection keys, token counts and who entered, one entry per row of the part."""
    columns = ["doc_key", "domain", "role", "lang", "split"]
    documents = read_labels(task.workdir, part, columns, task.upto)
    counts = part_files.read_part(task.workdir, "tokenize", "tokens", part, ["num_tokens"]).column("num_tokens")
    labels = zip(*(documents.column(c).to_pylist() for c in columns[1:]), strict=True)
    cached = functools.cache(stream_name)
    names = np.array([cached(*label) for label in labels], dtype=object)
    keys = keyed_uint64(task.seed, NAME, key_prefix_uint64(documents.column("doc_key").to_pylist()))
    if "select" in task.upto:  # importance keys are nested: the budget takes the best of what select left
        chosen = part_files.read_part(task.workdir, "select", "importance", part, ["order_key"]).column("order_key")
        weighed = chosen.is_valid().to_numpy(zero_copy_only=False)
        keys = np.where(weighed, chosen.fill_null(0).to_numpy().view(np.uint64), keys)
    entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
    return names, keys, counts.fill_null(0).to_numpy(), entered


def selection_part(task: MixTask, part: int) -> dict[str, Any]:
    """Write one part's streams and decisions."""
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, task.seed, task.limits, task.upstream[part])
    selection_path = part_files.part_path(task.workdir, NAME, "selection", part)
    decisions_path = part_files.part_path(task.workdir, NAME, "decisions", part)
    selection = part_files.found_part(selection_path, print_)
    decisions = part_files.found_part(decisions_path, print_)
    if selection is None or decisions is None:
        names, keys, tokens, entered = _part_columns(task, part)
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        highest = np.array([task.limits.get(name, -1) for name in names.tolist()], dtype=object)
        packed = np.array([int(k) <= h for k, h in zip(keys.tolist(), highest, strict=True)], dtype=bool)
        unwanted = pa.array(highest < 0)
        reason_array = pc.if_else(
            pa.array(packed), pa.scalar(None, pa.string()), pc.if_else(unwanted, "mix.no_share", "mix.over_ceiling")
        )
        chosen = pc.if_else(pa.array(entered & packed), pa.array(names, pa.string()), pa.scalar(None, pa.string()))
        table = pa.table({"doc_id": documents.column("doc_id"), "stream": chosen})
        selection = part_files.write_part(selection_path, table, SELECTION, print_)
        decided = decisions_table(documents.column("doc_id"), entered, reason_array, NAME)
        result = {"counts": tally(documents.select([*LABELS, "num_bytes"]), entered, reason_array, tokens)}
        decisions = part_files.write_part(decisions_path, decided, DECISIONS, print_, result)
    return {**decisions.result, "selection": located(part, selection), "decisions": located(part, decisions)}
