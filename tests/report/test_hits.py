"""Hits of evaluation items on the page and in explanations."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from refinery.contracts.tables import CUTS, DECISIONS, EVAL_ITEMS, HITS
from refinery.report.collect import collect
from refinery.report.explain import explain, explain_text
from refinery.report.hit_samples import read_hit_samples
from refinery.report.page import write_report
from refinery.report.summary import advice
from refinery.stages.decisions import decisions_table
from refinery.stages.tallies import tally, tally_cuts
from tests.report import fake_run
from tests.report.fake_run import KEYS, TEXTS, documents, names
from tests.report.test_page import Page

ITEM = "第一条 为了 保护 公民 的 <合法> 权益"
SPAN = "为了 保护 公民 的"
ROW = {"item_covered_frac": 0.75, "doc_covered_frac": 0.125, "num_ngrams": 3, "longest_run": 3}


def _hits() -> pa.Table:
    raw, item = TEXTS[1][0][1].encode(), ITEM.encode()
    start, first = raw.index(SPAN.encode()), item.index(SPAN.encode())
    size = len(SPAN.encode())
    row = {
        "doc_id": 1 << 32, "doc_key": KEYS["law"], "eval": "exam", "item": "q<7>", "field": "question",
        "item_number": 1, "doc_start": start, "doc_end": start + size, "item_start": first, "item_end": first + size,
    }  # fmt: skip
    return pa.Table.from_pylist([row | ROW], schema=HITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("hits")
    fake_run.ingest(workdir)
    hits = _hits()
    cut = pa.table(
        [
            *([1 << 32], hits.column("doc_start"), hits.column("doc_end")),
            *(["decontaminate"], ["decontaminate.span"], [None]),
        ],
        names=CUTS.names,
    ).cast(CUTS)
    lost = pa.array([len(SPAN.encode()), 0, 0]).to_numpy()
    decided, counts = {}, [tally_cuts(documents(1), lost, "decontaminate.span")]
    for part in (0, 1):
        table = documents(part)
        decided[part] = decisions_table(
            table.column("doc_id"), pa.array([True] * len(names(part))).to_numpy(zero_copy_only=False),
            pa.nulls(len(names(part)), pa.string()), "decontaminate",
        )  # fmt: skip
        if part:
            left = pa.array(table.column("num_bytes").to_numpy() - lost)
            table = table.set_column(table.column_names.index("num_bytes"), "num_bytes", left)
        counts.append(tally(table, None, None))
    items = [
        {"item_number": n, "eval": "exam", "item": f"q<{n + 6}>", "field": "question", "unit": "words", "text": t}
        for n, t in enumerate(["another", ITEM])
    ]
    counted = {"items_too_short": 1, "items_matched_whole": 0, "ngrams": 40, "ngrams_common": 2, "by_field": {}}
    row = {"eval": "exam", "items": 2, "items_hit": 1, "contaminated_frac": 0.5, "documents_hit": 1, **counted}
    nothing = row | {"eval": "absent", "items_hit": 0, "contaminated_frac": 0.0, "documents_hit": 0}
    facts = {
        "evals": [row, nothing], "num_docs_scanned": 8, "num_hits": 1, "num_cuts": 1, "pairs_below_bounds": 5,
        "index_bytes": 100, "warnings": ["eval exam: 1 of 2 records lack text in a field"],
    }  # fmt: skip
    tables = {
        "items": (EVAL_ITEMS, {0: pa.Table.from_pylist(items, schema=EVAL_ITEMS)}),
        "hits": (HITS, {0: HITS.empty_table(), 1: hits}),
        "cuts": (CUTS, {0: CUTS.empty_table(), 1: cut}),
        "decisions": (DECISIONS, decided),
    }
    fake_run.commit(workdir, "decontaminate", tables, counts, facts=facts)
    return workdir


@pytest.fixture(scope="module")
def recipe(folder):
    left_out = dict.fromkeys(["rules", "dedup_documents", "tokenizer", "mix", "pack", "train"])
    return fake_run.recipe(folder, **left_out, decontaminate={"evals": ["exam.jsonl"]})


def test_hits_are_set_beside_their_items(folder, recipe):
    [hit] = read_hit_samples(str(folder), collect(str(folder), recipe).manifests)
    assert ("removed", SPAN) in list(hit.document)
    assert list(hit.item_text) == [("same", "第一条 "), ("removed", SPAN), ("same", " <合法> 权益")]
    assert (hit.doc_key, hit.item, hit.source) == (KEYS["law"], "q<7>", "statutes")


def test_the_page_shows_evals_and_hits(folder, recipe):
    html = Path(write_report(str(folder), recipe)).read_text(encoding="utf-8")
    page = Page(html)
    assert "evals" in {attrs.get("id") for _, attrs in page.tags}
    assert html.count(f"<mark>{SPAN}</mark>") == 2
    assert "<合法>" not in html
    assert "absent" in page.text
    facts = collect(str(folder), recipe)
    assert facts.flows[-1].balanced
    assert "Decontamination: eval exam: 1 of 2 records lack text in a field." in advice(facts)


def test_explanations_name_hits(folder):
    told = explain(str(folder), KEYS["law"])
    [hit] = told["hits"]
    assert hit["text"] == SPAN
    assert "holds exam q<7> question at bytes" in explain_text(told)
    assert explain(str(folder), KEYS["hostile"])["hits"] == []
