"""dedup_documents: exact and near duplicates, every removal over a verified pair.

1. Part tasks write narrow tables: an exact key, a signature and LSH band keys per surviving document.
2. Captures of one URL (where asked) and equal texts go; one document per group goes on.
3. Band keys are sorted; buckets become candidate pairs.
4. Part tasks read the candidates' text once and write their shingle sets; a kernel computes the true Jaccard of every
   pair. Pairs under the bound are forgotten: precision is 100 % by construction.
5. Components of verified edges name clusters; inside one, in keep order, a document is removed only over a verified
   edge to a kept one. A train document in a cluster with a validation document is always dropped.
6. Part tasks write aligned decisions.

Text is read twice in all and never shuffled. Steps 2-5 run in one process while their rows fit (`dedup_local`), else in
Spark (`dedup_pairs`), with the same result. Finished runs can be an index (`dedup_index`): their documents take part in
steps 2-5, their text is read for new candidates only, and nothing of theirs is written.
"""

from __future__ import annotations

import functools
import time
import unicodedata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import (
    CANDIDATE_PAIRS,
    CANDIDATES,
    CLUSTERS,
    COPIES,
    DECISIONS,
    EDGES,
    EXACT_KEYS,
    FLIPS,
    PART_SHIFT,
)
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import keep_mask, read_labels
from refinery.kernels.lsh import collision_curve, parse_bands, resolve_bands
from refinery.process_memory import return_freed_memory
from refinery.recipe import Recipe
from refinery.stages import dedup_local
from refinery.stages.decisions import decisions_table, located
from refinery.stages.dedup_clusters import Found, resolve_clusters, resolve_copies, with_ranks
from refinery.stages.dedup_index import Index, flips, open_index, segmented_parts
from refinery.stages.dedup_keys import ALGORITHM_VERSION, NAME, DedupTask, keys_part, shingles_part
from refinery.stages.dedup_spark import find_in_spark
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


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Find, verify and resolve duplicates of the documents that earlier stages kept.

    Raises:
        ConfigError: no section, bands that suit no bound, or an index that does not fit.
    """
    started = time.monotonic()
    recipe = run_.recipe
    recipe_slice = settings_of(recipe)
    upto, upstream, seen = upstream_of(run_, NAME)
    index = open_index(recipe.workdir, recipe_slice)
    inputs = {**{m.stage: m.content_hash for m in upstream}, **index.hashes}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    segmented = segmented_parts(recipe.workdir, upto)
    task = DedupTask(recipe.workdir, recipe.seed, recipe_slice, upto, run_.slice_rows, seen, index.runs, segmented)
    parts = sorted(seen)
    keyed = run_part_tasks(run_.spark, parts, functools.partial(keys_part, task), run_.report_progress(NAME))
    found = _find(run_, task, index, sum(r["num_band_rows"] for r in keyed), fingerprint)
    decided = run_part_tasks(
        run_.spark, parts, functools.partial(decisions_part, task, fingerprint, found.cluster_hashes)
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
        facts={
            **found.facts,
            **{name: sum(r[name] for r in keyed) for name in _KEY_FACTS},
            "collision_curve": collision_curve(parse_bands(recipe_slice["bands"])),
        },
        volatile={
            "part_seconds": sum(r["cpu_seconds"] for r in keyed + decided),
            "index_runs": [r.workdir for r in index.runs],
            **found.volatile,
        },
    )
    return commit_stage(run_, manifest, started)


_KEY_FACTS = ("num_without_shingles", "num_without_dump", "num_band_rows")


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the stage's slice of the recipe: bands as numbers, sources in their order.

    Raises:
        ConfigError: the recipe has no such section, or no bands suit its bound.
    """
    section = recipe.dedup_documents
    if section is None:
        raise ConfigError("the recipe has no dedup_documents section; add one or leave the stage out")
    bands = resolve_bands(section.bands, section.jaccard)
    return {
        **section.model_dump(mode="json"),
        "bands": f"{bands.num_bands}x{bands.rows_per_band}",
        "seed": recipe.seed,
        "sources": [i.source for i in recipe.inputs],
        "unicode": unicodedata.unidata_version,
    }


def source_order(task: DedupTask, index: Index) -> list[str]:
    """Return all sources from best to worst: those that the recipe orders, those of the index, the inputs."""
    named = [*task.settings["source_order"], *index.sources, *task.settings["sources"]]
    return list(dict.fromkeys(named))


def _find(run_: Run, task: DedupTask, index: Index, num_rows: int, fingerprint: str) -> Found:
    """Take steps 2-5 in one process while the rows and the candidates' shingles fit, else in Spark."""
    if num_rows + index.num_band_rows <= dedup_local.ONE_PROCESS_ROWS:
        local = _in_one_process(run_, task, index, fingerprint)
        if local is not None:
            return local
    found, written = find_in_spark(run_, task, index, source_order(task, index), fingerprint)
    for name, numbers in written.items():
        _keep_parts(task, name, numbers)
    return found


def _in_one_process(run_: Run, task: DedupTask, index: Index, fingerprint: str) -> Found | None:
    """Take steps 2-5 here; None if the shingle sets of the candidates would not fit: few but long documents."""
    nodes = with_ranks(dedup_local.tables_of_runs(task, "exact_keys", EXACT_KEYS), source_order(task, index))
    policy = task.settings["keep"]
    copies = resolve_copies(_repeated(nodes, task.settings["url"]), policy, url=task.settings["url"])
    pairs = dedup_local.local_pairs(task, index, copies)
    return_freed_memory()
    candidates = dedup_local.candidates_of(pairs)
    if dedup_local.num_shingles_of(nodes, candidates) > dedup_local.ONE_PROCESS_SHINGLES:
        return None
    read = _read_candidates(run_, task, candidates, fingerprint)
    dedup_local.verify(task, pairs, [r["file"] for r in read])
    edges, num_pairs = pairs.edges(), len(pairs.a)
    _write_only_parts(task, "candidate_pairs", {0: pairs.table()}, CANDIDATE_PAIRS, fingerprint)
    del pairs  # with giant clusters the largest table here
    return_freed_memory()
    named = np.unique(np.concatenate([t.column(c).to_numpy() for t, c in _ends(edges, copies)]))
    mine = nodes.filter(pc.is_in(nodes.column("doc_id"), pa.array(named))).sort_by("doc_id")
    clusters = resolve_clusters(mine, copies, edges, policy, num_pairs)
    flipped = flips(task, clusters.table)
    for name, table, schema in (("edges", edges, EDGES), ("copies", copies, COPIES), ("flips", flipped, FLIPS)):
        _write_only_parts(task, name, {0: table}, schema, fingerprint)
    _write_only_parts(task, "clusters", clusters.by_part(), CLUSTERS, fingerprint)
    old_texts = sum(r["num_texts"] for r in read if r["run"])
    return Found(
        clusters.part_hashes(),
        {**clusters.facts(), "num_flips": flipped.num_rows},
        {"num_candidate_pairs": clusters.num_pairs, "num_old_texts_read": old_texts},
    )


def _ends(edges: pa.Table, copies: pa.Table) -> list[tuple[pa.Table, str]]:
    return [(edges, "a"), (edges, "b"), (copies, "doc_id"), (copies, "twin")]


def _repeated(nodes: pa.Table, url: bool) -> pa.Table:
    """Return the documents whose exact key or URL occurs more than once."""
    mask = np.zeros(nodes.num_rows, dtype=bool)
    for column in ("exact_key", "url_key") if url else ("exact_key",):
        values = nodes.column(column).combine_chunks().dictionary_encode().indices
        codes = values.fill_null(-1).to_numpy(zero_copy_only=False)
        counts = np.bincount(codes[codes >= 0], minlength=1)
        mask |= (codes >= 0) & (counts[np.maximum(codes, 0)] > 1)
    return nodes.filter(pa.array(mask))


def _read_candidates(run_: Run, task: DedupTask, ids: np.ndarray, fingerprint: str) -> list[dict[str, Any]]:
    """Write candidates and their shingle sets; return per file what was read."""
    numbers = task.file_numbers()
    pieces = dict(dedup_local.by_place(ids, PART_SHIFT))
    tables = {numbers[place]: pa.table({"doc_id": piece}) for place, piece in pieces.items()}
    _write_only_parts(task, "candidates", tables, CANDIDATES, fingerprint)
    _keep_parts(task, "shingles", set(tables))
    results = run_part_tasks(run_.spark, list(pieces), functools.partial(shingles_part, task, fingerprint))
    return [{**r, "file": numbers[place]} for place, r in zip(pieces, results, strict=True)]


def _keep_parts(task: DedupTask, name: str, numbers: set[int]) -> None:
    """Drop the files that an earlier run of the stage left under other numbers."""
    for number in part_files.part_numbers(task.workdir, NAME, name):
        if number not in numbers:
            storage.remove(part_files.part_path(task.workdir, NAME, name, number))


def _write_only_parts(
    task: DedupTask, name: str, tables: dict[int, pa.Table], schema: pa.Schema, fingerprint: str
) -> None:
    """Write a small table, these parts and no others."""
    _keep_parts(task, name, set(tables))
    for number, table in tables.items():
        path = part_files.part_path(task.workdir, NAME, name, number)
        part_files.write_part(path, table, schema, fingerprint_of(fingerprint, number))


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
