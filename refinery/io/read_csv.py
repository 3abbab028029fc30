"""CSV and TSV files, with quoted line breaks, with or without a header."""

from __future__ import annotations

import csv
import html
from collections.abc import Iterator, Mapping
from typing import Any

from refinery.errors import ConfigError
from refinery.io.charset import decode_document, decode_line
from refinery.io.compressed import BrokenStreamError, codec_of, iter_lines, limits_from, open_raw, read_chunks
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, SplitFile, document_from_record

MAX_FIELD_BYTES = 16 << 20
"""Default of ``max_line_bytes``: also the longest field, which is what stops an unclosed quote."""


def read_csv(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read CSV records; the offset is the record's number in the file (the header is none).

    Options: ``header`` (default true), ``columns`` (names, where there is no header), ``delimiter`` (default: tab for
    ``.tsv``, else comma), ``quote`` ("" = no quoting), ``unescape_html`` (entities in the text), ``encoding``.

    Raises:
        ConfigError: no header and no column names, or the text column is not among them.
    """
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            yield from _file_documents(spec, file, storage)
        except BrokenStreamError as error:
            yield BadRecord(file.name, error.offset, error.reason, error.detail)
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")


def _file_documents(
    spec: InputSpec, file: SplitFile, storage: Mapping[str, Any] | None
) -> Iterator[RawDocument | BadRecord]:
    options = spec.options
    limit = int(options.get("max_line_bytes", MAX_FIELD_BYTES))
    csv.field_size_limit(limit)  # the csv module has no other way
    quote = options.get("quote", '"')
    troubles: list[BadRecord] = []
    with open_raw(file.path, storage) as raw:
        lines = iter_lines(read_chunks(raw, codec_of(file.name), limits_from(options)), limit)
        rows = csv.reader(
            _text_lines(lines, file.name, options.get("encoding"), troubles),
            delimiter=options.get("delimiter", "\t" if ".tsv" in file.name.lower() else ","),
            quotechar=quote or None,
            quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        )
        columns = _columns(spec, rows, file.name)
        count = -1
        while True:
            count += 1
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                yield BadRecord(file.name, count, "bad_csv", str(error))
                continue
            yield from troubles
            troubles.clear()
            if not row:
                continue
            if len(row) != len(columns):
                yield BadRecord(file.name, count, "bad_csv", f"{len(row)} fields where {len(columns)} are declared")
                continue
            charset = "repaired" if any("\ufffd" in value for value in row) else ""
            document = document_from_record(spec, dict(zip(columns, row, strict=True)), file.name, count, charset)
            if options.get("unescape_html") and isinstance(document, RawDocument) and isinstance(document.text, str):
                document = document._replace(text=html.unescape(document.text))
            yield document
        yield from troubles


def _columns(spec: InputSpec, rows: Iterator[list[str]], path: str) -> list[str]:
    columns = spec.options.get("columns")
    if spec.options.get("header", True):
        first = next(rows, [])
        columns = columns or first
    if not columns:
        raise ConfigError(f"input {spec.source!r}: {path} is read without a header; name its fields in options.columns")
    for name in spec.options.get("text_fields") or [spec.text_field]:
        if name not in columns:
            raise ConfigError(
                f"input {spec.source!r}: {path} has no text column {name!r}; its columns are "
                f"{', '.join(columns)}; set text_field or text_fields"
            )
    return list(columns)


def _text_lines(
    lines: Iterator[tuple[int, bytes | None]], path: str, encoding: str | None, troubles: list[BadRecord]
) -> Iterator[str]:
    for offset, line in lines:
        if line is None:
            troubles.append(BadRecord(path, offset, "line_too_long"))
            continue
        text = decode_document(line, encoding)[0] if encoding else decode_line(line)[0]
        if offset == 0:
            text = text.removeprefix("\ufeff")
        yield text + "\n"
