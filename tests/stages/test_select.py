"""select: several targets, the library's own features, budgets, diagnostics, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from refinery.errors import ConfigError, DataError
from refinery.kernels import dsir, dsir_compat
from refinery.kernels.text import views_of
from refinery.recipe import parse_recipe
from refinery.report.page import write_report
from refinery.stages import select
from tests.stages.corpus import CHINESE, ENGLISH, GERMAN, chinese, prose, sentence_text
from tests.stages.local import (
    by_key,
    kept,
    rows_of,
    run_local,
    table_of,
    values_for,
    without_spark,
    write_documents,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "dsir_data_selection.json"
SEA, HOUSE = ENGLISH[:60], ENGLISH[60:]


def texts(vocabulary, num, seed, words=80):
    rng = random.Random(seed)
    return [sentence_text(prose(rng, vocabulary, words)) for _ in range(num)]


@pytest.fixture(scope="module")
def rows():
    return [
        *rows_of("sea", texts(SEA, 40, 1), role="target"),
        *rows_of("house", texts(HOUSE, 40, 2), role="target"),
        *rows_of("web", texts(SEA, 60, 3) + texts(HOUSE, 60, 4) + texts(GERMAN, 120, 5)),
        *rows_of("short", [" ".join(SEA[k : k + 5]) for k in range(20)], domain="web"),
    ]


@pytest.fixture(autouse=True)
def local(monkeypatch):
    without_spark(monkeypatch)


def made(tmp_path, rows, section, num_parts=2, **more):
    slice_rows = more.pop("slice_rows", 4096)
    values = values_for(tmp_path, rows, select=section, **more)
    write_documents(values, rows, num_parts)
    return values, run_local(values, select, slice_rows=slice_rows)


def names_of(values, keys):
    """Return how many of the kept pool documents of split train are of each kind, by their place in the source."""
    found = {"sea": 0, "house": 0, "german": 0, "short": 0}
    for row in table_of(values, "ingest", "documents"):
        if row["doc_key"] in keys and row["split"] == "train":
            words = set(row["text"].lower().replace(".", "").split())
            kinds = {"sea": words & {w.lower() for w in SEA}, "house": words & {w.lower() for w in HOUSE}}
            best = max(kinds, key=lambda kind: len(kinds[kind]))
            kind = "short" if row["source"] == "short" else best if len(kinds[best]) > 20 else "german"
            found[kind] += 1
    return found


@pytest.mark.parametrize(
    ("shares", "keep_docs"), [({"sea": 0.5, "house": 0.5}, 60), ({"sea": 0.75, "house": 0.25}, 40)]
)
def test_several_targets_get_their_shares_at_every_budget(rows, tmp_path, shares, keep_docs):
    picks = {}
    for number in (keep_docs // 2, keep_docs):
        section = {"targets": shares, "keep_docs": number, "min_words": 20, "num_buckets": 2000}
        values, manifest = made(tmp_path / str(number), rows, section)
        picks[number] = kept(values, "select")
        found = names_of(values, picks[number])
        assert found["german"] == found["short"] == 0
        for name, share in shares.items():
            assert found[name] == pytest.approx(share * number, abs=2)
        assert manifest.facts["targets"]["sea"]["share"] == shares["sea"]
        assert np.isfinite(manifest.facts["kl_reduction"])
    train = {r["doc_key"] for r in table_of(values, "ingest", "documents") if r["split"] == "train"}
    assert picks[keep_docs // 2] & train < picks[keep_docs] & train


@pytest.mark.parametrize("section", [
    {"target": "sea", "keep_frac": 0.3},
    {"targets": {"sea": 0.5, "house": 0.5}, "keep_frac": 0.3},
    {"targets": {"sea": 0.5, "house": 0.5}, "keep_frac": 0.3, "length": "mean", "min_words": 20},
    {"target": "sea", "keep_docs": 30, "compat": "dsir", "temperature": 0.0},
])  # fmt: skip
def test_picks_are_the_same_for_any_parts_slices_and_order(rows, tmp_path, section):
    results = [
        made(tmp_path / str(n), rows[::step], {"num_buckets": 2000, **section}, num_parts=n, slice_rows=size)
        for n, step, size in ((1, 1, 4096), (3, -1, 7), (7, 1, 50))
    ]
    tables = [by_key(values, "select", "importance") for values, _ in results]
    assert tables[0] == tables[1] == tables[2]
    assert len({frozenset(kept(values, "select")) for values, _ in results}) == 1
    facts = [m.facts for _, m in results]
    assert facts[0]["kl_reduction"] == facts[1]["kl_reduction"]
    assert facts[0]["strongest_ngrams"] == facts[1]["strongest_ngrams"]


def test_short_documents_leave_with_a_reason_and_long_ones_are_scaled(rows, tmp_path):
    section = {"target": "sea", "keep_frac": 0.5, "min_words": 20, "chunk_words": 40, "num_buckets": 2000}
    values, manifest = made(tmp_path, rows, section)
    reasons = {}
    for key, row in by_key(values, "select", "decisions").items():
        reasons.setdefault(row["drop_reason"], set()).add(key)
    short = {r["doc_key"] for r in table_of(values, "ingest", "documents") if r["source"] == "short"}
    assert reasons["select.short"] == short
    assert manifest.facts["short_docs"] == len(short)
    plain, _ = made(tmp_path / "plain", rows, {**section, "chunk_words": None})
    halved = by_key(values, "select", "importance")
    for key, row in by_key(plain, "select", "importance").items():
        if row["order_key"] is not None:
            assert 0.4 < halved[key]["log_weight"] / row["log_weight"] <= 0.5 + 1e-3  # 80 to 90 words, scaled to 40


def test_a_mean_weight_knows_no_length_and_picks_stay_nested(tmp_path):
    short = texts(SEA, 40, 3)
    long = [" ".join([text] * 20) for text in texts(SEA, 40, 7)]
    rows = [*rows_of("sea", texts(SEA, 40, 1), role="target"), *rows_of("web", short + long + texts(GERMAN, 80, 6))]
    section = {"target": "sea", "num_buckets": 2000, "min_words": 20}
    ratio, picks = {}, {}
    for length, number in (("sum", 20), ("mean", 20), ("mean", 10)):
        values, _ = made(tmp_path / f"{length}{number}", rows, {**section, "length": length, "keep_docs": number})
        weights = {key: r["log_weight"] for key, r in by_key(values, "select", "importance").items()}
        names = {r["text"]: r["doc_key"] for r in table_of(values, "ingest", "documents")}
        ratio[length] = np.median([weights[names[t]] for t in long]) / np.median([weights[names[t]] for t in short])
        picks[number] = kept(values, "select")
    train = {r["doc_key"] for r in table_of(values, "ingest", "documents") if r["split"] == "train"}
    assert picks[10] & train < picks[20] & train
    assert ratio["sum"] > 10  # texts are 20 times as long
    assert 0.5 < ratio["mean"] < 2
    said, _ = made(tmp_path / "said", rows, {**section, "length": "mean", "chunk_words": 128, "keep_docs": 10})
    assert kept(said, "select") == picks[10]  # 128 where none is said


def test_diagnostics_name_what_pulls_and_overlap_with_quality(rows, tmp_path):
    pytest.importorskip("fasttext")
    quality = {
        "positives": ["sea"], "negatives": ["short"], "threshold": 0.0, "dim": 8, "epoch": 10, "pair_buckets": 2000,
    }  # fmt: skip
    from refinery.stages import quality as quality_stage

    section = {"target": "sea", "keep_docs": 50, "num_buckets": 2000}
    values = values_for(tmp_path, rows, quality=quality, select=section)
    write_documents(values, rows)
    run_local(values, quality_stage)
    facts = run_local(values, select).facts
    overlap = facts["quality_overlap"]
    assert overlap["picked_docs"] == 50
    assert 0 <= overlap["both_frac"] <= 1
    assert overlap["chance_frac"] == pytest.approx(50 / 240, abs=0.05)
    pulls = facts["strongest_ngrams"]
    assert {w.lower() for w in SEA} & {n for row in pulls if row["log_ratio"] > 0 for n in row["ngrams"]}
    assert 1 <= facts["effective_sample_size"] <= facts["num_docs"]
    assert {w.lower() for w in GERMAN} & {n for row in pulls if row["log_ratio"] < 0 for n in row["ngrams"]}
    assert any("n-grams for 2000 buckets" in line for line in facts["warnings"])
    write_report(values["workdir"], parse_recipe(values))
    html = (Path(values["workdir"]) / "report" / "index.html").read_text(encoding="utf-8")
    assert "N-grams that pull hardest" in html
    assert "Quality scores would have picked" in html
    calmed = {**values, "select": {**section, "target_pseudo_count": 1.0}}
    assert not any("n-grams for 2000 buckets" in line for line in run_local(calmed, select).facts["warnings"])


@pytest.mark.parametrize(
    ("section", "more", "error", "words"),
    [
        ({"target": "sea", "keep_docs": 1000}, {}, DataError, r"keep_docs is 1000, the pool has \d+ documents"),
        ({"target": "sea", "keep_docs": 5, "min_words": 999}, {}, DataError, "0 pool documents .* under min_words 999"),
        ({"target": "sea"}, {}, ConfigError, "select needs keep_frac"),
        ({"target": "sea", "targets": {"sea": 1.0}, "keep_docs": 1}, {}, ConfigError, "exactly one of target"),
        ({"targets": {"sea": 0.5}, "keep_docs": 1}, {}, ConfigError, "sum to 0.5"),
        ({"target": "sea", "keep_docs": 1, "keep_frac": 0.5}, {}, ConfigError, "not both"),
        ({"target": "see", "keep_docs": 1}, {}, ConfigError, "select aims at domain see"),
    ],
)
def test_budgets_and_targets_that_cannot_be_are_refused(rows, tmp_path, section, more, error, words):
    with pytest.raises(error, match=words):
        made(tmp_path, rows, section, **more)


@pytest.mark.parametrize(
    ("tokens", "outcome"), [(10**9, "lower mix.budget_tokens by a factor"), (20_000, "everything is kept")]
)
def test_a_mix_that_wants_more_than_the_pool_has(rows, tmp_path, tokens, outcome):
    mix = {"stages": [{"domains": {"sea": 0.3, "web": 0.7}}], "budget_tokens": tokens}
    more = {"mix": mix, "tokenizer": {"path": "t"}}
    section = {"target": "sea", "oversample": 3.0, "num_buckets": 2000}
    if tokens > 10**6:
        with pytest.raises(DataError, match=outcome):
            made(tmp_path, rows, section, **more)
    else:
        assert any(outcome in line for line in made(tmp_path, rows, section, **more)[1].facts["warnings"])


def test_a_target_in_a_language_that_the_pool_lacks(rows, tmp_path):
    rng = random.Random(1)
    zh = rows_of("zh", [chinese(rng, 100) for _ in range(20)], role="target", lang="zh")
    with pytest.raises(DataError, match=r"target zh is in zh, the pool in en"):
        made(tmp_path / "a", [*rows, *zh], {"target": "zh", "keep_frac": 0.5})
    both = [*rows, *({**r, "domain": "sea"} for r in zh)]
    _, manifest = made(tmp_path / "b", both, {"target": "sea", "keep_frac": 0.5})
    assert any("in zh, of which the pool has nothing" in line for line in manifest.facts["warnings"])
    gone = [{**r, "role": "pool"} if r["source"] == "house" else r for r in rows]
    values = values_for(tmp_path / "c", rows, select={"target": "house", "keep_frac": 0.5})
    write_documents(values, gone)
    with pytest.raises(DataError, match="target house has 0 training documents"):
        run_local(values, select)
    assert CHINESE


def test_the_recipe_of_the_readme_finds_the_law_in_a_crawl(tmp_path):
    pytest.importorskip("fasttext")
    from refinery.stages import quality as quality_stage

    text = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## From law books to a law-like slice") :]
    recipe = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL).group(1))
    assert len(recipe) == 5
    crawl = texts(SEA, 60, 3) + texts(HOUSE, 140, 4)
    rows = rows_of("law-books", texts(SEA, 60, 1), role="target", domain="law") + rows_of("crawl", crawl, domain="web")
    recipe["quality"] |= {"epoch": 25, "learning_rate": 0.5, "dim": 8, "pair_buckets": 2000}  # for 200 documents
    values = {**recipe, "seed": 5, "workdir": str(tmp_path)}
    write_documents(values, rows, seed=None)
    run_local(values, quality_stage)
    facts = run_local(values, select).facts
    stays = {r["text"] for r in table_of(values, "ingest", "documents") if r["doc_key"] in kept(values, "select")}
    assert stays <= set(crawl[:60])
    assert len(stays) > 20
    assert facts["quality_overlap"]["both_frac"] > 0.3


def test_chinese_counts_by_words_however_parts_are_cut(tmp_path):
    law, sea = "法院判决合同赔偿损失。", "今天天气很好，我们去公园玩。"
    target = [f"{law}{n}" for n in range(48)]
    pool = [f"{t}第{n}" for t in (law, sea) for n in range(48)]
    rows = [*rows_of("law", target, role="target", lang="zh"), *rows_of("web", pool + texts(SEA, 30, 3), lang="zh")]
    section = {"target": "law", "keep_frac": 0.3, "num_buckets": 2000, "target_pseudo_count": 1.0}
    results = [made(tmp_path / str(n), rows, section, num_parts=n, slice_rows=s) for n, s in ((1, 4096), (3, 5))]
    assert by_key(results[0][0], "select", "importance") == by_key(results[1][0], "select", "importance")
    ngrams = {n for row in results[0][1].facts["strongest_ngrams"] for n in row["ngrams"]}
    assert {"法院", "合同", "判决 合同"} & ngrams
    plain, _ = made(tmp_path / "plain", rows, {**section, "segment_chinese": False})
    assert by_key(plain, "select", "importance") != by_key(results[0][0], "select", "importance")


def library_counts(text, num_buckets):
    """Counts as data-selection 1.0.3 makes them."""
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    counts = np.zeros(num_buckets, dtype=np.int64)
    for ngram in tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]:
        counts[int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % num_buckets] += 1
    return counts


def test_weights_and_picks_equal_those_that_data_selection_printed():
    """`benchmarks/peers/dsir_weights.py` wrote the golden file with data-selection 1.0.3 itself."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["library"] == "data-selection 1.0.3"
    target, pool = views_of(golden["target"]), views_of(golden["pool"])
    size = golden["num_buckets"]
    table = dsir.fit_log_ratio(dsir_compat.bucket_counts(target, size), dsir_compat.bucket_counts(pool, size))
    found = dsir_compat.weight_sums(pool, table)
    np.testing.assert_allclose(found.sums, golden["log_weights"], rtol=1e-6)
    assert found.num_words.tolist() == golden["num_tokens"]
    order = dsir.pick_order(found.sums, np.arange(pool.num_docs, dtype=np.uint64))
    long_enough = [k for k in order.tolist() if found.num_words[k] >= golden["min_example_length"]]
    assert sorted(long_enough[: golden["num_to_sample"]]) == golden["picked"]


def test_the_stage_picks_what_data_selection_picked(tmp_path):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    rows = [
        *rows_of("law", golden["target"], role="target", lang=None),
        *rows_of("web", golden["pool"], lang=None),
    ]
    section = {
        "target": "law", "compat": "dsir", "temperature": 0.0, "keep_docs": golden["num_to_sample"],
        "min_words": golden["min_example_length"], "num_buckets": golden["num_buckets"],
    }  # fmt: skip
    values = values_for(tmp_path, rows, select=section)
    write_documents(values, rows, seed=None)
    run_local(values, select)
    keys = {r["doc_key"]: r["text"] for r in table_of(values, "ingest", "documents")}
    assert sorted(golden["pool"].index(keys[k]) for k in kept(values, "select")) == golden["picked"]
    weights = by_key(values, "select", "importance")
    for key, row in weights.items():
        if row["log_weight"] is not None:
            assert row["log_weight"] == pytest.approx(golden["log_weights"][golden["pool"].index(keys[key])], abs=1e-4)


def test_the_recipe_refuses_shares_out_of_bounds(rows, tmp_path):
    with pytest.raises(ConfigError, match=r"targets\.sea"):
        parse_recipe(values_for(tmp_path, rows, select={"targets": {"sea": 0.0, "house": 1.0}}))
