"""Write ``schemas/``: the contracts for readers in any language. `docs/data-format.md` explains them.

JSON Schema (2020-12) of the recipe, the stage manifest, the shard manifest, the mix plan and the run record, and the
Arrow schemas of every table, all taken from the code, so a file cannot say what the code does not do. A test fails
when the files and the code differ. Apart from `refinery.contracts`, because it reads the recipe and the kernels, which
stand above it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from refinery.contracts.manifest import STAGE_MANIFEST_VERSION, StageManifest
from refinery.contracts.runs import RUN_FORMAT, RUN_VERSION, RunRecord
from refinery.contracts.tables import TABLES, schema_as_json
from refinery.errors import ConfigError
from refinery.kernels.signals import signal_schema
from refinery.recipe import Recipe
from refinery.shards.manifest import (
    FORMAT_NAME,
    FORMAT_VERSION,
    LineageStage,
    PackingInfo,
    PartEntry,
    StreamKey,
    TokenizerInfo,
)
from refinery.shards.order import MAX_TOTAL_WEIGHT, ORDER_VERSION
from refinery.shards.plan import PLAN_FORMAT, PLAN_VERSION
from refinery.shards.row_table import ROWS_SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"
_COUNT = {"type": "integer", "minimum": 0}


def schemas() -> dict[str, dict[str, Any]]:
    """Return file name -> content of every schema."""
    return {
        "recipe.schema.json": _recipe(),
        "stage-manifest.schema.json": _stage_manifest(),
        "shard-manifest.schema.json": _shard_manifest(),
        "mix-plan.schema.json": _mix_plan(),
        "run-record.schema.json": _run_record(),
        "tables.json": tables(),
    }


def tables() -> dict[str, Any]:
    """Return the Arrow schema of every table: columns in order, Arrow type names, whether null is allowed."""
    named = {name: schema_as_json(schema) for name, schema in TABLES.items()}
    doc_id = {"name": "doc_id", "type": "int64", "nullable": False}
    named["signals"] = [doc_id, *schema_as_json(signal_schema())]
    named["rows"] = schema_as_json(ROWS_SCHEMA)
    return dict(sorted(named.items()))


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema file and return the paths; equal code gives equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in schemas().items():
        path = folder / name
        path.write_text(as_text(content), encoding="utf-8")
        written.append(path)
    return written


def as_text(content: dict[str, Any]) -> str:
    """Return the text of a schema file."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _titled(schema: dict[str, Any], title: str, description: str) -> dict[str, Any]:
    return {**schema, "$schema": DIALECT, "title": title, "description": description}


def _closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these properties."""
    whole = {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}
    return {**whole, **more}


def _all_written(schema: dict[str, Any]) -> dict[str, Any]:
    """Close every object of a dataclass's schema: the code writes all fields, and readers refuse unknown ones."""
    if isinstance(schema.get("properties"), dict):
        inner = {name: _all_written(value) for name, value in schema["properties"].items()}
        inner = {name: {k: v for k, v in value.items() if k != "default"} for name, value in inner.items()}
        schema = {**schema, **_closed(inner)}
    if isinstance(schema.get("$defs"), dict):
        schema = {**schema, "$defs": {name: _all_written(value) for name, value in schema["$defs"].items()}}
    return schema


def _of(kind: Any) -> dict[str, Any]:
    return _all_written(TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}"))


def _with_format(schema: dict[str, Any], name: str, version: int) -> dict[str, Any]:
    tags = {"format": {"const": name}, "version": {"const": version}}
    properties = {**schema["properties"], **tags}
    return {**schema, **_closed(properties)}


def _recipe() -> dict[str, Any]:
    schema = _or_variable(Recipe.model_json_schema(ref_template="#/$defs/{model}"))
    return _titled(schema, "Refinery recipe", "A complete run; docs/recipe.md describes every key.")


def _or_variable(schema: Any) -> Any:
    """Let ``${NAME}`` stand for numbers and choices: a recipe is checked in editors before variables are replaced."""
    if isinstance(schema, list):
        return [_or_variable(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("number", "integer", "boolean") or "enum" in schema or "pattern" in schema:
        outside = {k: v for k, v in schema.items() if k in ("title", "description", "default")}
        inside = {k: v for k, v in schema.items() if k not in outside}
        return {**outside, "anyOf": [inside, {"type": "string", "pattern": _VARIABLE}]}
    # values under these keys are names or data, not schemas
    return {k: v if k in ("default", "required") else _or_variable(v) for k, v in schema.items()}


def _stage_manifest() -> dict[str, Any]:
    schema = _with_format(_of(StageManifest), "refinery.stage", STAGE_MANIFEST_VERSION)
    return _titled(schema, "Refinery stage manifest", "STAGE/_stage.json: what one stage did; written last.")


def _run_record() -> dict[str, Any]:
    schema = _with_format(_of(RunRecord), RUN_FORMAT, RUN_VERSION)
    return _titled(schema, "Refinery run record", "train/run.json: one training run.")


def _mix_plan() -> dict[str, Any]:
    weight = {"type": "integer", "minimum": 1, "maximum": MAX_TOTAL_WEIGHT}
    stage = _closed(
        {
            "start_row": _COUNT,
            "num_rows": {"type": "integer", "minimum": 1},
            "weights": {"type": "object", "minProperties": 1, "additionalProperties": weight},
        }
    )
    schema = _closed(
        {
            "format": {"const": PLAN_FORMAT},
            "version": {"const": PLAN_VERSION},
            "order_version": {"const": ORDER_VERSION},
            "seed": _COUNT,
            "sequence_length": {"type": "integer", "minimum": 1},
            "content_hash": _SHA256,
            "stages": {"type": "array", "minItems": 1, "items": stage},
            "plan_hash": _SHA256,
        }
    )
    return _titled(schema, "Refinery mix plan", "plan/NAME.json: integer row weights per stream, stage after stage.")


def _shard_manifest() -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    for kind in (TokenizerInfo, PackingInfo, StreamKey, PartEntry, LineageStage):
        schema = _of(kind)
        definitions |= schema.pop("$defs", {})
        definitions[kind.__name__] = schema
    key = definitions.pop("StreamKey")["properties"]
    key = {**key, "role": {"enum": ["target", "pool", "replay"]}, "split": {"enum": ["train", "validation"]}}
    totals = ("rows", "tokens", "loss_tokens", "padding_tokens", "documents", "utf8_bytes")
    parts = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/PartEntry"}}
    stream = _closed({**key, "name": {"type": "string"}, **dict.fromkeys(totals, _COUNT), "parts": parts})
    tokens = _closed(
        {
            "dtype": {"enum": ["uint16", "int32"]},
            "endianness": {"const": "little"},
            "row_bytes": {"type": "integer", "minimum": 2},
            "labels": {"const": "next_token_of_same_segment"},
        }
    )
    form = _closed(
        {
            "name": {"const": FORMAT_NAME},
            "version": {"const": FORMAT_VERSION},
            "reader_min": {"type": "integer", "maximum": FORMAT_VERSION},
        }
    )
    schema = _closed(
        {
            "format": form,
            "tokenizer": {"$ref": "#/$defs/TokenizerInfo"},
            "packing": {"$ref": "#/$defs/PackingInfo"},
            "tokens": tokens,
            "streams": {"type": "array", "items": stream},
            "lineage": {"type": "array", "items": {"$ref": "#/$defs/LineageStage"}},
            "unhashed": {"type": "object"},
            "content_hash": _SHA256,
            "manifest_hash": _SHA256,
        }
    )
    schema["$defs"] = definitions
    return _titled(schema, "Refinery shard manifest", "manifest.json: what lies in a data set, proved by hashes.")


def main() -> None:
    """Write the schemas into the folder that is given.

    Raises:
        ConfigError: no folder, or more than one.
    """
    if len(sys.argv) != 2:
        raise ConfigError("python -m refinery.schemas_export FOLDER: give the folder, for example schemas")
    for path in write_schemas(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
