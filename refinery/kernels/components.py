"""Connected components of verified edges, and which documents of a component stay.

A component names a cluster; it does not decide removals. Similarity is not transitive: in a chain A-B-C, A and C may
share little, so a document is removed only over a verified edge to a document that is *kept*. Every removal then has a
twin in the output that it can be compared with, and precision is that of the edges.

Shape legend: N nodes, E edges.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError


class Components(NamedTuple):
    """Components of a graph given by its edges."""

    nodes: np.ndarray
    """int64, shape (N,): every node that has an edge, ascending."""
    labels: np.ndarray
    """int64, shape (N,): the smallest node of the component."""


class GreedyKeep(NamedTuple):
    """Outcome of `greedy_keep` for N nodes."""

    keep: np.ndarray
    """bool, shape (N,)."""
    because_of: np.ndarray
    """int64, shape (N,): index of the kept twin, -1 for kept nodes."""
    edge: np.ndarray
    """int64, shape (N,): index of the edge to the twin, -1 for kept nodes."""


@numba.njit(cache=True, nogil=True)
def _union_edges(left: np.ndarray, right: np.ndarray, parent: np.ndarray) -> None:
    for edge in range(len(left)):
        a, b = left[edge], right[edge]
        while parent[a] != a:
            parent[a] = parent[parent[a]]  # path halving
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        # The smaller root wins: a root is always the smallest member, so labels need no second pass over members.
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b
    for node in range(len(parent)):
        parent[node] = parent[parent[node]]  # parents have smaller indices and are final already


def components(left: np.ndarray, right: np.ndarray) -> Components:
    """Return the connected components of an edge list.

    Args:
        left: int64, shape (E,): any node ids.
        right: int64, shape (E,).
    Returns: see `Components`; the same for any order or direction of the edges, and for repeats.
        Cost: O(E log E) for the dense numbering, then near O(E).

    Raises:
        ConfigError: left and right differ in length.
    """
    _check_edges(left, right)
    ends = np.concatenate([np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)])
    nodes, dense = np.unique(ends, return_inverse=True)
    return Components(nodes, nodes[dense_labels(dense[: len(left)], dense[len(left) :], len(nodes))])


def dense_labels(left: np.ndarray, right: np.ndarray, num_nodes: int) -> np.ndarray:
    """Return the smallest member of each node's component, int64, shape (num_nodes,), for nodes 0 to num_nodes - 1."""
    parent = np.arange(num_nodes, dtype=np.int64)
    _union_edges(left, right, parent)
    return parent


@numba.njit(cache=True, nogil=True)
def _adjacency(left: np.ndarray, right: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (starts, edges): node v meets ``edges[starts[v]:starts[v + 1]]``; counting sort, O(N + E)."""
    starts = np.zeros(num_nodes + 1, dtype=np.int64)
    for edge in range(len(left)):
        starts[left[edge] + 1] += 1
        starts[right[edge] + 1] += 1
    for node in range(num_nodes):
        starts[node + 1] += starts[node]
    cursor = starts[:-1].copy()
    edges = np.empty(2 * len(left), dtype=np.int64)
    for edge in range(len(left)):
        edges[cursor[left[edge]]] = edge
        cursor[left[edge]] += 1
        edges[cursor[right[edge]]] = edge
        cursor[right[edge]] += 1
    return starts, edges


@numba.njit(cache=True, nogil=True)
def _keep_in_order(
    order: np.ndarray, rank: np.ndarray, left: np.ndarray, right: np.ndarray, jaccard: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = np.zeros(len(order), dtype=np.bool_)
    because_of = np.empty(len(order), dtype=np.int64)
    twin_edge = np.empty(len(order), dtype=np.int64)
    starts, edges = _adjacency(left, right, len(order))
    for node in order:
        best_edge, best_twin = -1, -1
        for k in range(starts[node], starts[node + 1]):
            edge = edges[k]
            twin = left[edge] + right[edge] - node
            if twin == node or not keep[twin]:
                continue
            closer = best_edge < 0 or jaccard[edge] > jaccard[best_edge]
            if closer or (jaccard[edge] == jaccard[best_edge] and rank[twin] < rank[best_twin]):
                best_edge, best_twin = edge, twin
        keep[node] = best_edge < 0
        because_of[node] = best_twin
        twin_edge[node] = best_edge
    return keep, because_of, twin_edge


def greedy_keep(rank: np.ndarray, left: np.ndarray, right: np.ndarray, jaccard: np.ndarray) -> GreedyKeep:
    """Walk the documents from best to worst and remove each that has a verified edge to one kept already.

    Its twin is the kept neighbour of highest Jaccard, of several the better ranked. The kept documents are a maximal
    independent set of the graph: no two of them share an edge, and every removed one has an edge to one of them.

    Args:
        rank: int64, shape (N,): place in the keep order, 0 is best; distinct.
        left: int64, shape (E,): node indices in 0..N-1.
        right: int64, shape (E,).
        jaccard: float64, shape (E,): verified similarities, no NaN.
    Returns: see `GreedyKeep`; the decisions do not depend on the order of the edges. Cost: O(N log N + E).

    Raises:
        ConfigError: ranks repeat, lengths differ, an index is out of bounds or a similarity is NaN.
    """
    _check_edges(left, right)
    num_nodes = len(rank)
    if len(jaccard) != len(left):
        raise ConfigError(f"{len(jaccard)} similarities for {len(left)} edges; pass one per edge")
    if np.isnan(jaccard).any():
        raise ConfigError("an edge has similarity NaN (below the minimum); pass verified edges only")
    left = np.ascontiguousarray(left, dtype=np.int64)
    right = np.ascontiguousarray(right, dtype=np.int64)
    rank = np.ascontiguousarray(rank, dtype=np.int64)
    for side in (left, right):
        if len(side) and (side.min() < 0 or side.max() >= num_nodes):
            raise ConfigError(f"edge end outside 0..{num_nodes - 1}; map document ids to dense indices first")
    order = np.argsort(rank, kind="stable")
    if num_nodes and np.any(np.diff(rank[order]) == 0):
        raise ConfigError("two documents share a rank; break ties by doc_key before calling greedy_keep")
    similarity = np.ascontiguousarray(jaccard, dtype=np.float64)
    return GreedyKeep(*_keep_in_order(order, rank, left, right, similarity))


def _check_edges(left: np.ndarray, right: np.ndarray) -> None:
    if len(left) != len(right):
        raise ConfigError(f"{len(left)} left and {len(right)} right ends differ in number; pass edges")
