"""Read labelled text for classifiers: JSON lines, packed or not, one text and one label each."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from refinery.errors import ConfigError, DataError
from refinery.io.compressed import BrokenStreamError, DecompressionLimits, codec_of, iter_lines, open_raw, read_chunks
from refinery.io.records import lookup

MAX_LINE_BYTES = 64 << 20


def read_labelled(paths: Sequence[str], text_field: str, label_field: str) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of every line of the files, in the order of their names.

    Raises:
        ConfigError: a path matches no file.
        DataError: a line is no JSON object, or lacks one of the fields; labels are worth nothing with holes.
    """
    for path, offset, record in _records(paths):
        yield _row(path, offset, record, text_field, label_field)


def read_fields(paths: Sequence[str], fields: tuple[str, str, str]) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield a text and two more fields of every line, in the order of the files' names; the two may be missing.

    Raises:
        ConfigError: a path matches no file.
        DataError: a line is no JSON object, or has no text.
    """
    for path, offset, record in _records(paths):
        found = [lookup(record, field) if isinstance(record, dict) else None for field in fields]
        text, one, other = (value if isinstance(value, str) else None for value in found)
        if text is None:
            raise DataError(f"{path}: the line at byte {offset} has no text in {fields[0]!r}; name the text's field")
        yield text, one, other


def _records(paths: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
    """Yield (path, byte offset, value) of every line that is not blank."""
    for path in sorted({file for given in paths for file in _files_of(given)}):
        try:
            with open_raw(path) as raw:
                chunks = read_chunks(raw, codec_of(path), DecompressionLimits())
                for offset, line in iter_lines(chunks, MAX_LINE_BYTES):
                    if line is None or line.strip():
                        yield path, offset, _parsed(path, offset, line)
        except BrokenStreamError as error:
            raise DataError(f"{path} is damaged at byte {error.offset} ({error.reason}); pack it again") from error


def _parsed(path: str, offset: int, line: bytes | None) -> Any:
    try:
        return orjson.loads(line or b"")
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: the line at byte {offset} is no JSON ({error}); write one object a line") from error


def _row(path: str, offset: int, record: Any, text_field: str, label_field: str) -> tuple[str, str]:
    text, label = (lookup(record, f) if isinstance(record, dict) else None for f in (text_field, label_field))
    if not isinstance(text, str) or label is None:
        raise DataError(
            f"{path}: the line at byte {offset} has no text in {text_field!r} or no label in {label_field!r}; "
            "correct text_field and label_field"
        )
    return str(label), text


def _files_of(path: str) -> list[str]:
    if "://" in path:
        return [path]
    found = [path] if Path(path).is_file() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - may be absolute
    if not found:
        raise ConfigError(f"path {path!r} matches no file; write the path of JSON lines")
    return found
