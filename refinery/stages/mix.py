"""mix: token shares, replay and epoch caps under a budget, as a plan; and which documents the plan needs packed.

Shards are pure in stream = (domain, role, language, weight bucket, split), so the ratio is a plan over rows, not a
bake. Of a stream that the plan reads less than once, the documents with the smallest keys are packed; keys are a
function of (seed, doc_key), so a smaller budget's documents are a subset of a larger one's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import CountRow, StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, SELECTION
from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_labels
from refinery.kernels.mixing import MixRequest, StreamSupply, largest_budget, natural_shares, plan_mix
from refinery.recipe import Mix, Recipe
from refinery.shards.manifest import StreamKey
from refinery.stages.decisions import decisions_table, located
from refinery.stages.part_tasks import map_parts, run_part_tasks
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
_BUCKET_BITS = 16
_HISTOGRAM = pa.schema([("stream", pa.string()), ("bucket", pa.int64()), ("tokens", pa.int64())])


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
    everything = 2**64 - 1
    limits = dict.fromkeys(
        {
            stream_name(c.domain, c.role, c.lang, c.split)
            for c in counts
            if c.kind == "kept" and c.split == "validation"
        },
        everything,
    )
    available = {s.stream: s.unique_tokens for s in supplies_of(counts)}
    limits |= {s: everything for s, ceiling in ceilings.items() if ceiling >= available[s]}
    cut = sorted(set(ceilings) - set(limits))
    if cut:
        limits |= _cut_limits(run_, task, {s: ceilings[s] for s in cut})
    return limits


def _cut_limits(run_: Run, task: MixTask, ceilings: dict[str, int]) -> dict[str, int]:
    """Find the keys at which streams reach their ceilings: a histogram first, then one bucket exactly."""
    parts = sorted(task.upstream)
    histogram = map_parts(run_.spark, parts, functools.partial(key_histogram, task, tuple(ceilings), None), _HISTOGRAM)
    sums: dict[str, dict[int, int]] = {s: {} for s in ceilings}
    for row in histogram.groupBy("stream", "bucket").sum("tokens").collect():
        sums[row["stream"]][row["bucket"]] = row["sum(tokens)"]
    boundary: dict[str, tuple[int, int]] = {}
    for stream, ceiling in ceilings.items():
        below = 0
        for bucket in sorted(sums[stream]):
            if below + sums[stream][bucket] >= ceiling:
                boundary[stream] = (bucket, ceiling - below)
                break
            below += sums[stream][bucket]
    wanted = {stream: bucket for stream, (bucket, _) in boundary.items()}
    exact = map_parts(run_.spark, parts, functools.partial(key_histogram, task, tuple(wanted), wanted), _HISTOGRAM)
    rows: dict[str, list[tuple[int, int]]] = {s: [] for s in wanted}
    for row in exact.collect():
        rows[row["stream"]].append((row["bucket"] % 2**64, row["tokens"]))
    limits = {}
    for stream, (_, needed) in boundary.items():
        keys, tokens = zip(*sorted(rows[stream]), strict=True)
        limits[stream] = keys[int(np.searchsorted(np.cumsum(tokens), needed))]
    return limits


def key_histogram(
    task: MixTask, streams: tuple[str, ...], only: Mapping[str, int] | None, part: int
) -> Iterator[pa.RecordBatch]:
    """Yield tokens per (stream, key bucket) of one part; with `only`, one row per document of those buckets."""
    names, keys, tokens, entered = _part_columns(task, part)
    buckets = keys >> np.uint64(64 - _BUCKET_BITS)
    for stream in streams:
        mine = entered & (names == stream)
        if only is None:
            sums = np.bincount(buckets[mine].astype(np.int64), weights=tokens[mine].astype(np.float64))
            at = np.flatnonzero(sums)
            values, weights = at.astype(np.int64), sums[at].astype(np.int64)
        else:
            mine &= buckets == np.uint64(only[stream])
            values, weights = keys[mine].view(np.int64), tokens[mine]
        arrays = [pa.array([stream] * len(values), pa.string()), pa.array(values), pa.array(weights)]
        yield pa.RecordBatch.from_arrays(arrays, schema=_HISTOGRAM)


def _part_columns(task: MixTask, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return stream names, selection keys, token counts and who entered, one entry per row of the part."""
    columns = ["doc_key", "domain", "role", "lang", "split"]
    documents = read_labels(task.workdir, part, columns, task.upto)
    counts = part_files.read_part(task.workdir, "tokenize", "tokens", part, ["num_tokens"]).column("num_tokens")
    labels = zip(*(documents.column(c).to_pylist() for c in columns[1:]), strict=True)
    cached = functools.cache(stream_name)
    names = np.array([cached(*label) for label in labels], dtype=object)
    keys = keyed_uint64(task.seed, NAME, key_prefix_uint64(documents.column("doc_key").to_pylist()))
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
        highest = np.array([task.limits.get(name, -1) for name in names], dtype=object)
        packed = np.array([int(k) <= h for k, h in zip(keys.tolist(), highest, strict=True)], dtype=bool)
        reasons = np.where(packed, None, np.where(highest < 0, "mix.no_share", "mix.over_ceiling"))
        reason_array = pa.array(reasons, pa.string())
        chosen = pa.array(np.where(entered & packed, names, None), pa.string())
        table = pa.table({"doc_id": documents.column("doc_id"), "stream": chosen})
        selection = part_files.write_part(selection_path, table, SELECTION, print_)
        decided = decisions_table(documents.column("doc_id"), entered, reason_array, NAME)
        result = {"counts": tally(documents.select([*LABELS, "num_bytes"]), entered, reason_array, tokens)}
        decisions = part_files.write_part(decisions_path, decided, DECISIONS, print_, result)
    return {**decisions.result, "selection": located(part, selection), "decisions": located(part, decisions)}
