"""`schemas/` says what the code says, and real files of every kind fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pyarrow as pa
import pytest
import yaml

from refinery.contracts.manifest import CountRow, PartEntry, StageManifest
from refinery.contracts.runs import LossPoint, RunRecord
from refinery.contracts.tables import TABLES, schema_as_json
from refinery.schemas_export import as_text, schemas, tables
from refinery.shards.manifest import (
    FileHash,
    LineageStage,
    PackingInfo,
    StreamKey,
    TokenizerInfo,
    build_manifest,
    manifest_bytes,
)
from refinery.shards.manifest import PartEntry as ShardPart
from refinery.shards.plan import first_plan, plan_bytes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def exported():
    return schemas()


def fits(schema, document) -> None:
    jsonschema.Draft202012Validator(schema).validate(document)


def stage_manifest() -> StageManifest:
    count = CountRow("dropped", "rules.gopher.words_min", "s", "law", "pool", "en", "train", 3, 900, 0)
    part = PartEntry("decisions", 0, 10, "ab" * 16, 1234)
    return StageManifest("rules", "cd" * 16, 1, {"a": 1}, {"ingest": "ef" * 16}, [part], [count]).sealed()


def shard_manifest():
    file = FileHash(num_bytes=4096, sha256="ab" * 32, xxh3_128="cd" * 16)
    entry = ShardPart(
        path="part-00000", first_row=0, rows=8, tokens=240, loss_tokens=232, padding_tokens=16, documents=5,
        utf8_bytes=900, max_token_id=500, eos_count=5,
        files=dict.fromkeys((".bin", ".idx", ".seg", ".rows.parquet"), file),
    )  # fmt: skip
    probe = tuple((f"text {i}", (i, i + 1)) for i in range(8))
    return build_manifest(
        TokenizerInfo(sha256="ab" * 32, vocab_size=600, eos_id=0, bos_id=-1, pad_id=1, probe=probe),
        PackingInfo(policy="best_fit", sequence_length=32, seed=7),
        {StreamKey("law", "target", "zh", 0, "train"): [entry]},
        [LineageStage(stage="ingest", content_hash="cd" * 16, documents=9, utf8_bytes=900, tokens=-1)],
        {"created_by": "test"},
    )


def test_files_on_disk_are_what_the_code_gives(exported) -> None:
    folder = ROOT / "schemas"
    on_disk = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.json")}
    assert on_disk == {name: as_text(content) for name, content in exported.items()}, "run `make schemas`"


def test_every_schema_is_a_schema(exported) -> None:
    for name, schema in exported.items():
        if name.endswith(".schema.json"):
            jsonschema.Draft202012Validator.check_schema(schema)


def test_recipes_fit_their_schema(exported) -> None:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        fits(exported["recipe.schema.json"], yaml.safe_load(path.read_text(encoding="utf-8")))


def test_an_unknown_recipe_key_does_not_fit(exported) -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    recipe["pack"]["sequence_lenght"] = 10
    with pytest.raises(jsonschema.ValidationError):
        fits(exported["recipe.schema.json"], recipe)


def test_a_stage_manifest_fits(exported) -> None:
    fits(exported["stage-manifest.schema.json"], json.loads(stage_manifest().to_json()))


def test_a_shard_manifest_and_its_plan_fit(exported) -> None:
    manifest = shard_manifest()
    fits(exported["shard-manifest.schema.json"], json.loads(manifest_bytes(manifest)))
    plan = first_plan(manifest, 7, [(10, {"law/target/zh/w0/train": 1.0})])
    fits(exported["mix-plan.schema.json"], json.loads(plan_bytes(plan)))


def test_a_shard_manifest_of_a_newer_reader_does_not_fit(exported) -> None:
    document = json.loads(manifest_bytes(shard_manifest()))
    document["format"]["reader_min"] = 99
    with pytest.raises(jsonschema.ValidationError):
        fits(exported["shard-manifest.schema.json"], document)


def test_a_run_record_fits(exported) -> None:
    point = LossPoint(
        step=0, tokens=0, stream="law/target/zh/w0/validation", loss_nats=8.3, bits_per_byte=None,
        target_tokens=100, learning_rate=0.0, replay_frac=0.0,
    )  # fmt: skip
    record = RunRecord(
        name="r", status="finished", init="scratch", num_params=10, num_non_embedding_params=5, steps=1, tokens=32,
        sequence_length=32, final_train_loss_nats=8.0, num_skipped_steps=0, train_flops=1e9, seconds=1.0,
        points=(point, replace(point, bits_per_byte=1.5)),
    )  # fmt: skip
    fits(exported["run-record.schema.json"], json.loads(record.to_json()))


def test_tables_name_every_column_with_a_type_that_arrow_knows() -> None:
    named = tables()
    assert set(TABLES) < set(named)
    for name, schema in TABLES.items():
        assert named[name] == schema_as_json(schema)
    known = {str(t) for t in (pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(),
                              pa.large_string(), pa.binary(), pa.large_binary())}  # fmt: skip
    assert {column["type"] for columns in named.values() for column in columns} <= known
