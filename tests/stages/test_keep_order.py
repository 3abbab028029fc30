"""Who stays in a group of duplicates: the keep order as a pure function of narrow columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from refinery.errors import ConfigError
from refinery.recipe import parse_recipe
from refinery.stages.dedup_clusters import keep_rank, resolve_clusters, resolve_copies


def nodes(**columns):
    count = len(next(iter(columns.values())))
    base = {
        "doc_id": list(range(count)),
        "exact_key": ["same"] * count,
        "url_key": [None] * count,
        "scope": [0] * count,
        "priority": [3] * count,
        "quality": [None] * count,
        "num_bytes": [10] * count,
        "date": [None] * count,
        "source_rank": [0] * count,
        "age": [0] * count,
        "doc_key": [f"{i:032x}" for i in range(count)],
    }
    return pa.table({**base, **columns})


@pytest.mark.parametrize(
    ("policy", "columns", "best"),
    [
        (("quality", "longest"), {"quality": [0.2, 0.9, None], "num_bytes": [30, 20, 10]}, 1),
        (("longest",), {"quality": [0.2, 0.9, None], "num_bytes": [30, 20, 10]}, 0),
        (("quality", "longest"), {"quality": [None, None, None], "num_bytes": [5, 20, 10]}, 1),
        (("newest",), {"date": ["2020-01-01", "2024-01-01", None]}, 1),
        (("source_order",), {"source_rank": [2, 1, 0]}, 2),
        (("smallest_key",), {"num_bytes": [1, 2, 3]}, 0),
    ],
)
def test_first_rule_decides_and_missing_values_come_last(policy, columns, best):
    assert int(np.argmin(keep_rank(nodes(**columns), policy))) == best


def test_validation_and_roles_come_before_the_policy():
    table = nodes(priority=[3, 1, 0, 2], num_bytes=[99, 50, 1, 70])
    assert np.argsort(keep_rank(table, ("longest",))).tolist() == [2, 1, 3, 0]


def test_a_train_twin_of_a_validation_document_goes_even_without_a_direct_edge():
    table = nodes(priority=[0, 3, 3], num_bytes=[10, 20, 30])
    edges = pa.table({"a": [0, 1], "b": [1, 2], "jaccard": [0.9, 0.85]})
    exact = resolve_copies(table.slice(0, 0), ("longest",), url=False)
    made = resolve_clusters(table, exact, edges, ("longest",), 2).table.to_pylist()
    assert [row["representative"] for row in made] == [True, False, False]
    assert {row["drop_reason"] for row in made[1:]} == {"dedup_documents.twin_of_validation"}
    assert {row["because_of"] for row in made[1:]} == {made[0]["cluster_id"]}


def test_an_exact_copy_goes_with_its_twin_over_the_twins_edge():
    table = nodes(num_bytes=[50, 20, 20])
    exact = pa.table({"doc_id": [2], "twin": [1], "reason": ["exact"]})
    edges = pa.table({"a": [0], "b": [1], "jaccard": [0.83]})
    made = resolve_clusters(table, exact, edges, ("longest",), 1).table.to_pylist()
    assert made[0]["representative"]
    assert made[1]["jaccard"] == made[2]["jaccard"] == 0.83
    assert made[1]["because_of"] == made[2]["because_of"] == table.column("doc_key")[0].as_py()
    assert made[2]["drop_reason"] == "dedup_documents.exact"


def test_keeping_by_quality_needs_a_quality_section():
    values = {
        "name": "x",
        "workdir": "w",
        "inputs": [{"source": "a", "domain": "b", "format": "jsonl", "paths": ["p"]}],
        "dedup_documents": {"keep": ["quality"]},
    }
    with pytest.raises(ConfigError, match="no quality section"):
        parse_recipe(values)
