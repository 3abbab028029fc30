"""Scopes, URLs, short texts and words of Chinese: who is compared with whom."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from refinery.errors import ConfigError
from refinery.recipe import parse_recipe
from refinery.stages.dedup_clusters import resolve_copies
from refinery.stages.dedup_keys import bucket_order, dump_names
from refinery.stages.workspace import need_stage
from tests.stages.corpus import ENGLISH, chinese, edited, prose, sentence_text, write_jsonl
from tests.stages.runs import fork, run_stages, whole_table
from tests.stages.test_keep_order import nodes

NAME = "dedup_documents"
DUMPS = ("CC-MAIN-2013-20", "CC-MAIN-2024-10")


@pytest.fixture(scope="module")
def world(spark, tmp_path_factory):
    """Every text stands in two dumps of two sources each; one source has two near copies, one page two captures."""
    root, rng = tmp_path_factory.mktemp("scopes"), random.Random(7)
    texts = [prose(rng, ENGLISH, 160) for _ in range(30)]
    law = chinese(rng, 400)
    for source in ("a", "b"):
        rows = []
        for dump in DUMPS:
            where = {"file": f"s3://cc/crawl-data/{dump}/segments/1.wet", "date": f"{dump[8:12]}-01-01"}
            for n, words in enumerate(texts):
                text = sentence_text(edited(rng, words, 1))
                url = f"http://{source}.org/{n}" if n < 5 else None
                rows.append({"id": f"{dump}{n}", "text": text, "url": url, **where})
            changed = "".join(c if k % 80 else "新" for k, c in enumerate(law))
            rows.append({"id": f"{dump}law", "text": changed + source, "url": None, **where})
            rows.append({"id": f"{dump}tiny", "text": "Too short." if source == "a" else "too SHORT", **where})
        write_jsonl(root / f"{source}.jsonl", rows)
    values = {
        "name": "scopes", "seed": 3, "workdir": str(root / "run"),
        "inputs": [
            {"source": s, "domain": "web", "format": "jsonl", "paths": [str(root / f"{s}.jsonl")]} for s in ("a", "b")
        ],
        "ingest": {"part_bytes": 12_000, "validation_frac": 0.15},
        "dedup_documents": {},
    }  # fmt: skip
    run_stages(spark, values, ["ingest"])
    return values


def _fates(spark, world, tmp_path, **settings):
    values = {**fork(world, tmp_path / "run"), "dedup_documents": settings}
    facts = run_stages(spark, values, [NAME])[NAME].facts
    docs = whole_table(values["workdir"], "ingest", "documents", ["doc_key", "source", "split", "date"]).to_pylist()
    made = whole_table(values["workdir"], NAME, "decisions", ["keep", "drop_reason", "because_of"]).to_pylist()
    return {d["doc_key"]: {**d, **m} for d, m in zip(docs, made, strict=True)}, facts


@pytest.mark.spark
@pytest.mark.parametrize("scope", ["source", "dump"])
def test_documents_meet_inside_their_scope_only(spark, world, tmp_path, scope):
    dump = {"dump_field": "meta.file", "dump_pattern": r"CC-MAIN-\d{4}-\d\d"} if scope == "dump" else {}
    fates, facts = _fates(spark, world, tmp_path, scope=scope, **dump)
    same = "source" if scope == "source" else "date"
    gone = [f for f in fates.values() if not f["keep"]]
    across = [f for f in gone if fates[f["because_of"]][same] != f[same]]
    assert len(gone) > 50
    assert across, "held-out text protects across scopes"
    for fate in across:
        assert fate["drop_reason"] == f"{NAME}.twin_of_validation"
        assert (fates[fate["because_of"]]["split"], fate["split"]) == ("validation", "train")
    kept = [f[same] for f in fates.values() if f["keep"]]
    assert min(kept.count(value) for value in set(kept)) >= 20, "each scope keeps its own"
    assert facts["num_without_dump"] == 0
    assert facts["num_without_shingles"] == 4
    assert {f["drop_reason"] for f in gone} >= {f"{NAME}.near", f"{NAME}.short_text"}


@pytest.mark.spark
def test_of_captures_of_a_url_the_newest_stays(spark, world, tmp_path):
    fates, _ = _fates(spark, world, tmp_path, url=True, keep=["longest"])
    gone = [f for f in fates.values() if f["drop_reason"] == f"{NAME}.url_duplicate"]
    assert len(gone) >= 8
    for fate in gone:
        winner = fates[fate["because_of"]]
        assert winner["source"] == fate["source"]
        assert winner["date"] > fate["date"] or winner["split"] == "validation"


@pytest.mark.spark
def test_chinese_by_words_is_another_set(spark, world, tmp_path):
    fates, facts = _fates(spark, world, tmp_path, chinese="words", bands="auto")
    assert need_stage(str(tmp_path / "run"), NAME).recipe_slice["bands"] == "14x8"
    assert facts["num_without_shingles"] == 4
    assert dict(map(tuple, facts["collision_curve"]))[0.8] == pytest.approx(0.9235, abs=1e-3)
    shingles = whole_table(str(tmp_path / "run"), NAME, "exact_keys", ["num_shingles"]).column(0).to_pylist()
    plain = {**fork(world, tmp_path / "plain"), "dedup_documents": {}}
    run_stages(spark, plain, [NAME])
    characters = whole_table(plain["workdir"], NAME, "exact_keys", ["num_shingles"]).column(0).to_pylist()
    fewer = [a < b for a, b in zip(shingles, characters, strict=True)]
    assert sum(fewer) == 4, "the four laws have fewer words than characters"
    assert len(fates) == len(fewer)


def test_dump_names():
    table = pa.table(
        {"meta": ['{"warc": {"file": "x/CC-MAIN-2013-20/y"}}', "{}", None], "url": ["http://d1.org", None, "http://e"]}
    )
    assert dump_names("meta.warc.file", r"MAIN-(\d+)", table) == ["2013", None, None]
    assert dump_names("meta.warc.file", None, table) == ["x/CC-MAIN-2013-20/y", None, None]
    assert dump_names("url", r"//(d\d)", table) == ["d1", None, None]


def test_copies_of_a_held_out_short_text_go_in_every_scope():
    table = nodes(priority=[0, 3, 3, 0], scope=[1, 1, 2, 2], exact_key=["words:x"] * 4)
    found = resolve_copies(table, ("longest",), url=False).to_pylist()
    assert [(r["doc_id"], r["twin"], r["reason"]) for r in found] == [(1, 0, "short_text"), (2, 0, "short_text")]


def test_urls_come_before_texts():
    table = nodes(
        url_key=[7, 7, None, 8], date=["2020", "2021", None, None], exact_key=["x", "y", "x", "y"],
        num_bytes=[9, 1, 5, 1],
    )  # fmt: skip
    found = resolve_copies(table, ("longest",), url=True).to_pylist()
    assert [(r["doc_id"], r["twin"], r["reason"]) for r in found] == [(0, 1, "url_duplicate"), (3, 1, "exact")]


@pytest.mark.parametrize(
    ("policy", "columns"),
    [
        (("longest",), {"num_bytes": [30, 20, 10]}),
        (("newest",), {"date": ["2024-05-01T00:00:00", "2024", None]}),
        (("quality", "longest"), {"quality": [0.9, 0.2, None]}),
        (("source_order", "longest"), {"num_bytes": [30, 20, 10]}),
        (("smallest_key",), {}),
    ],
)
def test_representatives_are_those_that_would_stay(policy, columns):
    table = nodes(doc_key=[f"{i:x}{'0' * 31}" for i in (1, 2, 3)], **columns)
    assert (np.diff(bucket_order(table, policy)) > 0).all()
    held = nodes(priority=[3, 3, 0], doc_key=table.column("doc_key").to_pylist(), **columns)
    assert int(np.argmin(bucket_order(held, policy))) == 2


@pytest.mark.parametrize(
    "settings",
    [{"dump_pattern": "("}, {"dump_field": "text"}, {"chinese": "words", "unit": "chars"}, {"bands": "datasketch"}],
)
def test_wrong_settings_are_refused(settings):
    one = {"source": "a", "domain": "b", "format": "jsonl", "paths": ["p"]}
    with pytest.raises(ConfigError, match="dedup_documents"):
        parse_recipe({"name": "x", "workdir": "w", "inputs": [one], "dedup_documents": settings})
