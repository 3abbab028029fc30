"""Write one shard part: four files that appear together or not at all.

Files are written under temporary names, synced, and renamed only when all four are complete; ``.bin`` is renamed last.
A killed or failed writer leaves temporary files at most (`sweep_temporary` removes them), never a final name with
partial bytes. Parts are committed by the manifest, which is written last of all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from refinery.errors import ConfigError, IntegrityError, SchemaError, TransientError
from refinery.shards.format import SUFFIXES, Segments, encode_idx, encode_seg, token_dtype
from refinery.shards.manifest import MANIFEST_NAME, FileHash, PartEntry, ShardManifest, manifest_bytes
from refinery.shards.row_table import encode_rows

_CHUNK_BYTES = 8 << 20
_MAX_PART_TOKENS = 2**31
"""Readers that count tokens of a file in int32 exist (Megatron-LM#1056): parts stay below by policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """What all parts of a data set share."""

    sequence_length: int
    vocab_size: int
    eos_id: int
    """Id that ends a document; -1 if documents carry no end token."""
    pad_id: int
    """Id that fills padding; may equal `eos_id`."""

    @property
    def dtype(self) -> np.dtype:
        """Token dtype on disk."""
        return token_dtype(self.vocab_size)


def write_shard(
    folder: Path,
    name: str,
    tokens: np.ndarray,
    segments: Segments,
    row_bytes: tuple[np.ndarray, np.ndarray],
    spec: ShardSpec,
) -> PartEntry:
    """Write ``folder/name.{bin,idx,seg,rows.parquet}``.

    Args:
        folder: folder of the stream; made if it is missing.
        name: ``part-00000``.
        tokens: ids, any integer dtype, shape (R, L).
        segments: documents inside the rows.
        row_bytes: (utf8_bytes, loss_bytes), int64, shape (R,) each.
        spec: row length and vocabulary.
    Returns: the part's entry for the manifest, path relative to `folder`.
    Raises: SchemaError: shapes disagree. IntegrityError: an id outside the vocabulary, segments that do not tile,
        padding that does not hold `pad_id`. TransientError: the disk is full. In every case no final file is left.
    """
    num_rows = _checked_rows(tokens, segments, row_bytes, spec)
    max_token_id = _check_ids(tokens, spec, name)
    padding = segments.padding_tokens
    padding_tokens = int(padding.sum())
    _check_padding(tokens, padding, spec.pad_id, name)
    eos_count = int(np.count_nonzero(tokens == spec.eos_id))
    eos_count -= padding_tokens if spec.eos_id == spec.pad_id else 0
    body = np.ascontiguousarray(tokens, dtype=spec.dtype)
    contents = {
        ".rows.parquet": memoryview(encode_rows(segments, *row_bytes)),
        ".seg": memoryview(encode_seg(segments)),
        ".idx": memoryview(encode_idx(num_rows, spec.sequence_length, spec.dtype)),
        ".bin": body.reshape(-1).data.cast("B"),
    }
    hashes = write_together(folder, name, contents)
    return PartEntry(
        path=name,
        first_row=0,
        rows=num_rows,
        tokens=num_rows * spec.sequence_length - padding_tokens,
        loss_tokens=int(segments.loss_tokens.sum()),
        padding_tokens=padding_tokens,
        documents=int(np.count_nonzero(segments.flags & 1)),
        utf8_bytes=int(row_bytes[0].sum()),
        max_token_id=max_token_id,
        eos_count=eos_count,
        files={suffix: hashes[suffix] for suffix in SUFFIXES},
    )


def write_together(folder: Path, name: str, contents: dict[str, memoryview]) -> dict[str, FileHash]:
    """Write several files that belong together: all temporary names first, then the renames in the order given.

    Raises: TransientError: no space left; nothing final remains. Other OSErrors pass, with the same promise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attempt = f"tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = {suffix: folder / f".{name}{suffix}.{attempt}" for suffix in contents}
    renamed: list[Path] = []
    try:
        hashes = {suffix: _write_synced(temporary[suffix], data) for suffix, data in contents.items()}
        for suffix, path in temporary.items():
            final = folder / f"{name}{suffix}"
            path.replace(final)
            renamed.append(final)
        sync_folder(folder)
    except OSError as error:
        for path in (*renamed, *temporary.values()):
            path.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = sum(len(data) for data in contents.values())
            raise TransientError(
                f"{folder / name}: no space left; this part needs {needed:,} bytes: free some and run again"
            ) from error
        raise
    return hashes


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep_temporary(root: Path) -> int:
    """Remove temporary files that killed writers left under `root`; hold its lock. Returns how many."""
    stale = [path for path in root.rglob(".*.tmp-*") if path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


@contextlib.contextmanager
def lock_folder(root: Path) -> Iterator[None]:
    """Hold a data set folder for one writing run; the system frees the lock when the process dies.

    Raises: ConfigError: another process writes there.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 64, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"{root}: process {owner or 'unknown'} is writing there: wait for it, or choose another folder"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _write_synced(path: Path, data: memoryview) -> FileHash:
    """Write, hash and sync one file."""
    sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
    with path.open("xb", buffering=0) as sink:
        for begin in range(0, len(data), _CHUNK_BYTES):
            chunk = data[begin : begin + _CHUNK_BYTES]
            sha256.update(chunk)
            xxh3.update(chunk)
            while len(chunk):  # a raw write may be short
                chunk = chunk[sink.write(chunk) :]
        os.fsync(sink.fileno())
    return FileHash(num_bytes=len(data), sha256=sha256.hexdigest(), xxh3_128=xxh3.hexdigest())


def _checked_rows(
    tokens: np.ndarray, segments: Segments, row_bytes: tuple[np.ndarray, np.ndarray], spec: ShardSpec
) -> int:
    if tokens.ndim != 2 or tokens.shape[1] != spec.sequence_length or tokens.shape[0] == 0:
        raise SchemaError(f"rows have shape {tokens.shape}; (rows >= 1, {spec.sequence_length}) is needed")
    if tokens.dtype.kind not in "iu":
        raise SchemaError(f"token ids are {tokens.dtype}; an integer dtype is needed")
    num_rows = tokens.shape[0]
    if segments.num_rows != num_rows or len(row_bytes[0]) != num_rows or len(row_bytes[1]) != num_rows:
        raise SchemaError(
            f"{num_rows} rows of tokens, {segments.num_rows} of segments, {len(row_bytes[0])} and {len(row_bytes[1])} "
            "byte counts: they must agree"
        )
    if tokens.size >= _MAX_PART_TOKENS:
        raise ConfigError(f"a part of {tokens.size:,} tokens passes {_MAX_PART_TOKENS - 1:,}: use more parts")
    problem = segments.problem(spec.sequence_length)
    if problem:
        raise IntegrityError(f"segments cannot be written: {problem}")
    return num_rows


def _check_ids(tokens: np.ndarray, spec: ShardSpec, name: str) -> int:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= spec.vocab_size or not 0 <= spec.pad_id < spec.vocab_size:
        raise IntegrityError(
            f"{name}: ids {low}..{high}, padding {spec.pad_id}; the vocabulary has 0..{spec.vocab_size - 1}: "
            "was another tokenizer used?"
        )
    return high


def _check_padding(tokens: np.ndarray, padding: np.ndarray, pad_id: int, name: str) -> None:
    for row in np.flatnonzero(padding):
        if (tokens[row, tokens.shape[1] - padding[row] :] != pad_id).any():
            raise IntegrityError(f"{name}: the padding of row {row} holds ids other than {pad_id}")


def write_manifest(root: Path, manifest: ShardManifest) -> Path:
    """Commit a data set: ``manifest.sha256``, then ``manifest.json``, each synced and renamed. Call it last."""
    data = manifest_bytes(manifest)
    checksum = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n".encode()
    write_together(root, "manifest", {".sha256": memoryview(checksum), ".json": memoryview(data)})
    return root / MANIFEST_NAME
