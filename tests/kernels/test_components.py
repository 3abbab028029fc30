from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels.components import components, greedy_keep
from tests.kernels.reference_minhash import component_labels, greedy_keep_of

edges_of = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=40)


@st.composite
def graphs(draw):
    num_nodes = draw(st.integers(1, 14))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node, st.sampled_from([0.8, 0.85, 0.9, 1.0])), max_size=40))
    return draw(st.permutations(range(num_nodes))), edges


def columns(edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, right, jaccard = (np.array([e[k] for e in edges]) for k in range(3))
    return left.astype(np.int64), right.astype(np.int64), jaccard.astype(np.float64)


@given(edges_of, st.sampled_from([1, -7, 1 << 33]))
def test_labels_equal_a_breadth_first_search(edges, scale):
    edges = [(a * scale, b * scale) for a, b in edges]
    result = components(
        np.array([a for a, _ in edges], dtype=np.int64), np.array([b for _, b in edges], dtype=np.int64)
    )
    assert dict(zip(result.nodes.tolist(), result.labels.tolist(), strict=True)) == component_labels(edges)


@given(edges_of, st.randoms(use_true_random=False))
def test_labels_do_not_depend_on_the_order_of_edges(edges, random):
    mixed = [edge if random.random() < 0.5 else edge[::-1] for edge in edges] * 2
    random.shuffle(mixed)
    first, second = (
        components(np.array([a for a, _ in e], dtype=np.int64), np.array([b for _, b in e], dtype=np.int64))
        for e in (edges, mixed)
    )
    assert np.array_equal(first.nodes, second.nodes)
    assert np.array_equal(first.labels, second.labels)


def test_a_chain_of_a_million_is_one_component():
    nodes = np.random.default_rng(1).permutation(1_000_000)
    result = components(nodes[:-1], nodes[1:])
    assert len(result.nodes) == 1_000_000
    assert not result.labels.any()


@given(graphs())
def test_decisions_equal_the_plain_python_form(graph):
    rank, edges = graph
    result = greedy_keep(np.array(rank), *columns(edges))
    twins = greedy_keep_of(list(rank), edges)
    assert result.because_of.tolist() == twins
    assert result.keep.tolist() == [twin < 0 for twin in twins]


@given(graphs())
def test_every_removal_has_an_edge_to_a_better_kept_document_and_no_two_kept_share_one(graph):
    rank, edges = graph
    result = greedy_keep(np.array(rank), *columns(edges))
    for node, twin in enumerate(result.because_of.tolist()):
        if twin >= 0:
            assert result.keep[twin]
            assert rank[twin] < rank[node]
            assert {node, twin} == set(edges[result.edge[node]][:2])
        else:
            assert result.edge[node] == -1
    assert not any(a != b and result.keep[a] and result.keep[b] for a, b, _ in edges)


@given(graphs(), st.randoms(use_true_random=False))
def test_decisions_do_not_depend_on_the_order_of_edges(graph, random):
    rank, edges = graph
    mixed = [(b, a, j) if random.random() < 0.5 else (a, b, j) for a, b, j in edges]
    random.shuffle(mixed)
    first, second = (greedy_keep(np.array(rank), *columns(e)) for e in (edges, mixed))
    assert np.array_equal(first.keep, second.keep)
    assert np.array_equal(first.because_of, second.because_of)


def test_the_end_of_a_chain_stays_when_its_only_neighbour_goes():
    result = greedy_keep(np.arange(3), np.array([0, 1]), np.array([1, 2]), np.array([0.8, 0.9]))
    assert result.keep.tolist() == [True, False, True]
    assert result.because_of.tolist() == [-1, 0, -1]


def test_a_tie_in_similarity_goes_to_the_better_rank():
    edges = (np.array([2, 2]), np.array([1, 0]), np.array([0.9, 0.9]))
    assert greedy_keep(np.array([1, 0, 2]), *edges).because_of.tolist() == [-1, -1, 1]


def test_no_edges_keep_everything():
    empty = np.empty(0, dtype=np.int64)
    assert greedy_keep(np.arange(4), empty, empty, np.empty(0)).keep.all()
    assert len(components(empty, empty).nodes) == 0
    assert len(greedy_keep(empty, empty, empty, np.empty(0)).keep) == 0


@pytest.mark.parametrize(
    ("rank", "left", "right", "jaccard"),
    [
        ([0, 0], [0], [1], [0.9]),
        ([0, 1], [0], [2], [0.9]),
        ([0, 1], [0], [1], [float("nan")]),
        ([0, 1], [0], [1], []),
        ([0, 1], [0, 1], [1], [0.9]),
    ],
)
def test_wrong_arguments_are_refused(rank, left, right, jaccard):
    with pytest.raises(ConfigError):
        greedy_keep(np.array(rank), np.array(left), np.array(right), np.array(jaccard, dtype=float))
