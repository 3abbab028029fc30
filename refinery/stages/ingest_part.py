"""The part task of ingest: reads one split, cleans its records, writes one documents part, or several of one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.tables import DOCUMENTS, PART_SHIFT
from refinery.hashing import hex_key, key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.io.charset import mojibake_repair, simplified_converter
from refinery.io.sources import BadRecord, InputSpec, RawDocument, Split, read_split
from refinery.kernels.chinese_script import is_traditional
from refinery.kernels.clean import clean_utf8, cut_to_bytes, is_blank, text_hashes
from refinery.kernels.text import text_views
from refinery.process_memory import system_allocator
from refinery.stages.decisions import located
from refinery.stages.tallies import tally

NAME = "ingest"
MAX_LISTED_BAD_RECORDS = 200
"""Bad records named one by one per part; all are counted."""
_BATCH_DOCS = part_files.WRITE_BATCH_ROWS
"""So that `write_part` takes the batches as they are."""


@dataclass(frozen=True)
class IngestTask:
    """Everything one part task needs, the same for every part."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    specs: tuple[InputSpec, ...]
    roots: tuple[str, ...]
    splits: tuple[tuple[int, bytes], ...]
    """For each part: index of its input, and its split, packed: a task carries the whole plan, but opens its own."""

    def split(self, part: int) -> Split:
        """Return the split of one part."""
        return Split.unpack(self.splits[part][1])

    def leaders(self) -> list[int]:
        """Return the parts that are tasks: shares of one file are filled by the task of its first."""
        splits = [self.split(part) for part in range(len(self.splits))]
        return [part for part, split in enumerate(splits) if split.unit != "shares" or split.start == 0]


def ingest_part(task: IngestTask, fingerprints: list[str], part: int) -> dict[str, Any]:
    """Read, clean and write one part, or all shares of one file; skip what is there with the right fingerprint.

    Returns: the facts of the part; ``shares`` holds those of the further shares of its file.
    """
    split = task.split(part)
    parts = range(part, part + split.end) if split.unit == "shares" else range(part, part + 1)
    paths = [part_files.part_path(task.workdir, NAME, "documents", p) for p in parts]
    files = [part_files.found_part(path, fingerprints[p]) for p, path in zip(parts, paths, strict=True)]
    if None in files:
        with system_allocator():
            for at, (table, result) in enumerate(_read_parts(task, part, len(parts))):
                if files[at] is None:
                    files[at] = part_files.write_part(paths[at], table, DOCUMENTS, fingerprints[parts[at]], result)
    results = [part_result(p, file) for p, file in zip(parts, files, strict=True) if file is not None]
    return {**results[0], "shares": [{**result, "seconds": 0.0, "cpu_seconds": 0.0} for result in results[1:]]}


def part_result(part: int, written: part_files.PartFile) -> dict[str, Any]:
    """Return a part's facts, with where it lies."""
    return {**written.result, "documents": located(part, written)}


class _Filling:
    """One part while its records are read."""

    def __init__(self) -> None:
        self.bad: Counter[str] = Counter()
        self.listed: list[list[Any]] = []
        self.pii: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.dropped_bytes: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.columns: dict[str, list[Any]] = {name: [] for name in _READ_COLUMNS}
        self.batches: list[pa.Table] = []
        self.text_bytes = 0


def _read_parts(task: IngestTask, first: int, count: int) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """Yield the tables and facts of `count` parts that one reading of one split fills, in order."""
    spec, root = task.specs[task.splits[first][0]], task.roots[task.splits[first][0]]
    pii: Counter[str] = Counter()
    clean = _cleaner(task.settings, pii)
    part, filling = first, _Filling()
    for record in read_split(spec, task.split(first)):
        if filling.text_bytes >= task.settings["part_bytes"] and part < first + count - 1:
            yield _finish(task, spec, part, filling)
            part, filling = part + 1, _Filling()
        if isinstance(record, BadRecord):
            filling.bad[record.reason] += 1
            if len(filling.listed) < MAX_LISTED_BAD_RECORDS:
                filling.listed.append([_relative(record.path, root), record.offset, record.reason])
            continue
        raw = clean(record.text)
        filling.pii.update(pii)
        pii.clear()
        _take(task, filling, record, raw, spec, root)
    yield _finish(task, spec, part, filling)
    for empty in range(part + 1, first + count):
        yield _finish(task, spec, empty, _Filling())


def _take(task: IngestTask, filling: _Filling, record: RawDocument, raw: bytes, spec: InputSpec, root: str) -> None:
    """Add a document's clean UTF-8 to a part, or count why it does not come in."""
    size = len(raw)
    too_long = size > task.settings["max_document_bytes"]
    if too_long and task.settings["long_documents"] == "cut":
        raw = cut_to_bytes(raw, task.settings["max_document_bytes"])
        filling.cut.update(docs=1, bytes=size - len(raw))
        size, too_long = len(raw), False
    reason = "empty" if is_blank(raw) else "too_long" if too_long else None
    if reason:
        filling.dropped[reason] += 1
        filling.dropped_bytes[reason] += size
        return
    filling.text_bytes += size
    _append(filling.columns, record, raw, spec, root)
    if len(filling.columns["text"]) >= _BATCH_DOCS:
        filling.batches.append(_batch(filling.columns))


_READ_COLUMNS = ("key_base", "text", "lang", "url", "date", "license", "meta", "num_bytes")


def _append(columns: dict[str, list[Any]], record: RawDocument, raw: bytes, spec: InputSpec, root: str) -> None:
    identity = (
        (record.upstream_id,) if record.upstream_id is not None else (_relative(record.path, root), record.offset)
    )
    columns["key_base"].append(hex_key(spec.source, *identity))
    columns["text"].append(raw)
    columns["lang"].append(record.lang or spec.lang)
    columns["url"].append(record.url)
    columns["date"].append(record.date)
    columns["license"].append(record.license or spec.license)
    columns["meta"].append(orjson.dumps(record.meta, default=str).decode() if record.meta else None)
    columns["num_bytes"].append(len(raw))


def _batch(columns: dict[str, list[Any]]) -> pa.Table:
    sizes = np.array(columns["num_bytes"], dtype=np.int64)
    offsets = pa.py_buffer(np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes))))
    # joined, not appended: a growing buffer is moved and touched for the first time again and again
    texts = pa.LargeStringArray.from_buffers(len(sizes), offsets, pa.py_buffer(b"".join(columns["text"])))
    made = {"text": texts, "num_chars": pc.utf8_length(texts).cast(pa.int64())}
    made["text_hash"] = pa.array(text_hashes(text_views(texts)), pa.string())
    schema = pa.schema([DOCUMENTS.field(name) for name in (*_READ_COLUMNS, "num_chars", "text_hash")])
    table = pa.Table.from_pydict({**columns, **made}, schema=schema)
    for values in columns.values():
        values.clear()
    return table


def _finish(task: IngestTask, spec: InputSpec, part: int, filling: _Filling) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table and the facts of a part whose records are all there."""
    filling.batches.append(_batch(filling.columns))
    table = _with_addresses(task, spec, part, pa.concat_tables(filling.batches))
    counts = _left_out_counts(spec, filling.dropped, filling.dropped_bytes, filling.cut)
    return table, {
        "counts": tally(table, None, None) + counts,
        "bad": dict(sorted(filling.bad.items())),
        "bad_listed": filling.listed,
        "pii": dict(sorted(filling.pii.items())),
        "source": spec.source,
    }


def _with_addresses(task: IngestTask, spec: InputSpec, part: int, table: pa.Table) -> pa.Table:
    count = table.num_rows
    draws = keyed_uniform(task.seed, "split", key_prefix_uint64(table.column("text_hash").to_pylist()))
    validation = pa.array(draws < task.settings["validation_frac"])
    constant = {name: pa.repeat(pa.scalar(getattr(spec, name)), count) for name in ("source", "domain", "role")}
    ids = pa.array((np.int64(part) << PART_SHIFT) + np.arange(count, dtype=np.int64))
    data = {name: table.column(name) for name in table.column_names}
    data |= constant
    data |= {
        "doc_id": ids,
        "doc_key": table.column("key_base"),
        "key_base": pa.nulls(count, pa.string()),
        "split": pc.if_else(validation, "validation", "train"),
    }
    return pa.table({name: data[name] for name in DOCUMENTS.names})


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/") if root else path


def _left_out_counts(
    spec: InputSpec, docs: Counter[str], sizes: Counter[str], cut: Counter[str]
) -> list[dict[str, Any]]:
    labels = {"source": spec.source, "domain": spec.domain, "role": spec.role, "lang": spec.lang or "", "split": ""}
    rows = [
        {"kind": "dropped", "reason": f"ingest.{reason}", **labels, "docs": docs[reason], "bytes": sizes[reason]}
        for reason in sorted(docs)
    ]
    if cut:
        rows.append({"kind": "cut", "reason": "ingest.too_long", **labels, "docs": cut["docs"], "bytes": cut["bytes"]})
    return rows


def _cleaner(settings: dict[str, Any], pii: Counter[str]) -> Callable[[str | bytes], bytes]:
    """Return what makes a record's text clean UTF-8; what it masks is counted in `pii`."""
    repair = mojibake_repair() if settings["mojibake"] == "repair" else None
    steps: list[Callable[[str], str]] = []
    if settings["chinese"] == "simplified":
        convert = simplified_converter()
        steps.append(lambda text: convert(text) if is_traditional(text) else text)
    if settings["pii"] == "mask":
        from refinery.kernels.pii import mask  # noqa: PLC0415 - only runs that mask load it

        def masked(text: str) -> str:
            text, found = mask(text)
            pii.update(found)
            return text

        steps.append(masked)

    def clean(text: str | bytes) -> bytes:
        raw = clean_utf8(text, repair=repair)
        if not steps:
            return raw
        cleaned = changed = raw.decode()
        for step in steps:
            changed = step(changed)
        return raw if changed is cleaned else changed.encode()

    return clean
