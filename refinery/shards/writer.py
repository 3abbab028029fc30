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
from collections.abc import Callable, Iterable, Iterator, Mapping
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


@dataclass(frozen=True, slots=True)
class Pieces:
    """Bytes of a file that are made while they are written."""

    num_bytes: int
    pieces: Callable[[], Iterable[memoryview]]


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
    step = max(1, _CHUNK_BYTES // (spec.sequence_length * tokens.itemsize))
    blocks = (
        (tokens[i : i + step], row_bytes[0][i : i + step], row_bytes[1][i : i + step]) for i in range(0, num_rows, step)
    )
    return write_blocks(folder, name, blocks, segments, spec)


Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows: token ids (B, L), utf8_bytes int64 (B,), loss_bytes int64 (B,)."""


def write_blocks(folder: Path, name: str, blocks: Iterable[Block], segments: Segments, spec: ShardSpec) -> PartEntry:
    """Write a shard part whose rows are made block by block: memory holds one block, not the part.

    Args:
        folder: folder of the stream; made if it is missing.
        name: ``part-00000``.
        blocks: rows in order, all rows of `segments` together.
        segments: documents inside the rows.
        spec: row length and vocabulary.
    Returns: as `write_shard`.
    Raises: as `write_shard`; no file is left.
    """
    num_rows = segments.num_rows
    if num_rows == 0 or num_rows * spec.sequence_length >= _MAX_PART_TOKENS:
        raise ConfigError(f"a part of {num_rows:,} rows: 1 to {(_MAX_PART_TOKENS - 1) // spec.sequence_length:,} go in")
    problem = segments.problem(spec.sequence_length)
    if problem:
        raise IntegrityError(f"segments cannot be written: {problem}")
    counted = _Counted(segments, spec, name)
    contents: dict[str, memoryview | Pieces] = {
        ".bin": Pieces(num_rows * spec.sequence_length * spec.dtype.itemsize, lambda: counted.checked(blocks)),
        ".rows.parquet": Pieces(0, lambda: [memoryview(encode_rows(segments, *counted.row_bytes()))]),
        ".seg": memoryview(encode_seg(segments)),
        ".idx": memoryview(encode_idx(num_rows, spec.sequence_length, spec.dtype)),
    }
    hashes = write_together(folder, name, contents, last=".bin")
    padding_tokens = int(segments.padding_tokens.sum())
    return PartEntry(
        path=name,
        first_row=0,
        rows=num_rows,
        tokens=num_rows * spec.sequence_length - padding_tokens,
        loss_tokens=int(segments.loss_tokens.sum()),
        padding_tokens=padding_tokens,
        documents=int(np.count_nonzero(segments.flags & 1)),
        utf8_bytes=int(counted.row_bytes()[0].sum()),
        max_token_id=counted.max_token_id,
        eos_count=counted.eos_count - (padding_tokens if spec.eos_id == spec.pad_id else 0),
        files={suffix: hashes[suffix] for suffix in SUFFIXES},
    )


class _Counted:
    """Checks and counts rows on their way to disk."""

    def __init__(self, segments: Segments, spec: ShardSpec, name: str) -> None:
        self._padding, self._spec, self._name = segments.padding_tokens, spec, name
        self._bytes: list[tuple[np.ndarray, np.ndarray]] = []
        self.max_token_id, self.eos_count, self._rows = -1, 0, 0

    def checked(self, blocks: Iterable[Block]) -> Iterator[memoryview]:
        """Yield the bytes of each block. Raises: SchemaError, IntegrityError: as `write_shard`."""
        length = self._spec.sequence_length
        for tokens, utf8_bytes, loss_bytes in blocks:
            first, self._rows = self._rows, self._rows + len(tokens)
            if tokens.ndim != 2 or tokens.shape[1] != length or self._rows > len(self._padding):
                raise SchemaError(
                    f"{self._name}: rows {first}..{self._rows - 1} have shape {tokens.shape}; {len(self._padding)} of "
                    f"{length} are due"
                )
            self.max_token_id = max(self.max_token_id, _check_ids(tokens, self._spec, self._name))
            _check_padding(tokens, self._padding[first : self._rows], self._spec.pad_id, self._name, first)
            self.eos_count += int(np.count_nonzero(tokens == self._spec.eos_id))
            self._bytes.append((utf8_bytes, loss_bytes))
            yield np.ascontiguousarray(tokens, dtype=self._spec.dtype).reshape(-1).data.cast("B")
        if self._rows != len(self._padding):
            raise SchemaError(f"{self._name}: {self._rows} rows came, {len(self._padding)} are due")

    def row_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return utf8_bytes and loss_bytes of all rows."""
        utf8_bytes, loss_bytes = zip(*self._bytes, strict=True)
        return np.concatenate(utf8_bytes), np.concatenate(loss_bytes)


def write_together(
    folder: Path, name: str, contents: Mapping[str, memoryview | Pieces], last: str = ""
) -> dict[str, FileHash]:
    """Write several files that belong together: all temporary names first, then the renames.

    Args:
        folder: made if it is missing.
        name: of the files without suffix.
        contents: bytes by suffix, written and renamed in this order.
        last: suffix that is renamed last, whenever it was written.
    Raises: TransientError: no space left. Other errors pass. In every case nothing of this call remains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attempt = f"tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = {suffix: folder / f".{name}{suffix}.{attempt}" for suffix in contents}
    renamed: list[Path] = []
    try:
        hashes = {suffix: _write_synced(temporary[suffix], data) for suffix, data in contents.items()}
        for suffix in sorted(temporary, key=lambda suffix: suffix == last):
            final = folder / f"{name}{suffix}"
            temporary[suffix].replace(final)
            renamed.append(final)
        sync_folder(folder)
    except BaseException as error:
        for path in (*renamed, *temporary.values()):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = sum(d.num_bytes if isinstance(d, Pieces) else len(d) for d in contents.values())
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


def _write_synced(path: Path, data: memoryview | Pieces) -> FileHash:
    """Write, hash and sync one file."""
    sha256, xxh3, num_bytes = hashlib.sha256(), xxhash.xxh3_128(), 0
    with path.open("xb", buffering=0) as sink:
        for piece in [data] if isinstance(data, memoryview) else data.pieces():
            num_bytes += len(piece)
            for begin in range(0, len(piece), _CHUNK_BYTES):
                chunk = piece[begin : begin + _CHUNK_BYTES]
                sha256.update(chunk)
                xxh3.update(chunk)
                while len(chunk):  # a raw write may be short
                    chunk = chunk[sink.write(chunk) :]
        os.fsync(sink.fileno())
    return FileHash(num_bytes=num_bytes, sha256=sha256.hexdigest(), xxh3_128=xxh3.hexdigest())


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
    return num_rows


def _check_ids(tokens: np.ndarray, spec: ShardSpec, name: str) -> int:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= spec.vocab_size or not 0 <= spec.pad_id < spec.vocab_size:
        raise IntegrityError(
            f"{name}: ids {low}..{high}, padding {spec.pad_id}; the vocabulary has 0..{spec.vocab_size - 1}: "
            "was another tokenizer used?"
        )
    return high


def _check_padding(tokens: np.ndarray, padding: np.ndarray, pad_id: int, name: str, first: int) -> None:
    for row in np.flatnonzero(padding):
        if (tokens[row, tokens.shape[1] - padding[row] :] != pad_id).any():
            raise IntegrityError(f"{name}: the padding of row {first + row} holds ids other than {pad_id}")


def write_manifest(root: Path, manifest: ShardManifest) -> Path:
    """Commit a data set: ``manifest.sha256``, then ``manifest.json``, each synced and renamed. Call it last."""
    data = manifest_bytes(manifest)
    checksum = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n".encode()
    write_together(root, "manifest", {".sha256": memoryview(checksum), ".json": memoryview(data)})
    return root / MANIFEST_NAME
