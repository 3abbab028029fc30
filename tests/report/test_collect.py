from __future__ import annotations

import dataclasses
import json

import pytest

from refinery.contracts.manifest import CountRow
from refinery.report.collect import TokenRatio, collect
from refinery.report.facts import Amount
from refinery.report.summary import advice, as_json, removals, sentences, stream_title
from tests.report import fake_run


@pytest.fixture(scope="module")
def facts(run_folder):
    return collect(str(run_folder), fake_run.recipe(run_folder))


def test_nothing_vanishes_between_stages(facts):
    for before, after in zip(facts.flows, facts.flows[1:], strict=False):
        assert after.entered == before.kept or before.estimated
        assert (after.entered.docs, after.entered.bytes) == (before.kept.docs, before.kept.bytes)
    for flow in facts.flows:
        assert flow.balanced
        assert flow.entered.docs == flow.kept.docs + flow.dropped.docs
        assert flow.entered.bytes == flow.kept.bytes + flow.dropped.bytes + flow.cut.bytes
    dropped = sum((d.amount for d in facts.drops), Amount())
    assert facts.first.docs == facts.last.docs + dropped.docs == 9
    assert facts.first.bytes == facts.last.bytes + dropped.bytes


def test_drops_are_split_the_same_way_by_every_dimension(facts):
    for drop in facts.drops:
        for amounts in drop.by.values():
            assert sum(a.docs for a in amounts.values()) == drop.amount.docs
            assert sum(a.bytes for a in amounts.values()) == drop.amount.bytes


def test_labels_tell_came_in_kept_and_taken(facts):
    before, judged, taken = facts.labels["source"]["web"]
    assert (before.docs, judged.docs, taken.docs) == (6, 3, 2)
    assert [sum(row[i].docs for row in facts.labels["split"].values()) for i in range(3)] == [9, 5, 4]


def test_tokens_before_the_tokenizer_are_estimated_per_domain_and_language(facts):
    flows = {flow.stage: flow for flow in facts.flows}
    assert flows["ingest"].estimated
    assert flows["dedup_documents"].estimated
    assert not flows["tokenize"].estimated
    assert flows["dedup_documents"].kept.tokens == flows["tokenize"].kept.tokens
    assert flows["ingest"].kept.tokens > flows["tokenize"].kept.tokens


def test_token_ratio_falls_back_to_all_text():
    rows = [CountRow("kept", "", "s", "law", "pool", "zh", "train", 1, 300, 100)]
    stranger = CountRow("dropped", "x", "s", "web", "pool", "en", "train", 1, 30)
    assert TokenRatio(rows).amount(stranger, estimated=True).tokens == 10
    assert TokenRatio([]).amount(stranger, estimated=True).tokens == 0
    assert TokenRatio([]).bytes_per_token is None


def test_mix_compares_asked_planned_and_written(facts):
    web, law = facts.mix.rows
    assert (web.asked_frac, web.planned_frac, web.written_frac) == (0.7, 0.7, 0.75)
    assert (law.asked_frac, law.written_tokens, law.epochs) == (0.3, 50, 5.0)
    assert [row.name for row in facts.mix.rows] == ["web", "law"]


def test_training_curve_survives_a_line_cut_short(facts):
    assert facts.training.curve[0] == (1, 7.9)
    assert len(facts.training.curve) == 10
    assert facts.training.tokens_per_second == 600.0


def test_speed_is_of_bytes_that_came_in(facts):
    timing = next(t for t in facts.timings if t.stage == "dedup_documents")
    entered = next(f for f in facts.flows if f.stage == "dedup_documents").entered.bytes
    assert timing.bytes_per_second == entered / 2.0
    assert timing.bytes_per_core_second == entered / 0.5
    assert next(t for t in facts.timings if t.stage == "pack").bytes_in == facts.last.bytes


def test_what_the_mix_leaves_is_no_removal(facts):
    assert "mix.over_ceiling" in [d.reason for d in facts.drops]
    assert "mix.over_ceiling" not in [d.reason for d in removals(facts)]
    assert any("1 good document beyond that" in s for s in sentences(facts))


def test_advice_names_sources_that_lost_everything(facts):
    gone = dataclasses.replace(facts, labels={"source": {"blog": (Amount(5, 10), Amount(), Amount())}})
    assert any("Nothing of source blog survived" in line for line in advice(gone))
    broken = dataclasses.replace(facts, flows=[dataclasses.replace(facts.flows[0], balanced=False)])
    assert "do not add up" in advice(broken)[0]


def test_summary_is_json(facts):
    assert json.loads(json.dumps(as_json(facts)))["drops"][0]["reason"] == "gopher.words_min"


def test_stream_titles():
    assert stream_title("law/target/zh/w0/validation") == "law (target, zh)"
    assert stream_title("web/pool/und/w2/train") == "web (w2)"
    assert stream_title("odd") == "odd"
