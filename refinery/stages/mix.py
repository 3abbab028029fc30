"""mix: token shares, replay and epoch caps under a budget, as a plan; and which documents the plan needs packed.

Shards are pure in stream = (domain, role, language, weight bucket, split), so the ratio is a plan over rows, not a
bake. Of a stream that the plan reads less than once, the documents with the smallest keys are packed; keys are a
function of (seed, doc_key), so a smaller budget's documents are a subset of a larger one's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from refinery.kernels.mixing import copies_of_cluster
from refinery.recipe import Mix, Recipe
from refinery.shards.manifest import StreamKey
from refinery.stages.budget_cut import EVERYTHING, KeyColumns, budget_limits
from refinery.stages.decisions import decisions_table, located
from refinery.stages.mix_plan import plan_streams, supplies_of, upsample_tables
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
ALGORITHM_VERSION = 2
_SHOWN_LICENCES = 30


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
    upsample: dict[str, dict[int, int]] = field(default_factory=dict)
    """Domain -> copies by size of the duplicate cluster; a train document's weight bucket is its copies."""


def stream_name(domain: str, role: str, lang: str | None, split: str, bucket: int = 0) -> str:
    """Return the name of the stream that a document belongs to."""
    return StreamKey(domain=domain, role=role, lang=lang or "und", weight_bucket=bucket, split=split).name


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
    counted = tokens.part_hashes("tokens")
    seen = {part: fingerprint_of(before, counted[part]) for part, before in seen.items()}
    if mix.upsample:
        clusters = need_stage(recipe.workdir, "dedup_documents").content_hash  # a twin elsewhere changes sizes here
        seen = {part: fingerprint_of(before, clusters) for part, before in seen.items()}
    task = MixTask(recipe.workdir, recipe.seed, upto, seen, {}, upsample_tables(mix))
    available = _available(run_, task, tokens.counts)
    planned = plan_streams(mix, supplies_of(available))
    task = replace(task, limits=_limits(run_, task, {e.stream: e.tokens for e in planned.streams}, available))
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
        facts={
            **planned.facts(),
            "upsample": {d: {str(k): v for k, v in table.items()} for d, table in task.upsample.items()},
            "available_tokens": available,
            "packed_tokens": _sums(r["packed_tokens"] for r in results),
            "licences": _licences(r["licences"] for r in results),
        },
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in results)},
    )
    return commit_stage(run_, manifest, started)


def _section(recipe: Recipe) -> Mix:
    if recipe.mix is None:
        raise ConfigError("the recipe has no mix section; say token shares per domain")
    return recipe.mix


def _available(run_: Run, task: MixTask, counts: Sequence[CountRow]) -> dict[str, int]:
    """Return the tokens that came in by stream, validation included; duplicate clusters need a look at documents."""
    if task.upsample:
        results = run_part_tasks(run_.spark, sorted(task.upstream), functools.partial(sizes_part, task), None)
        return _sums(r["tokens"] for r in results)
    sums: dict[str, int] = {}
    for row in counts:
        if row.kind == "kept":
            name = stream_name(row.domain, row.role, row.lang, row.split)
            sums[name] = sums.get(name, 0) + row.tokens
    return dict(sorted(sums.items()))


def sizes_part(task: MixTask, part: int) -> dict[str, Any]:
    """Return the tokens of one part's documents that came in, by stream."""
    names, _, tokens, entered = _part_columns(task, part)
    return {"tokens": _sum_by(names[entered], tokens[entered])}


def _sum_by(names: np.ndarray, amounts: np.ndarray) -> dict[str, int]:
    found, inverse = np.unique(names.astype(str), return_inverse=True)
    sums = np.zeros(len(found), dtype=np.int64)
    np.add.at(sums, inverse, amounts)
    return dict(zip(found.tolist(), sums.tolist(), strict=True))


def _sums(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            sums[name] = sums.get(name, 0) + amount
    return dict(sorted(sums.items()))


def _licences(parts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Return tokens by domain and licence; the rarest beyond `_SHOWN_LICENCES` of a domain are one line."""
    sums: dict[str, dict[str, int]] = {}
    for part in parts:
        for domain, found in part.items():
            mine = sums.setdefault(domain, {})
            for licence, tokens in found.items():
                mine[licence] = mine.get(licence, 0) + tokens
    out = {}
    for domain, found in sorted(sums.items()):
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        out[domain] = dict(ordered[:_SHOWN_LICENCES])
        rest = sum(tokens for _, tokens in ordered[_SHOWN_LICENCES:])
        if rest:
            out[domain][f"{len(ordered) - _SHOWN_LICENCES} others"] = rest
    return out


def _limits(run_: Run, task: MixTask, wanted: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    """Return for each packed stream the largest selection key that goes in; validation streams go in whole."""
    limits = {s: EVERYTHING for s in available if s.endswith("/validation")}
    limits |= {s: EVERYTHING for s, tokens in wanted.items() if tokens >= available[s]}
    cut = {s: wanted[s] for s in sorted(set(wanted) - set(limits)) if wanted[s]}
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
    buckets = _buckets(task, part, documents)
    names = np.array([cached(*label, b) for label, b in zip(labels, buckets.tolist(), strict=True)], dtype=object)
    keys = keyed_uint64(task.seed, NAME, key_prefix_uint64(documents.column("doc_key").to_pylist()))
    if "select" in task.upto:  # importance keys are nested: the budget takes the best of what select left
        chosen = part_files.read_part(task.workdir, "select", "importance", part, ["order_key"]).column("order_key")
        weighed = chosen.is_valid().to_numpy(zero_copy_only=False)
        keys = np.where(weighed, chosen.fill_null(0).to_numpy().view(np.uint64), keys)
    entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
    return names, keys, counts.fill_null(0).to_numpy(), entered


def _buckets(task: MixTask, part: int, documents: pa.Table) -> np.ndarray:
    """Return the weight bucket of each document, int64: its copies in upsampled domains, else 0."""
    buckets = np.zeros(documents.num_rows, dtype=np.int64)
    if not task.upsample:
        return buckets
    sizes = np.ones(documents.num_rows, dtype=np.int64)
    if part in part_files.part_numbers(task.workdir, "dedup_documents", "clusters"):  # else none has a duplicate
        clusters = part_files.read_part(task.workdir, "dedup_documents", "clusters", part, ["doc_id", "size"])
        sizes[clusters.column("doc_id").to_numpy() & 0xFFFFFFFF] = clusters.column("size").to_numpy()
    train = pc.equal(documents.column("split"), "train").to_numpy(zero_copy_only=False)
    for domain, table in task.upsample.items():
        mine = train & pc.equal(documents.column("domain"), domain).to_numpy(zero_copy_only=False)
        buckets[mine] = copies_of_cluster(sizes[mine], table)
    return buckets


def selection_part(task: MixTask, part: int) -> dict[str, Any]:
    """Write one part's streams and decisions."""
    tables = {d: list(table.items()) for d, table in task.upsample.items()}
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, task.seed, task.limits, tables, task.upstream[part])
    selection_path = part_files.part_path(task.workdir, NAME, "selection", part)
    decisions_path = part_files.part_path(task.workdir, NAME, "decisions", part)
    selection = part_files.found_part(selection_path, print_)
    decisions = part_files.found_part(decisions_path, print_)
    if selection is None or decisions is None:
        names, keys, tokens, entered = _part_columns(task, part)
        documents = read_labels(task.workdir, part, ["doc_id", "license", *TALLY_COLUMNS], task.upto)
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
        taken = entered & packed
        result = {
            "counts": tally(documents.select([*LABELS, "num_bytes"]), entered, reason_array, tokens),
            "packed_tokens": _sum_by(names[taken], tokens[taken]),
            "licences": _tokens_by_licence(documents, taken, tokens),
        }
        decisions = part_files.write_part(decisions_path, decided, DECISIONS, print_, result)
    return {**decisions.result, "selection": located(part, selection), "decisions": located(part, decisions)}


def _tokens_by_licence(documents: pa.Table, taken: np.ndarray, tokens: np.ndarray) -> dict[str, dict[str, int]]:
    licences = pc.fill_null(documents.column("license"), "not stated")
    table = pa.table({"domain": documents.column("domain"), "licence": licences, "tokens": tokens})
    found = table.filter(pa.array(taken)).group_by(["domain", "licence"]).aggregate([("tokens", "sum")])
    out: dict[str, dict[str, int]] = {}
    for row in sorted(found.to_pylist(), key=lambda r: (r["domain"], r["licence"])):
        out.setdefault(row["domain"], {})[row["licence"]] = row["tokens_sum"]
    return out
