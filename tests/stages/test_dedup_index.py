"""Finished runs as an index: increments equal one batch; and both ways of finding duplicates agree."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from refinery.errors import ConfigError, IntegrityError
from refinery.report.explain import explain, explain_text
from refinery.stages import dedup_documents, dedup_local
from refinery.stages.dedup_spark import find_in_spark
from refinery.stages.workspace import need_stage
from tests.stages.corpus import ENGLISH, edited, prose, sentence_text, write_jsonl
from tests.stages.runs import files_of, fork, run_stages, whole_table

pytestmark = pytest.mark.spark
STAGES = ("ingest", "dedup_documents")
NAME = "dedup_documents"


def _crawls():
    """Three crawls whose documents copy each other; a template that fills giant buckets; a chain; a moved page."""
    rng = random.Random(5)
    originals = [prose(rng, ENGLISH, 150 + n) for n in range(12)]
    template = prose(rng, ENGLISH, 260)
    chain = prose(rng, ENGLISH, 400)
    crawls = []
    for crawl in range(3):
        rows = []
        for n, words in enumerate(originals):
            if (n + crawl) % 3:
                changed = edited(rng, words, 1 + (n + crawl) % 2) + prose(rng, ENGLISH, 4 * crawl * (n % 2))
                rows.append({"id": f"near{n}", "text": sentence_text(changed), "url": f"http://a.org/{n}"})
            if n % 4 != crawl:
                rows.append({"id": f"same{n}", "text": sentence_text(words), "url": f"http://b.org/{crawl}/{n}"})
        for n in range(14):
            rows.append({"id": f"page{n}", "text": sentence_text(edited(rng, template, 1 + n % 5)), "url": None})
        for n in range(4):
            chain = edited(rng, chain, 7)
            rows.append({"id": f"link{n}", "text": sentence_text(chain), "url": None})
        rows.append({"id": "stub", "text": "Moved here!" if crawl else "moved HERE", "url": None})
        rows.append({"id": "alone", "text": sentence_text(prose(rng, ENGLISH, 90)), "url": "http://www.a.org/0/#top"})
        for row in rows:
            row["date"] = f"202{crawl}-01-01"
        crawls.append(rows)
    return crawls


def _values(root, crawls, name, index=(), **settings):
    return {
        "name": "index", "seed": 3, "workdir": str(root / name),
        "inputs": [
            {"source": f"crawl{c}", "domain": "web", "format": "jsonl", "paths": [str(root / "in" / f"{c}.jsonl")]}
            for c in crawls
        ],
        "ingest": {"part_bytes": 9000, "validation_frac": 0.1},
        "dedup_documents": {
            "keep": ["newest", "longest"], "max_bucket_pairs": 6, "url": True,
            "index": [str(root / i) for i in index], **settings,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(spark, tmp_path_factory):
    root = tmp_path_factory.mktemp("crawls")
    for number, rows in enumerate(_crawls()):
        write_jsonl(root / "in" / f"{number}.jsonl", rows)
    batch = _values(root, (0, 1, 2), "batch")
    run_stages(spark, batch, STAGES)
    for name, crawls, index in (("one", (0,), ()), ("two", (1,), ("one",)), ("three", (2,), ("two",))):
        run_stages(spark, _values(root, crawls, name, index), STAGES)
    return root


def _fates(workdir):
    keys = whole_table(workdir, "ingest", "documents", ["doc_key"]).column("doc_key").to_pylist()
    rows = whole_table(workdir, NAME, "decisions", ["keep", "drop_reason", "because_of"]).to_pylist()
    return {k: (r["keep"], r["drop_reason"], r["because_of"]) for k, r in zip(keys, rows, strict=True)}


def _keys(runs):
    """Return the doc_key of every id of a chain of runs, the last being the one that looks."""
    found = {}
    for number, workdir in enumerate([*runs[:-1], runs[-1]], start=1):
        rows = whole_table(str(workdir), "ingest", "documents", ["doc_id", "doc_key"]).to_pylist()
        shift = (0 if workdir == runs[-1] else number) << 55
        found |= {row["doc_id"] | shift: row["doc_key"] for row in rows}
    return found


def _pairs(runs):
    keys = _keys(runs)
    return {
        (frozenset((keys[r["a"]], keys[r["b"]])), r["buckets"], r["jaccard"])
        for r in whole_table(str(runs[-1]), NAME, "candidate_pairs").to_pylist()
    }


def _with_flips(runs):
    """Return the fates of all documents of a chain, the flips of the last run applied."""
    fates = {}
    for workdir in runs:
        fates |= _fates(str(workdir))
    for row in whole_table(str(runs[-1]), NAME, "flips").to_pylist():
        assert fates[row["doc_key"]][0] != row["keep"], "a flip changes something"
        fates[row["doc_key"]] = (row["keep"], row["drop_reason"], row["because_of"])
    return {key: fate if fate[0] is False else fate[0] for key, fate in fates.items()}


def test_increments_equal_one_batch(world):
    runs = [world / name for name in ("one", "two", "three")]
    batch, parts = _fates(str(world / "batch")), _with_flips(runs)
    assert {k: fate[0] for k, fate in batch.items()} == {k: fate is True for k, fate in parts.items()}
    reasons = {fate[1] for fate in batch.values()}
    assert reasons >= {f"{NAME}.{r}" for r in ("near", "exact", "short_text", "url_duplicate")}
    for key, fate in _fates(str(world / "three")).items():
        assert fate == batch[key]
    assert _pairs(runs) == _pairs([world / "batch"])
    assert need_stage(str(world / "three"), NAME).facts["num_flips"] > 5
    members = {r["doc_id"]: r for r in whole_table(str(world / "batch"), NAME, "clusters").to_pylist()}
    names = {key: members.get(i) for i, key in _keys([world / "batch"]).items()}
    keys = _keys([world / "three"])
    for row in whole_table(str(world / "three"), NAME, "clusters").to_pylist():
        whole = names[keys[row["doc_id"]]]
        assert (row["cluster_id"], row["size"], row["jaccard"]) == (
            whole["cluster_id"],
            whole["size"],
            whole["jaccard"],
        )


def test_an_index_is_read_for_candidates_only_and_never_written(spark, world, tmp_path):
    before = files_of(world / "one")
    values = {**_values(world, (1,), "two", ("one",)), "workdir": str(tmp_path / "again")}
    manifest = run_stages(spark, values, STAGES)[NAME]
    assert files_of(world / "one") == before
    old = whole_table(str(world / "one"), "ingest", "documents", ["doc_id"]).num_rows
    stored = whole_table(str(world / "one"), NAME, "shingles", ["doc_id"]).num_rows
    assert 0 < manifest.volatile["num_old_texts_read"] < old - stored + 1
    assert manifest.content_hash == need_stage(str(world / "two"), NAME).content_hash


def test_the_same_crawl_twice_gives_nothing_new(spark, world, tmp_path):
    values = {**_values(world, (0,), "one", ("one",)), "workdir": str(tmp_path / "again")}
    manifest = run_stages(spark, values, STAGES)[NAME]
    assert sum(c.docs for c in manifest.counts if c.kind == "kept" and c.split == "train") == 0
    assert not [key for key, fate in _fates(values["workdir"]).items() if fate[0]]
    assert manifest.facts["num_flips"] == 0


def test_two_unrelated_runs_are_one_index(spark, world, tmp_path):
    apart = {**_values(world, (1,), "two"), "workdir": str(tmp_path / "apart")}
    run_stages(spark, apart, STAGES)
    values = _values(world, (2,), "three", ("one",))
    values["dedup_documents"]["index"].append(apart["workdir"])
    values["workdir"] = str(tmp_path / "last")
    run_stages(spark, values, STAGES)
    assert _fates(values["workdir"]) == _fates(str(world / "three"))
    assert _pairs([world / "one", tmp_path / "apart", tmp_path / "last"]) == _pairs([world / "batch"])


@pytest.mark.parametrize(
    ("name", "limit"),
    [("batch", "ONE_PROCESS_ROWS"), ("three", "ONE_PROCESS_ROWS"), ("batch", "ONE_PROCESS_SHINGLES")],
)
def test_spark_finds_what_one_process_finds(spark, world, tmp_path, monkeypatch, name, limit):
    crawls, index = ((0, 1, 2), ()) if name == "batch" else ((2,), ("two",))
    values = fork(_values(world, crawls, name, index), tmp_path / "run")
    here = need_stage(str(world / name), NAME)
    monkeypatch.setattr(dedup_local, limit, 0)
    called = []
    monkeypatch.setattr(dedup_documents, "find_in_spark", lambda *a: called.append(1) or find_in_spark(*a))
    there = run_stages(spark, values, [NAME], force=[NAME])[NAME]
    assert called
    assert there.facts == here.facts
    assert there.content_hash == here.content_hash
    for table in ("clusters", "flips", "copies", "edges", "candidate_pairs"):
        columns = [(c, "ascending") for c in ("doc_id", "a", "b")]
        mine, theirs = (whole_table(str(w), NAME, table) for w in (values["workdir"], world / name))
        order = [c for c in columns if c[0] in mine.column_names]
        assert mine.sort_by(order).equals(theirs.sort_by(order)), table


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"jaccard": 0.9}, "with jaccard 0.8"), ({"bands": "26x11"}, "with bands"), ({"keep": ["longest"]}, "with keep")],
)
def test_an_index_of_other_settings_is_refused(spark, world, tmp_path, settings, message):
    values = _values(world, (1,), "two", ("one",), **settings)
    with pytest.raises(ConfigError, match=message):
        run_stages(spark, values, [NAME])


def test_an_index_that_is_not_there_or_changed_is_refused(spark, world, tmp_path):
    for index, message in ((("nowhere",), "not complete"), (("two",), "own workdir")):
        with pytest.raises(ConfigError, match=message):
            run_stages(spark, _values(world, (1,), "two", index), [NAME])
    path = Path(world, "one", NAME, "_stage.json")
    kept = path.read_bytes()
    other = need_stage(str(world / "batch"), NAME).to_json()
    path.write_text(other.replace(str(world / "batch"), str(world / "one")), encoding="utf-8")
    try:
        with pytest.raises(IntegrityError, match="changed since"):
            run_stages(spark, _values(world, (2,), "three", ("two",)), [NAME])
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(("slice_rows", "part_bytes", "partitions"), [(1, 3000, 7), (7, 50_000, 1), (1000, 20_000, 3)])
def test_order_and_size_of_batches_change_nothing(
    spark, world, tmp_path, monkeypatch, slice_rows, part_bytes, partitions
):
    """Documents in another order, in other parts, slices and partitions, in one process or in Spark: the same fates."""
    values = {**_values(world, (0, 1, 2), "batch"), "workdir": str(tmp_path / "run")}
    values["ingest"] = {**values["ingest"], "part_bytes": part_bytes}
    for number, rows in enumerate(_crawls()):
        random.Random(slice_rows).shuffle(rows)
        write_jsonl(tmp_path / f"{number}.jsonl", rows)
        values["inputs"][number]["paths"] = [str(tmp_path / f"{number}.jsonl")]
    if partitions > 1:
        monkeypatch.setattr(dedup_local, "ONE_PROCESS_ROWS", 0)
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    try:
        run_stages(spark, values, STAGES, slice_rows=slice_rows)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    assert _fates(values["workdir"]) == _fates(str(world / "batch"))
    assert _pairs([tmp_path / "run"]) == _pairs([world / "batch"])


def test_a_twin_in_an_earlier_run_is_explained(world):
    fates = _fates(str(world / "three"))
    here = set(fates)
    twins = {k: f[2] for k, f in fates.items() if f[0] is False and f[2] is not None and f[2] not in here}
    assert twins, "held-out documents of earlier runs stay, whatever is newer"
    kinds: set[str] = set()
    for key, twin in list(twins.items())[:8]:
        told = explain(str(world / "three"), key)
        assert told["twin"]["doc_key"] == twin
        assert told["twin"]["run"] in {str(world / name) for name in ("one", "two")}
        assert f"in {told['twin']['run']}" in explain_text(told)
        kinds |= {kind for kind, _ in told["twin"]["diff"]}
    assert kinds & {"removed", "added"}
