"""The shard manifest: what lies in a data set, proved by hashes. Written last, it is what commits the data set.

``manifest.json`` is canonical JSON (sorted keys, no spaces, UTF-8). Two hashes are inside:

* ``content_hash`` = sha256 over the streams' ordered parts (path, sha256 of .bin, .idx, .seg, rows), tokenizer,
  packing and dtype. It names the training data: equal for any partitioning, executor count and restart.
  ``.rows.parquet`` is left out, because its bytes carry the version of the Parquet library.
* ``manifest_hash`` = sha256 over everything but itself and ``unhashed`` (time, commits, hosts), so an edit shows.

No floats inside the hashed part: their text form is not one thing in all languages.
"""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.format import SUFFIXES, token_dtype

FORMAT_NAME = "refinery-shards"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
CHECKSUM_NAME = "manifest.sha256"
ROLES = ("target", "pool", "replay")
SPLITS = ("train", "validation")
NUM_PROBES = 8
_NAME = re.compile(r"[^\s/\\.][^\s/\\]*")


@dataclass(frozen=True, slots=True, order=True)
class StreamKey:
    """What a shard part is pure in: the unit on which a mix sets weights."""

    domain: str
    role: str
    """target, pool or replay."""
    lang: str
    weight_bucket: int
    """Class of upsampling (by dedup cluster size, quality); 0 if unused."""
    split: str
    """train or validation."""

    def __post_init__(self) -> None:
        for value in (self.domain, self.lang):
            if not _NAME.fullmatch(value):
                raise ConfigError(f"stream name {value!r}: no blanks, slashes, leading dots or empty names")
        if self.role not in ROLES or self.split not in SPLITS or self.weight_bucket < 0:
            raise ConfigError(
                f"stream ({self.role}, {self.split}, bucket {self.weight_bucket}): role one of {', '.join(ROLES)}, "
                f"split one of {', '.join(SPLITS)}, bucket >= 0"
            )

    @property
    def name(self) -> str:
        """``domain/role/lang/w<bucket>/split``: the folder of the stream and its name in plans."""
        return f"{self.domain}/{self.role}/{self.lang}/w{self.weight_bucket}/{self.split}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileHash:
    """Size and hashes of one file."""

    num_bytes: int
    sha256: str
    xxh3_128: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEntry:
    """One part of a stream: counts and its four files."""

    path: str
    """Path without suffix, relative to the manifest."""
    first_row: int
    """Row of the stream at which the part begins."""
    rows: int
    tokens: int
    """Document tokens (rows * L = tokens + padding_tokens)."""
    loss_tokens: int
    padding_tokens: int
    documents: int
    """Documents that start in the part."""
    utf8_bytes: int
    max_token_id: int
    eos_count: int
    files: Mapping[str, FileHash]
    """By suffix: .bin, .idx, .seg, .rows.parquet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """All parts of one stream, in order."""

    key: StreamKey
    parts: tuple[PartEntry, ...]

    @property
    def name(self) -> str:
        """Name of the stream in plans."""
        return self.key.name

    def total(self, column: str) -> int:
        """Add up a count (`rows`, `tokens`, `loss_tokens`, …) over the parts."""
        return sum(getattr(part, column) for part in self.parts)

    @property
    def rows(self) -> int:
        """Rows of the stream; a part knows its first row, so the last one knows them all."""
        return self.parts[-1].first_row + self.parts[-1].rows if self.parts else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """The tokenizer that made the ids."""

    sha256: str
    """Of tokenizer.json."""
    vocab_size: int
    eos_id: int
    bos_id: int
    """-1 if there is none."""
    pad_id: int
    probe: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Eight texts and their ids: another tokenizer is noticed at start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingInfo:
    """How documents were laid into rows."""

    policy: str
    sequence_length: int
    seed: int
    documents_cut: int = 0
    dropped_tokens: int = 0
    document_mask: bool = True
    """Whether attention is meant to stay inside documents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageStage:
    """What one stage upstream let through."""

    stage: str
    content_hash: str
    documents: int
    utf8_bytes: int
    tokens: int
    """-1 before tokens are known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardManifest:
    """A data set. Build it with `build_manifest`, which sorts streams and computes the hashes."""

    tokenizer: TokenizerInfo
    packing: PackingInfo
    streams: tuple[Stream, ...]
    """Sorted by key; a stream's index in it is the `stream_index` of readers."""
    lineage: tuple[LineageStage, ...] = ()
    unhashed: Mapping[str, Any] = field(default_factory=dict)
    """created_at, created_by, git commits: facts that differ between equal data sets."""
    content_hash: str = ""
    manifest_hash: str = ""

    @property
    def sequence_length(self) -> int:
        """L, tokens in a row."""
        return self.packing.sequence_length

    @property
    def dtype_name(self) -> str:
        """``uint16`` or ``int32``."""
        return token_dtype(self.tokenizer.vocab_size).name

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in ``.bin``."""
        return self.sequence_length * token_dtype(self.tokenizer.vocab_size).itemsize

    def stream(self, name: str) -> Stream:
        """Return the stream of a name. Raises: ConfigError: there is none."""
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise ConfigError(f"stream {name!r} is not in the data set: {', '.join(s.name for s in self.streams)}")


def build_manifest(
    tokenizer: TokenizerInfo,
    packing: PackingInfo,
    parts: Mapping[StreamKey, Sequence[PartEntry]],
    lineage: Sequence[LineageStage] = (),
    unhashed: Mapping[str, Any] | None = None,
) -> ShardManifest:
    """Put a manifest together: streams sorted by key, parts by path, first rows and both hashes computed.

    Args:
        tokenizer: what made the ids.
        packing: what laid the rows.
        parts: entries by stream, as `write_shard` returned them (paths relative to the stream's folder) .
        lineage: upstream stages in order.
        unhashed: facts outside the hashes.
    Raises: ConfigError: a stream without rows, two parts of one path, a probe that is not eight texts.
    """
    if tokenizer.probe and len(tokenizer.probe) != NUM_PROBES:
        raise ConfigError(f"the tokenizer probe has {len(tokenizer.probe)} texts; {NUM_PROBES} are needed")
    streams = []
    for key in sorted(parts):
        first_row, placed = 0, []
        for part in sorted(parts[key], key=lambda entry: entry.path):
            placed.append(replace(part, path=f"{key.name}/{part.path}", first_row=first_row))
            first_row += part.rows
        paths = [part.path for part in placed]
        if first_row == 0 or len(set(paths)) != len(paths):
            raise ConfigError(f"stream {key.name} has {first_row} rows in {len(paths)} parts: leave empty streams out")
        streams.append(Stream(key=key, parts=tuple(placed)))
    manifest = ShardManifest(
        tokenizer=tokenizer,
        packing=packing,
        streams=tuple(streams),
        lineage=tuple(lineage),
        unhashed=dict(unhashed or {}),
    )
    manifest = replace(manifest, content_hash=_content_hash(manifest))
    return replace(manifest, manifest_hash=_self_hash(to_json(manifest)))


def canonical_json(value: Any) -> bytes:
    """Return the one form of a JSON value that is hashed: sorted keys, no blanks, UTF-8."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def to_json(manifest: ShardManifest) -> dict[str, Any]:
    """Return the manifest as JSON values."""
    return {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION, "reader_min": FORMAT_VERSION},
        "tokenizer": asdict(manifest.tokenizer),
        "packing": asdict(manifest.packing),
        "tokens": {
            "dtype": manifest.dtype_name,
            "endianness": "little",
            "row_bytes": manifest.row_bytes,
            "labels": "next_token_of_same_segment",
        },
        "streams": [
            {
                **asdict(stream.key),
                "name": stream.name,
                **{column: stream.total(column) for column in _STREAM_TOTALS},
                "parts": [asdict(part) for part in stream.parts],
            }
            for stream in manifest.streams
        ],
        "lineage": [asdict(stage) for stage in manifest.lineage],
        "unhashed": dict(manifest.unhashed),
        "content_hash": manifest.content_hash,
        "manifest_hash": manifest.manifest_hash,
    }


def from_json(document: Mapping[str, Any], where: str) -> ShardManifest:
    """Read JSON values back and check version, both hashes and the totals.

    Raises: IntegrityError: another format or version, missing or unknown fields, a hash that does not match.
    """
    form = document.get("format")
    if not isinstance(form, Mapping) or form.get("name") != FORMAT_NAME:
        raise IntegrityError(f"{where}: format {form!r} is not {FORMAT_NAME}")
    if not isinstance(form.get("reader_min"), int) or form["reader_min"] > FORMAT_VERSION:
        raise IntegrityError(
            f"{where}: needs a reader of version {form.get('reader_min')}; this one reads {FORMAT_VERSION}: upgrade"
        )
    stated = document.get("manifest_hash")
    computed = _self_hash(document)
    if stated != computed:
        raise IntegrityError(
            f"{where}: manifest_hash says {stated}, its content gives {computed}: edited or damaged; restore it or pack"
            " again"
        )
    try:
        manifest = _parse(document)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise IntegrityError(f"{where}: not a manifest of version {FORMAT_VERSION}: {error!r}") from error
    if manifest.content_hash != _content_hash(manifest):
        raise IntegrityError(f"{where}: content_hash {manifest.content_hash} does not match the listed parts")
    for entry, stream in zip(document["streams"], manifest.streams, strict=True):
        first_rows = list(accumulate((part.rows for part in stream.parts), initial=0))[:-1]
        totals = {"name": stream.name, **{column: stream.total(column) for column in _STREAM_TOTALS}}
        stated_firsts = [part.first_row for part in stream.parts]
        if stated_firsts != first_rows or any(entry.get(name) != value for name, value in totals.items()):
            raise IntegrityError(f"{where}: the totals of stream {stream.name} do not match its parts")
    return manifest


def load_manifest(path: Path) -> ShardManifest:
    """Read ``manifest.json`` (or the folder that holds it).

    Raises: IntegrityError: missing, not JSON, or refused by `from_json`.
    """
    path = path / MANIFEST_NAME if path.is_dir() else path
    collecting = gc.isenabled()
    gc.disable()  # a manifest is a tree of small objects: collection doubles the time of 10,000 parts and frees nothing
    try:
        document = orjson.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise IntegrityError(f"{path}: a JSON object is needed, not {type(document).__name__}")
        return from_json(document, str(path))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: no manifest: the data set was never finished; run pack again") from error
    except ValueError as error:
        raise IntegrityError(f"{path}: not JSON ({error}): restore it or pack again") from error
    finally:
        if collecting:
            gc.enable()


def manifest_bytes(manifest: ShardManifest) -> bytes:
    """Return the bytes of ``manifest.json``."""
    document = to_json(manifest)
    problem = _float_in({name: value for name, value in document.items() if name != "unhashed"})
    if problem:
        raise ConfigError(f"the manifest holds a float at {problem}: give integers, or put it under `unhashed`")
    return canonical_json(document) + b"\n"


_STREAM_TOTALS = ("rows", "tokens", "loss_tokens", "padding_tokens", "documents", "utf8_bytes")


def _content_hash(manifest: ShardManifest) -> str:
    parts = [
        [part.path, part.rows, [part.files[suffix].sha256 for suffix in SUFFIXES[:3]]]
        for stream in manifest.streams
        for part in stream.parts
    ]
    packing = asdict(manifest.packing)
    content = [parts, manifest.tokenizer.sha256, manifest.tokenizer.vocab_size, packing, manifest.dtype_name]
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _self_hash(document: Mapping[str, Any]) -> str:
    hashed = {name: value for name, value in document.items() if name not in ("manifest_hash", "unhashed")}
    return hashlib.sha256(canonical_json(hashed)).hexdigest()


def _parse(document: Mapping[str, Any]) -> ShardManifest:
    tokenizer = dict(document["tokenizer"])
    tokenizer["probe"] = tuple((text, tuple(ids)) for text, ids in tokenizer["probe"])
    streams = []
    for entry in document["streams"]:
        key = StreamKey(**{name: entry[name] for name in ("domain", "role", "lang", "weight_bucket", "split")})
        parts = []
        for part in entry["parts"]:
            files = {suffix: FileHash(**part["files"][suffix]) for suffix in SUFFIXES}
            parts.append(PartEntry(**{**part, "files": files}))
        streams.append(Stream(key=key, parts=tuple(parts)))
    return ShardManifest(
        tokenizer=TokenizerInfo(**tokenizer),
        packing=PackingInfo(**document["packing"]),
        streams=tuple(streams),
        lineage=tuple(LineageStage(**stage) for stage in document["lineage"]),
        unhashed=dict(document["unhashed"]),
        content_hash=document["content_hash"],
        manifest_hash=document["manifest_hash"],
    )


def _float_in(value: Any, where: str = "") -> str:
    """Return the path of the first float inside, the empty string if there is none."""
    if isinstance(value, float):
        return where or "."
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, inner in items:
        found = _float_in(inner, f"{where}/{name}")
        if found:
            return found
    return ""
