"""quality: several classifiers, how they combine, where the cut lies, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from refinery.errors import ConfigError, DataError, IntegrityError
from refinery.kernels.fasttext_model import TrainSettings, train_classifier
from refinery.kernels.preparation import training_line
from refinery.recipe import MODEL_PRESETS, parse_recipe
from refinery.report.choice_facts import read_near_cut
from refinery.report.page import write_report
from refinery.stages import budget_cut, quality, quality_scores
from refinery.stages.budget_cut import EVERYTHING, KeyColumns, budget_limits
from tests.stages.corpus import ENGLISH, GERMAN, prose, sentence_text
from tests.stages.local import (
    by_key,
    collected,
    kept,
    rows_of,
    run_local,
    table_of,
    values_for,
    without_spark,
    write_documents,
)

pytest.importorskip("fasttext")

LAW = [w for w in GERMAN if w[0].isupper()]
TALK = [w for w in GERMAN if not w[0].isupper()] + ["cool", "haha", "lol", "video", "klick", "super", "heute", "geil"]
GOOD, BAD = ENGLISH[:70], [*ENGLISH[70:], "click", "free", "winner", "casino"]
SMALL = {"dim": 8, "epoch": 25, "learning_rate": 0.5, "pair_buckets": 2000}


def texts(vocabulary, num, seed, words=60):
    rng = random.Random(seed)
    return [sentence_text(prose(rng, vocabulary, words + rng.randrange(20))) for _ in range(num)]


@pytest.fixture(scope="module")
def rows():
    """English good and bad text as positives, negatives and pool; the same in German for the pool and a target."""
    return [
        *rows_of("books", texts(GOOD, 60, 1), role="target"),
        *rows_of("spam", texts(BAD, 60, 2), domain="junk"),
        *rows_of("web", texts(GOOD, 40, 3) + texts(BAD, 40, 4)),
        *rows_of("gesetze", texts(LAW, 60, 5), role="target", lang="de"),
        *rows_of("netz", texts(LAW, 30, 6) + texts(TALK, 60, 7), domain="web", lang="de"),
    ]


@pytest.fixture(autouse=True)
def local(monkeypatch):
    without_spark(monkeypatch)


ENGLISH_ONE = {"positives": ["books"], "negatives": ["spam"], **SMALL}
TWO = [
    {"name": "en", "positives": ["books"], "negatives": ["spam"], "languages": ["en"], **SMALL},
    {"name": "de", "positives": ["gesetze"], "negatives": ["netz"], "languages": ["de"], **SMALL},
]


def prepared(tmp_path, rows, section, num_parts=2):
    values = values_for(tmp_path, rows, quality=section)
    write_documents(values, rows, num_parts)
    return values


def made(tmp_path, rows, section, num_parts=2, **more):
    values = prepared(tmp_path, rows, section, num_parts)
    return values, run_local(values, quality, **more)


@pytest.fixture(scope="module")
def two(rows, tmp_path_factory):
    """Two classifiers, one per language, combined and cut per language."""
    section = {
        "classifiers": TWO, "combine": "first(en, mean(de, calibrated(de)))", "keep_token_frac": 0.5,
        "cut_by": ["lang"], "by_group": {"de": 0.4}, "exempt_domains": ["junk"],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        without_spark(patch)
        return made(tmp_path_factory.mktemp("two"), rows, section)


def pool_of(values, source):
    return {r["doc_key"]: r for r in table_of(values, "ingest", "documents") if r["source"] == source}


def test_each_classifier_is_a_column_for_its_languages_and_the_expression_makes_the_score(two):
    values, manifest = two
    scores, combined = by_key(values, "quality", "scores"), by_key(values, "quality", "quality")
    for source, own, other in (("web", "score_en", "score_de"), ("netz", "score_de", "score_en")):
        for key in pool_of(values, source):
            assert scores[key][own] is not None
            assert scores[key][other] is None
            if source == "web":
                assert combined[key]["score"] == pytest.approx(scores[key][own])
    assert all(scores[key]["score_en"] is None for key in pool_of(values, "books"))
    assert manifest.facts["expression"] == "first(en, mean(de, calibrated(de)))"
    assert sorted(manifest.facts["models"]) == ["de", "en"]
    assert manifest.facts["models"]["de"]["languages"] == ["de"]


def test_a_cut_by_language_keeps_its_share_of_each(two):
    values, manifest = two
    assert set(manifest.facts["thresholds"]) == {"de", "en"}
    assert manifest.facts["threshold"] is None
    stays, combined = kept(values, "quality"), by_key(values, "quality", "quality")
    for source, lang, share in (("web", "en", 0.5), ("netz", "de", 0.4)):
        docs = pool_of(values, source)
        total = sum(r["num_bytes"] for r in docs.values())
        left = sum(docs[k]["num_bytes"] for k in docs if k in stays)
        assert left >= share * total
        at = manifest.facts["thresholds"][lang]
        assert stays & set(docs) == {k for k in docs if combined[k]["score"] >= np.float32(at)}
        above = sum(docs[k]["num_bytes"] for k in docs if combined[k]["score"] > np.float32(at))
        assert above < share * total
    assert set(pool_of(values, "spam")) <= stays  # exempt


def test_the_hold_out_judges_and_agrees(two):
    _, manifest = two
    facts = manifest.facts
    for name in ("en", "de"):
        held = facts["classifiers"][name]["held_out"]
        assert held["roc_auc"] > (0.9 if name == "en" else 0.6)  # a third of netz reads like its positives
        assert len(held["roc"]) == len(held["precision_recall"]) == 21
        assert all(low <= y <= high for _, y, low, high in held["roc"])
        assert held["calibration"] == sorted(held["calibration"])
    assert facts["held_out"]["positives"] >= facts["classifiers"]["en"]["held_out"]["positives"]
    assert facts["agreement"] == []  # no document has both
    words = facts["classifiers"]["en"]["words"]["en"]
    assert {w for w, _, _ in words["up"]} <= {w.lower().split("'")[0] for w in GOOD} | {"s", "'", "."}
    assert {"casino", "free", "click", "winner"} & {w for w, _, _ in words["down"]}
    assert any("judged by" in line for line in facts["warnings"])


def test_the_report_shows_what_the_stage_found(two):
    values, manifest = two
    write_report(values["workdir"], parse_recipe(values))
    html = (Path(values["workdir"]) / "report" / "index.html").read_text(encoding="utf-8")
    for words in ("Cuts by group", "the cut of en at", "the cut of de at", "just below", "Words of en that push most",
                  "The pool by source, before and after", "The pool by language, before and after"):  # fmt: skip
        assert words in html
    assert manifest.facts["classifiers"]["en"]["held_out"]["positives"]
    near = read_near_cut(values["workdir"], {"quality": manifest}, 3)
    for cut in near:
        assert all(s.value < cut.threshold for s in cut.below)
        assert all(s.value >= np.float32(cut.threshold) for s in cut.above)
        assert len(cut.below) == len(cut.above) == 3


def test_parts_slices_and_order_change_nothing(two, rows, tmp_path):
    values, manifest = two
    section = values["quality"]
    again, other = made(tmp_path, rows[::-1], section, num_parts=7, slice_rows=5)
    assert by_key(again, "quality", "quality") == by_key(values, "quality", "quality")
    assert by_key(again, "quality", "decisions") == by_key(values, "quality", "decisions")
    assert other.facts["thresholds"] == manifest.facts["thresholds"]
    assert {n: m["sha256"] for n, m in other.facts["models"].items()} == {
        n: m["sha256"] for n, m in manifest.facts["models"].items()
    }


def test_another_cut_reads_no_text(two, rows, monkeypatch):
    values, _ = two

    def never(*_):
        raise AssertionError("text was read again")

    monkeypatch.setattr(quality_scores, "_scored", never)
    changed = {**values, "quality": {**values["quality"], "by_group": {}, "keep_token_frac": 0.9}}
    before = kept(values, "quality")
    run_local(changed, quality)
    assert before < kept(changed, "quality")
    run_local(values, quality, force=False)


def test_a_cut_inside_many_equal_scores_is_called_coarse(two):
    values, _ = two
    section = {**values["quality"], "combine": "first(en, min(de, 0.000001))"}
    facts = run_local({**values, "quality": section}, quality).facts
    assert any("the cut of de keeps 100% of the text, 40% were asked" in line for line in facts["warnings"])
    run_local(values, quality)


def test_one_model_for_each_language_and_agreement_of_two_classifiers(rows, tmp_path):
    per_language = {
        "name": "own", "positives": ["books", "gesetze"], "negatives": ["spam", "netz"], "languages": ["de", "en"],
        "per_language": True, **SMALL,
    }  # fmt: skip
    whole = {"name": "all", "positives": ["books", "gesetze"], "negatives": ["spam", "netz"], **SMALL}
    section = {"classifiers": [per_language, whole], "combine": "min(own, all)", "threshold": 0.5}
    values, manifest = made(tmp_path, rows, section)
    assert sorted(manifest.facts["models"]) == ["all", "own-de", "own-en"]
    [pair] = manifest.facts["agreement"]
    assert pair["spearman"] > 0.5
    assert pair["kappa"] > 0.5
    for row in by_key(values, "quality", "quality").values():
        assert row["score"] is None or 0 <= row["score"] <= 1
    scores = by_key(values, "quality", "scores")
    assert all(r["score_own"] is not None for k, r in scores.items() if k in pool_of(values, "netz"))
    assert manifest.facts["threshold"] == 0.5


def test_cut_by_precision_and_by_pareto(rows, tmp_path):
    values, manifest = made(tmp_path / "p", rows, {**ENGLISH_ONE, "languages": ["en"], "precision": 0.9})
    threshold = manifest.facts["threshold"]
    held = [r for r in table_of(values, "quality", "holdout") if r["score_model"] >= threshold]
    assert sum(r["source"] == "books" for r in held) / len(held) >= 0.9
    assert manifest.facts["not_scored"] == len(pool_of(values, "netz"))
    assert set(pool_of(values, "netz")) <= kept(values, "quality")  # not scored, so not cut
    results = [made(tmp_path / f"{n}", rows, {**ENGLISH_ONE, "pareto_alpha": 9.0}, num_parts=n)[0] for n in (1, 3)]
    picks = [kept(v, "quality") for v in results]
    assert picks[0] == picks[1]
    scores = by_key(results[0], "quality", "quality")
    good = [k for k in pool_of(results[0], "web") if scores[k]["score"] > 0.99]
    low = [k for k in pool_of(results[0], "web") if scores[k]["score"] < 0.05]
    assert np.mean([k in picks[0] for k in good]) > 0.8
    assert np.mean([k in picks[0] for k in low]) < 0.2


def test_hard_negatives_class_balance_and_labelled_files(rows, tmp_path):
    labelled = tmp_path / "labelled.jsonl"
    lines = [{"text": t, "label": "ham"} for t in texts(GOOD, 30, 8)] + [
        {"text": t, "label": "spam"} for t in texts(BAD, 60, 9)
    ]
    labelled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"paths": [str(labelled)], "positive_labels": ["ham"]}
    section = {"labelled": files, "negatives_per_positive": 1.0, "threshold": 0.5, "languages": ["en"], **SMALL}
    values, manifest = made(tmp_path / "run", rows, section)
    card = json.loads((tmp_path / "run" / "quality" / "model.bin.json").read_text())
    assert card["num_lines"]["positive"] == card["num_lines"]["negative"] <= 30
    held = manifest.facts["held_out"]
    assert held["positives"] + held["negatives"] > 0
    scores = by_key(values, "quality", "quality")
    web = [scores[k]["score"] for k in pool_of(values, "web")]
    assert np.mean(np.array(web) > 0.5) == pytest.approx(0.5, abs=0.15)

    hard = {**ENGLISH_ONE, "max_train_docs": 12, "hard_negative_frac": 0.5, "threshold": 0.5}
    hard["negatives"] = ["spam", "web"]  # half of web reads like the positives
    _, plain = made(tmp_path / "plain", rows, {**hard, "hard_negative_frac": 0.0})
    values, mined = made(tmp_path / "hard", rows, hard)
    assert plain.facts["models"]["model"]["sha256"] != mined.facts["models"]["model"]["sha256"]
    numbers = json.loads((tmp_path / "hard" / "quality" / "model.bin.json").read_text())["num_lines"]
    assert numbers["negative"] <= 25
    again, _ = made(tmp_path / "again", rows, hard, num_parts=5)
    assert by_key(again, "quality", "scores") == by_key(values, "quality", "scores")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "theirs.bin"
    lines = [("hq", training_line(t, "one_line")) for t in texts(GOOD, 60, 11)]
    lines += [("cc", training_line(t, "one_line")) for t in texts(BAD, 60, 12)]
    train_classifier(lines, path, TrainSettings(dim=8, epoch=25, lr=0.5, bucket=2000), "one_line")
    return path


def test_a_model_of_others_by_preset_and_by_declaration(rows, model_file, tmp_path):
    path = tmp_path / "theirs.bin"
    path.write_bytes(model_file.read_bytes())  # without its card
    by_preset = {"name": "dclm", "model": str(path), "preset": "dclm"}
    declared = {"name": "declared", "model": str(path), "positive_label": "hq", "preparation": "one_line"}
    section = {"classifiers": [by_preset, declared], "combine": "mean(dclm, declared)", "threshold": 0.5}
    values, manifest = made(tmp_path / "run", rows, section)
    for row in by_key(values, "quality", "scores").values():
        assert (row["score_dclm"] is None) == (row["score_declared"] is None)
        if row["score_dclm"] is not None:
            assert row["score_dclm"] == pytest.approx(row["score_declared"], abs=1e-4)
    assert manifest.facts["models"]["dclm"]["preparation"] == "one_line"
    assert manifest.facts["classifiers"]["dclm"]["held_out"] == {"positives": 0, "negatives": 0}
    assert {name: p.preparation for name, p in MODEL_PRESETS.items()} == dict.fromkeys(MODEL_PRESETS, "one_line")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"preparation": "words"}, IntegrityError, "set preparation: one_line"),
        ({"positive_label": "good", "preparation": "one_line"}, ConfigError, "has no label 'good'; it has"),
        ({"preset": "fineweb_edu"}, ConfigError, "label_values"),
        ({"preset": "dclm", "model_sha256": "0" * 64}, IntegrityError, "expected 0000"),
        ({"preset": "dclm", "model": "missing.bin"}, ConfigError, "missing.bin does not exist"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(rows, model_file, tmp_path, change, error, words):
    section = {"model": str(model_file), "threshold": 0.5, **change}
    values = prepared(tmp_path, rows, section)
    with pytest.raises(error, match=words):
        run_local(values, quality)


def test_a_damaged_model_is_refused(rows, model_file, tmp_path):
    path = tmp_path / "theirs.bin"
    path.write_bytes(model_file.read_bytes()[:-100])
    values = prepared(tmp_path / "run", rows, {"model": str(path), "preset": "dclm", "threshold": 0.5})
    with pytest.raises(IntegrityError, match=r"theirs\.bin .*download or train it again"):
        run_local(values, quality)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positives": ["gesetze"], "languages": ["en"]}, r"positives \(gesetze\) have 0 training documents in en"),
        ({"negatives": ["netz"], "languages": ["en"]}, r"negatives \(netz\) have 0 training documents in en"),
        ({"languages": ["fr"]}, "is for fr, the pool has de, en"),
        (
            {"positives": ["romans"], "negatives": ["spam"]},
            "classifier model are in fr, the pool in de, en",
        ),
    ],
)
def test_an_empty_class_or_a_language_that_the_pool_lacks_is_told(rows, tmp_path, change, words):
    more = [*rows, *rows_of("romans", texts(TALK, 3, 20), role="target", lang="fr")]
    values = prepared(tmp_path, more, {**ENGLISH_ONE, "threshold": 0.5, **change})
    with pytest.raises(DataError, match=words):
        run_local(values, quality)


def test_nan_and_equal_scores_are_told(rows, tmp_path, monkeypatch):
    for number, (fill, words) in enumerate(
        ((np.nan, "scores are NaN: [0-9]+ of classifier model"), (0.25, "all 230 scores equal 0.25"))
    ):
        values = prepared(tmp_path / str(number), rows, {**ENGLISH_ONE, "keep_token_frac": 0.5})
        monkeypatch.setattr(
            quality_scores, "score", lambda _m, lines, _w, f=fill: np.full(lines.num_docs, f, np.float32)
        )
        with pytest.raises(DataError, match=words):
            run_local(values, quality)


def test_a_pool_without_documents_and_scores_outside_their_range_are_told(rows, tmp_path):
    nothing = [r for r in rows if r["role"] == "target"]
    nothing += [{**r, "role": "replay"} for r in rows if r["source"] == "spam"]
    values = prepared(tmp_path / "a", nothing, {**ENGLISH_ONE, "threshold": 0.5})
    with pytest.raises(DataError, match="0 pool documents"):
        run_local(values, quality)
    section = {"classifiers": TWO, "combine": "first(en, de) + 0.5", "threshold": 0.5}
    values = prepared(tmp_path / "b", rows, section)
    with pytest.raises(ConfigError, match=r"scores lie in \[0, 1\]"):
        run_local(values, quality)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "name positives and negatives"),
        ({"positives": ["books"], "threshold": 0.5}, "name positives and negatives"),
        ({"positives": ["books"], "negatives": ["books"], "threshold": 0.5}, "both positives and negatives"),
        ({**ENGLISH_ONE}, "exactly one of"),
        ({**ENGLISH_ONE, "threshold": 0.5, "precision": 0.9}, "exactly one of"),
        ({**ENGLISH_ONE, "threshold": 0.5, "by_group": {"en": 0.1}}, "by_group wants cut_by"),
        ({"classifiers": TWO, "threshold": 0.5}, "say how to combine en, de"),
        ({"classifiers": TWO, "combine": "en", "threshold": 0.5, "dim": 9}, "dim must stand in one of them"),
        ({"classifiers": [TWO[0], TWO[0]], "combine": "en", "threshold": 0.5}, "named once each"),
        ({**ENGLISH_ONE, "threshold": 0.5, "per_language": True}, "per_language wants languages"),
        ({"model": "a", "per_language": True, "threshold": 0.5}, "are about training"),
        ({**ENGLISH_ONE, "preset": "dclm", "threshold": 0.5}, "about an existing model"),
        ({**ENGLISH_ONE, "positives": ["boks"], "threshold": 0.5}, "quality names sources"),
    ],
)
def test_recipes_that_say_too_little_or_too_much_are_refused(rows, tmp_path, section, words):
    with pytest.raises(ConfigError, match=words):
        parse_recipe(values_for(tmp_path, rows, quality=section))


def test_an_expression_is_checked_before_any_work(rows, tmp_path):
    section = {"classifiers": TWO, "combine": "en + __import__('os')", "threshold": 0.5}
    with pytest.raises(ConfigError, match="not allowed"):
        run_local(prepared(tmp_path / "a", rows, section), quality)
    model = {"name": "x", "model": "x.bin"}
    section = {"classifiers": [TWO[0], model], "combine": "calibrated(x) * en", "threshold": 0.5}
    with pytest.raises(ConfigError, match=r"calibrated\(x\) needs"):
        run_local(prepared(tmp_path / "b", rows, section), quality)


@pytest.mark.parametrize("max_rows", [0, 3, 200_000])
def test_limits_are_those_of_sorting_however_keys_are_spread(monkeypatch, max_rows):
    monkeypatch.setattr(budget_cut, "_collect", collected)
    monkeypatch.setattr(budget_cut, "MAX_ROWS", max_rows)
    rng = np.random.default_rng(1)
    near = np.uint64(2**63) + rng.integers(0, 50, 300).astype(np.uint64)
    wide = rng.integers(0, 2**64, 300, dtype=np.uint64)
    keys = np.concatenate([near, wide, near])
    groups = np.array(["a"] * 300 + ["b"] * 300 + ["c"] * 300, dtype=object)
    amounts = rng.integers(1, 100, 900)
    parts = np.arange(900) % 4

    def read(part):
        return KeyColumns(groups[parts == part], keys[parts == part], amounts[parts == part])

    budgets = {"a": 5000, "b": 7001, "c": 10**9, "d": 5}
    found = budget_limits(None, range(4), read, budgets)
    assert found["c"] == found["d"] == EVERYTHING
    for name in ("a", "b"):
        order = np.argsort(keys[groups == name], kind="stable")
        sums = np.cumsum(amounts[groups == name][order])
        assert found[name] == keys[groups == name][order][np.searchsorted(sums, budgets[name])]
