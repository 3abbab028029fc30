"""Plain text: one document a file, a line, or a paragraph; zip archives member by member."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from refinery.io.charset import decode_document, decode_line
from refinery.io.compressed import (
    CHUNK_BYTES,
    BrokenStreamError,
    codec_of,
    iter_lines,
    limits_from,
    open_raw,
    range_lines,
    read_all,
    read_chunks,
)
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, SplitFile, document_from_text

MAX_DOCUMENT_BYTES = 64 << 20
"""Default of ``max_document_bytes``."""


def read_text(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read text files by ``options["unit"]``: ``file`` (default), ``line``, or ``paragraph`` (blank lines between)."""
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            if file.name.lower().endswith(".zip"):
                yield from _zip_documents(spec, file, storage)
                continue
            with open_raw(file.path, storage) as raw:
                if split.unit == "bytes":
                    limit = int(spec.options.get("max_line_bytes", MAX_DOCUMENT_BYTES))
                    yield from _line_documents(spec, file.name, range_lines(raw, split.start, split.end, limit))
                else:
                    chunks = read_chunks(raw, codec_of(file.name), limits_from(spec.options))
                    yield from _documents(spec, file.name, chunks)
        except BrokenStreamError as error:
            yield BadRecord(file.name, error.offset, error.reason, error.detail)
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")


def _documents(spec: InputSpec, name: str, chunks: Iterator[bytes]) -> Iterator[RawDocument | BadRecord]:
    unit = spec.options.get("unit", "file")
    limit = int(spec.options.get("max_document_bytes", MAX_DOCUMENT_BYTES))
    if unit == "file":
        data = read_all(chunks, limit)
        if data is None:
            yield BadRecord(name, 0, "document_too_long", f"over {limit} bytes")
            return
        text, charset = decode_document(data, spec.options.get("encoding"))
        yield document_from_text(spec, text, name, 0, meta={"charset": charset} if charset else None)
        return
    lines = iter_lines(chunks, int(spec.options.get("max_line_bytes", MAX_DOCUMENT_BYTES)))
    if unit == "line":
        yield from _line_documents(spec, name, lines)
    else:
        yield from _paragraph_documents(spec, name, lines, limit)


def _line_documents(
    spec: InputSpec, name: str, lines: Iterator[tuple[int, bytes | None]]
) -> Iterator[RawDocument | BadRecord]:
    for offset, line in lines:
        if line is None:
            yield BadRecord(name, offset, "line_too_long")
        elif line and not line.isspace():
            yield _decoded(spec, name, offset, line)


def _paragraph_documents(
    spec: InputSpec, name: str, lines: Iterator[tuple[int, bytes | None]], limit: int
) -> Iterator[RawDocument | BadRecord]:
    held: list[bytes] = []
    start, size = 0, 0
    for offset, line in lines:
        if line is None:
            yield BadRecord(name, offset, "line_too_long")
            continue
        if line and not line.isspace():
            if not size:
                start = offset
            size += len(line) + 1
            if size <= limit:
                held.append(line)
            continue
        if size:
            yield _paragraph(spec, name, start, held if size <= limit else None)
        held, size = [], 0
    if size:
        yield _paragraph(spec, name, start, held if size <= limit else None)


def _paragraph(spec: InputSpec, name: str, start: int, lines: list[bytes] | None) -> RawDocument | BadRecord:
    if lines is None:
        return BadRecord(name, start, "document_too_long")
    return _decoded(spec, name, start, b"\n".join(lines))


def _decoded(spec: InputSpec, name: str, offset: int, raw: bytes) -> RawDocument | BadRecord:
    declared = spec.options.get("encoding")
    text, charset = decode_document(raw, declared) if declared else decode_line(raw)
    return document_from_text(
        spec, text.rstrip("\r").lstrip("\ufeff"), name, offset, meta={"charset": charset} if charset else None
    )


def _zip_documents(
    spec: InputSpec, file: SplitFile, storage: Mapping[str, Any] | None
) -> Iterator[RawDocument | BadRecord]:
    """Read the members in name order, in memory: nothing is written, so a member's path can do no harm."""
    limits = limits_from(spec.options)
    with open_raw(file.path, storage) as raw:
        try:
            archive = zipfile.ZipFile(raw)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            yield BadRecord(file.name, 0, "bad_zip", str(error))
            return
        total = 0
        for member in sorted(archive.infolist(), key=lambda m: m.filename):
            if member.is_dir() or member.file_size == 0:
                continue
            name = f"{file.name}!{member.filename}"
            total += member.file_size
            most_bytes = max(64 * CHUNK_BYTES, limits.max_ratio * member.compress_size)
            if total > limits.max_bytes or member.file_size > most_bytes:
                yield BadRecord(name, 0, "decompression_bomb", f"declares {member.file_size} bytes")
                continue
            try:
                with archive.open(member) as stream:
                    yield from _documents(spec, name, read_chunks(cast(BinaryIO, stream), None, limits))
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
                yield BadRecord(name, 0, "bad_zip", str(error)[:120])
