"""JSON lines, and JSON files that hold a list of objects or objects one after another."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from refinery.io.charset import decode_line
from refinery.io.compressed import (
    BrokenStreamError,
    codec_of,
    iter_lines,
    limits_from,
    open_raw,
    range_lines,
    read_chunks,
)
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, document_from_record

MAX_LINE_BYTES = 64 << 20
"""Default of ``max_line_bytes``."""

_DETAIL_CHARS = 80


def read_jsonl(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read JSON lines; a file called ``.json`` that begins with ``[`` is read as one list."""
    max_line_bytes = int(spec.options.get("max_line_bytes", MAX_LINE_BYTES))
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            with open_raw(file.path, storage) as raw:
                if split.unit == "bytes":
                    lines = range_lines(raw, split.start, split.end, max_line_bytes)
                else:
                    chunks = read_chunks(raw, codec_of(file.name), limits_from(spec.options))
                    if ".json" in file.name and ".jsonl" not in file.name:
                        first = next(chunks, b"")
                        chunks = _chain(first, chunks)
                        if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                            yield from _documents_of_values(spec, file.name, chunks)
                            continue
                    lines = iter_lines(chunks, max_line_bytes)
                for offset, line in lines:
                    if line is None:
                        yield BadRecord(file.name, offset, "line_too_long", f"over {max_line_bytes} bytes")
                    elif line and not line.isspace():
                        yield _document_of_line(spec, file.name, offset, line)
        except BrokenStreamError as error:
            yield BadRecord(file.name, error.offset, error.reason, error.detail)
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")


def read_json(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read files of one JSON list, or of JSON values one after another (pretty-printed too), without holding them."""
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            with open_raw(file.path, storage) as raw:
                chunks = read_chunks(raw, codec_of(file.name), limits_from(spec.options))
                yield from _documents_of_values(spec, file.name, chunks)
        except BrokenStreamError as error:
            yield BadRecord(file.name, error.offset, error.reason, error.detail)
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")


def _document_of_line(spec: InputSpec, path: str, offset: int, line: bytes) -> RawDocument | BadRecord:
    charset = ""
    if offset == 0 and line.startswith(codecs.BOM_UTF8):
        line = line[len(codecs.BOM_UTF8) :]
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # orjson refuses invalid UTF-8 and lone surrogates, which only the text is guilty of, not the record
        text, charset = decode_line(line)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return BadRecord(path, offset, "bad_json", str(error)[:_DETAIL_CHARS])
        record, mended = _without_surrogates(record)
        charset = "repaired" if charset or mended else ""
    if not isinstance(record, dict):
        return BadRecord(path, offset, "not_an_object", type(record).__name__)
    return document_from_record(spec, record, path, offset, charset)


def _without_surrogates(record: Any) -> tuple[Any, bool]:
    r"""Replace lone surrogates (\ud83d without its second half) in the strings of an object."""
    if not isinstance(record, dict):
        return record, False
    mended = False
    for key, value in record.items():
        if isinstance(value, str) and not value.isascii():
            whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            if whole != value:
                record[key] = whole
                mended = True
    return record, mended


def _documents_of_values(spec: InputSpec, path: str, chunks: Iterator[bytes]) -> Iterator[RawDocument | BadRecord]:
    """Yield a document per value of a list or of a sequence; the offset is the value's number in the file."""
    max_chars = int(spec.options.get("max_line_bytes", MAX_LINE_BYTES))
    count = 0
    try:
        for count, value in enumerate(_values(chunks, max_chars)):
            if isinstance(value, dict):
                record, mended = _without_surrogates(value)
                yield document_from_record(spec, record, path, count, "repaired" if mended else "")
            else:
                yield BadRecord(path, count, "not_an_object", type(value).__name__)
    except BrokenStreamError as error:
        yield BadRecord(path, error.offset, error.reason, error.detail)
    except (ValueError, RecursionError) as error:
        # without line ends there is no place to start again
        yield BadRecord(path, count + 1, "bad_json", str(error)[:_DETAIL_CHARS])


def _values(chunks: Iterator[bytes], max_chars: int) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
    buffer, at, in_list, started = "", 0, False, False
    ended = False
    need = 0
    while True:
        while not ended and len(buffer) - at <= need:
            chunk = next(chunks, None)
            ended = chunk is None
            buffer = buffer[at:] + decode(chunk or b"", ended)
            at = 0
        at = _skip(buffer, at, " \t\r\n," if started else " \t\r\n")
        if at == len(buffer):
            if ended:
                if in_list:
                    raise ValueError("the list has no end")
                return
            need = 0
            continue
        if not started and buffer[at] == "[":
            in_list, started, at = True, True, at + 1
            continue
        started = True
        if in_list and buffer[at] == "]":
            return
        try:
            value, stop = decoder.raw_decode(buffer, at)
        except ValueError:
            if ended or len(buffer) - at > max_chars:
                raise
            need = 2 * (len(buffer) - at)  # doubling keeps the cost of trying again linear
            continue
        if stop == len(buffer) and not ended and not isinstance(value, dict | list | str):
            need = len(buffer) - at  # a number may go on in the next chunk
            continue
        at, need = stop, 0
        yield value


def _skip(buffer: str, at: int, letters: str) -> int:
    while at < len(buffer) and buffer[at] in letters:
        at += 1
    return at


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
