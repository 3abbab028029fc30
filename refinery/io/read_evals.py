"""Read evaluation sets: JSON lines, JSON, CSV, Parquet or plain lines, packed or not, into items of text.

What an item is, is said by a preset (the layout of a published set) or by dotted field names. A path leads through
lists: ``paragraphs.qas.question`` gives every question. Each text is an item of its own, because a question can stand
in a crawl without its answer. Nothing is guessed silently: a field that no record has, a file without items and bytes
that are no UTF-8 are errors; records without the field and empty texts are counted.
"""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from refinery.errors import ConfigError
from refinery.io.compressed import CODECS, BrokenStreamError, DecompressionLimits, codec_of, open_raw, read_chunks

MAX_EVAL_BYTES = 1 << 31
"""Longest eval file, unpacked: items are held in memory."""


class Preset(NamedTuple):
    """Where the texts of a published layout stand."""

    fields: tuple[str, ...]
    id_field: str
    unit: str
    records: str = ""
    """Key of the list of records where a file is one object."""


PRESETS = {
    "gsm8k": Preset(("question", "answer"), "id", "words"),
    "humaneval": Preset(("prompt", "canonical_solution"), "task_id", "code"),
    "squad": Preset(("paragraphs.context", "paragraphs.qas.question"), "id", "words", "data"),
    "cmrc": Preset(("context_text", "qas.query_text"), "context_id", "words"),
    "text": Preset(("text",), "id", "words"),
}
"""Layouts by name: GSM8K, HumanEval, SQuAD 1.1 (also CMRC 2018 in that layout), CMRC 2018's own, and one text field."""


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """One evaluation set of a recipe."""

    paths: tuple[str, ...]
    name: str | None = None
    """None: each file is an eval of its own, named by its file."""
    preset: str = "auto"
    fields: tuple[str, ...] = ()
    id_field: str | None = None
    unit: str | None = None


class EvalItem(NamedTuple):
    """One text of an evaluation set."""

    eval: str
    item: str
    """Id of the record, and the number of the text in it where there are several."""
    field: str
    unit: str
    text: str


class EvalFile(NamedTuple):
    """What one file of an eval gave."""

    eval: str
    path: str
    records: int
    records_without_text: int
    """Records in which one of the fields is missing or empty."""


def find_evals(specs: Sequence[EvalSpec]) -> list[tuple[EvalSpec, str, list[str]]]:
    """Return (spec, name, files) of every eval.

    Raises:
        ConfigError: a path matches no file, or two evals have one name.
    """
    found: list[tuple[EvalSpec, str, list[str]]] = []
    for spec in specs:
        files = [file for path in spec.paths for file in _files_of(path)]
        if spec.name:
            found.append((spec, spec.name, files))
        else:
            found += [(spec, _stem(file), [file]) for file in files]
    names = [name for _, name, _ in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"several evals are called {', '.join(repeated)}; give each a name of its own")
    if not found:
        raise ConfigError("decontaminate.evals names no eval; name files, such as evals: [data/evals/*.jsonl]")
    return found


def _files_of(path: str) -> list[str]:
    if "://" in path:
        return [path]
    expanded = str(Path(path).expanduser())
    matches = [expanded] if Path(expanded).is_file() else sorted(glob.glob(expanded, recursive=True))  # noqa: PTH207 - patterns may be absolute
    if Path(expanded).is_dir():
        matches = sorted(str(p) for p in Path(expanded).iterdir() if not p.name.startswith((".", "_")))
    if not matches:
        raise ConfigError(f"eval path {path!r} matches no file; write the path of a JSON, CSV, Parquet or text file")
    return matches


def _stem(path: str) -> str:
    name = Path(path)
    if name.suffix.lower() in CODECS:
        name = name.with_suffix("")
    return name.stem


def read_eval(spec: EvalSpec, name: str, files: Sequence[str]) -> tuple[list[EvalItem], list[EvalFile]]:
    """Read all items of one eval.

    Raises:
        ConfigError: a file is missing, broken, empty or no UTF-8; no preset fits; a field is in no record.
    """
    items: list[EvalItem] = []
    told: list[EvalFile] = []
    for file in files:
        records = _records(file, name)
        preset = _layout(spec, records, name, file)
        records = _inside(records, preset)
        lacking, have = 0, dict.fromkeys(preset.fields, 0)
        for number, record in enumerate(records):
            label = _label(record, preset.id_field, number, file if len(files) > 1 else "")
            complete = True
            for field in preset.fields:
                texts = [t for t in values_at(record, field) if isinstance(t, str) and t.strip()]
                have[field] += len(texts)
                complete = complete and bool(texts)
                for k, text in enumerate(texts):
                    item = f"{label}#{k}" if len(texts) > 1 else label
                    items.append(EvalItem(name, item, field, preset.unit, text))
            lacking += not complete
        absent = [field for field, count in have.items() if not count]
        if absent:
            keys = sorted(records[0]) if records else []
            raise ConfigError(f"eval {name}: no record of {file} has text in {absent}; a record has {keys[:20]}")
        told.append(EvalFile(name, file, len(records), lacking))
    return items, told


def values_at(record: Any, path: str) -> Iterator[Any]:
    """Yield every value at a dotted path; lists on the way are gone through, a key that is the whole path wins."""
    if isinstance(record, list):
        for value in record:
            yield from values_at(value, path)
    elif not path:
        yield record
    elif isinstance(record, Mapping):
        if path in record:
            yield from values_at(record[path], "")
            return
        head, _, rest = path.partition(".")
        if head in record and rest:
            yield from values_at(record[head], rest)


def _label(record: Any, id_field: str, number: int, file: str) -> str:
    found = next((v for v in values_at(record, id_field) if isinstance(v, str | int) and v != ""), None)
    label = str(number if found is None else found)
    return f"{_stem(file)}:{label}" if file else label


def _layout(spec: EvalSpec, records: list[Any], name: str, file: str) -> Preset:
    if not records:
        raise ConfigError(f"eval {name}: {file} holds no record; an empty eval would check nothing, so leave it out")
    if spec.fields:
        return Preset(spec.fields, spec.id_field or "id", spec.unit or "words")
    if spec.preset != "auto":
        if spec.preset not in PRESETS:
            raise ConfigError(f"eval {name}: preset {spec.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
        chosen = PRESETS[spec.preset]
    else:
        fitting = [p for p in PRESETS.values() if _fits(p, records)]
        if not fitting:
            keys = sorted(records[0]) if isinstance(records[0], Mapping) else type(records[0]).__name__
            raise ConfigError(
                f"eval {name}: {file} has none of the known layouts ({', '.join(PRESETS)}); its first record has "
                f"{keys}: name the fields, such as {{name: {name}, paths: [{file}], fields: [question]}}"
            )
        chosen = fitting[0]
    return chosen._replace(id_field=spec.id_field or chosen.id_field, unit=spec.unit or chosen.unit)


def _fits(preset: Preset, records: list[Any]) -> bool:
    if preset.records and not (isinstance(records[0], Mapping) and preset.records in records[0]):
        return False
    first = _inside(records, preset)[:1]
    return bool(first) and all(any(isinstance(v, str) for v in values_at(first[0], f)) for f in preset.fields)


def _inside(records: list[Any], preset: Preset) -> list[Any]:
    """Take a file's records out of the one object that holds them (SQuAD's ``data``), paragraphs one by one."""
    if not preset.records:
        return records
    listed = [value for record in records for value in values_at(record, preset.records)]
    if all(f.startswith("paragraphs.") for f in preset.fields):
        listed = [{"id": p.get("id"), "paragraphs": [p]} for value in listed for p in value.get("paragraphs", [])]
    return listed


def _records(path: str, name: str) -> list[Any]:
    """Return the records of one file."""
    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() not in CODECS]
    kind = suffixes[-1] if suffixes else ""
    try:
        with open_raw(path) as raw:
            data = b"".join(read_chunks(raw, codec_of(path), DecompressionLimits(max_bytes=MAX_EVAL_BYTES)))
        if kind in (".parquet", ".pq"):
            return list(pq.read_table(pa.BufferReader(data)).to_pylist())
        text = data.decode("utf-8-sig")
        if kind in (".csv", ".tsv"):
            csv.field_size_limit(MAX_EVAL_BYTES)
            return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ","))
        if kind == ".txt":
            return [{"text": line} for line in text.splitlines() if line.strip()]
        return list(_json_records(text))
    except FileNotFoundError as error:
        raise ConfigError(f"eval {name}: {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"eval {name}: {path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); convert it, "
            "because a wrong reading would match nothing"
        ) from error
    except (BrokenStreamError, ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise ConfigError(f"eval {name}: {path} cannot be read: {error}") from error


def _json_records(text: str) -> Iterable[Any]:
    """Return the values of JSON lines, of one JSON list, or the one object of a file."""
    try:
        value = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return value if isinstance(value, list) else [value]
