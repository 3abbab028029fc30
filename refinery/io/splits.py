"""Cut an input into splits, one documents part each, before anything is read.

A plan is a function of the sorted file list, the sizes and the recipe, never of cores or partitions, so that part
numbers, and with them all that follows, are the same on every machine.

- Plain jsonl and line-wise text: byte ranges of `part_bytes`; a record belongs to the range of its first byte.
- Parquet: runs of row groups of about `part_bytes` of uncompressed text.
- Everything else: whole files, small ones grouped until they are expected to hold `part_bytes` of text.

A file that cannot be entered in the middle (compressed, CSV, a list in JSON, a web archive) and is expected to hold
more than `part_bytes` gets several parts, *shares* of it: one task reads it through and fills them one after another,
so that memory stays bounded there and every later stage has parts of the usual size for all cores. How many: from the
compression of its first megabytes, with a quarter to spare; the last share takes whatever is left.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refinery.errors import ConfigError
from refinery.io.compressed import (
    CODECS,
    BrokenStreamError,
    DecompressionLimits,
    codec_of,
    open_raw,
    read_chunks,
)
from refinery.io.input_options import check_input
from refinery.io.records import InputSpec, Split, SplitFile

FILE_SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "json": (".json",),
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv"),
    "text": (".txt", ".text", ".md", ".rst", ".zip"),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".wet", ".arc"),
    "wet": (".wet",),
    "arc": (".arc",),
}
"""What counts as input when a path names a folder; a compression suffix may follow."""

_FILE_COST_BYTES = 4096
"""Opening a file costs about as much as reading this many bytes: a million tiny files still spread over parts."""

_EXPANSION = {None: 1.0, "gzip": 4.0, "bz2": 5.0, "xz": 5.0, "zstd": 4.0, "lz4": 2.5}
"""Text bytes per stored byte, by codec."""

_SAMPLE_BYTES = 16 << 20
"""Decompressed bytes of a large file's beginning that tell its compression."""
_SPARE_SHARES = 1.25
"""A file whose beginning compresses this much worse than the rest still fills no share beyond `part_bytes`."""

_VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "created")
"""What file systems call that which changes with a file's bytes; ``blob_id``: the Hugging Face hub."""

_WEB_EXPANSION = 0.4
"""Text bytes per stored byte of a packed WARC: 0.54 and 0.28 on a 2008 crawl and on 130 modern pages."""


def plan_splits(spec: InputSpec, part_bytes: int, storage: Mapping[str, Any] | None = None) -> list[Split]:
    """Plan the splits of one input.

    Args:
        spec: the input.
        part_bytes: wanted bytes of text per part.
        storage: fsspec options for URLs.

    Raises:
        ConfigError: a path matches nothing, or all files are empty, or an option is unknown.
    """
    check_input(spec)
    if part_bytes < 1:
        raise ConfigError(f"part_bytes is {part_bytes}; it must be at least 1 (default: 64 MB)")
    if spec.format == "python_environment":
        from refinery.io.read_python_environment import plan_environment  # noqa: PLC0415 - walks nothing else needs

        return plan_environment(spec, part_bytes)
    files = find_files(spec, storage)
    if all(f.size_bytes == 0 for f in files):
        raise ConfigError(
            f"input {spec.source!r} is empty: {len(files)} file(s) matched, all of 0 bytes, "
            f"the first is {files[0].name!r}; point paths at files that hold documents"
        )
    splits: list[Split] = []
    group: list[SplitFile] = []
    group_bytes = 0
    for file in files:
        pieces = _pieces(spec, file, part_bytes, storage) or _shares(spec, file, part_bytes, storage)
        if pieces:
            splits.extend(pieces)
            continue
        cost = _text_bytes(spec, file)
        if group and group_bytes + cost > part_bytes:
            splits.append(Split(tuple(group), estimated_bytes=group_bytes))
            group, group_bytes = [], 0
        group.append(file)
        group_bytes += cost
    if group:
        splits.append(Split(tuple(group), estimated_bytes=group_bytes))
    return sorted(splits, key=lambda s: (s.files[0].name, s.start))


def find_files(spec: InputSpec, storage: Mapping[str, Any] | None = None) -> list[SplitFile]:
    """Return the files that an input's paths match, sorted by name, each once.

    Raises:
        ConfigError: a path matches nothing (the message names the nearest folder that exists).
    """
    found: dict[str, SplitFile] = {}
    for pattern in spec.paths:
        matched = 0
        for file in _remote_files(spec, pattern, storage) if "://" in pattern else _local_files(spec, pattern):
            found.setdefault(file.path, file)
            matched += 1
        if not matched:
            raise ConfigError(f"input {spec.source!r}: {pattern!r} matches no file; {_nearest(pattern)}")
    if not found:
        raise ConfigError(f"input {spec.source!r} has no paths; name files, folders, globs or URLs")
    return sorted(found.values(), key=lambda f: f.name)


def _pieces(spec: InputSpec, file: SplitFile, part_bytes: int, storage: Mapping[str, Any] | None) -> list[Split]:
    """Cut one file that can be cut; an empty list means that it goes whole into a group."""
    if spec.format == "parquet":
        return _row_group_splits(spec, file, part_bytes, storage)
    by_line = (spec.format == "jsonl" and not file.name.endswith(".json")) or (
        spec.format == "text" and spec.options.get("unit") == "line" and not file.name.endswith(".zip")
    )
    if not by_line or codec_of(file.name) or file.size_bytes <= part_bytes:
        return []
    count = -(-file.size_bytes // part_bytes)
    edges = [file.size_bytes * i // count for i in range(count + 1)]
    return [Split((file,), "bytes", a, b, estimated_bytes=b - a) for a, b in pairwise(edges)]


def _shares(spec: InputSpec, file: SplitFile, part_bytes: int, storage: Mapping[str, Any] | None) -> list[Split]:
    """Give a large file of many documents several parts; an empty list where it is one document, or small."""
    one_document = spec.format == "html" or (spec.format == "text" and spec.options.get("unit", "file") == "file")
    codec = codec_of(file.name)
    expected = _text_bytes(spec, file) - _FILE_COST_BYTES
    if spec.format == "parquet" or (one_document and not file.name.endswith(".zip")) or expected <= part_bytes:
        return []
    if codec and spec.format not in ("warc", "arc"):
        expected = int(file.size_bytes * _compression(file, codec, storage))
    count = -(-int(expected * _SPARE_SHARES) // part_bytes)
    if expected <= part_bytes or count < 2:
        return []
    return [Split((file,), "shares", i, count, estimated_bytes=expected // count) for i in range(count)]


def _compression(file: SplitFile, codec: str, storage: Mapping[str, Any] | None) -> float:
    """Return decompressed over stored bytes of a file's beginning; the codec's usual one where it cannot be read."""
    produced = 0
    try:
        with open_raw(file.path, storage) as raw:
            for chunk in read_chunks(raw, codec, DecompressionLimits()):
                produced += len(chunk)
                if produced >= _SAMPLE_BYTES:
                    break
            stored = raw.tell()
    except (BrokenStreamError, OSError):
        return _EXPANSION[codec]
    return produced / stored if stored else _EXPANSION[codec]


def _row_group_splits(
    spec: InputSpec, file: SplitFile, part_bytes: int, storage: Mapping[str, Any] | None
) -> list[Split]:
    """Group the row groups of a large Parquet file; one with a broken footer stays whole, for its reader to report."""
    if file.size_bytes * 3 <= part_bytes:
        return []
    try:
        with open_raw(file.path, storage) as raw:
            meta = pq.read_metadata(raw)
        sizes = _row_group_bytes(meta, set(spec.options.get("text_fields") or [spec.text_field]))
    except (pa.ArrowException, OSError, ValueError):  # ValueError: a damaged footer with names that are no UTF-8
        return []
    splits: list[Split] = []
    start, held = 0, 0
    for g, size in enumerate(sizes):
        if g > start and held + size > part_bytes:
            splits.append(Split((file,), "row_groups", start, g, estimated_bytes=held))
            start, held = g, 0
        held += size
    if sizes:
        splits.append(Split((file,), "row_groups", start, len(sizes), estimated_bytes=held))
    return splits


def _row_group_bytes(meta: pq.FileMetaData, fields: set[str]) -> list[int]:
    """Return the uncompressed bytes of the text columns, by row group."""
    tops = {name.partition(".")[0] for name in fields}
    sizes = []
    for g in range(meta.num_row_groups):
        group = meta.row_group(g)
        columns = [group.column(c) for c in range(group.num_columns)]
        sizes.append(sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in tops))
    return sizes


def _text_bytes(spec: InputSpec, file: SplitFile) -> int:
    factor = _EXPANSION[codec_of(file.name)]
    if spec.format in ("warc", "arc") and codec_of(file.name) and ".wet" not in file.name:
        factor = _WEB_EXPANSION
    if spec.format == "parquet" or file.name.endswith(".zip"):
        factor = 3.0
    return int(file.size_bytes * factor) + _FILE_COST_BYTES


def _is_input(spec: InputSpec, name: str) -> bool:
    path = Path(name)
    if path.name.startswith((".", "_")):
        return False
    if path.suffix.lower() in CODECS:
        path = path.with_suffix("")
    suffixes = FILE_SUFFIXES.get(spec.format, ())
    return path.suffix.lower() in suffixes


def _local_files(spec: InputSpec, pattern: str) -> Iterator[SplitFile]:
    expanded = str(Path(pattern).expanduser())
    matches = [expanded] if Path(expanded).exists() else sorted(glob.glob(expanded, recursive=True))  # noqa: PTH207 - patterns may be absolute
    for match in matches:
        path = Path(match)
        if not path.is_dir():
            yield _local_file(match)
            continue
        for folder, subfolders, names in os.walk(match):
            subfolders.sort()
            for name in sorted(names):
                if _is_input(spec, name):
                    yield _local_file(str(Path(folder) / name))


def _local_file(name: str) -> SplitFile:
    facts = Path(name).stat()
    return SplitFile(str(Path(name).absolute()), Path(name).as_posix(), facts.st_size, str(facts.st_mtime_ns))


def _remote_files(spec: InputSpec, pattern: str, storage: Mapping[str, Any] | None) -> Iterator[SplitFile]:
    import fsspec  # noqa: PLC0415 - only remote inputs pay for it

    try:
        fs, path = fsspec.core.url_to_fs(pattern, **dict(storage or {}))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"input {spec.source!r}: cannot use {pattern!r}: {error}") from error
    try:
        if glob.has_magic(path):
            facts = fs.glob(path, detail=True)
        elif fs.isfile(path):
            facts = {path: fs.info(path)}
        else:
            facts = {k: v for k, v in fs.find(path, detail=True).items() if _is_input(spec, k)}
    except (FileNotFoundError, PermissionError) as error:  # of a bucket or a repository; of a file it is an empty list
        raise ConfigError(f"input {spec.source!r}: cannot list {pattern!r}: {error}; {_nearest(pattern)}") from error
    for key, info in sorted(facts.items()):
        if info.get("type") == "directory":
            continue
        version = next((str(info[k]) for k in _VERSIONS if info.get(k)), "")
        url = fs.unstrip_protocol(key)
        yield SplitFile(url, url, int(info.get("size") or 0), version)


def _nearest(pattern: str) -> str:
    if "://" in pattern:
        return "check the bucket or repository, the path in it and the credentials"
    path = Path(pattern).expanduser().absolute()
    while not path.is_dir() or glob.has_magic(str(path)):
        path = path.parent
    names = sorted(p.name for p in path.iterdir())
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"the nearest folder that exists is {str(path)!r} with {len(names)} entries ({shown or 'none'})"
