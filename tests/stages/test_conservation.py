from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from refinery.contracts.manifest import CountRow
from refinery.errors import IntegrityError
from refinery.io.survivors import read_survivors
from refinery.shards.format import decode_seg
from refinery.shards.manifest import load_manifest
from refinery.stages.decisions import decisions_table
from refinery.stages.workspace import check_conservation, need_stage
from tests.stages.corpus import recipe_values
from tests.stages.runs import DATA_STAGES, decisions, documents, parts_of, run_stages, survivors, whole_table

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def tight(spark, corpus, tmp_path_factory):
    """A run in which every deciding stage drops something, mix included."""
    values = recipe_values(corpus, tmp_path_factory.mktemp("tight") / "run")
    values["mix"]["budget_tokens"] = 30_000
    values["mix"]["stages"] = [{"domains": {"law": 0.3, "web": 0.6}, "replay": 0.1}]
    run_stages(spark, values)
    return values


def _sums(counts, kinds):
    rows = [c for c in counts if c.kind in kinds]
    return tuple(sum(getattr(c, name) for c in rows) for name in ("docs", "bytes", "tokens"))


def test_every_stage_conserves_in_its_manifest(tight):
    order = [need_stage(tight["workdir"], s) for s in DATA_STAGES]
    for before, after in pairwise(order):
        if after.stage == "pack":
            continue
        entered, left = _sums(before.counts, ["kept"]), _sums(after.counts, ["kept", "dropped", "cut"])
        assert entered[:2] == left[:2], after.stage
        assert not entered[2] or entered[2] == left[2], after.stage


@pytest.mark.parametrize("stage", ["rules", "dedup_documents", "mix"])
def test_counts_are_those_of_the_tables(tight, stage):
    workdir = tight["workdir"]
    facts = {row["doc_id"]: row for row in documents(workdir).values()}
    tokens = {
        r["doc_id"]: r["num_tokens"]
        for r in whole_table(workdir, "tokenize", "tokens", ["doc_id", "num_tokens"]).to_pylist()
    }
    counted: dict[tuple, list[int]] = {}
    for doc_id, decision in decisions(workdir, stage).items():
        if decision["keep"] is None:
            assert decision["drop_reason"] is None
            continue
        row = facts[doc_id]
        kind = "kept" if decision["keep"] else "dropped"
        assert (decision["drop_reason"] is None) == decision["keep"]
        assert decision["stage"] == (None if decision["keep"] else stage)
        key = (
            kind,
            decision["drop_reason"] or "",
            row["source"],
            row["domain"],
            row["role"],
            row["lang"],
            row["split"],
        )
        sums = counted.setdefault(key, [0, 0, 0])
        size = len(row["text"].encode())
        assert size == row["num_bytes"]
        for i, value in enumerate((1, size, tokens[doc_id] if stage == "mix" else 0)):
            sums[i] += value
    manifest = need_stage(workdir, stage)
    recorded = {
        (c.kind, c.reason, c.source, c.domain, c.role, c.lang, c.split): [c.docs, c.bytes, c.tokens]
        for c in manifest.counts
    }
    assert recorded == counted
    assert any(c.kind == "dropped" for c in manifest.counts)


def test_dropped_once_and_for_one_reason(tight):
    """Who was dropped is not asked again: reasons of all stages name disjoint documents."""
    reasons: Counter[int] = Counter()
    for stage in ("rules", "dedup_documents", "mix"):
        reasons.update(i for i, d in decisions(tight["workdir"], stage).items() if d["drop_reason"])
    assert reasons
    assert max(reasons.values()) == 1
    left = survivors(tight["workdir"], ("rules", "dedup_documents", "mix"))
    assert len(left) + len(reasons) == len(documents(tight["workdir"]))


def test_the_rules_named_are_the_planted_ones(tight, corpus):
    found = Counter(c.reason for c in need_stage(tight["workdir"], "rules").counts if c.kind == "dropped")
    assert found == Counter(f"gopher.{name}" for name in corpus.junk.values())


def test_pack_holds_exactly_the_tokens_that_mix_kept(tight):
    workdir = tight["workdir"]
    selected = whole_table(workdir, "mix", "selection", ["stream"]).column("stream").to_pylist()
    counts = whole_table(workdir, "tokenize", "tokens", ["num_tokens"]).column("num_tokens").to_pylist()
    by_stream: Counter[str] = Counter()
    docs: Counter[str] = Counter()
    for stream, tokens in zip(selected, counts, strict=True):
        if stream is not None:
            by_stream[stream] += tokens
            docs[stream] += 1
    facts = need_stage(workdir, "pack").facts
    assert facts["dropped_tokens"] == 0
    assert {s["stream"]: s["tokens"] for s in facts["streams"]} == by_stream
    assert {s["stream"]: s["documents"] for s in facts["streams"]} == docs
    for stream in facts["streams"]:
        assert stream["rows"] * 64 == stream["tokens"] + stream["padding_tokens"]


def test_shard_bytes_are_the_text(tight):
    """UTF-8 bytes counted from tokens in rows are the bytes of the packed documents."""
    workdir = tight["workdir"]
    kept = survivors(workdir, ("rules", "dedup_documents", "mix"))
    size = sum(row["num_bytes"] for row in documents(workdir).values() if row["doc_id"] in kept)
    assert sum(s["utf8_bytes"] for s in need_stage(workdir, "pack").facts["streams"]) == size


def test_every_packed_token_is_a_token_of_its_document(tight):
    """Rows, taken apart by their segments, give back the ids of exactly the documents that were selected."""
    workdir = tight["workdir"]
    root = Path(workdir, "pack", "shards")
    keys = whole_table(workdir, "ingest", "documents", ["doc_key"]).column("doc_key").to_pylist()
    ids = whole_table(workdir, "tokenize", "tokens", ["ids"]).column("ids").to_pylist()
    wanted = {int(k[:16], 16): v for k, v in zip(keys, ids, strict=True)}
    found: dict[int, list[np.ndarray]] = {}
    for stream in load_manifest(root).streams:
        for path in sorted((root / stream.name).glob("*.bin")):
            tokens = np.fromfile(path, "<u2")
            segments = decode_seg(path.with_suffix(".seg").read_bytes(), str(path))
            ends = np.cumsum(segments.seg_len)
            for end, size, doc, pad in zip(ends, segments.seg_len, segments.doc_hash, segments.is_padding, strict=True):
                if not pad:
                    found.setdefault(int(doc), []).append(tokens[end - size : end])
    left = survivors(workdir, ("rules", "dedup_documents", "mix"))
    assert set(found) == {int(d["doc_key"][:16], 16) for d in documents(workdir).values() if d["doc_id"] in left}
    for doc, pieces in found.items():
        assert sorted(np.concatenate(pieces).tolist()) == sorted(np.frombuffer(wanted[doc], "<u2").tolist())


def test_survivors_are_what_decisions_say(tight):
    workdir, upto = tight["workdir"], ("rules", "dedup_documents")
    wanted = survivors(workdir, upto)
    seen = []
    for part in parts_of(workdir):
        for piece in read_survivors(workdir, part, ["doc_id", "text"], upto, 5):
            seen += piece.table.column("doc_id").to_pylist()
    assert seen == sorted(wanted)


def _count(kind, docs, size, tokens=0):
    return CountRow(kind, "", "s", "d", "pool", "", "train", docs, size, tokens)


@pytest.mark.parametrize(
    ("left", "fits"),
    [
        ([_count("kept", 2, 60, 6), _count("dropped", 1, 40, 4)], True),
        ([_count("kept", 3, 90, 9), _count("cut", 2, 10, 1)], True),
        ([_count("kept", 2, 100, 10)], False),
        ([_count("kept", 3, 99, 10)], False),
        ([_count("kept", 3, 100, 9)], False),
    ],
)
def test_check_conservation(left, fits):
    entered = [_count("kept", 3, 100, 10), _count("dropped", 5, 500)]
    if fits:
        check_conservation("stage", entered, left)
    else:
        with pytest.raises(IntegrityError, match="accounted for"):
            check_conservation("stage", entered, left)


def test_tokens_are_conserved_once_they_are_known():
    check_conservation("tokenize", [_count("kept", 1, 10)], [_count("kept", 1, 10, 7)])


def test_decisions_of_a_part():
    table = decisions_table(
        pa.chunked_array([[1, 2, 3]]), np.array([True, True, False]), pa.array(["r", None, "r"]), "rules",
        pa.array(["k", "k", "k"]),
    )  # fmt: skip
    assert table.column("keep").to_pylist() == [False, True, None]
    assert table.column("because_of").to_pylist() == ["k", None, None]
    assert pc.sum(table.column("rule_bits")).as_py() == 0
