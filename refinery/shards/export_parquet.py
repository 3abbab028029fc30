"""Export rows as Parquet, for the ``datasets`` library and everything else that reads Parquet.

One file per part. Columns: ``row`` int64 (row of the stream), ``input_ids`` list of uint16 or int32 (L of them), and
the documents inside the row as lists: ``seg_len`` int32, ``doc_hash`` uint64, ``seg_flags`` uint8, as in ``.seg``.
Parquet stores uint16 as 32-bit integers and decodes tens of times slower than rows are read from ``.bin``: it is for
looking, sharing and other tools, not for training at speed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinery.shards.card import CardFacts, card_text
from refinery.shards.manifest import PartEntry, ShardManifest, Stream, canonical_json
from refinery.shards.reader import ShardReader
from refinery.shards.writer import lock_folder, sync_folder, write_together

_GROUP_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class ParquetExport:
    """What was written."""

    files: dict[str, tuple[Path, ...]]
    """Stream name to its files, in row order."""


def export_parquet(root: Path, manifest: ShardManifest, out: Path, card: CardFacts | None = None) -> ParquetExport:
    """Write ``data/STREAM/part-00000.parquet``, ``README.md`` with one configuration per stream, ``export.json``.

    Args:
        root: folder of the manifest.
        manifest: a verified data set.
        out: folder for the export; another writer there is refused.
        card: facts for the card.
    Raises: IntegrityError: a part is missing or shorter than the manifest says; no final file of it is left.
    """
    with lock_folder(out), ShardReader(root, manifest) as reader:
        files = {
            stream.name: tuple(_write_part(reader, index, part, out) for part in stream.parts)
            for index, stream in enumerate(manifest.streams)
        }
        facts = replace(card or CardFacts(), configs=_configs(manifest.streams))
        write_together(out, "README", {".md": memoryview(card_text(manifest, facts).encode())})
        summary = {
            "content_hash": manifest.content_hash,
            "sequence_length": manifest.sequence_length,
            "dtype": manifest.dtype_name,
            "streams": {stream.name: stream.rows for stream in manifest.streams},
        }
        write_together(out, "export", {".json": memoryview(canonical_json(summary))})
    return ParquetExport(files)


def parquet_schema(manifest: ShardManifest) -> pa.Schema:
    """Return the columns of the export; the metadata names the data set."""
    ids = pa.uint16() if manifest.dtype_name == "uint16" else pa.int32()
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("input_ids", pa.list_(ids), nullable=False),
        pa.field("seg_len", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_hash", pa.list_(pa.uint64()), nullable=False),
        pa.field("seg_flags", pa.list_(pa.uint8()), nullable=False),
    ]
    return pa.schema(fields, {"refinery.content_hash": manifest.content_hash})


def _configs(streams: tuple[Stream, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group the splits of a stream into one configuration."""
    configs: dict[str, list[tuple[str, str]]] = {}
    for stream in streams:
        name, _, split = stream.name.rpartition("/")
        configs.setdefault(name.replace("/", "-"), []).append((split, f"data/{_folder(stream.name)}/*.parquet"))
    return list(configs.items())


def _folder(stream: str) -> str:
    return stream.replace("/", "-")


def _write_part(reader: ShardReader, index: int, part: PartEntry, out: Path) -> Path:
    stream, _, name = part.path.rpartition("/")
    path = out / "data" / _folder(stream) / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        schema = parquet_schema(reader.manifest)
        with temporary.open("wb") as sink:
            with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
                for table in _tables(reader, index, part, schema):
                    writer.write_table(table)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _tables(reader: ShardReader, index: int, part: PartEntry, schema: pa.Schema) -> Iterator[pa.Table]:
    length = reader.manifest.sequence_length
    step = max(1, _GROUP_TOKENS // length)
    for first in range(part.first_row, part.first_row + part.rows, step):
        rows = np.arange(first, min(first + step, part.first_row + part.rows))
        tokens = np.empty((len(rows), length), dtype=reader.dtype)
        reader.read_rows(index, rows, tokens)
        segments = reader.segments(index, rows)
        ends = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * length)
        pointers = pa.array(segments.row_ptr.astype(np.int32))
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values)))
            for offsets, values in (
                (ends, tokens.reshape(-1)),
                (pointers, segments.seg_len),
                (pointers, segments.doc_hash),
                (pointers, segments.flags),
            )
        ]
        yield pa.Table.from_arrays([pa.array(rows), *lists], schema=schema)


