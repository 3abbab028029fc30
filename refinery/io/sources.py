"""The input side of ingest: which formats there are, their options, and the one door to all readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from refinery.io.input_options import FORMAT_OPTIONS, FORMATS, check_input
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


def read_split(
    spec: InputSpec, split: Split, storage: Mapping[str, Any] | None = None
) -> Iterator[RawDocument | BadRecord]:
    """Stream the documents and bad records of one split, in file order and in bounded memory.

    Of the shares of a file the first gives everything, the others nothing: who reads them divides.

    Args:
        spec: the input.
        split: one of `plan_splits(spec, ...)`.
        storage: fsspec options for URLs.

    Raises:
        ConfigError: the format is unknown, or a file contradicts the recipe (Parquet without the text column).
    """
    check_input(spec)
    if split.unit == "shares" and split.start > 0:
        return iter(())
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
        "wet": read_warc,
        "arc": read_warc,
        "python_environment": read_python_environment,
    }
    return readers[name]
