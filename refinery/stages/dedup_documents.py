"""dedup_documents: exact and near duplicates, every removal over a verified pair.

1. Part tasks write narrow tables: an exact key and LSH band keys per surviving document.
2. Spark groups equal exact keys; one document per group goes on.
3. Spark sorts band keys; a streaming kernel turns buckets into candidate pairs.
4. Part tasks read the candidates' text once and write their shingle sets; Spark joins pairs with sets, and a kernel
   computes the true Jaccard. Pairs under the bound are forgotten: precision is 100 % by construction.
5. Components of verified edges name clusters; inside one, in keep order, a document is removed only over a verified
   edge to a kept one. A train document in a cluster with a validation document is always dropped.
6. Part tasks write aligned decisions.

Text is read twice in all and never shuffled.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import BANDS, CLUSTERS, DECISIONS, EDGES, EXACT_KEYS
from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64, stage_seed
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels.lsh import band_keys
from refinery.kernels.minhash import MinHashConfig, signatures_of_text
from refinery.kernels.shingles import words_hash
from refinery.kernels.text import TextViews, text_views
from refinery.stages import dedup_pairs
from refinery.stages.decisions import decisions_table, located
from refinery.stages.dedup_clusters import Clusters, resolve_clusters, resolve_exact
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

NAME = "dedup_documents"
ALGORITHM_VERSION = 2


@dataclass(frozen=True)
class DedupTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    """Part -> hash of its documents and of the decisions before this stage."""

    @property
    def num_bands(self) -> int:
        """Bands of the LSH index."""
        return int(self.settings["bands"].split("x")[0])

    @property
    def num_hashes(self) -> int:
        """Length of a signature."""
        bands, rows = self.settings["bands"].split("x")
        return int(bands) * int(rows)


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Find, verify and resolve duplicates of the documents that earlier stages kept."""
    started = time.monotonic()
    recipe = run_.recipe
    settings = recipe.dedup_documents
    if settings is None:
        raise ConfigError("the recipe has no dedup_documents section; add one or leave the stage out")
    upto, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {
        **settings.model_dump(mode="json"),
        "seed": recipe.seed,
        "sources": [i.source for i in recipe.inputs],
    }
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    task = DedupTask(recipe.workdir, recipe.seed, recipe_slice, upto, run_.slice_rows, seen)
    parts = sorted(seen)
    keyed = run_part_tasks(run_.spark, parts, functools.partial(keys_part, task), run_.report_progress(NAME))
    clusters = _find_clusters(run_, task, parts, fingerprint)
    _write_clusters(task, clusters, fingerprint)
    decided = run_part_tasks(
        run_.spark, parts, functools.partial(decisions_part, task, fingerprint, clusters.part_hashes())
    )
    counts = merge_counts(r["counts"] for r in decided)
    check_conservation(NAME, upstream[-1].counts, counts)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=part_entries("decisions", decided, "decisions"),
        counts=counts,
        facts=clusters.facts(),
        volatile={
            "part_seconds": sum(r["cpu_seconds"] for r in keyed + decided),
            "num_candidate_pairs": clusters.num_pairs,
        },
    )
    return commit_stage(run_, manifest, started)


def keys_part(task: DedupTask, part: int) -> dict[str, Any]:
    """Write the exact keys and band keys of one part's surviving documents."""
    key_settings = {k: task.settings[k] for k in ("ngram", "unit", "bands", "seed", "sources")}
    print_ = fingerprint_of("keys", ALGORITHM_VERSION, key_settings, task.upstream[part])
    exact_path = part_files.part_path(task.workdir, NAME, "exact_keys", part)
    bands_path = part_files.part_path(task.workdir, NAME, "bands", part)
    if part_files.found_part(exact_path, print_) and part_files.found_part(bands_path, print_):
        return {"skipped": True}
    exact, bands = [EXACT_KEYS.empty_table()], [BANDS.empty_table()]
    quality = None
    if "quality" in task.upto:
        quality = part_files.read_part(task.workdir, "quality", "quality", part, ["score"]).column("score")
    columns = ["doc_id", "doc_key", "text", "text_hash", "role", "split", "source", "date", "num_bytes"]
    for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
        scores = quality.take(pa.array(piece.rows)) if quality is not None else pa.nulls(len(piece.rows), pa.float32())
        exact_rows, band_rows = _keys_of(task, piece.table.append_column("quality", scores))
        exact.append(exact_rows)
        bands.append(band_rows)
    part_files.write_part(exact_path, pa.concat_tables(exact), EXACT_KEYS, print_)
    part_files.write_part(bands_path, pa.concat_tables(bands), BANDS, print_)
    return {"skipped": False}


def _keys_of(task: DedupTask, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    views = text_views(table.column("text"))
    config = MinHashConfig(
        num_hashes=task.num_hashes,
        shingle_size=task.settings["ngram"],
        unit=task.settings["unit"],
        seed=stage_seed(task.seed, "minhash"),
    )
    signed = signatures_of_text(views, config)
    doc_ids = table.column("doc_id").to_numpy()
    ties = key_prefix_uint64(table.column("doc_key").to_pylist()).view(np.int64)
    valid = signed.num_shingles > 0
    keys = band_keys(signed.values[valid], task.num_bands).view(np.int64)
    bands = pa.table(
        {
            "key": keys.ravel(),
            "doc_id": np.repeat(doc_ids[valid], task.num_bands),
            "tie": np.repeat(ties[valid], task.num_bands),
        }
    ).cast(BANDS)
    exact = pa.table(
        {
            "doc_id": doc_ids,
            "exact_key": _exact_keys(views, table.column("text_hash").to_pylist(), valid, task.settings["unit"]),
            "num_shingles": signed.num_shingles,
            "priority": _priority(table),
            "quality": table.column("quality"),
            "num_bytes": table.column("num_bytes"),
            "date": table.column("date"),
            "source_rank": pc.index_in(table.column("source"), pa.array(task.settings["sources"])).cast(pa.int64()),
            "doc_key": table.column("doc_key"),
        }
    ).cast(EXACT_KEYS)
    return exact, bands


def _exact_keys(views: TextViews, text_hashes: list[str], has_shingles: np.ndarray, unit: str) -> list[str]:
    """Return text hashes; documents too short for a shingle get the hash of their normalised words instead."""
    if has_shingles.all():
        return text_hashes
    short = words_hash(views, unit)
    return [
        text_hashes[i]
        if has_shingles[i] or short.num_words[i] == 0
        else f"words:{short.hashes[i, 0]:016x}{short.hashes[i, 1]:016x}"
        for i in range(len(text_hashes))
    ]


_ROLE_PRIORITY = {"target": 1, "replay": 2, "pool": 3}


def _priority(table: pa.Table) -> np.ndarray:
    """Return the first key of the keep order: validation 0, then target, replay, pool."""
    roles = np.array([_ROLE_PRIORITY[r] for r in table.column("role").to_pylist()], dtype=np.int64)
    validation = pc.equal(table.column("split"), "validation").to_numpy(zero_copy_only=False)
    return np.where(validation, 0, roles)


def _find_clusters(run_: Run, task: DedupTask, parts: list[int], fingerprint: str) -> Clusters:
    groups = dedup_pairs.exact_groups(run_.spark, task.workdir, parts)
    removed = resolve_exact(groups, task.settings["keep"])
    pairs = dedup_pairs.candidate_pairs_frame(
        run_.spark, task.workdir, parts, removed.column("doc_id"), task.settings["max_bucket_pairs"]
    ).persist()
    try:
        num_pairs = pairs.count()
        edges = dedup_pairs.verified_edges(run_, task, pairs, fingerprint) if num_pairs else EDGES.empty_table()
    finally:
        pairs.unpersist()
    nodes = dedup_pairs.order_columns(run_.spark, task.workdir, parts, edges, removed)
    return resolve_clusters(nodes, removed, edges, task.settings["keep"], num_pairs)


def _write_clusters(task: DedupTask, clusters: Clusters, fingerprint: str) -> None:
    """Write the sparse clusters table, and drop files that an earlier run left for parts without clusters."""
    mine = clusters.by_part()
    for part in part_files.part_numbers(task.workdir, NAME, "clusters"):
        if part not in mine:
            storage.remove(part_files.part_path(task.workdir, NAME, "clusters", part))
    for part, table in mine.items():
        path = part_files.part_path(task.workdir, NAME, "clusters", part)
        part_files.write_part(path, table, CLUSTERS, fingerprint_of(fingerprint, part))
    part_files.write_part(part_files.part_path(task.workdir, NAME, "edges", 0), clusters.edges, EDGES, fingerprint)


def decisions_part(task: DedupTask, fingerprint: str, cluster_hashes: dict[int, str], part: int) -> dict[str, Any]:
    """Write one part's aligned decisions from its rows of the clusters table."""
    path = part_files.part_path(task.workdir, NAME, "decisions", part)
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, task.upstream[part], cluster_hashes.get(part, ""))
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        count = documents.num_rows
        entered = keep_mask(task.workdir, part, count, task.upto)
        reasons = np.full(count, None, dtype=object)
        because = np.full(count, None, dtype=object)
        if part in cluster_hashes:
            clusters = part_files.read_part(
                task.workdir, NAME, "clusters", part, ["doc_id", "drop_reason", "because_of"]
            )
            rows = clusters.column("doc_id").to_numpy() & 0xFFFFFFFF
            reasons[rows] = clusters.column("drop_reason").to_pylist()
            because[rows] = clusters.column("because_of").to_pylist()
        reason_array = pa.array(reasons, pa.string())
        table = decisions_table(documents.column("doc_id"), entered, reason_array, NAME, pa.array(because, pa.string()))
        result = {"counts": tally(documents, entered, reason_array)}
        found = part_files.write_part(path, table, DECISIONS, print_, result)
    return {**found.result, "decisions": located(part, found)}
