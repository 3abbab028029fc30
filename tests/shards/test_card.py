from __future__ import annotations

import yaml

from refinery.shards.card import CardFacts, card_text, card_values, facts_of
from tests.shards import datasets


def _parts(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_has_the_hubs_form(shared_dataset):
    _, manifest = shared_dataset
    front, _ = _parts(card_text(manifest, CardFacts(name="demo: 100 % ünïcode", licences={"law": {"CC0-1.0": 5}})))
    assert front["pretty_name"] == "demo: 100 % ünïcode"
    assert front["language"] == ["en", "zh"]
    assert front["license"] == "other"
    assert front["license_name"] == "CC0-1.0"
    assert front["task_categories"] == ["text-generation"]
    assert front["size_categories"] == ["n<1K"]
    assert "configs" not in front


def test_card_says_what_is_inside_how_it_came_about_and_how_to_load_it(shared_dataset):
    _, manifest = shared_dataset
    facts = CardFacts(
        name="x",
        sources=[("laws", "law", "target", "public domain"), ("crawl", "web", "pool", "")],
        funnel=[("ingest", 100, 100, 9_000), ("rules", 100, 80, 7_000)],
        licences={"law": {"CC0-1.0": 1_234, "not stated": 7}},
        dedup="Jaccard 0.8",
        decontamination="gsm8k, cut",
        plan={"law": {"share": 0.25, "epochs": 2.5, "first_repeat_row": 17}},
    )
    front, body = _parts(card_text(manifest, facts))
    assert front["license_name"] == "mixed"
    for stream in manifest.streams:
        assert f"| {stream.name} | {stream.total('documents'):,} | {stream.rows:,} |".replace("_", "\\_") in body
    for said in (
        "| rules | 100 | 80 | 7,000 |", "| law | CC0-1.0 | 1,234 |", "Jaccard 0.8", "gsm8k, cut",
        "| law | 25.00% | 2.50 | 17 |", "| laws | law | target | public domain |", manifest.content_hash,
        manifest.tokenizer.sha256, "ShardReader",
    ):  # fmt: skip
        assert said in body, said


def test_what_is_not_known_is_said(shared_dataset):
    _, manifest = shared_dataset
    _, body = _parts(card_text(manifest, CardFacts()))
    assert "Not recorded: ask who made this data set" in body
    assert "Decontamination: none" in body


def test_names_from_sources_are_no_markup(shared_dataset):
    _, manifest = shared_dataset
    hostile = "a | b\n# <script>alert(1)</script> [x](y)"
    _, body = _parts(card_text(manifest, CardFacts(name=hostile, licences={"law": {hostile: 1}})))
    assert "<script>" not in body
    assert "\n# <" not in body
    assert len([line for line in body.splitlines() if line.startswith("| law |")]) == 1


def test_facts_travel_with_the_manifest(tmp_path):
    facts = CardFacts(name="x", sources=(("a", "b", "pool", ""),), funnel=(("ingest", 1, 1, 2),), licences={"b": {}})
    manifest = datasets.build(tmp_path, unhashed={"card": card_values(facts)})
    assert facts_of(manifest) == facts
    assert facts_of(datasets.build(tmp_path / "plain")) == CardFacts()
