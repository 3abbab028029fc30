"""The input side of ingest: which formats there are, their options, and the one door to all readers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from refinery.errors import ConfigError
from refinery.io.records import REASONS, BadRecord, InputSpec, RawDocument, Split, SplitFile
from refinery.io.splits import plan_splits

__all__ = [
    "FORMATS",
    "FORMAT_OPTIONS",
    "REASONS",
    "BadRecord",
    "InputSpec",
    "RawDocument",
    "Split",
    "SplitFile",
    "check_input",
    "plan_splits",
    "read_split",
]

Reader = Callable[[InputSpec, Split, Mapping[str, Any] | None], Iterator[RawDocument | BadRecord]]

_PACKED = ("max_decompressed_bytes", "max_decompression_ratio")
_RECORD = ("meta_fields", "text_fields", "joiner")

FORMAT_OPTIONS: dict[str, tuple[str, ...]] = {
    "jsonl": (*_RECORD, *_PACKED, "max_line_bytes"),
    "json": (*_RECORD, *_PACKED, "max_line_bytes"),
    "parquet": _RECORD,
    "csv": (
        *(*_RECORD, *_PACKED, "max_line_bytes", "encoding"),
        *("header", "columns", "delimiter", "quote", "unescape_html"),
    ),
    "text": (*_PACKED, "unit", "encoding", "max_line_bytes", "max_document_bytes"),
    "html": (*_PACKED, "extractor", "main_content", "encoding", "max_document_bytes"),
    "warc": (*_PACKED, "extractor", "main_content", "mime_types", "statuses", "max_document_bytes"),
    "python_environment": ("collection", "max_bytes", "packages"),
}
"""Format -> the options that it knows. `docs/data-format.md` describes each."""

FORMATS = tuple(FORMAT_OPTIONS)

_CHOICES = {
    "unit": ("file", "line", "paragraph"),
    "extractor": ("resiliparse", "trafilatura"),
    "collection": ("docs", "readme", "licences", "code"),
}


def check_input(spec: InputSpec) -> None:
    """Check format, options and paths of an input before a run.

    Raises:
        ConfigError: an unknown format or option (the nearest known one is named), a value outside its choices,
            or paths missing.
    """
    if spec.format not in FORMAT_OPTIONS:
        raise ConfigError(
            f"input {spec.source!r}: format {spec.format!r} is unknown{_near(spec.format, FORMATS)}; "
            f"known: {', '.join(FORMATS)}"
        )
    known = FORMAT_OPTIONS[spec.format]
    for name, value in spec.options.items():
        if name not in known:
            raise ConfigError(
                f"input {spec.source!r}: option {name!r} is unknown for {spec.format}{_near(name, known)}; "
                f"known: {', '.join(known)}"
            )
        if name in _CHOICES and value not in _CHOICES[name]:
            choices = ", ".join(_CHOICES[name])
            raise ConfigError(f"input {spec.source!r}: {name} is {value!r}; it must be one of {choices}")
    if spec.format == "python_environment":
        if spec.paths:
            raise ConfigError(f"input {spec.source!r}: python_environment reads this Python and takes no paths")
        if "collection" not in spec.options:
            raise ConfigError(f"input {spec.source!r}: say which collection: {', '.join(_CHOICES['collection'])}")
    elif not spec.paths:
        raise ConfigError(f"input {spec.source!r} has no paths; name files, folders, globs or URLs")


def read_split(
    spec: InputSpec, split: Split, storage: Mapping[str, Any] | None = None
) -> Iterator[RawDocument | BadRecord]:
    """Stream the documents and bad records of one split, in file order and in bounded memory.

    Args:
        spec: the input.
        split: one of `plan_splits(spec, ...)`.
        storage: fsspec options for URLs.

    Raises:
        ConfigError: the format is unknown, or a file contradicts the recipe (Parquet without the text column).
    """
    check_input(spec)
    return _reader(spec.format)(spec, split, storage)


def _reader(name: str) -> Reader:
    # imported here: a JSON run shall not need, or wait for, the libraries of HTML and WARC
    from refinery.io.read_csv import read_csv  # noqa: PLC0415
    from refinery.io.read_html import read_html  # noqa: PLC0415
    from refinery.io.read_json import read_json, read_jsonl  # noqa: PLC0415
    from refinery.io.read_parquet import read_parquet  # noqa: PLC0415
    from refinery.io.read_python_environment import read_python_environment  # noqa: PLC0415
    from refinery.io.read_text import read_text  # noqa: PLC0415
    from refinery.io.read_warc import read_warc  # noqa: PLC0415

    readers: dict[str, Reader] = {
        "jsonl": read_jsonl,
        "json": read_json,
        "parquet": read_parquet,
        "csv": read_csv,
        "text": read_text,
        "html": read_html,
        "warc": read_warc,
        "python_environment": read_python_environment,
    }
    return readers[name]


def _near(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
