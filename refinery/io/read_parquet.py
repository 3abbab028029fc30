"""Parquet files, by row groups, with only the columns that the input names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refinery.errors import ConfigError
from refinery.io.charset import decode_line
from refinery.io.compressed import open_raw
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, document_from_record

_BATCH_ROWS = 128
"""Rows turned into Python at once: bounds memory where single texts are megabytes."""
_BUFFER_BYTES = 1 << 20
"""Of a column of a local file; behind a URL, where columns take turns at one connection, each is read whole."""


def read_parquet(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read whole Parquet files or some row groups of one; the offset is the row in the file.

    Raises:
        ConfigError: a file has no such text column, or the column holds no strings.
    """
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            raw = open_raw(file.path, storage)
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")
            continue
        with raw:
            try:
                table = pq.ParquetFile(raw, buffer_size=0 if "://" in file.path else _BUFFER_BYTES)
                columns = _columns(spec, table.schema_arrow, file.name)
            except (pa.ArrowException, OSError, ValueError) as error:
                yield BadRecord(file.name, 0, "bad_parquet", _short(error))
                continue
            last = split.end if split.unit == "row_groups" else table.num_row_groups
            row = sum(table.metadata.row_group(g).num_rows for g in range(split.start))
            for group in range(split.start, last):
                num_rows = table.metadata.row_group(group).num_rows
                yield from _documents_of_group(spec, file.name, table, (group, columns, row))
                row += num_rows


def _documents_of_group(
    spec: InputSpec, path: str, table: pq.ParquetFile, where: tuple[int, list[str], int]
) -> Iterator[RawDocument | BadRecord]:
    group, columns, row = where
    names = spec.options.get("text_fields") or [spec.text_field]
    try:
        for stored in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
            batch, are_valid = _with_utf8(spec, stored, names)
            for record in batch.to_pylist():
                charset = ""
                if not are_valid:
                    for name in names:
                        if isinstance(record.get(name), bytes):
                            record[name], repaired = decode_line(record[name])
                            charset = charset or repaired
                yield document_from_record(spec, record, path, row, charset)
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield BadRecord(path, row, "bad_parquet", f"row group {group}: {_short(error)}")


def _with_utf8(spec: InputSpec, batch: pa.RecordBatch, names: list[str]) -> tuple[pa.RecordBatch, bool]:
    """Return a batch whose texts are bytes: strings would be made for nothing where a text is clean already.

    Returns: the batch, and whether they are one column of valid UTF-8, to be taken as they are.
    """
    fields = (spec.id_field, spec.url_field, spec.date_field, spec.license_field, spec.lang_field)
    if not {*fields, *(spec.options.get("meta_fields") or ())}.isdisjoint(names):  # a text that is an address, too
        return batch, False
    are_valid = len(names) == 1
    for name in names:
        at = batch.schema.get_field_index(name)
        if at < 0:  # inside an object
            return batch, False
        column = batch.column(at)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        column = column.cast(pa.large_binary())
        try:
            column.cast(pa.large_string())  # looks at every byte
        except pa.ArrowInvalid:
            are_valid = False
        batch = batch.set_column(at, pa.field(name, column.type), column)
    return batch, are_valid


def _columns(spec: InputSpec, schema: pa.Schema, path: str) -> list[str]:
    texts = spec.options.get("text_fields") or [spec.text_field]
    for name in texts:
        top = name if name in schema.names else name.split(".")[0]
        if top not in schema.names:
            raise ConfigError(
                f"input {spec.source!r}: {path} has no text column {name!r}; its columns are "
                f"{', '.join(schema.names)}; set text_field to one of them"
            )
        kind = schema.field(top).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not _is_text(kind) and not (top != name and pa.types.is_struct(kind)):
            raise ConfigError(
                f"input {spec.source!r}: column {name!r} of {path} is {kind}, not text; "
                "set text_field to a string column"
            )
    fields = (spec.id_field, spec.url_field, spec.date_field, spec.license_field, spec.lang_field)
    wanted = {n.split(".")[0] if n not in schema.names else n for n in (*texts, *fields) if n}
    meta = spec.options.get("meta_fields")
    if meta is None:
        wanted |= {f.name for f in schema if _is_scalar(f.type)}
    else:
        wanted |= {n.split(".")[0] if n not in schema.names else n for n in meta}
    return [name for name in schema.names if name in wanted]


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _is_scalar(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:120]
