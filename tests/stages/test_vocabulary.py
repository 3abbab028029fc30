"""Vocabularies that are taken as given or extended, through the tokenize stage."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from refinery.errors import ConfigError
from refinery.recipe import parse_recipe
from refinery.stages.train import train_file
from refinery.tokenization.encode import open_encoder
from refinery.tokenization.info import load_info
from refinery.tokenization.recipe import recipe_from_mapping
from refinery.tokenization.train import train_bpe
from tests.stages.runs import fork, run_stages


@pytest.mark.spark
def test_an_extended_vocabulary_keeps_old_ids_and_names_the_pieces_of_new_ones(spark, done, tmp_path):
    base = Path(done["workdir"]) / "tokenize" / "tokenizer"
    values = fork(done, tmp_path / "run")
    values["tokenizer"] = {"extend": str(base), "add": 20, "sample_bytes": 100_000}
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text("{}")
    values["train"] = {"init": str(tmp_path / "first"), "steps": 1}
    made = run_stages(spark, values, ("tokenize",))["tokenize"]
    larger = tmp_path / "run" / "tokenize" / "tokenizer"
    old, new = load_info(base), load_info(larger)
    assert new.vocab_size == old.vocab_size + 20 == made.facts["vocab_size"]
    before, after = open_encoder(base).token_texts(), open_encoder(larger).token_texts()
    assert after[: old.vocab_size] == before
    recipe = parse_recipe(values)
    rows = json.loads(Path(train_file(recipe, recipe.train)["options"]["vocab_extension"]).read_text())
    assert sorted(map(int, rows)) == list(range(old.vocab_size, new.vocab_size))
    assert all(len(pieces) >= 2 and max(pieces) < old.vocab_size for pieces in rows.values())
    assert run_stages(spark, values, ("tokenize",))["tokenize"].volatile == made.volatile, "up to date"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"extend": "a"}, "extend and add go together"),
        ({"train": "a", "add": 5}, "extend and add go together"),
        ({"train": "a", "path": "b"}, "exactly one of"),
        ({}, "exactly one of"),
    ],
)
def test_a_vocabulary_has_one_origin(section, message):
    values = {
        "name": "x",
        "workdir": "w",
        "inputs": [{"source": "a", "domain": "b", "format": "jsonl", "paths": ["p"]}],
        "tokenizer": section,
    }
    with pytest.raises(ConfigError, match=message):
        parse_recipe(values)


@pytest.mark.spark
def test_the_stage_trains_what_its_sample_gives_for_any_partitioning(spark, done, tmp_path):
    workdir = Path(done["workdir"])
    made = workdir / "tokenize" / "tokenizer"
    origin = load_info(made).origin
    tables = [pq.read_table(path) for path in sorted((workdir / "tokenize" / "sample").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist() if row["split"] == "train"]
    again = train_bpe([row["text"] for row in rows], recipe_from_mapping(origin["recipe"]), tmp_path / "again")
    assert again.sha256 == load_info(made).sha256
    assert again.origin == origin
    assert origin["sample_docs"] == len(rows)
