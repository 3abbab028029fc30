"""Which input formats there are, which options each knows, and the check of an input before a run."""

from __future__ import annotations

import difflib

from refinery.errors import ConfigError
from refinery.io.records import InputSpec

_PACKED = ("max_decompressed_bytes", "max_decompression_ratio")
_WEB = (*_PACKED, "extractor", "main_content", "mime_types", "statuses", "max_document_bytes", "digests")
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
    "warc": _WEB,
    "wet": _WEB,
    "arc": _WEB,
    "python_environment": ("collection", "max_bytes", "packages"),
}
"""Format -> the options that it knows. `docs/data-format.md` describes each."""

FORMATS = tuple(FORMAT_OPTIONS)

_CHOICES = {
    "unit": ("file", "line", "paragraph"),
    "extractor": ("resiliparse", "trafilatura"),
    "digests": ("check", "ignore"),
    "collection": ("docs", "readme", "licences", "code"),
}
_NUMBERS = frozenset(name for names in FORMAT_OPTIONS.values() for name in names if name.startswith("max_"))


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
        if name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ConfigError(f"input {spec.source!r}: {name} is {value!r}; it must be a number above 0")
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


def _near(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
