"""What dedup sees behind line rules, and that its own cuts fit the text as ingested."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from refinery.hashing import hex_key
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.stages.workspace import need_stage
from tests.stages.corpus import ENGLISH, prose, sentence_text, write_jsonl
from tests.stages.runs import decisions, documents, parts_of, run_stages, whole_table

pytestmark = pytest.mark.spark

STAGES = ("ingest", "rules", "dedup_documents", "dedup_sentences")
SENTENCE = "The old captain wrote a long letter about the river and the garden behind the harbour."
BROKEN = SENTENCE.replace(" letter", " [ad one] letter [ad two]")
PRESET = {
    "name": "ads",
    "doc": "test",
    "lines": [
        {"name": "banner", "phrases": ["banner:"], "at": "start", "source": "test"},
        {"name": "inside", "phrases": ["[ad one]", "[ad two]"], "action": "cut_match", "source": "test"},
    ],
    "rules": [{"name": "mostly", "signal": "cut_word_frac", "max": 0.5, "source": "test"}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("ads")
    rng = random.Random(3)
    rows = []
    for n in range(24):
        lines = sentence_text(prose(rng, ENGLISH, 120)).split("\n")
        if n % 2:
            lines.insert(2, BROKEN if n % 4 == 1 else SENTENCE)
            lines.insert(0, f"banner: offer {n}")
        rows.append({"id": f"p{n}", "text": "\n".join(lines)})
    twin = rows[0]["text"].replace("\n", "\nbanner: once\n", 1) + " [ad one]"
    rows += [{"id": "twin", "text": twin}, {"id": "ads", "text": "banner: a b c d\nbanner: e f g h\nonly this is text"}]
    write_jsonl(root / "pool.jsonl", rows)
    (root / "ads.yaml").write_text(yaml.safe_dump(PRESET))
    return {
        "name": "ads",
        "seed": 7,
        "workdir": str(root / "run"),
        "inputs": [
            {"source": "pool", "domain": "web", "role": "pool", "format": "jsonl", "paths": [str(root / "pool.jsonl")]}
        ],
        "ingest": {"part_bytes": 9_000, "validation_frac": 0.0},
        "rules": {"presets": [str(root / "ads.yaml")]},
        "dedup_documents": {},
        "dedup_sentences": {"exact": True, "min_words": 6, "max_removed_frac": 0.9},
        "spark": {"master": "local[2]", "shuffle_partitions": 3},
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(spark, made):
    run_stages(spark, made, STAGES)
    return made


def test_documents_that_differ_in_cut_lines_alone_are_exact_copies(ran):
    keys = {hex_key("pool", f) for f in ("p0", "twin")}
    decided = decisions(ran["workdir"], "dedup_documents")
    ids = {row["doc_id"]: key for key, row in documents(ran["workdir"]).items()}
    reasons = {ids[doc]: row["drop_reason"] for doc, row in decided.items() if ids[doc] in keys}
    assert set(reasons) == keys
    assert sorted(reasons.values(), key=str) == [None, "dedup_documents.exact"]


def test_a_sentence_that_holds_earlier_cuts_is_a_repeat_and_goes_around_them(ran):
    workdir = ran["workdir"]
    texts = {row["doc_id"]: row["text"] for row in documents(workdir).values()}
    ours = whole_table(workdir, "dedup_sentences", "cuts").to_pylist()
    theirs = whole_table(workdir, "rules", "cuts").to_pylist()
    spans: dict[int, list[tuple[int, int]]] = {}
    for cut in ours + theirs:
        spans.setdefault(cut["doc_id"], []).append((cut["start"], cut["end"]))
    for found in spans.values():
        found.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(found)), "cuts are disjoint"
    pieces = [texts[c["doc_id"]].encode()[c["start"] : c["end"]].decode() for c in ours]
    assert sum(p == "The old captain wrote a long" for p in pieces) > 0, "the piece before the cut words"
    left = {}
    for part in parts_of(workdir):
        for piece in read_survivors(workdir, part, ["doc_id", "text"], STAGES[1:], 3):
            left |= dict(zip(*(piece.table.column(c).to_pylist() for c in ("doc_id", "text")), strict=True))
    assert sum(SENTENCE in text for text in left.values()) == 1, "one copy stays, with or without what was cut in it"
    assert not any("banner:" in text or "[ad" in text for text in left.values())
    kept = sum(c.bytes for c in need_stage(workdir, "dedup_sentences").counts if c.kind == "kept")
    assert kept == sum(len(text.encode()) for text in left.values())


def test_a_document_of_cut_lines_alone_goes_by_its_rule(ran):
    row = documents(ran["workdir"])[hex_key("pool", "ads")]
    assert decisions(ran["workdir"], "rules")[row["doc_id"]]["drop_reason"] == "ads.mostly"


@pytest.mark.parametrize(("shuffle_partitions", "slice_rows"), [(1, 7), (7, 1)])
def test_same_bytes_for_any_partitions_and_slices(spark, ran, tmp_path, shuffle_partitions, slice_rows):
    values = {**ran, "workdir": str(tmp_path / "run")}
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", str(shuffle_partitions))
    spark.conf.set("spark.sql.adaptive.enabled", "false")  # so that the number is really used
    try:
        run_stages(spark, values, STAGES, slice_rows=slice_rows)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
        spark.conf.set("spark.sql.adaptive.enabled", "true")
    tables = [("rules", t) for t in ("line_findings", "cuts", "signals_left", "decisions")]
    tables += [("dedup_sentences", "cuts")]
    for stage, table in tables:
        for part in parts_of(ran["workdir"]):
            paths = [Path(part_files.part_path(v["workdir"], stage, table, part)) for v in (ran, values)]
            assert paths[0].read_bytes() == paths[1].read_bytes()
