from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from refinery.hashing import hex_key
from refinery.io import parts as part_files
from refinery.shards.format import decode_seg
from refinery.stages.workspace import need_stage
from tests.kernels.reference_minhash import words_of
from tests.stages.corpus import recipe_values, write_jsonl
from tests.stages.runs import decisions, documents, fork, run_stages, survivors, whole_table

pytestmark = pytest.mark.spark

NGRAM, BOUND = 5, 0.8


def _shingles(text):
    words = words_of(text, "words")
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def _jaccard(a, b):
    left, right = _shingles(a), _shingles(b)
    return len(left & right) / len(left | right)


@pytest.fixture(scope="module")
def facts(done, corpus):
    """Documents by key and by planted id, decisions by key, clusters by key."""
    by_key = documents(done["workdir"])
    ids = {row["doc_id"]: key for key, row in by_key.items()}
    made = {ids[i]: d for i, d in decisions(done["workdir"], "dedup_documents").items() if d["keep"] is not None}
    clusters = {ids[r["doc_id"]]: r for r in whole_table(done["workdir"], "dedup_documents", "clusters").to_pylist()}
    planted = {i: hex_key("web", i) for pair in [*corpus.near, *corpus.far, *corpus.exact] for i in pair}
    planted |= {i: hex_key("web", i) for i in corpus.junk}
    lines = (line for p in sorted((corpus.root / "web").iterdir()) for line in p.read_text("utf-8").splitlines())
    assert {json.loads(line)["id"] for line in lines} == set(planted)
    return {"documents": by_key, "decisions": made, "clusters": clusters, "planted": planted}


def _texts(facts, pair):
    return tuple(facts["documents"][facts["planted"][i]]["text"] for i in pair)


def test_planted_pairs_are_what_they_are_called(facts, corpus):
    assert len(corpus.near) >= 40
    assert all(_jaccard(*_texts(facts, pair)) >= 0.85 for pair in corpus.near)
    assert all(0.1 < _jaccard(*_texts(facts, pair)) < BOUND for pair in corpus.far)
    splits = [{facts["documents"][facts["planted"][i]]["split"] for i in pair} for pair in corpus.near]
    assert sum(s == {"train", "validation"} for s in splits) >= 3


def test_near_copies_are_found(facts, corpus):
    """At least 95 % of the pairs at 0.85 or more: one of the two goes, over the other."""
    found = 0
    for pair in corpus.near:
        keys = [facts["planted"][i] for i in pair]
        gone = [k for k in keys if not facts["decisions"][k]["keep"]]
        if len(gone) == 1:
            other = keys[1 - keys.index(gone[0])]
            found += facts["decisions"][gone[0]]["because_of"] == other
    assert found >= 0.95 * len(corpus.near)


def test_exact_copies_are_found_and_others_left(facts, corpus):
    for pair in corpus.exact:
        kept = [facts["decisions"][facts["planted"][i]]["keep"] for i in pair]
        assert sorted(kept) == [False, True]
    assert all(facts["decisions"][facts["planted"][i]]["keep"] for pair in corpus.far for i in pair)


def test_no_removal_is_unverified(facts):
    """Every removed document is, by its text, at or over the bound with a kept one, or a twin of held-out text."""
    docs, made = facts["documents"], facts["decisions"]
    removed = {k: d for k, d in made.items() if not d["keep"]}
    assert removed
    for key, decision in removed.items():
        because = decision["because_of"]
        assert made[because]["keep"], "the cause of a removal is itself kept"
        found = _jaccard(docs[key]["text"], docs[because]["text"])
        listed = facts["clusters"][key]["jaccard"]
        if decision["drop_reason"] == "dedup_documents.exact":
            assert docs[key]["text"] == docs[because]["text"]
            assert listed == 1.0
        else:
            assert listed is not None
            assert found >= BOUND
            assert listed == pytest.approx(found, abs=1e-12)
        if decision["drop_reason"] == "dedup_documents.twin_of_validation":
            assert docs[because]["split"] == "validation"


def test_every_edge_is_verified(done, facts):
    ids = {row["doc_id"]: row for row in facts["documents"].values()}
    edges = part_files.read_part(done["workdir"], "dedup_documents", "edges", 0).to_pylist()
    assert len(edges) == need_stage(done["workdir"], "dedup_documents").facts["num_verified_edges"] > 40
    for edge in edges:
        assert edge["a"] < edge["b"]
        assert edge["jaccard"] == pytest.approx(_jaccard(ids[edge["a"]]["text"], ids[edge["b"]]["text"]), abs=1e-12)
        assert edge["jaccard"] >= BOUND


def test_validation_is_never_cut_because_of_train(facts):
    for key, decision in facts["decisions"].items():
        if not decision["keep"] and facts["documents"][key]["split"] == "validation":
            assert facts["documents"][decision["because_of"]]["split"] == "validation"


def test_a_train_twin_of_validation_goes(facts, corpus):
    twins = 0
    for pair in corpus.near:
        train = [i for i in pair if facts["documents"][facts["planted"][i]]["split"] == "train"]
        decision = facts["decisions"][facts["planted"][train[0]]] if len(train) == 1 else {"keep": True}
        if not decision["keep"]:
            assert decision["drop_reason"] == "dedup_documents.twin_of_validation"
            twins += 1
    assert twins >= 3


def test_clusters_name_their_best_and_their_size(facts):
    members: dict[str, list[str]] = {}
    for key, row in facts["clusters"].items():
        members.setdefault(row["cluster_id"], []).append(key)
        assert row["representative"] == facts["decisions"][key]["keep"]
    for name, keys in members.items():
        assert name in keys
        assert facts["decisions"][name]["keep"], "a cluster is named by the best of its documents"
        assert {facts["clusters"][k]["size"] for k in keys} == {len(keys)}


def test_validation_is_never_in_train(done, facts):
    """No held-out document, and no near copy of one, stands in a train stream."""
    workdir = done["workdir"]
    streams = dict(
        zip(
            *(whole_table(workdir, "mix", "selection").column(c).to_pylist() for c in ("doc_id", "stream")), strict=True
        )
    )
    docs = facts["documents"].values()
    for row in docs:
        stream = streams[row["doc_id"]]
        assert stream is None or stream.endswith("/" + row["split"])
    held_out = [row for row in docs if row["split"] == "validation"]
    assert {row["domain"] for row in held_out} == {"law", "web", "news", "general"}
    train = [row for row in docs if (streams[row["doc_id"]] or "").endswith("/train")]
    hashes = {row["text_hash"] for row in held_out}
    assert not hashes & {row["text_hash"] for row in train}
    shingled = [_shingles(row["text"]) for row in train if row["domain"] == "web"]
    for row in held_out:
        mine = _shingles(row["text"])
        assert all(len(mine & other) / len(mine | other) < BOUND for other in shingled)


def test_validation_hashes_are_in_no_train_shard(done, facts):
    root = Path(done["workdir"], "pack", "shards")
    found = {"train": set(), "validation": set()}
    for path in sorted(root.rglob("*.seg")):
        segments = decode_seg(path.read_bytes(), str(path))
        found[path.parent.name] |= set(segments.doc_hash[~segments.is_padding].tolist())
    assert found["validation"]
    assert not found["train"] & found["validation"]
    split = {int(key[:16], 16): row["split"] for key, row in facts["documents"].items()}
    assert all(split[h] == name for name, hashes in found.items() for h in hashes)


@pytest.mark.parametrize(("keep", "better"), [("longest", max), ("smallest_key", None)])
def test_keep_policy(spark, corpus, done, tmp_path, keep, better):
    values = fork(done, tmp_path / "run")
    values["dedup_documents"] = {"jaccard": BOUND, "keep": [keep]}
    run_stages(spark, values, ["dedup_documents"])
    docs = documents(values["workdir"])
    ids = {row["doc_id"]: key for key, row in docs.items()}
    checked = 0
    for doc_id, decision in decisions(values["workdir"], "dedup_documents").items():
        key, because = ids[doc_id], decision["because_of"]
        if decision["keep"] is False and docs[key]["split"] == docs[because]["split"]:
            checked += 1
            if better:
                assert docs[because]["num_bytes"] >= docs[key]["num_bytes"]
            else:
                assert because < key
    assert checked > 20


def test_targets_are_kept_over_pool(spark, own_corpus, tmp_path):
    """A longer web page that copies a law goes; only a held-out one stays, and takes the law's place."""
    values = recipe_values(own_corpus, tmp_path / "run")
    values = {k: v for k, v in values.items() if k not in ("tokenizer", "mix", "pack", "rules")}
    target = values["inputs"][0]
    copies = {"source": "copies", "domain": "web", "role": "pool", "paths": [str(tmp_path / "copies.jsonl")]}
    values["inputs"] = [target, {**target, **copies}]
    laws = gzip.decompress((own_corpus.root / "laws.jsonl.gz").read_bytes()).splitlines()
    write_jsonl(tmp_path / "copies.jsonl", [{**row, "text": row["text"] + "附则。"} for row in map(json.loads, laws)])
    run_stages(spark, values, ["ingest", "dedup_documents"])
    docs = documents(values["workdir"])
    left = survivors(values["workdir"], ("dedup_documents",))
    for row in docs.values():
        if row["source"] == "laws" and row["split"] == "validation":
            assert row["doc_id"] in left
        if row["source"] == "copies" and row["doc_id"] in left:
            assert row["split"] == "validation"
    assert len(left) == len(laws)
