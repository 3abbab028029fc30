"""Who stays in a group of duplicates, and why each other one goes. Narrow arrays on the driver, no Spark.

Memory: about 150 bytes per document that has a duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import CLUSTERS, COPIES, PART_SHIFT, RUN_SHIFT
from refinery.kernels.components import dense_labels, greedy_keep
from refinery.stages.dedup_keys import SHORT_PREFIX

EXACT, SHORT, URL, NEAR, TWIN = "exact", "short_text", "url_duplicate", "near", "twin_of_validation"
_STAGE = "dedup_documents"
HISTOGRAM_EDGES = (2, 3, 4, 6, 11, 31, 101, 1001, 10_001)


@dataclass(frozen=True)
class Clusters:
    """Every document that has a duplicate, with what becomes of it; of earlier runs, too."""

    table: pa.Table
    """Schema CLUSTERS, sorted by doc_id."""
    edges: pa.Table
    num_pairs: int

    def by_part(self) -> dict[int, pa.Table]:
        """Return the rows of each part of this run that has any."""
        own = self.own()
        if not own.num_rows:
            return {}
        parts = own.column("doc_id").to_numpy() >> PART_SHIFT
        numbers, starts = np.unique(parts, return_index=True)
        ends = np.append(starts[1:], len(parts))
        return {int(p): own.slice(int(s), int(e - s)) for p, s, e in zip(numbers, starts, ends, strict=True)}

    def own(self) -> pa.Table:
        """Return the rows of this run's documents: ids of earlier runs are larger."""
        count = int(np.searchsorted(self.table.column("doc_id").to_numpy(), 1 << RUN_SHIFT))
        return self.table.slice(0, count)

    def part_hashes(self) -> dict[int, str]:
        """Return a hash of the rows of each part that has any."""
        return {part: fingerprint_of(table.to_pydict()) for part, table in self.by_part().items()}

    def facts(self) -> dict[str, Any]:
        """Return cluster sizes and counts for the report."""
        own = self.own()
        sizes = np.array(
            list(dict(zip(own.column("cluster_id").to_pylist(), own.column("size").to_pylist(), strict=True)).values()),
            dtype=np.int64,
        )
        histogram = [
            [low, int(((sizes >= low) & (sizes < high)).sum())]
            for low, high in zip(HISTOGRAM_EDGES, [*HISTOGRAM_EDGES[1:], 2**62], strict=True)
        ]
        return {
            "num_clusters": len(sizes),
            "largest_cluster": int(sizes.max()) if len(sizes) else 0,
            "cluster_sizes": histogram,
            "num_verified_edges": self.edges.num_rows,
        }


@dataclass(frozen=True)
class Found:
    """What was found and written, for the decisions and the manifest."""

    cluster_hashes: dict[int, str]
    """Part -> hash of its rows of `clusters`."""
    facts: dict[str, Any]
    volatile: dict[str, Any]


_KEEP_KEYS = {
    "quality": ("quality", "descending"),
    "longest": ("num_bytes", "descending"),
    "newest": ("date", "descending"),
    "source_order": ("source_rank", "ascending"),
    "smallest_key": ("doc_key", "ascending"),
}


def with_ranks(nodes: pa.Table, sources: Sequence[str]) -> pa.Table:
    """Add what the keep order takes from outside a document: the place of its source, and the age of its run."""
    place = pc.index_in(nodes.column("source"), pa.array(sources, pa.string())).cast(pa.int64())
    number = nodes.column("doc_id").to_numpy() >> RUN_SHIFT
    age = np.where(number == 0, np.iinfo(np.int64).max, number)  # runs of an index are numbered from the oldest
    return nodes.append_column("source_rank", place).append_column("age", pa.array(age))


def keep_rank(nodes: pa.Table, policy: Sequence[str]) -> np.ndarray:
    """Return the place of each node in the keep order, 0 best: validation, target, replay, pool; policy; doc_key.

    Args:
        nodes: columns priority, quality, num_bytes, date, source_rank, doc_key, age; nulls come last. Of the same
            document in two runs the older run's comes first.
        policy: ``quality``, ``longest``, ``newest``, ``source_order``, ``smallest_key``, first rule first.
    """
    keys: list[tuple[str, str]] = [("priority", "ascending")]
    for rule in policy:
        column, direction = _KEEP_KEYS[rule]
        keys.append((column, direction))
    keys += [(name, "ascending") for name in ("doc_key", "age") if name in nodes.column_names]
    unique = [(column, order, "at_end") for column, order in dict(keys).items()]
    order = pc.sort_indices(nodes, sort_keys=unique).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def resolve_copies(nodes: pa.Table, policy: Sequence[str], *, url: bool) -> pa.Table:
    """Return every document that goes because another has its URL or its text; schema COPIES, sorted by doc_id.

    First, where asked, captures of one URL give way to the best of them, newest first. Then equal texts (equal words,
    of texts too short for a shingle) give way to the best one of their scope; to a validation document of any scope.

    Args:
        nodes: columns of `keep_rank`, and doc_id, exact_key, url_key, scope. Documents without a copy may be left out.
        policy: keep policy.
        url: whether URLs count.
    """
    found = url_copies(nodes, policy) if url else COPIES.empty_table()
    rest = nodes.filter(pc.invert(pc.is_in(nodes.column("doc_id"), found.column("doc_id"))))
    return pa.concat_tables([found, text_copies(rest, policy)]).sort_by("doc_id")


def url_copies(nodes: pa.Table, policy: Sequence[str]) -> pa.Table:
    """Return the older captures of each URL; arguments as `resolve_copies`."""
    with_url = nodes.filter(pc.is_valid(nodes.column("url_key")))
    group = _codes(with_url.column("url_key").to_numpy(), with_url.column("scope").to_numpy())
    return _losers(with_url, _best_of(group, keep_rank(with_url, ("newest", *policy))), URL)


def text_copies(nodes: pa.Table, policy: Sequence[str]) -> pa.Table:
    """Return the worse ones of equal texts; arguments as `resolve_copies`."""
    nodes = nodes.combine_chunks()
    texts = nodes.column("exact_key")
    codes = texts.combine_chunks().dictionary_encode().indices.to_numpy() if nodes.num_rows else np.empty(0, np.int32)
    rank = keep_rank(nodes, policy)
    held = nodes.column("priority").to_numpy() == 0
    best = _best_of(_codes(codes.astype(np.int64), nodes.column("scope").to_numpy()), rank)
    overall = _best_of(codes.astype(np.int64), rank)
    best = np.where(~held & held[overall], overall, best)
    short = pc.starts_with(texts, SHORT_PREFIX).to_numpy(zero_copy_only=False).astype(bool)
    return _losers(nodes, best, np.where(short, SHORT, EXACT))


def _codes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a dense number for each distinct pair of values."""
    left = np.unique(first, return_inverse=True)[1].astype(np.int64)
    values, right = np.unique(second, return_inverse=True)
    return np.unique(left * max(1, len(values)) + right, return_inverse=True)[1].astype(np.int64)


def _best_of(group: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return for each row the row of smallest rank in its group."""
    order = np.lexsort((rank, group))
    first = np.r_[True, np.diff(group[order]) != 0] if len(order) else np.empty(0, bool)
    best = np.empty(len(group), dtype=np.int64)
    best[order] = order[first][np.cumsum(first) - 1]
    return best


def _losers(nodes: pa.Table, best: np.ndarray, reason: str | np.ndarray) -> pa.Table:
    ids = nodes.column("doc_id").to_numpy()
    lost = np.flatnonzero(best != np.arange(len(best)))
    reasons = np.broadcast_to(np.asarray(reason, dtype=object), len(best))[lost]
    table = pa.table({"doc_id": ids[lost], "twin": ids[best[lost]], "reason": pa.array(reasons, pa.string())})
    return table.cast(COPIES)


def resolve_clusters(
    nodes: pa.Table, exact: pa.Table, edges: pa.Table, policy: Sequence[str], num_pairs: int
) -> Clusters:
    """Name clusters and decide who goes.

    Args:
        nodes: order columns of every document in `exact` or `edges`, sorted by doc_id.
        exact: schema COPIES, from `resolve_copies`.
        edges: verified pairs between documents that are no copies; schema EDGES.
        policy: keep policy.
        num_pairs: candidate pairs looked at, for the record.
    """
    if not nodes.num_rows:
        return Clusters(CLUSTERS.empty_table(), edges, num_pairs)
    ids = nodes.column("doc_id").to_numpy()
    rank = keep_rank(nodes, policy)
    left, right = (np.searchsorted(ids, edges.column(c).to_numpy()) for c in ("a", "b"))
    jaccard = edges.column("jaccard").to_numpy()
    copies = np.searchsorted(ids, exact.column("doc_id").to_numpy())
    twins = np.searchsorted(ids, exact.column("twin").to_numpy())
    copy_reasons = exact.column("reason").to_numpy(zero_copy_only=False)
    captures = copy_reasons == URL
    made = greedy_keep(rank, left, right, jaccard)
    keep, because = made.keep.copy(), made.because_of.copy()
    similarity = np.where(made.edge >= 0, jaccard[np.maximum(made.edge, 0)] if len(jaccard) else np.nan, np.nan)
    reasons = np.full(len(ids), NEAR, dtype=object)
    reasons[keep] = None
    # A copy goes with its twin; if the twin itself went over an edge, that edge holds for the copy's equal text too.
    # An older capture of a URL goes for the newest one, whatever becomes of that: their texts may differ.
    gone_with = np.where(keep[twins] | captures, twins, because[twins])
    similarity[copies] = np.where(captures, np.nan, np.where(keep[twins], 1.0, similarity[twins]))
    because[copies] = gone_with
    keep[copies] = False
    reasons[copies] = copy_reasons
    labels = dense_labels(np.concatenate([left, copies]), np.concatenate([right, twins]), len(ids))
    _drop_twins_of_validation(nodes, labels, rank, keep, because, similarity, reasons)
    return Clusters(_table(nodes, labels, rank, keep, because, similarity, reasons), edges, num_pairs)


def _drop_twins_of_validation(
    nodes: pa.Table,
    labels: np.ndarray,
    rank: np.ndarray,
    keep: np.ndarray,
    because: np.ndarray,
    similarity: np.ndarray,
    reasons: np.ndarray,
) -> None:
    validation = nodes.column("priority").to_numpy() == 0
    best: dict[int, int] = {}
    for node in np.flatnonzero(validation & keep)[np.argsort(rank[validation & keep])].tolist():
        best.setdefault(int(labels[node]), node)
    for node in np.flatnonzero(~validation).tolist():
        held_out = best.get(int(labels[node]))
        if held_out is None or reasons[node] == URL:
            continue
        reasons[node] = TWIN
        if keep[node] or not validation[because[node]]:
            keep[node], because[node], similarity[node] = False, held_out, np.nan


def _table(
    nodes: pa.Table,
    labels: np.ndarray,
    rank: np.ndarray,
    keep: np.ndarray,
    because: np.ndarray,
    similarity: np.ndarray,
    reasons: np.ndarray,
) -> pa.Table:
    keys = np.array(nodes.column("doc_key").to_pylist(), dtype=object)
    order = np.lexsort((rank, labels))
    starts = np.r_[0, np.flatnonzero(np.diff(labels[order])) + 1]
    best_of = np.empty(len(labels), dtype=np.int64)
    size_of = np.empty(len(labels), dtype=np.int64)
    best_of[labels[order[starts]]] = order[starts]
    size_of[labels[order[starts]]] = np.diff(np.r_[starts, len(order)])
    dropped = [None if k else f"{_STAGE}.{r}" for k, r in zip(keep, reasons, strict=True)]
    return pa.table(
        {
            "doc_id": nodes.column("doc_id"),
            "cluster_id": pa.array(keys[best_of[labels]], pa.string()),
            "size": size_of[labels],
            "representative": pa.array(keep),
            "drop_reason": pa.array(dropped, pa.string()),
            "because_of": pa.array([None if k else keys[b] for k, b in zip(keep, because, strict=True)], pa.string()),
            "jaccard": pa.array(np.where(keep, np.nan, similarity), from_pandas=True),
        }
    ).cast(CLUSTERS)
