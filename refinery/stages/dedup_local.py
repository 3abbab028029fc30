"""Pairs of candidates in one process, for runs whose band keys fit into memory; Spark's half is `dedup_pairs`.

Shuffling a few million rows through a JVM costs several times what sorting them costs. Both ways give the same pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.tables import BANDS, CANDIDATE_PAIRS, EDGES, RUN_SHIFT, SHINGLES
from refinery.io import parts as part_files
from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import counted_bucket_pairs
from refinery.kernels.text import text_views
from refinery.process_memory import return_freed_memory
from refinery.stages.dedup_index import Index, base_copies, base_pairs, in_run, parts_of_runs
from refinery.stages.dedup_keys import NAME, DedupTask

ONE_PROCESS_ROWS = 8_000_000
"""Band rows up to which one process sorts them all: 33 bytes a row, about 600,000 documents of 14 bands."""
ONE_PROCESS_SHINGLES = 200_000_000
"""Shingles of candidates up to which one process verifies them: 4 bytes each, three times while they are read."""
_BLOCK_PAIRS = 1 << 20
"""Pairs verified at a time; bounds memory, never changes results."""


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs; in all of them `a` < `b`."""

    a: np.ndarray
    b: np.ndarray
    buckets: np.ndarray
    """int64: in how many buckets the pair stands."""
    jaccard: np.ndarray
    """float64; NaN: below the bound, or not known yet."""
    known: np.ndarray
    """bool: an earlier run has compared them."""

    def table(self) -> pa.Table:
        """Return schema CANDIDATE_PAIRS."""
        columns = {"a": self.a, "b": self.b, "buckets": self.buckets}
        return pa.table({**columns, "jaccard": pa.array(self.jaccard, from_pandas=True)}).cast(CANDIDATE_PAIRS)

    def edges(self) -> pa.Table:
        """Return the verified ones; schema EDGES, sorted."""
        real = np.flatnonzero(~np.isnan(self.jaccard))
        return pa.table({"a": self.a[real], "b": self.b[real], "jaccard": self.jaccard[real]}).cast(EDGES)


def tables_of_runs(task: DedupTask, name: str, schema: pa.Schema) -> pa.Table:
    """Return a per-document table of this run and of those of its index as one."""
    tables = [schema.empty_table()]
    for run, workdir, part in parts_of_runs(task, name):
        tables.append(in_run(run, part_files.read_part(workdir, NAME, name, part)).cast(schema))
    return pa.concat_tables(tables).combine_chunks()


def local_pairs(task: DedupTask, index: Index, copies: pa.Table) -> Pairs:
    """Return the candidate pairs among documents that are no copies, with what the index knows about them.

    With an index, only buckets are looked into whose members changed: a document came, became a copy, or ceased to be
    one. The counts say in how many buckets a pair stood, so a pair that leaves its last one is forgotten, as if the
    runs had been one.
    """
    bands = tables_of_runs(task, "bands", BANDS)
    docs = bands.column("doc_id").to_numpy()
    now = ~np.isin(docs, copies.column("doc_id").to_numpy())
    limit = task.settings["max_bucket_pairs"]
    if not index.base:
        rows, counts = _bucket_pairs(bands, now, limit)
        unknown = np.full(len(rows), np.nan)
        return Pairs(rows[:, 0], rows[:, 1], counts, unknown, np.zeros(len(rows), dtype=bool))
    keys = bands.column("key").to_numpy()
    covered = np.isin(docs >> RUN_SHIFT, sorted(index.covered()))
    before = covered & ~np.isin(docs, base_copies(index).column("doc_id").to_numpy())
    touched = np.isin(keys, np.unique(keys[now != before]))
    gone = _bucket_pairs(bands, before & touched, limit)
    come = _bucket_pairs(bands, now & touched, limit)
    return _balance(base_pairs(index), gone, come)


def _balance(base: pa.Table, gone: tuple[np.ndarray, np.ndarray], come: tuple[np.ndarray, np.ndarray]) -> Pairs:
    """Take pairs out of the base's and put others in; those that stand in no bucket any more are left out."""
    known_rows = np.stack([base.column("a").to_numpy(), base.column("b").to_numpy()], axis=1)
    rows = np.concatenate([known_rows, gone[0], come[0]])
    weights = np.concatenate([base.column("buckets").to_numpy(), -gone[1], come[1]])
    jaccard = np.full(len(rows), np.nan)
    jaccard[: len(known_rows)] = base.column("jaccard").to_numpy(zero_copy_only=False)
    known = np.arange(len(rows)) < len(known_rows)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    ordered = rows[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    starts = np.flatnonzero(fresh)
    if not len(starts):
        return Pairs(*(np.empty(0, np.int64),) * 3, np.empty(0), np.empty(0, dtype=bool))
    counts = np.add.reduceat(weights[order], starts)
    stay = counts > 0
    return Pairs(
        ordered[starts, 0][stay],
        ordered[starts, 1][stay],
        counts[stay],
        np.fmax.reduceat(jaccard[order], starts)[stay],
        np.logical_or.reduceat(known[order], starts)[stay],
    )


def _bucket_pairs(bands: pa.Table, mask: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs of the buckets of some rows, and how many buckets each shares."""
    rows = np.flatnonzero(mask)
    keys = bands.column("key").to_numpy()[rows]
    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    shared = np.zeros(len(order), dtype=bool)  # most keys stand alone: the slow sort by four columns skips them
    shared[1:] |= same
    shared[:-1] |= same
    some = bands.take(pa.array(rows[order[shared]]))
    columns = {name: some.column(name).to_numpy(zero_copy_only=False) for name in some.column_names}
    place = np.lexsort((columns["doc_id"], columns["tie"], columns["scope"], columns["key"]))
    scoped = len(place) and (columns["scope"] != columns["scope"][0]).any()
    ordered = {name: columns[name][place] for name in ("key", "doc_id", *(("scope", "held") if scoped else ()))}
    del some, columns, place, rows, keys, order  # the pairs of a giant bucket need the room
    return_freed_memory()
    held = ordered["held"].astype(bool) if scoped else None
    return counted_bucket_pairs(ordered["key"], ordered["doc_id"], limit, ordered.get("scope"), held)


def verify(task: DedupTask, pairs: Pairs, files: list[int]) -> None:
    """Write the true Jaccard of the pairs that are not known yet into their array, NaN below the bound.

    Args:
        task: of the running stage.
        pairs: candidates.
        files: numbers of the `shingles` files that hold their documents.
    """
    ids, offsets, hashes = _sets(task, files)
    return_freed_memory()
    for first in range(0, len(pairs.a), _BLOCK_PAIRS):
        open_ = first + np.flatnonzero(~pairs.known[first : first + _BLOCK_PAIRS])
        left, right = np.searchsorted(ids, pairs.a[open_]), np.searchsorted(ids, pairs.b[open_])
        pairs.jaccard[open_] = pair_jaccard(offsets, hashes, left, right, task.settings["jaccard"])


def _sets(task: DedupTask, files: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tables = [part_files.read_part(task.workdir, NAME, "shingles", n) for n in files]
    whole = pa.concat_tables([SHINGLES.empty_table(), *tables])
    whole = whole.set_column(1, "shingles", whole.column("shingles").cast(pa.large_binary()))
    if not pc.all(pc.greater(whole.column("doc_id")[1:], whole.column("doc_id")[:-1])).as_py():
        whole = whole.sort_by("doc_id")
    views = text_views(whole.column("shingles"))
    return whole.column("doc_id").to_numpy(), views.offsets // 4, np.frombuffer(views.data, dtype="<u4")


def candidates_of(pairs: Pairs) -> np.ndarray:
    """Return the documents that have to be read to verify what is not known yet, sorted."""
    open_ = ~pairs.known
    return np.unique(np.concatenate([pairs.a[open_], pairs.b[open_]]))


def num_shingles_of(nodes: pa.Table, ids: np.ndarray) -> int:
    """Return how many shingles, repeats included, some documents have together; `nodes`: schema EXACT_KEYS."""
    mine = nodes.filter(pc.is_in(nodes.column("doc_id"), pa.array(ids, pa.int64())))
    return int(pc.sum(mine.column("num_shingles")).as_py() or 0)


def by_place(ids: np.ndarray, shift: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (``id >> shift``, its ids) of sorted ids."""
    places, starts = np.unique(ids >> shift, return_index=True)
    yield from zip(places.tolist(), np.split(ids, starts[1:])[: len(places)], strict=True)
