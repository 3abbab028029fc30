"""Screen, quality, select and sentence cuts on the page and in explanations."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from refinery.contracts.tables import CONTAINMENT, CUTS, DECISIONS
from refinery.report.collect import collect
from refinery.report.cut_samples import around
from refinery.report.explain import explain, explain_text
from refinery.report.page import write_report
from refinery.report.summary import advice
from refinery.stages.decisions import decisions_table
from refinery.stages.tallies import tally, tally_cuts
from tests.report import fake_run
from tests.report.fake_run import KEYS, TEXTS, documents, names
from tests.report.test_page import Page

LANGUAGE = pa.schema([("doc_id", pa.int64()), ("lang", pa.string()), ("confidence", pa.float32())])
QUALITY = pa.schema([("doc_id", pa.int64()), ("score", pa.float32())])
IMPORTANCE = pa.schema([("doc_id", pa.int64()), ("log_weight", pa.float64())])
CLASSIFIER = {
    "held_out": {
        "positives": 5, "negatives": 6, "roc_auc": 0.97, "roc": [[0, 0, 0, 0.1], [1, 1, 0.9, 1]],
        "precision_recall": [[0, 1, 0.8, 1], [1, 0.5, 0.4, 0.6]], "calibration_error": 0.2,
        "calibration_error_isotonic": 0.05,
    },
    "correlations": {"length": 0.8, "symbols": -0.1, "language": 0.3},
    "words": {"a": {"up": [["<script>court", 9, 0.99]], "down": [["casino", 7, 0.01], ["free", 6, 0.02]]}},
}  # fmt: skip
SPAN = b"reads the law and the law"


def stage(workdir: Path, name: str, table: str, schema: pa.Schema, column: list, reasons: dict, **more) -> None:
    tables, decided, counts = {}, {}, []
    for part in (0, 1):
        ids = documents(part).column("doc_id")
        rows = [dict(zip(schema.names[1:], column[part][row], strict=True)) for row in range(len(names(part)))]
        values = pa.Table.from_pylist(rows, schema=pa.schema(list(schema)[1:]))
        tables[part] = values.add_column(0, "doc_id", ids)
        mine = pa.array([reasons.get(n) for n in names(part)], pa.string())
        entered = pa.array([n not in more.get("gone", ()) for n in names(part)]).to_numpy(zero_copy_only=False)
        decided[part] = decisions_table(ids, entered, mine, name)
        counts.append(tally(documents(part), entered, mine))
    written = {table: (schema, tables), "decisions": (DECISIONS, decided)}
    fake_run.commit(workdir, name, written, counts, facts=more["facts"])


def contained() -> pa.Table:
    row = {
        "a": 4, "b": 0, "a_key": KEYS["original"], "b_key": KEYS["hostile"], "a_split": "train", "b_split": "train",
        "containment": 0.75, "jaccard": 0.1, "a_ngrams": 40, "b_ngrams": 400,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=CONTAINMENT)


def sentences(workdir: Path, gone: set[str]) -> None:
    start = TEXTS[0][0][1].encode().index(SPAN)
    cut = pa.table(
        [[0], [start], [start + len(SPAN)], ["dedup_sentences"], ["dedup_sentences.exact"], [KEYS["original"]]],
        names=CUTS.names,
    ).cast(CUTS)
    decided, counts = {}, []
    for part in (0, 1):
        ids, nothing = documents(part).column("doc_id"), pa.nulls(len(names(part)), pa.string())
        entered = pa.array([n not in gone for n in names(part)]).to_numpy(zero_copy_only=False)
        decided[part] = decisions_table(ids, entered, nothing, "dedup_sentences")
        table = documents(part)
        if part == 0:
            lost = pa.array([len(SPAN)] + [0] * (len(names(0)) - 1)).to_numpy()
            counts.append(tally_cuts(table, lost, "dedup_sentences.exact"))
            left = pa.array(table.column("num_bytes").to_numpy() - lost)
            table = table.set_column(table.column_names.index("num_bytes"), "num_bytes", left)
        counts.append(tally(table, entered, nothing))
    tables = {
        "decisions": (DECISIONS, decided), "cuts": (CUTS, {0: cut, 1: CUTS.empty_table()}),
        "containment": (CONTAINMENT, {0: contained()}),
    }  # fmt: skip
    facts = {
        "num_cuts": 1,
        "embeddings": {"num_embedded": 7},
        "lines": {
            "unit": "line", "num_lines": 90, "num_repeated": 12, "num_spans": 40,
            "most_repeated": [{"documents": 31, "text": "<script>alert('menu')</script> Home"}],
        },
        "containment": {
            "num_documents": 9, "num_compared": 3, "num_pairs": 1, "num_contained": 1, "num_across_splits": 0,
            "most_contained": contained().drop_columns(["a", "b"]).to_pylist(),
        },
    }  # fmt: skip
    fake_run.commit(workdir, "dedup_sentences", tables, counts, facts=facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("further")
    fake_run.ingest(workdir)
    languages = [[(fake_run.LABELS[p][3], 0.9)] * len(names(p)) for p in (0, 1)]
    lines = {"language": "zh", "lines": 4, "share": 0.251, "low": 0.123, "high": 0.377}
    facts = {"languages": {"en": [6, 6254], "zh": [3, 493]}, "line_languages": [lines]}
    stage(workdir, "screen", "language", LANGUAGE, languages, {"short": "screen.language"}, facts=facts)
    scores = [[(0.2 + row / 10,) for row in range(6)], [(None,)] * 3]
    facts = {
        "threshold": 0.25,
        "thresholds": {"": 0.25},
        "expression": "mean(a, b)",
        "histograms": {"web": [1] * 10},
        "held_out": {"positives": 5, "negatives": 6, "roc_auc": 0.98, "roc_auc_standard_error": 0.01},
        "classifiers": {"a": CLASSIFIER, "b": {"held_out": {"positives": 0, "negatives": 0}}},
        "agreement": [
            {"first": "a", "second": "b", "docs": 11, "spearman": 0.5, "both_frac": 0.75, "kappa": 0.25},
        ],
        "warnings": ["a mostly detects length"],
    }
    reasons = {"hostile": None, "copy": "quality.low_score"}
    stage(workdir, "quality", "quality", QUALITY, scores, reasons, facts=facts, gone={"short"})
    weights = [[(-1.5,)] * 6, [(None,)] * 3]
    facts = {
        "kl_reduction": 0.5,
        "effective_sample_size": 3.0,
        "num_docs": 5,
        "top_percent_weight_frac": 0.4,
        "warnings": ["few documents carry the weight"],
        "log_weight_quantiles": {"0.5": -1.5},
    }
    reasons = {"near": "select.low_importance"}
    stage(workdir, "select", "importance", IMPORTANCE, weights, reasons, facts=facts, gone={"short", "copy"})
    sentences(workdir, {"short", "copy", "near"})
    return workdir


@pytest.fixture(scope="module")
def recipe(folder):
    left_out = dict.fromkeys(["rules", "dedup_documents", "tokenizer", "mix", "pack", "train"])
    sections = {
        "screen": {"languages": ["en", "zh"]},
        "quality": {"positives": ["statutes"], "negatives": ["web"], "threshold": 0.25},
        "select": {"target": "law", "keep_frac": 0.5},
        "dedup_sentences": {},
    }
    return fake_run.recipe(folder, **left_out, **sections)


def test_cuts_enter_the_balance(folder, recipe):
    facts = collect(str(folder), recipe)
    assert [flow.stage for flow in facts.flows] == ["ingest", "screen", "quality", "select", "dedup_sentences"]
    assert all(flow.balanced for flow in facts.flows)
    last = facts.flows[-1]
    assert last.cut.bytes == len(SPAN)
    assert last.entered.bytes == last.kept.bytes + len(SPAN)
    assert last.entered.docs == last.kept.docs
    assert "Selection: few documents carry the weight" in advice(facts)


def test_the_page_shows_every_stage(folder, recipe):
    html = Path(write_report(str(folder), recipe)).read_text(encoding="utf-8")
    page = Page(html)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {"languages", "quality", "selection", "sentences"} <= ids
    assert "ROC AUC is 0.9800" in page.text
    assert "0.500 nats closer" in page.text
    assert "score = 0.3" in page.text
    assert "documents just above the cut at 0.25" in page.text
    assert "documents just below the cut at 0.25" in page.text
    assert "a mostly detects length" in page.text
    assert "ROC AUC 0.9700" in page.text
    assert "<script>court" in page.text
    assert "<script>court" not in html
    assert "The pool by source, before and after" not in page.text  # one source
    assert "a and b" in page.text
    assert "num embedded" in page.text
    assert f"<del>{SPAN.decode()}</del>" in html
    assert "<script>alert('menu')" not in html
    assert "<script>alert('menu')</script> Home" in page.text
    assert "1 of 9 documents stand inside another" in page.text
    assert {"containment"} <= ids


def test_explanations_name_figures_and_cuts(folder):
    found = explain(str(folder), KEYS["hostile"])
    assert [v["verdict"] for v in found["stages"]] == ["kept"] * 4
    assert found["cuts"][0]["text"] == SPAN.decode()
    text = explain_text(found)
    assert "lang en, confidence 0.9" in text
    assert "log_weight -1.5" in text
    assert f"stays in {KEYS['original']}" in text
    assert f"holds 75% of the n-grams of {KEYS['original']} (train)" in text
    inside = explain_text(explain(str(folder), KEYS["original"]))
    assert f"75% of its n-grams stand in {KEYS['hostile']} (train)" in inside
    assert explain(str(folder), KEYS["near"])["contained"] == []
    assert explain(str(folder), KEYS["copy"])["reason"] == "quality.low_score"


def test_text_around_a_cut_never_splits_a_character():
    text = "第一条法律规定".encode() * 200
    pieces = around(text, 3, 9)
    assert pieces[:2] == [("same", "第"), ("removed", "一条")]
    assert "�" not in "".join(piece for _, piece in pieces)
