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
from refinery.contracts.tables import CLUSTERS, PART_SHIFT
from refinery.kernels.components import components, greedy_keep

EXACT, SHORT, NEAR, TWIN = "exact", "short_text", "near", "twin_of_validation"
_STAGE = "dedup_documents"
HISTOGRAM_EDGES = (2, 3, 4, 6, 11, 31, 101, 1001, 10_001)


@dataclass(frozen=True)
class Clusters:
    """Every document that has a duplicate, with what becomes of it."""

    table: pa.Table
    """Schema CLUSTERS, sorted by doc_id."""
    edges: pa.Table
    num_pairs: int

    def by_part(self) -> dict[int, pa.Table]:
        """Return the rows of each part that has any."""
        if not self.table.num_rows:
            return {}
        parts = self.table.column("doc_id").to_numpy() >> PART_SHIFT
        numbers, starts = np.unique(parts, return_index=True)
        ends = np.append(starts[1:], len(parts))
        return {int(p): self.table.slice(int(s), int(e - s)) for p, s, e in zip(numbers, starts, ends, strict=True)}

    def part_hashes(self) -> dict[int, str]:
        """Return a hash of the rows of each part that has any."""
        return {part: fingerprint_of(table.to_pydict()) for part, table in self.by_part().items()}

    def facts(self) -> dict[str, Any]:
        """Return cluster sizes and counts for the report."""
        ids = self.table.column("cluster_id").to_pylist()
        sizes = np.array(
            list(dict(zip(ids, self.table.column("size").to_pylist(), strict=True)).values()), dtype=np.int64
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


_KEEP_KEYS = {
    "quality": ("quality", "descending"),
    "longest": ("num_bytes", "descending"),
    "newest": ("date", "descending"),
    "source_order": ("source_rank", "ascending"),
    "smallest_key": ("doc_key", "ascending"),
}


def keep_rank(nodes: pa.Table, policy: Sequence[str]) -> np.ndarray:
    """Return the place of each node in the keep order, 0 best: validation, target, replay, pool; policy; doc_key.

    Args:
        nodes: columns priority, quality, num_bytes, date, source_rank, doc_key; nulls come last.
        policy: ``quality``, ``longest``, ``newest``, ``source_order``, ``smallest_key``, first rule first.
    """
    keys: list[tuple[str, str]] = [("priority", "ascending")]
    for rule in policy:
        column, direction = _KEEP_KEYS[rule]
        keys.append((column, direction))
    keys.append(("doc_key", "ascending"))
    unique = [(column, order, "at_end") for column, order in dict(keys).items()]
    order = pc.sort_indices(nodes, sort_keys=unique).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def resolve_exact(groups: pa.Table, policy: Sequence[str]) -> pa.Table:
    """Return (doc_id, twin, short) of every document that has a better exact copy; twin is the best of its group."""
    if not groups.num_rows:
        return pa.table(
            {"doc_id": pa.array([], pa.int64()), "twin": pa.array([], pa.int64()), "short": pa.array([], pa.bool_())}
        )
    ordered = groups.take(pa.array(np.argsort(keep_rank(groups, policy))))
    docs, keys = ordered.column("doc_id").to_pylist(), ordered.column("exact_key").to_pylist()
    best: dict[str, int] = {}
    rows = [(d, best.setdefault(k, d), k.startswith("words:")) for d, k in zip(docs, keys, strict=True)]
    removed = sorted(r for r in rows if r[0] != r[1])
    return pa.table(
        {"doc_id": [r[0] for r in removed], "twin": [r[1] for r in removed], "short": [r[2] for r in removed]}
    )


def resolve_clusters(
    nodes: pa.Table, exact: pa.Table, edges: pa.Table, policy: Sequence[str], num_pairs: int
) -> Clusters:
    """Name clusters and decide who goes.

    Args:
        nodes: order columns of every document in `exact` or `edges`, sorted by doc_id.
        exact: from `resolve_exact`.
        edges: verified pairs between documents that are no exact copies; schema EDGES.
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
    made = greedy_keep(rank, left, right, jaccard)
    keep, because = made.keep.copy(), made.because_of.copy()
    similarity = np.where(made.edge >= 0, jaccard[np.maximum(made.edge, 0)] if len(jaccard) else np.nan, np.nan)
    reasons = np.full(len(ids), NEAR, dtype=object)
    reasons[keep] = None
    # A copy goes with its twin; if the twin itself went over an edge, that edge holds for the copy's equal text too.
    keep[copies] = False
    because[copies] = np.where(keep[twins], twins, because[twins])
    similarity[copies] = np.where(keep[twins], 1.0, similarity[twins])
    reasons[copies] = np.where(exact.column("short").to_numpy(zero_copy_only=False), SHORT, EXACT)
    labels = _labels(len(ids), np.concatenate([left, copies]), np.concatenate([right, twins]))
    _drop_twins_of_validation(nodes, labels, rank, keep, because, similarity, reasons)
    return Clusters(_table(nodes, labels, rank, keep, because, similarity, reasons), edges, num_pairs)


def _labels(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    found = components(left, right)
    labels = np.arange(count, dtype=np.int64)
    labels[found.nodes] = found.labels
    return labels


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
        if held_out is None:
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
