"""What lies at a path: format, fields and size of an input, told by names and first records."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refinery.errors import ConfigError
from refinery.io.compressed import CODECS, BrokenStreamError, DecompressionLimits, codec_of, iter_lines, open_raw
from refinery.io.compressed import read_chunks as read_compressed
from refinery.io.records import InputSpec
from refinery.io.splits import FILE_SUFFIXES, find_files, plan_splits

_FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet", ".csv": "csv",
    ".tsv": "csv", ".txt": "text", ".text": "text", ".md": "text", ".rst": "text", ".zip": "text", ".html": "html",
    ".htm": "html", ".xhtml": "html", ".warc": "warc", ".wet": "wet", ".arc": "arc",
}  # fmt: skip
_TEXT_FIELDS = ("text", "content", "raw_content", "body", "document", "article", "passage")
_ID_FIELDS = ("id", "doc_id", "uuid", "_id", "key")
_ROLES = ("target", "pool", "replay")
_COLLECTIONS = ("docs", "readme", "licences", "code")
_MAX_PEEKED_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input as a recipe will name it."""

    source: str
    domain: str
    role: str
    format: str
    path: str
    text_field: str = "text"
    id_field: str | None = "id"
    num_bytes: int = 0
    """Expected bytes of text; 0 where that is not known before reading (URLs)."""


def guess_format(path: str) -> str:
    """Return the input format that a path's name tells: a file, a glob, a folder, a URL or ``python:COLLECTION``.

    Raises:
        ConfigError: nothing that a reader knows.
    """
    if path.startswith("python:"):
        return "python_environment"
    found = Counter(filter(None, (_format_of_name(name) for name in _names(path))))
    if not found:
        known = ", ".join(sorted({s for group in FILE_SUFFIXES.values() for s in group}))
        raise ConfigError(f"cannot tell the format of {path!r} from its name; known endings: {known} (and .gz, .zst …)")
    best = found.most_common(1)[0][0]
    return _json_kind(path) if best == "json" else best


def _names(path: str) -> Iterator[str]:
    folder = Path(path).expanduser()
    if "://" in path or not folder.is_dir():
        yield path
        return
    for n, file in enumerate(sorted(folder.rglob("*"))):
        if n >= 10_000:
            return
        if file.is_file() and not file.name.startswith((".", "_")):
            yield file.name


def _format_of_name(name: str) -> str | None:
    plain = Path(name.rstrip("/"))
    if plain.suffix.lower() in CODECS:
        plain = plain.with_suffix("")
    suffixes = [s.lower() for s in plain.suffixes[-2:]]
    if ".wet" in suffixes:  # the crawl's own name: CC-MAIN-….warc.wet.gz
        return "wet"
    return _FORMAT_OF_SUFFIX.get(suffixes[-1]) if suffixes else None


def _json_kind(path: str) -> str:
    """Return json for a file that is one value, jsonl for one value a line; files that cannot be seen are json."""
    lines = _first_lines(path, "json", 2)
    return "jsonl" if len(lines) == 2 and all(_parsed(line) is not None for line in lines) else "json"


def _first_lines(path: str, kind: str, count: int) -> list[str]:
    """Return the first lines that are not blank of the first local file of an input."""
    file = _first_file(path, kind)
    if file is None:
        return []
    found: list[str] = []
    try:
        with open_raw(file) as raw:
            limits = DecompressionLimits(max_bytes=_MAX_PEEKED_BYTES)
            for _, line in iter_lines(read_compressed(raw, codec_of(file), limits), _MAX_PEEKED_BYTES):
                if line and line.strip():
                    found.append(line.decode("utf-8", "replace"))
                if len(found) == count:
                    break
    except (BrokenStreamError, OSError):
        return found
    return found


def _first_file(path: str, kind: str) -> str | None:
    if "://" in path:
        return None
    spec = InputSpec(source="input", domain="input", role="pool", format=kind, paths=(path,))
    files = find_files(spec)
    return next((f.path for f in files if f.size_bytes), None)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def guess_fields(path: str, kind: str) -> tuple[str, str | None]:
    """Return (field of the text, field of the id or None) by the first record; (text, id) where none can be seen."""
    texts: dict[str, int] = {}
    names: list[str] = []
    if kind == "jsonl":
        first = next(iter(_first_lines(path, kind, 1)), "")
        record = _parsed(first) or {}
        names, texts = list(record), {k: len(v) for k, v in record.items() if isinstance(v, str)}
    elif kind == "csv":
        first = next(iter(_first_lines(path, kind, 1)), "")
        names = next(csv.reader(io.StringIO(first), delimiter="\t" if ".tsv" in path.lower() else ","), [])
    elif kind == "parquet":
        file = _first_file(path, kind)
        try:
            names = pq.read_schema(file).names if file else []
        except (pa.ArrowException, OSError):
            names = []
    if not names:
        return "text", "id"
    text = next((f for f in _TEXT_FIELDS if f in names), None) or max(texts, key=texts.__getitem__, default="text")
    return text, next((f for f in _ID_FIELDS if f in names), None)


def describe_source(given: str, role: str, domain: str = "", kind: str = "") -> Source:
    """Look at one path and return the input that a recipe will have.

    Args:
        given: ``PATH`` or ``DOMAIN=PATH``; a path is a file, a folder, a glob, a URL, or ``python:docs`` (also readme,
            licences, code): text that this Python carries.
        role: target, pool or replay.
        domain: mixture component; by default the name before ``=``, or the source's.
        kind: format; guessed from the name by default.
    Raises:
        ConfigError: the path matches nothing, or its format cannot be told.
    """
    if role not in _ROLES:
        raise ConfigError(f"role {role!r} is unknown; choose one of {', '.join(_ROLES)}")
    name, found, path = given.partition("=")
    if not found or Path(given).expanduser().exists() or not re.fullmatch(r"[\w.-]+", name):
        name, path = "", given
    kind = kind or guess_format(path)
    text_field, id_field = guess_fields(path, kind)
    source = _slug(path.removeprefix("python:")) if not path.startswith("python:") else f"python-{path[7:]}"
    return Source(
        source=source,
        domain=domain or name or source,
        role=role,
        format=kind,
        path=path,
        text_field=text_field,
        id_field=id_field,
        num_bytes=_text_bytes(path, kind),
    )


def _slug(path: str) -> str:
    name = Path(re.sub(r"[*?\[\]]", "", path).rstrip("/")).name
    while Path(name).suffix.lower() in CODECS or Path(name).suffix.lower() in _FORMAT_OF_SUFFIX:
        name = Path(name).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "input"


def _text_bytes(path: str, kind: str) -> int:
    if "://" in path:
        return 0
    options: Mapping[str, Any] = {}
    paths: tuple[str, ...] = (path,)
    if kind == "python_environment":
        collection = path.removeprefix("python:")
        if collection not in _COLLECTIONS:
            raise ConfigError(f"{path!r}: this Python carries {', '.join('python:' + c for c in _COLLECTIONS)}")
        options, paths = {"collection": collection}, ()
    spec = InputSpec(source="input", domain="input", role="pool", format=kind, paths=paths, options=options)
    return sum(split.estimated_bytes for split in plan_splits(spec, 64 * 2**20))


def with_unique_names(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Return the sources with every name once: later ones get a number."""
    seen: Counter[str] = Counter()
    named = []
    for source in sources:
        seen[source.source] += 1
        n = seen[source.source]
        named.append(source if n == 1 else Source(**{**source.__dict__, "source": f"{source.source}-{n}"}))
    return tuple(named)
