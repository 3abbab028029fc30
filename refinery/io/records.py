"""What a reader takes and gives: the description of an input, one document, one bad record.

Readers never raise for a broken record: they yield a `BadRecord` and go on, so that one bad line of a crawl costs one
counted line. They raise `ConfigError` only where the recipe itself cannot be meant (a Parquet file without the text
column).

What ``offset`` counts depends on the format, and is stable for unchanged input: bytes of the decompressed file for
jsonl, json and text; the row for parquet; the record for csv; bytes of the file as stored for warc and html; the
position inside its module for python_environment.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_META_CHARS = 512
"""Without a list of ``meta_fields``, longer strings stay out of ``meta``: they are texts, not facts about this one."""

_SCALARS = (str, int, float, bool)


class RawDocument(NamedTuple):
    """One document as its source has it, before cleaning."""

    text: str | bytes
    """Bytes are valid UTF-8: what a reader has as such, and what need not become a string."""
    upstream_id: str | None
    """The id in the source; None where the source has none (the address path + offset then names the document)."""
    path: str
    """The file as the recipe wrote it (not made absolute), so that identity does not depend on the machine."""
    offset: int
    url: str | None
    date: str | None
    license: str | None
    lang: str | None
    """As declared by the source, never detected."""
    meta: dict[str, Any]
    """Further fields, JSON values. ``charset`` says how broken bytes were repaired, and is absent where nothing was."""


class BadRecord(NamedTuple):
    """One record, or the rest of one file, that could not be read."""

    path: str
    offset: int
    reason: str
    """One of the reasons in `REASONS`: a column of counts, not a sentence."""
    detail: str = ""


REASONS = {
    "bad_json": "the line is not JSON",
    "not_an_object": "the JSON value is no object",
    "no_text": "the text field is missing, null or empty",
    "text_not_string": "the text field holds another type",
    "line_too_long": "a line over max_line_bytes; skipped",
    "document_too_long": "a file, member or record over max_document_bytes; skipped",
    "truncated": "the compressed file or record ends too early; what came before is kept",
    "corrupt_data": "the compressed data does not decode; what came before is kept",
    "trailing_garbage": "bytes that are no compressed member follow the last one",
    "decompression_bomb": "more output than max_decompressed_bytes or max_decompression_ratio allow",
    "empty_file": "the file holds no bytes",
    "missing_file": "the file was there when the run was planned and is gone",
    "bad_parquet": "the file or one of its row groups cannot be read as Parquet",
    "bad_csv": "the CSV reader refuses the record",
    "bad_zip": "the archive or a member cannot be read",
    "bad_record": "a WARC or ARC record that cannot be parsed",
    "bad_http": "a capture whose HTTP head or body cannot be decoded",
    "wrong_digest": "a WARC record whose bytes do not have the SHA-1 or MD5 that it declares",
    "bad_html": "the extraction library refuses the page",
    "bad_source": "a Python source file that cannot be parsed",
}
"""Every reason a reader gives, with its meaning."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One entry of the recipe's ``inputs``."""

    source: str
    """Name of the collection; part of each document's identity."""
    domain: str
    """Mixture component."""
    role: str
    """pool, target or replay."""
    format: str
    """One of `refinery.io.input_options.FORMATS`."""
    paths: tuple[str, ...]
    """Files, folders, globs, fsspec URLs; empty only for python_environment."""
    text_field: str = "text"
    """Column or key of the text; ``a.b`` looks into nested objects."""
    id_field: str | None = "id"
    url_field: str | None = "url"
    date_field: str | None = "date"
    license_field: str | None = "license"
    lang_field: str | None = "lang"
    lang: str | None = None
    """Language of documents that do not declare one."""
    license: str | None = None
    """Licence of documents that do not declare one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the format: see `refinery.io.input_options.FORMAT_OPTIONS`."""


@dataclass(frozen=True, slots=True)
class SplitFile:
    """One input file as it was when the run was planned."""

    path: str
    """Where to open it: absolute, or a URL."""
    name: str
    """As the recipe wrote it: what identities and messages use."""
    size_bytes: int
    version: str
    """mtime in nanoseconds, or the store's ETag."""


@dataclass(frozen=True)
class Split:
    """The work of one documents part: some whole files, or one range or one share of one file, or named items."""

    files: tuple[SplitFile, ...]
    unit: str = "files"
    """files | bytes | row_groups | items | shares: what `start` and `end` count. Share `start` of `end` of a file that
    is read through by one task: the reader gives all of it, and the task fills the parts one after another."""
    start: int = 0
    end: int = -1
    """Exclusive; -1 with unit ``files``."""
    items: tuple[str, ...] = ()
    """Names of pieces of the Python environment (unit ``items``)."""
    estimated_bytes: int = 0
    """Expected bytes of text: for progress and forecasts only."""

    def pack(self) -> bytes:
        """Return the split as compressed JSON: a plan of a million files travels to its tasks as some megabytes."""
        fields: list[Any] = [[[f.path, f.name, f.size_bytes, f.version] for f in self.files]]
        fields += [self.unit, self.start, self.end, list(self.items), self.estimated_bytes]
        return zlib.compress(json.dumps(fields).encode(), 1)

    @staticmethod
    def unpack(packed: bytes) -> Split:
        """Return what `pack` packed."""
        files, unit, start, end, items, estimated = json.loads(zlib.decompress(packed))
        return Split(tuple(SplitFile(*file) for file in files), unit, start, end, tuple(items), estimated)

    def fingerprint(self) -> dict[str, Any]:
        """Return the JSON fields that name this split's input: another value means that the part must be redone."""
        return {
            "files": [[f.name, f.size_bytes, f.version] for f in self.files],
            "unit": self.unit,
            "start": self.start,
            "end": self.end,
            "items": list(self.items),
        }


def document_from_record(
    spec: InputSpec, record: Mapping[str, Any], path: str, offset: int, charset: str = ""
) -> RawDocument | BadRecord:
    """Turn one parsed record (JSON object, CSV row, Parquet row) into a document by the field names of `spec`.

    Args:
        spec: the input; ``options["text_fields"]`` joins several fields, ``options["meta_fields"]`` names what goes
            into ``meta`` (default: every other scalar field of at most `MAX_META_CHARS` characters).
        record: field name to value; one text may be bytes, of valid UTF-8.
        path: the file's name in the recipe.
        offset: the record's offset, in the unit of its format.
        charset: how bytes were repaired, or "".
    """
    text_fields = spec.options.get("text_fields")
    if text_fields:
        parts = [lookup(record, name) for name in text_fields]
        if any(p is not None and not isinstance(p, str) for p in parts):
            return BadRecord(path, offset, "text_not_string")
        text: Any = spec.options.get("joiner", "\n").join(p for p in parts if p) or None
    else:
        text = lookup(record, spec.text_field)
    if text is None or text in ("", b""):
        return BadRecord(path, offset, "no_text")
    if not isinstance(text, str | bytes):
        return BadRecord(path, offset, "text_not_string", type(text).__name__)
    meta = _meta_of(spec, record, text_fields or (spec.text_field,))
    if charset:
        meta["charset"] = charset
    return RawDocument(
        text=text,
        upstream_id=_string(record, spec.id_field),
        path=path,
        offset=offset,
        url=_string(record, spec.url_field),
        date=_string(record, spec.date_field),
        license=_string(record, spec.license_field) or spec.license,
        lang=_string(record, spec.lang_field) or spec.lang,
        meta=meta,
    )


def lookup(record: Mapping[str, Any], name: str) -> Any:
    """Return a field by name; ``a.b`` reads field b of the object in field a, unless a field is called ``a.b``."""
    if name in record or "." not in name:
        return record.get(name)
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def document_from_text(spec: InputSpec, text: str, path: str, offset: int, **facts: Any) -> RawDocument | BadRecord:
    """Make a document of a text that comes without a record (text files, pages); blank text is a bad record.

    Args:
        spec: the input.
        text: the text.
        path: the file's name in the recipe.
        offset: the offset, in the unit of the format.
        **facts: any of upstream_id, url, date, license, lang, meta.
    """
    if not text or text.isspace():
        return BadRecord(path, offset, "no_text")
    return RawDocument(
        text=text,
        upstream_id=facts.get("upstream_id"),
        path=path,
        offset=offset,
        url=facts.get("url"),
        date=facts.get("date"),
        license=facts.get("license") or spec.license,
        lang=facts.get("lang") or spec.lang,
        meta=facts.get("meta") or {},
    )


def _string(record: Mapping[str, Any], name: str | None) -> str | None:
    if not name:
        return None
    value = lookup(record, name)
    return None if value is None or value == "" else str(value)


def _meta_of(spec: InputSpec, record: Mapping[str, Any], text_fields: tuple[str, ...] | list[str]) -> dict[str, Any]:
    wanted = spec.options.get("meta_fields")
    if wanted is not None:
        return {name: value for name in wanted if (value := lookup(record, name)) is not None}
    used = {*text_fields, spec.id_field, spec.url_field, spec.date_field, spec.license_field, spec.lang_field}
    return {
        key: value
        for key, value in record.items()
        if key not in used
        and isinstance(value, _SCALARS)
        and not (isinstance(value, str) and len(value) > MAX_META_CHARS)
    }
