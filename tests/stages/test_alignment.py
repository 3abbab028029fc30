from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from refinery.contracts.tables import PART_SHIFT
from refinery.io import parts as part_files
from refinery.stages.rules_facts import signals_schema
from refinery.stages.workspace import need_stage
from tests.stages.corpus import build_corpus, recipe_values
from tests.stages.runs import parts_of, run_stages, whole_table

pytestmark = pytest.mark.spark

ALIGNED = (
    ("rules", "signals"), ("rules", "words"), ("rules", "decisions"),
    ("dedup_documents", "decisions"), ("tokenize", "tokens"), ("mix", "selection"), ("mix", "decisions"),
)  # fmt: skip


@pytest.fixture(scope="module")
def odd(spark, tmp_path_factory):
    """A run whose parts are a few documents each, with one document longer than its part."""
    folder = tmp_path_factory.mktemp("odd")
    corpus = build_corpus(folder / "corpus")
    rows = [json.loads(line) for line in (corpus.root / "news.jsonl").read_text(encoding="utf-8").splitlines()]
    long_text = "\n".join(row["text"] for row in rows[:20])
    rows.insert(7, {"id": "long", "text": long_text})
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (corpus.root / "news.jsonl").write_text(data, encoding="utf-8")
    values = recipe_values(corpus, folder / "run")
    values["ingest"]["part_bytes"] = 10_000
    run_stages(spark, values)
    return values


def _documents(workdir, part):
    return part_files.read_part(workdir, "ingest", "documents", part, ["doc_id", "doc_key"])


def test_splits_are_odd(odd):
    sizes = [_documents(odd["workdir"], p).num_rows for p in parts_of(odd["workdir"])]
    assert len(sizes) > 20
    assert 0 in sizes, "a part that no document starts in"
    assert len(set(sizes)) > 3


def test_doc_id_is_part_and_row(odd):
    for part in parts_of(odd["workdir"]):
        ids = _documents(odd["workdir"], part).column("doc_id").to_numpy()
        assert np.array_equal(ids, (part << PART_SHIFT) + np.arange(len(ids)))


@pytest.mark.parametrize(("stage", "table"), ALIGNED)
def test_aligned_tables_have_exactly_their_documents(odd, stage, table):
    workdir = odd["workdir"]
    numbers = parts_of(workdir)
    assert part_files.part_numbers(workdir, stage, table) == numbers
    recorded = {(e.table, e.part): e.rows for e in need_stage(workdir, stage).parts}
    for part in numbers:
        ids = part_files.read_part(workdir, stage, table, part, ["doc_id"]).column("doc_id")
        assert ids.to_pylist() == _documents(workdir, part).column("doc_id").to_pylist()
        assert recorded[table, part] == len(ids)


def test_signals_table_has_the_declared_columns(odd):
    table = part_files.read_part(odd["workdir"], "rules", "signals", parts_of(odd["workdir"])[0])
    assert table.schema.names == signals_schema().names


def test_not_computed_is_null(odd):
    """Who a stage was not asked about has nulls there, and nobody else."""
    workdir = odd["workdir"]
    rules = whole_table(workdir, "rules", "decisions", ["keep"]).column("keep").to_numpy()
    dedup = whole_table(workdir, "dedup_documents", "decisions", ["keep"]).column("keep")
    tokens = whole_table(workdir, "tokenize", "tokens", ["num_tokens", "ids"])
    assert np.array_equal(dedup.is_valid().to_numpy(), rules)
    entered = dedup.fill_null(False).to_numpy()
    assert np.array_equal(tokens.column("num_tokens").is_valid().to_numpy(), entered)
    assert np.array_equal(tokens.column("ids").is_valid().to_numpy(), entered)
    lengths = pc.binary_length(tokens.column("ids")).drop_null().to_numpy()
    assert np.array_equal(lengths, 2 * tokens.column("num_tokens").drop_null().to_numpy())


def test_sparse_tables_are_sorted_and_inside_their_part(odd):
    workdir = odd["workdir"]
    for table in ("exact_keys", "clusters"):
        for part in part_files.part_numbers(workdir, "dedup_documents", table):
            ids = part_files.read_part(workdir, "dedup_documents", table, part, ["doc_id"]).column("doc_id").to_numpy()
            assert (np.diff(ids) > 0).all()
            assert set((ids >> PART_SHIFT).tolist()) <= {part}


def test_splits_do_not_change_what_happens_to_a_document(odd, spark, tmp_path_factory):
    """The same inputs in a few large parts: the same fate and the same ids for every document."""
    values = {**odd, "workdir": str(tmp_path_factory.mktemp("large") / "run")}
    values["ingest"] = {**odd["ingest"], "part_bytes": 200_000}
    run_stages(spark, values)
    assert len(parts_of(values["workdir"])) < 8
    for stage, table, column in (
        ("rules", "decisions", "drop_reason"), ("dedup_documents", "decisions", "drop_reason"),
        ("dedup_documents", "decisions", "because_of"), ("tokenize", "tokens", "ids"), ("mix", "selection", "stream"),
    ):  # fmt: skip
        assert _by_key(odd["workdir"], stage, table, column) == _by_key(values["workdir"], stage, table, column), table
    assert _shard_files(odd["workdir"]) == _shard_files(values["workdir"])


def _by_key(workdir, stage, table, column):
    keys = whole_table(workdir, "ingest", "documents", ["doc_key"]).column("doc_key").to_pylist()
    found = whole_table(workdir, stage, table, [column]).column(column).to_pylist()
    return dict(zip(keys, found, strict=True))


def _shard_files(workdir):
    body = json.loads(Path(workdir, "pack", "shards", "manifest.json").read_bytes())
    return [[part["files"] for part in stream["parts"]] for stream in body["streams"]]
