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
    for path in sorted({file for given in paths for file in _files_of(given)}):
        try:
            with open_raw(path) as raw:
                chunks = read_chunks(raw, codec_of(path), DecompressionLimits())
                for offset, line in iter_lines(chunks, MAX_LINE_BYTES):
                    if line is None or line.strip():
                        yield _row(path, offset, line, text_field, label_field)
        except BrokenStreamError as error:
            raise DataError(f"{path} is damaged at byte {error.offset} ({error.reason}); pack it again") from error


def _row(path: str, offset: int, line: bytes | None, text_field: str, label_field: str) -> tuple[str, str]:
    try:
        record: Any = orjson.loads(line or b"")
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: the line at byte {offset} is no JSON ({error}); write one object a line") from error
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
        raise ConfigError(f"labelled path {path!r} matches no file; write the path of JSON lines")
    return found
