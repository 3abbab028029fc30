"""Finished runs as an index: which of them, whether they fit, and what they say about their own documents.

A run's dedup tables are its index: `exact_keys` and `bands` of every document that reached the stage, removed ones
included, and `copies`, `candidate_pairs` and `clusters` with what was found. Ids of earlier runs get the number of the
run in their high bits, so ids never meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import CANDIDATE_PAIRS, CLUSTERS, COPIES, FLIPS, RUN_SHIFT
from refinery.errors import ConfigError, IntegrityError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.recipe import STAGE_ORDER
from refinery.stages.dedup_keys import ALGORITHM_VERSION, NAME, DedupTask, IndexRun
from refinery.stages.workspace import load_stage

MAX_RUNS = 255
_SAME = (
    *("jaccard", "ngram", "unit", "chinese", "bands", "seed", "scope", "dump_field", "dump_pattern", "url", "keep"),
    *("max_bucket_pairs", "unicode"),
)
"""Settings that must be those of the index: its keys, pairs and representatives depend on them."""


@dataclass(frozen=True)
class Index:
    """The runs that a recipe names, with the runs that those were deduplicated against, oldest first."""

    runs: tuple[IndexRun, ...]
    hashes: Mapping[str, str]
    """``index N`` -> content hash of that run's dedup stage: part of what the new run is a function of."""
    base: int
    """Number of the run whose `candidate_pairs` and `copies` are taken over; 0 if there is none."""
    base_runs: Mapping[int, int]
    """Number of a run inside the base's tables (0: the base itself) -> its number here."""
    sources: tuple[str, ...]
    """Sources of all runs, in order of first appearance."""
    num_band_rows: int

    def covered(self) -> frozenset[int]:
        """Return the numbers of the runs whose documents the base knows."""
        return frozenset(self.base_runs.values())


NO_INDEX = Index((), {}, 0, {}, (), 0)


def open_index(workdir: str, settings: Mapping[str, Any]) -> Index:
    """Open the runs that the recipe names.

    Args:
        workdir: of the new run.
        settings: its settings, as they will stand in the manifest.
    Raises:
        ConfigError: a run is not finished, is the new run itself, was made by another version or with other settings,
            or there are too many. IntegrityError: an indexed run changed after another was deduplicated against it.
    """
    order: list[str] = []
    manifests: dict[str, StageManifest] = {}
    for path in settings["index"]:
        _gather(absolute(path), order, manifests)
    if not order:
        return NO_INDEX
    for path in order:
        _check(path, workdir, manifests[path], settings)
    if len(order) > MAX_RUNS:
        raise ConfigError(f"the index names {len(order)} runs, at most {MAX_RUNS} fit; merge old runs into one first")
    number = {path: place + 1 for place, path in enumerate(order)}
    runs = []
    for path in order:
        parts = tuple(sorted(manifests[path].part_hashes("decisions")))
        upto = tuple(s for s in STAGE_ORDER if s in manifests[path].inputs and s != "ingest")
        runs.append(IndexRun(number[path], path, upto, parts, segmented_parts(path, upto)))
    # The base is the run that knows most others; documents of runs that it does not know are compared anew.
    base = max(order, key=lambda path: (len(_chain(manifests[path])), -number[path]))
    base_runs = {0: number[base]} | {k + 1: number[path] for k, path in enumerate(_chain(manifests[base]))}
    sources = [s for path in order for s in manifests[path].recipe_slice["sources"]]
    return Index(
        tuple(runs),
        {f"index {number[path]}": manifests[path].content_hash for path in order},
        number[base],
        base_runs,
        tuple(dict.fromkeys(sources)),
        sum(int(manifests[path].facts["num_band_rows"]) for path in order),
    )


def segmented_parts(workdir: str, upto: Sequence[str]) -> frozenset[int]:
    """Return the parts whose word boundaries the rules stage of a run stored."""
    rules = load_stage(workdir, "rules") if "rules" in upto else None
    return frozenset(rules.part_hashes("words")) if rules is not None else frozenset()


def absolute(workdir: str) -> str:
    """Return a workdir in the form in which two names of one folder are equal."""
    return str(storage.local_path(workdir).resolve()) if storage.is_local(workdir) else workdir.rstrip("/")


def _chain(manifest: StageManifest) -> list[str]:
    """Return the workdirs that a run was deduplicated against, in the order of their numbers there."""
    return list(manifest.volatile.get("index_runs", []))


def _gather(path: str, order: list[str], manifests: dict[str, StageManifest]) -> None:
    if path in manifests:
        return
    manifest = load_stage(path, NAME)
    if manifest is None:
        raise ConfigError(f"dedup_documents.index names {path}, where {NAME} is not complete; finish that run first")
    for earlier, path_of in enumerate(_chain(manifest)):
        _gather(path_of, order, manifests)
        recorded = manifest.inputs.get(f"index {earlier + 1}")
        if manifests[path_of].content_hash != recorded:
            raise IntegrityError(
                f"{path} was deduplicated against {path_of}, which has changed since; run `refinery {NAME}` of the "
                "former again, or leave it out of the index"
            )
    manifests[path] = manifest
    order.append(path)


def _check(path: str, workdir: str, manifest: StageManifest, settings: Mapping[str, Any]) -> None:
    if path == absolute(workdir):
        raise ConfigError(f"dedup_documents.index names the run's own workdir {workdir}; name earlier runs only")
    if manifest.algorithm_version != ALGORITHM_VERSION:
        raise ConfigError(
            f"the index {path} was made by version {manifest.algorithm_version} of {NAME}, this is version "
            f"{ALGORITHM_VERSION}; run `refinery {NAME}` there again"
        )
    for name in _SAME:
        theirs, ours = manifest.recipe_slice.get(name), settings[name]
        if theirs != ours:
            raise ConfigError(
                f"the index {path} was made with {name} {theirs!r}, this recipe has {ours!r}; use {theirs!r} here, or "
                "make the index again"
            )


def remap(index: Index, ids: np.ndarray) -> np.ndarray:
    """Return ids of the base's tables as ids of this run."""
    numbers = np.zeros(MAX_RUNS + 1, dtype=np.int64)
    for theirs, ours in index.base_runs.items():
        numbers[theirs] = ours
    return (ids & ((1 << RUN_SHIFT) - 1)) | (numbers[ids >> RUN_SHIFT] << RUN_SHIFT)


def base_tables(index: Index, name: str) -> Iterator[pa.Table]:
    """Return the parts of a table (`copies` or `candidate_pairs`) of the base, with ids of this run."""
    workdir = index.runs[index.base - 1].workdir
    for part in part_files.part_numbers(workdir, NAME, name):
        table = part_files.read_part(workdir, NAME, name, part)
        yield remapped(index, table)


def remapped(index: Index, table: pa.Table) -> pa.Table:
    """Return a table of the base with ids of this run; of pairs, a < b again."""
    for column in ("doc_id", "twin", "a", "b"):
        if column in table.column_names:
            ids = remap(index, table.column(column).to_numpy())
            table = table.set_column(table.column_names.index(column), column, pa.array(ids))
    if "b" in table.column_names:
        a, b = table.column("a"), table.column("b")
        lower, upper = pc.min_element_wise(a, b), pc.max_element_wise(a, b)
        table = table.set_column(0, "a", lower).set_column(1, "b", upper)
    return table


def base_copies(index: Index) -> pa.Table:
    """Return the `copies` of the base."""
    return pa.concat_tables([COPIES.empty_table(), *(t.cast(COPIES) for t in base_tables(index, "copies"))])


def base_pairs(index: Index) -> pa.Table:
    """Return the `candidate_pairs` of the base."""
    tables = [t.cast(CANDIDATE_PAIRS) for t in base_tables(index, "candidate_pairs")]
    return pa.concat_tables([CANDIDATE_PAIRS.empty_table(), *tables])


def parts_of_runs(task: DedupTask, table: str) -> Iterator[tuple[IndexRun | None, str, int]]:
    """Yield (run, workdir, part) of every part of a per-document table, this run's (None) first."""
    for part in sorted(task.upstream):
        yield None, task.workdir, part
    for run in task.index:
        there = set(part_files.part_numbers(run.workdir, NAME, table))
        for part in run.parts:
            if part in there:
                yield run, run.workdir, part


def in_run(run: IndexRun | None, table: pa.Table) -> pa.Table:
    """Return a per-document table of a run with ids of this run."""
    if run is None:
        return table
    ids = table.column("doc_id").to_numpy() | (run.number << RUN_SHIFT)
    return table.set_column(table.column_names.index("doc_id"), "doc_id", pa.array(ids))


def flips(task: DedupTask, clusters: pa.Table) -> pa.Table:
    """Return the documents of earlier runs about which this run decides otherwise than their own run did.

    Args:
        task: of the running stage.
        clusters: schema CLUSTERS: every document of any run that has a duplicate now.
    Returns: schema FLIPS, sorted by run and doc_id.
    """
    columns = ["doc_id", "representative", "drop_reason", "because_of", "jaccard"]
    rows = clusters.select(columns).filter(pc.greater_equal(clusters.column("doc_id"), 1 << RUN_SHIFT))
    now_ids = rows.column("doc_id").to_numpy()
    now_keep = rows.column("representative").to_numpy(zero_copy_only=False)
    before = [CLUSTERS.empty_table().select(["doc_id", "representative"])]
    for run in task.index:
        for part in part_files.part_numbers(run.workdir, NAME, "clusters"):
            table = part_files.read_part(run.workdir, NAME, "clusters", part, ["doc_id", "representative"])
            before.append(in_run(run, table).cast(before[0].schema))
    old = pa.concat_tables(before)
    gone_before = old.filter(pc.invert(old.column("representative"))).column("doc_id").to_numpy()
    gone_now = now_ids[~now_keep]
    changed = np.setxor1d(gone_before, gone_now)
    if not len(changed):
        return FLIPS.empty_table()
    keeps = ~np.isin(changed, gone_now)
    place = {int(d): i for i, d in enumerate(now_ids.tolist())}
    details = [None if k else rows.slice(place[int(d)], 1).to_pylist()[0] for d, k in zip(changed, keeps, strict=True)]
    keys = _keys_of(task, changed)
    return pa.table(
        {
            "run": changed >> RUN_SHIFT,
            "doc_id": changed & ((1 << RUN_SHIFT) - 1),
            "doc_key": [keys[int(d)] for d in changed],
            "keep": keeps,
            **{n: [r and r[n] for r in details] for n in ("drop_reason", "because_of", "jaccard")},
        }
    ).cast(FLIPS)


def _keys_of(task: DedupTask, ids: Sequence[int] | np.ndarray) -> dict[int, str]:
    wanted = pa.array(np.asarray(ids, dtype=np.int64))
    found: dict[int, str] = {}
    for run, workdir, part in parts_of_runs(task, "exact_keys"):
        if run is None:
            continue
        table = in_run(run, part_files.read_part(workdir, NAME, "exact_keys", part, ["doc_id", "doc_key"]))
        mine = table.filter(pc.is_in(table.column("doc_id"), wanted))
        found |= dict(zip(mine.column("doc_id").to_pylist(), mine.column("doc_key").to_pylist(), strict=True))
    return found
