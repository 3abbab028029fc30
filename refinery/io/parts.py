"""Part files: ``WORKDIR/STAGE/TABLE/part-%08d.parquet`` with a fingerprint in the footer.

A part whose footer carries the expected fingerprint is done: that is both resume and incremental work. The content
hash covers schema, row count and the encoded pages but not the footer, so two runs that agree in content agree in
hash even where fingerprints (which know paths and times) differ.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from refinery.contracts.tables import conform
from refinery.errors import IntegrityError, SchemaError
from refinery.io import storage

WIDE_ROW_GROUP_ROWS = 4096
"""Rows per row group of tables that carry text or ids: about 12 MB of English web text."""
NARROW_ROW_GROUP_ROWS = 262_144
WRITE_BATCH_ROWS = 1024
"""After so many rows the Parquet writer looks whether a page is full; a divisor of both row group sizes."""
BATCH_BYTES = 16 << 20
"""What a batch read from a part aims at most to hold: long documents come in shorter batches."""

_FINGERPRINT = b"refinery.fingerprint"
_RESULT = b"refinery.result"


@dataclass(frozen=True)
class PartFile:
    """What was written, or found already written."""

    rows: int
    content_hash: str
    num_bytes: int
    result: dict[str, Any]
    """The JSON-able result of the task that wrote it (counts): stored in the footer, so a skipped part still knows."""


def part_path(workdir: str, stage: str, table: str, part: int) -> str:
    """Return the path of one part."""
    return storage.join(workdir, stage, table, f"part-{part:08d}.parquet")


def part_numbers(workdir: str, stage: str, table: str) -> list[int]:
    """Return the part numbers of a table that exist, ascending."""
    names = storage.list_names(storage.join(workdir, stage, table))
    return [int(n[5:13]) for n in names if n.startswith("part-") and n.endswith(".parquet")]


def write_part(
    path: str,
    table: pa.Table,
    schema: pa.Schema,
    fingerprint: str,
    result: dict[str, Any] | None = None,
) -> PartFile:
    """Write one part atomically.

    Args:
        path: from `part_path`.
        table: the rows; conformed to `schema`, and rechunked where need be, so that equal rows give equal bytes
            however they were sliced.
        schema: declared schema.
        fingerprint: what this part is a function of.
        result: JSON-able facts about the part, kept in its footer.
    Raises:
        SchemaError: columns or types do not fit. TransientError: the write failed.
    """
    table = conform(table, schema)
    if not all(_in_whole_batches(column) for column in table.columns):
        table = table.combine_chunks()
    wide = any(pa.types.is_large_string(f.type) or pa.types.is_large_binary(f.type) for f in schema)
    facts = result or {}
    sink = pa.BufferOutputStream()
    keyed = table.replace_schema_metadata({_FINGERPRINT: fingerprint.encode(), _RESULT: json.dumps(facts).encode()})
    pq.write_table(
        keyed,
        sink,
        row_group_size=WIDE_ROW_GROUP_ROWS if wide else NARROW_ROW_GROUP_ROWS,
        compression="zstd",
        compression_level=1,
        write_page_checksum=True,
        write_batch_size=WRITE_BATCH_ROWS,
        use_dictionary=[f.name for f in schema if pa.types.is_string(f.type) and f.name not in _UNIQUE_COLUMNS],
        write_statistics=["doc_id"] if "doc_id" in schema.names else False,
    )
    data = sink.getvalue()
    storage.write_atomic(path, memoryview(data))
    return PartFile(table.num_rows, _content_hash(memoryview(data), schema, table.num_rows), data.size, facts)


def _in_whole_batches(column: pa.ChunkedArray) -> bool:
    """Tell whether a column's chunks, but for the last, end where the writer looks for the end of a page anyway."""
    return all(len(chunk) % WRITE_BATCH_ROWS == 0 for chunk in column.chunks[:-1])


_UNIQUE_COLUMNS = frozenset({"doc_key", "text_hash", "url", "exact_key", "meta"})


def found_part(path: str, fingerprint: str) -> PartFile | None:
    """Return a part that is already there with the expected fingerprint, else None."""
    if not storage.exists(path):
        return None
    data = storage.read_bytes(path)
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    except (pa.ArrowInvalid, OSError):
        return None
    metadata = schema.metadata or {}
    if metadata.get(_FINGERPRINT, b"").decode() != fingerprint:
        return None
    bare = schema.remove_metadata()
    return PartFile(rows, _content_hash(memoryview(data), bare, rows), len(data), json.loads(metadata[_RESULT]))


def part_fingerprint(path: str) -> str | None:
    """Return the fingerprint in a part's footer; None where there is no readable part. Reads the footer alone."""
    if not storage.exists(path):
        return None
    with storage.open_input(path) as file:
        try:
            metadata = pq.read_schema(file).metadata or {}
        except (pa.ArrowInvalid, OSError):
            return None
    return metadata.get(_FINGERPRINT, b"").decode() or None


def _content_hash(data: memoryview, schema: pa.Schema, rows: int) -> str:
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    hasher = xxhash.xxh3_128(f"{[(f.name, str(f.type)) for f in schema]}:{rows}".encode())
    hasher.update(data[: len(data) - 8 - footer_bytes])
    return hasher.hexdigest()


def read_part(workdir: str, stage: str, table: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one part, or some of its columns.

    Raises:
        IntegrityError: the part is missing or is not readable Parquet. SchemaError: a column is missing.
    """
    with _opened(workdir, stage, table, part, columns) as reader:
        return reader.read(columns=list(columns) if columns is not None else None).replace_schema_metadata(None)


def read_batches(
    workdir: str, stage: str, table: str, part: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read some columns of one part in batches of at most `batch_rows` rows and, as its rows go, `BATCH_BYTES`.

    Raises: as `read_part`.
    """
    with _opened(workdir, stage, table, part, columns) as reader:
        rows = max(1, min(batch_rows, reader.metadata.num_rows * BATCH_BYTES // max(1, _stored_bytes(reader, columns))))
        yield from reader.iter_batches(batch_size=rows, columns=list(columns))


def _stored_bytes(reader: pq.ParquetFile, columns: Sequence[str]) -> int:
    """Return the bytes of some columns before compression."""
    groups = [reader.metadata.row_group(number) for number in range(reader.metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)


def part_schema(workdir: str, stage: str, table: str, part: int) -> pa.Schema:
    """Return the schema of one part, without its metadata; errors as `read_part`."""
    with _opened(workdir, stage, table, part, None) as reader:
        return reader.schema_arrow.remove_metadata()


@contextlib.contextmanager
def _opened(
    workdir: str, stage: str, table: str, part: int, columns: Sequence[str] | None
) -> Iterator[pq.ParquetFile]:
    path = part_path(workdir, stage, table, part)
    if not storage.exists(path):
        raise IntegrityError(f"{path} is missing; run `refinery {stage} RECIPE` again")
    with storage.open_input(path) as file:
        try:
            reader = pq.ParquetFile(file, page_checksum_verification=True)
            present = reader.schema_arrow.names
            absent = [c for c in columns or [] if c not in present]
            if absent:
                raise SchemaError(f"{path} lacks columns {absent}; it has {present}")
            yield reader
        except (pa.ArrowInvalid, OSError) as error:
            raise IntegrityError(f"{path} is damaged ({error}); delete it and run the stage again") from error
