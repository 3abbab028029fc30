"""Four levels of distrust. Each includes the ones before it.

L0, at every start: manifest hashes, file sizes, ``.idx`` and ``.seg`` headers, tokenizer probe. Milliseconds.
L1 ``sample``: 64 rows of every part: ids inside the vocabulary, segments tile.
L2 ``full``: xxh3-128 of every file.
L3 ``audit``: everything counted again: tokens, ends of documents, documents, predicted tokens, rows table.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.format import (
    DTYPE_CODES,
    IDX_HEADER,
    SEG_HEADER,
    UINT16_VOCAB_BOUND,
    decode_idx,
    decode_idx_header,
    decode_seg,
    decode_seg_header,
    seg_num_bytes,
)
from refinery.shards.manifest import (
    CHECKSUM_NAME,
    MANIFEST_NAME,
    PartEntry,
    ShardManifest,
    load_manifest,
)
from refinery.shards.reader import ShardReader
from refinery.shards.row_table import read_rows_table

LEVELS = ("start", "sample", "full", "audit")
SAMPLE_ROWS = 64
_WINDOW_BYTES = 32 << 20
_AUDIT_ROWS = 4096
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One contradiction."""

    path: str
    """File, relative to the manifest."""
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def verify_dataset(
    root: Path, level: str = "start", encode: Callable[[str], Sequence[int]] | None = None
) -> ShardManifest:
    """Verify a data set and return its manifest.

    Args:
        root: folder of the manifest.
        level: ``start``, ``sample``, ``full`` or ``audit``.
        encode: text to ids of the tokenizer that will be used; checked against the manifest's probe.
    Raises: IntegrityError: the manifest is refused or any file contradicts it; lists files and problems.
    """
    manifest = load_manifest(root)
    findings = find_problems(root, manifest, level, encode)
    if findings:
        listed = "\n  ".join(str(finding) for finding in findings[:_SHOWN])
        more = f"\n  and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
        raise IntegrityError(
            f"{root}: {len(findings)} problems at level {level}; restore the files or pack again:\n  {listed}{more}"
        )
    return manifest


def find_problems(
    root: Path,
    manifest: ShardManifest,
    level: str = "start",
    encode: Callable[[str], Sequence[int]] | None = None,
) -> list[Finding]:
    """Return every contradiction between a manifest and the files beside it; parameters as `verify_dataset`.

    A part that fails a level is not looked at by the next one.
    """
    if level not in LEVELS:
        raise ConfigError(f"level {level!r} is unknown: choose one of {', '.join(LEVELS)}")
    findings = _checksum_problems(root)
    if encode is not None:
        findings += _probe_problems(manifest, encode)
    checks: list[Callable[[ShardReader, Path, int, PartEntry], list[Finding]]] = [_start_problems]
    checks += [_sample_problems, _hash_problems, _audit_problems][: LEVELS.index(level)]
    with ShardReader(root, manifest) as reader:
        for index, stream in enumerate(manifest.streams):
            for part in stream.parts:
                for check in checks:
                    found = check(reader, root, index, part)
                    findings += found
                    if found:
                        break
    return findings


def verify_foreign(prefix: Path) -> list[Finding]:
    """Check a Megatron ``.bin/.idx`` pair that someone else wrote: header, sizes, offsets, document index."""
    idx, body = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
    try:
        dtype, lengths, offsets, documents = decode_idx(idx.read_bytes(), idx.name)
        size = body.stat().st_size
    except FileNotFoundError as error:
        return [Finding(Path(str(error.filename)).name, "missing")]
    except IntegrityError as error:
        return [Finding(idx.name, str(error))]
    findings = []
    wide = lengths.astype(np.int64) * dtype.itemsize
    if (lengths < 0).any() or (offsets != np.cumsum(wide) - wide).any():
        findings.append(Finding(idx.name, "offsets are not the running sum of the sequence lengths"))
    if size != int(wide.sum()):
        findings.append(Finding(body.name, f"{size} bytes, the index promises {int(wide.sum())}"))
    if len(documents) == 0 or documents[0] != 0 or documents[-1] != len(lengths) or (np.diff(documents) < 0).any():
        findings.append(Finding(idx.name, f"the document index does not rise from 0 to {len(lengths)}"))
    return findings


def is_foreign(path: Path) -> bool:
    """Say whether a path names a Megatron pair (``.bin``, ``.idx`` or their common prefix) and no data set of ours."""
    return path.suffix in (".bin", ".idx") or (not path.exists() and _foreign_prefix(path, ".idx").exists())


def check_foreign(path: Path) -> dict[str, int | str]:
    """Check a Megatron pair by any of its names, and return what it holds.

    Raises: IntegrityError: what contradicts what.
    """
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    findings = verify_foreign(prefix)
    if findings:
        raise IntegrityError(f"{prefix}: " + "; ".join(str(finding) for finding in findings) + ": write it again")
    dtype, lengths, _, documents = decode_idx(_foreign_prefix(prefix, ".idx").read_bytes(), prefix.name)
    tokens = int(lengths.sum(dtype=np.int64))
    return {"sequences": len(lengths), "documents": len(documents) - 1, "tokens": tokens, "dtype": dtype.name}


def _foreign_prefix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _checksum_problems(root: Path) -> list[Finding]:
    try:
        stated = (root / CHECKSUM_NAME).read_text().split()[:1]
    except FileNotFoundError:
        return [Finding(CHECKSUM_NAME, "missing")]
    computed = hashlib.sha256((root / MANIFEST_NAME).read_bytes()).hexdigest()
    return [] if stated == [computed] else [Finding(CHECKSUM_NAME, f"does not match {MANIFEST_NAME} ({computed})")]


def _probe_problems(manifest: ShardManifest, encode: Callable[[str], Sequence[int]]) -> list[Finding]:
    findings = []
    for text, ids in manifest.tokenizer.probe:
        found = tuple(int(token) for token in encode(text))
        if found != tuple(ids):
            findings.append(
                Finding(MANIFEST_NAME, f"tokenizer gives {found} for {text!r}, the data has {ids}: another tokenizer")
            )
    return findings


def _start_problems(reader: ShardReader, root: Path, _stream: int, part: PartEntry) -> list[Finding]:
    """L0 of one part: two stats and two opens, because 10,000 parts are to start in half a second."""
    findings, heads = [], {}
    for suffix, entry in part.files.items():
        path = part.path + suffix
        try:
            if suffix in (".idx", ".seg"):
                size, heads[suffix] = _size_and_head(f"{root}/{path}")
            else:
                size = os.stat(f"{root}/{path}").st_size  # noqa: PTH116 - a Path costs more than the call
        except FileNotFoundError:
            findings.append(Finding(path, "missing"))
            continue
        if size != entry.num_bytes:
            findings.append(Finding(path, f"{size} bytes, the manifest says {entry.num_bytes}"))
    return findings or _header_problems(reader.manifest, heads, part)


def _header_problems(manifest: ShardManifest, heads: dict[str, bytes], part: PartEntry) -> list[Finding]:
    try:
        header = decode_idx_header(heads[".idx"], part.path)
        rows, segments = decode_seg_header(heads[".seg"], part.path)
    except IntegrityError as error:
        return [Finding(part.path, str(error))]
    findings = []
    code = DTYPE_CODES["uint16" if manifest.tokenizer.vocab_size < UINT16_VOCAB_BOUND else "int32"]
    if header != (code, part.rows, part.rows + 1):
        findings.append(Finding(part.path + ".idx", f"header {tuple(header)} is not {part.rows} rows of code {code}"))
    if rows != part.rows or seg_num_bytes(rows, segments) != part.files[".seg"].num_bytes:
        findings.append(
            Finding(part.path + ".seg", f"header: {rows} rows, {segments} segments; needs {part.rows} rows")
        )
    if part.files[".bin"].num_bytes != part.rows * manifest.sequence_length * (
        2 if code == DTYPE_CODES["uint16"] else 4
    ):
        findings.append(Finding(part.path + ".bin", f"its size is not that of {part.rows} rows"))
    return findings


def _size_and_head(path: str) -> tuple[int, bytes]:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(handle).st_size, os.pread(handle, max(IDX_HEADER.size, SEG_HEADER.size), 0)
    finally:
        os.close(handle)


def _sample_problems(reader: ShardReader, _root: Path, stream: int, part: PartEntry) -> list[Finding]:
    """L1 of one part: rows spread evenly from the first to the last."""
    picked = np.unique(np.linspace(0, part.rows - 1, min(part.rows, SAMPLE_ROWS)).astype(np.int64)) + part.first_row
    return _row_problems(reader, stream, part, picked)[0]


def _row_problems(
    reader: ShardReader, stream: int, part: PartEntry, rows: np.ndarray
) -> tuple[list[Finding], np.ndarray, dict[str, np.ndarray]]:
    """Check rows; return findings, their tokens and counts per row."""
    manifest = reader.manifest
    tokens = np.empty((len(rows), manifest.sequence_length), dtype=reader.dtype)
    reader.read_rows(stream, rows, tokens)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= manifest.tokenizer.vocab_size or high > part.max_token_id:
        known = f"the part's largest is {part.max_token_id}, the vocabulary has {manifest.tokenizer.vocab_size}"
        return [Finding(part.path + ".bin", f"ids {low}..{high}; {known}")], tokens, {}
    try:
        segments = reader.segments(stream, rows)
    except IntegrityError as error:
        return [Finding(part.path + ".seg", str(error))], tokens, {}
    problem = segments.problem(manifest.sequence_length)
    if problem:
        return [Finding(part.path + ".seg", problem)], tokens, {}
    counts = {
        "loss_tokens": segments.loss_tokens,
        "padding_tokens": segments.padding_tokens,
        "num_docs": segments.num_docs,
        "documents": segments.row_sums((segments.flags & 1).astype(np.int64)),
    }
    wrong = [
        row for row in np.flatnonzero(counts["padding_tokens"]).tolist() if _bad_padding(manifest, tokens, counts, row)
    ]
    if wrong:
        return [Finding(part.path + ".bin", f"padding of row {rows[wrong[0]]} holds other ids")], tokens, counts
    return [], tokens, counts


def _bad_padding(manifest: ShardManifest, tokens: np.ndarray, counts: dict[str, np.ndarray], row: int) -> bool:
    first = manifest.sequence_length - int(counts["padding_tokens"][row])
    return bool((tokens[row, first:] != manifest.tokenizer.pad_id).any())


def _hash_problems(_reader: ShardReader, root: Path, _stream: int, part: PartEntry) -> list[Finding]:
    """L2 of one part."""
    findings = []
    for suffix, entry in part.files.items():
        digest = _xxh3_of(root / (part.path + suffix), entry.num_bytes)
        if digest != entry.xxh3_128:
            findings.append(Finding(part.path + suffix, f"xxh3_128 is {digest}, the manifest says {entry.xxh3_128}"))
    return findings


def _xxh3_of(path: Path, num_bytes: int) -> str:
    """Hash a file through short-lived maps: 16 GB/s beside 9 with reads into a buffer and 20 for the bare hash.

    Windows are unmapped before the next one, so memory stays bounded; the size was checked by the level before.
    """
    hasher = xxhash.xxh3_128()
    with path.open("rb") as source:
        for begin in range(0, num_bytes, _WINDOW_BYTES):
            size = min(_WINDOW_BYTES, num_bytes - begin)
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            with mmap.mmap(source.fileno(), size, flags=flags, prot=mmap.PROT_READ, offset=begin) as window:
                hasher.update(window)
    return hasher.hexdigest()


def _audit_problems(reader: ShardReader, root: Path, stream: int, part: PartEntry) -> list[Finding]:
    """L3 of one part."""
    manifest = reader.manifest
    findings: list[Finding] = []
    counted = dict.fromkeys(("tokens", "loss_tokens", "padding_tokens", "documents", "eos_count"), 0)
    largest, per_row = -1, []
    for first in range(part.first_row, part.first_row + part.rows, _AUDIT_ROWS):
        rows = np.arange(first, min(first + _AUDIT_ROWS, part.first_row + part.rows))
        found, tokens, counts = _row_problems(reader, stream, part, rows)
        if found:
            return found
        padding = int(counts["padding_tokens"].sum())
        for name in ("loss_tokens", "padding_tokens", "documents"):
            counted[name] += int(counts[name].sum())
        counted["tokens"] += tokens.size - padding
        counted["eos_count"] += int(np.count_nonzero(tokens == manifest.tokenizer.eos_id))
        counted["eos_count"] -= padding if manifest.tokenizer.eos_id == manifest.tokenizer.pad_id else 0
        largest = max(largest, int(tokens.max()))
        per_row.append(counts)
    for name, value in {**counted, "max_token_id": largest}.items():
        if value != getattr(part, name):
            findings.append(Finding(part.path, f"{name} is {value}, the manifest says {getattr(part, name)}"))
    table = read_rows_table(root / (part.path + ".rows.parquet"))
    findings += [
        Finding(part.path + ".rows.parquet", f"{name} differs from the segments")
        for name in ("loss_tokens", "num_docs")
        if (table[name].to_numpy() != np.concatenate([counts[name] for counts in per_row])).any()
    ]
    if int(table["utf8_bytes"].to_numpy().sum()) != part.utf8_bytes:
        findings.append(Finding(part.path + ".rows.parquet", f"utf8_bytes do not add up to {part.utf8_bytes}"))
    _, lengths, _, _ = decode_idx((root / (part.path + ".idx")).read_bytes(), part.path)
    if (lengths != manifest.sequence_length).any():
        findings.append(Finding(part.path + ".idx", f"a sequence is not {manifest.sequence_length} tokens long"))
    problem = decode_seg((root / (part.path + ".seg")).read_bytes(), part.path).problem(manifest.sequence_length)
    return [*findings, Finding(part.path + ".seg", problem)] if problem else findings
