"""select: importance resampling (DSIR, 2302.03169) of pool documents towards a target domain.

Hashed word uni- and bigram bags of target and pool give a log importance weight per document; Gumbel noise from
(seed, text_hash) turns weights into keys; the largest keys stay. Keys are nested: a smaller budget's picks are a
subset of a larger one's, so `mix` can take its exact budget from them after dedup.
"""

from __future__ import annotations

import base64
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import CountRow, StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, IMPORTANCE
from refinery.errors import ConfigError, DataError
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels import ngrams
from refinery.kernels.dsir import diagnose, fit_log_ratio, gumbel_keys, kl_reduction, round_weights
from refinery.kernels.shingles import table_digest
from refinery.kernels.text import text_views
from refinery.recipe import Recipe, Select
from refinery.stages.budget_cut import KeyColumns, budget_limits
from refinery.stages.decisions import decisions_table, located, reasons_where
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

NAME = "select"
ALGORITHM_VERSION = 1
ESTIMATED_BYTES_PER_TOKEN = 4.0
"""Before the tokenizer exists: English 4.0-4.7, Chinese 4-5 with a vocabulary that knows it."""
_GROUP = "pool"


@dataclass(frozen=True)
class SelectTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    log_ratio: bytes = b""
    """float64 table, shape (buckets,)."""
    limit: int = -1
    """Largest order key that stays."""


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Weigh the pool against the target and keep the best keys.

    Raises:
        ConfigError: no cut can be computed. DataError: target or pool have no words.
    """
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.select
    if section is None:
        raise ConfigError("the recipe has no select section; `select: {target: DOMAIN, keep_frac: 0.3}` is enough")
    upto, upstream, seen = upstream_of(run_, NAME)
    budget = _pool_bytes_wanted(recipe, section, upstream[-1].counts)
    recipe_slice = {**section.model_dump(mode="json"), "seed": recipe.seed, "budget_bytes": budget}
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    parts = sorted(seen)
    task = SelectTask(recipe.workdir, recipe.seed, section.model_dump(mode="json"), upto, run_.slice_rows, seen)
    counted = run_part_tasks(run_.spark, parts, functools.partial(count_part, task), run_.report_progress(NAME))
    target, raw = _sum_counts(counted, "target"), _sum_counts(counted, "raw")
    task = SelectTask(**{**task.__dict__, "log_ratio": fit_log_ratio(target, raw).tobytes()})
    weighed = run_part_tasks(run_.spark, parts, functools.partial(weigh_part, task), run_.report_progress(NAME))
    limits = budget_limits(run_.spark, parts, functools.partial(order_columns, task), {_GROUP: budget})
    task = SelectTask(**{**task.__dict__, "limit": limits[_GROUP]})
    decided = run_part_tasks(run_.spark, parts, functools.partial(decide_part, task))
    counts = merge_counts(r["counts"] for r in decided)
    check_conservation(NAME, upstream[-1].counts, counts)
    facts = _facts(task, target, raw, _sum_counts(decided, "selected"))
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=part_entries("importance", weighed, "importance") + part_entries("decisions", decided, "decisions"),
        counts=counts,
        facts={**facts, "budget_bytes": budget},
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in counted + weighed + decided)},
    )
    return commit_stage(run_, manifest, started)


def _pool_bytes_wanted(recipe: Recipe, section: Select, counts: Sequence[CountRow]) -> int:
    """Return how many bytes of pool text to keep: the share asked for, or an over-sample of what mix reads."""
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


def count_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Count the n-grams of one part's target and pool documents."""
    size = task.settings["num_buckets"]
    sums = {"target": np.zeros(size, np.int64), "raw": np.zeros(size, np.int64)}
    for piece in read_survivors(task.workdir, part, ["role", "domain", "split", "text"], task.upto, task.slice_rows):
        table = piece.table.filter(pc.equal(piece.table.column("split"), "train"))
        target = pc.and_(
            pc.equal(table.column("role"), "target"), pc.equal(table.column("domain"), task.settings["target"])
        )
        for name, mask in (("target", target), ("raw", pc.equal(table.column("role"), "pool"))):
            sums[name] += ngrams.bucket_counts(text_views(table.column("text").filter(mask)), size)
    return {name: base64.b64encode(counts.tobytes()).decode() for name, counts in sums.items()}


def _sum_counts(results: list[dict[str, Any]], name: str) -> np.ndarray:
    arrays = [np.frombuffer(base64.b64decode(r[name]), dtype=np.int64) for r in results]
    return np.sum(arrays, axis=0)


def order_keys(keys: np.ndarray) -> np.ndarray:
    """Map float64 selection keys to uint64 that sort the other way round: the largest key becomes the smallest."""
    bits = (keys + 0.0).view(np.uint64)  # + 0.0 turns -0.0 into 0.0
    negative = (bits >> np.uint64(63)).astype(bool)
    ascending = np.where(negative, ~bits, bits | np.uint64(1 << 63))
    return ~ascending


def weigh_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Write log importance weights and order keys of one part's pool documents."""
    path = part_files.part_path(task.workdir, NAME, "importance", part)
    identity = [ngrams.FORMAT_VERSION, table_digest("words"), task.seed, task.settings["temperature"]]
    print_ = fingerprint_of("importance", ALGORITHM_VERSION, identity, task.log_ratio.hex(), task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        ids = part_files.read_part(task.workdir, "ingest", "documents", part, ["doc_id"]).column("doc_id")
        weights = np.full(len(ids), np.nan)
        orders = np.zeros(len(ids), dtype=np.uint64)
        table = np.frombuffer(task.log_ratio)
        for piece in read_survivors(task.workdir, part, ["role", "text_hash", "text"], task.upto, task.slice_rows):
            pool = pc.equal(piece.table.column("role"), "pool")
            rows = piece.rows[pool.to_numpy(zero_copy_only=False)]
            mine = piece.table.filter(pool)
            weights[rows] = round_weights(ngrams.weight_sums(text_views(mine.column("text")), table).sums)
            hashes = key_prefix_uint64(mine.column("text_hash").to_pylist())
            orders[rows] = order_keys(gumbel_keys(weights[rows], task.seed, hashes, task.settings["temperature"]))
        empty = np.isnan(weights)
        columns = {"doc_id": ids, "log_weight": pa.array(weights, mask=empty)}
        columns["order_key"] = pa.array(orders.view(np.int64), mask=empty)
        found = part_files.write_part(path, pa.table(columns), IMPORTANCE, print_)
    return {"importance": located(part, found)}


def order_columns(task: SelectTask, part: int) -> KeyColumns:
    """Return order keys and bytes of one part's pool documents of the train split."""
    documents = read_labels(task.workdir, part, ["split", "domain", "num_bytes"], task.upto)
    orders = part_files.read_part(task.workdir, NAME, "importance", part, ["order_key"]).column("order_key")
    train = pc.equal(documents.column("split"), "train").to_numpy(zero_copy_only=False)
    mine = orders.is_valid().to_numpy(zero_copy_only=False) & train & ~_exempt(task, documents)
    keys = orders.fill_null(0).to_numpy().view(np.uint64)[mine]
    return KeyColumns(np.full(len(keys), _GROUP, dtype=object), keys, documents.column("num_bytes").to_numpy()[mine])


def _exempt(task: SelectTask, documents: pa.Table) -> np.ndarray:
    domains = pa.array(task.settings["exempt_domains"], pa.string())
    return pc.is_in(documents.column("domain"), domains).to_numpy(zero_copy_only=False)


def decide_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Write one part's decisions, and count the n-grams of what stays of the pool."""
    path = part_files.part_path(task.workdir, NAME, "decisions", part)
    print_ = fingerprint_of(
        NAME, ALGORITHM_VERSION, task.limit, task.settings, task.log_ratio.hex(), task.upstream[part]
    )
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        orders = part_files.read_part(task.workdir, NAME, "importance", part, ["order_key"]).column("order_key")
        weighed = orders.is_valid().to_numpy(zero_copy_only=False)
        over = weighed & (orders.fill_null(0).to_numpy().view(np.uint64) > np.uint64(task.limit))
        over &= ~_exempt(task, documents)
        reasons = reasons_where(over, f"{NAME}.low_importance")
        table = decisions_table(documents.column("doc_id"), entered, reasons, NAME)
        result = {"counts": tally(documents, entered, reasons), "selected": _count_rows(task, part, weighed & ~over)}
        found = part_files.write_part(path, table, DECISIONS, print_, result)
    return {**found.result, "decisions": located(part, found)}


def _count_rows(task: SelectTask, part: int, chosen: np.ndarray) -> str:
    counts = np.zeros(task.settings["num_buckets"], dtype=np.int64)
    for piece in read_survivors(task.workdir, part, ["text"], task.upto, task.slice_rows):
        texts = piece.table.column("text").filter(pa.array(chosen[piece.rows]))
        counts += ngrams.bucket_counts(text_views(texts), len(counts))
    return base64.b64encode(counts.tobytes()).decode()


def _facts(task: SelectTask, target: np.ndarray, raw: np.ndarray, selected: np.ndarray) -> dict[str, Any]:
    if not selected.sum():
        raise DataError("select kept no pool document; raise keep_frac or the mix's budget")
    columns = [
        part_files.read_part(task.workdir, NAME, "importance", p, ["log_weight"]).column("log_weight").drop_null()
        for p in sorted(task.upstream)
    ]
    weights = np.concatenate([c.to_numpy() for c in columns])
    found = diagnose(weights, int(target.sum()), len(target))._asdict()
    found["log_weight_quantiles"] = {str(k): v for k, v in found["log_weight_quantiles"].items()}
    return {"kl_reduction": kl_reduction(target, raw, selected), **found}
