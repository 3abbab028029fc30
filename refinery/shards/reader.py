"""Read rows of a data set by stream or by plan, into the caller's buffers.

``pread`` and not mmap: mapped pages count as the process's memory until the machine kills it (nanoGPT#287). A row of
4,096 uint16 tokens is one call of 8 KiB; rows that follow each other in file and buffer are read in one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.files import LocalFiles, ShardFiles
from refinery.shards.format import SEG_HEADER, Segments, decode_seg_header, next_token_labels, token_dtype
from refinery.shards.manifest import PartEntry, ShardManifest, Stream
from refinery.shards.order import RowRefs, rows_for, slot_permutation
from refinery.shards.plan import MixPlan

MAX_OPEN_FILES = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step, or one rank's part of it; B rows of L tokens."""

    k: np.ndarray
    """int64, shape (B,): global row index in the plan."""
    refs: RowRefs
    """Stream, epoch and row inside the stream, shape (B,) each."""
    tokens: np.ndarray
    """uint16 or int32, shape (B, L)."""
    segments: Segments
    """Documents inside these rows: lengths and hashes."""

    def labels(self) -> np.ndarray:
        """Return int64 labels, shape (B, L), IGNORE_INDEX where nothing is predicted."""
        return next_token_labels(self.tokens, self.segments)


class ShardReader:
    """Row access to a data set. Safe for several threads, one read at a time; close it or use it as a context.

    Opening reads nothing: verify the data set first (`verify.verify_dataset`).
    """

    def __init__(
        self,
        root: Path,
        manifest: ShardManifest,
        max_open_files: int = MAX_OPEN_FILES,
        locate: Callable[[str], Path] | None = None,
        files: ShardFiles | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            root: folder of the manifest.
            manifest: from `load_manifest`.
            max_open_files: handles kept open; the least recently used one is closed.
            locate: turns a path relative to the manifest into a local file; for data that lies elsewhere.
            files: where bytes come from instead; `remote.open_remote` gives those of an object store.
        """
        self.manifest = manifest
        self.dtype = token_dtype(manifest.tokenizer.vocab_size)
        self._files = files or LocalFiles(locate or (lambda relative: root / relative), max_open_files)
        self._seg_sizes: dict[str, tuple[int, int]] = {}
        self._first_rows = [np.array([part.first_row for part in stream.parts]) for stream in manifest.streams]
        self._lock = threading.RLock()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all file handles; the next read opens them again."""
        with self._lock:
            self._files.close()

    def stream_index(self, name: str) -> int:
        """Return the index of a stream by name. Raises: ConfigError: there is none."""
        return self.manifest.streams.index(self.manifest.stream(name))

    def read_rows(self, stream_index: int, rows: np.ndarray, out: np.ndarray, slots: np.ndarray | None = None) -> None:
        """Read rows of a stream into ``out``.

        Args:
            stream_index: index into the manifest's streams.
            rows: row numbers inside the stream, shape (N,).
            out: C-contiguous, dtype of the data set, shape (>= N, L).
            slots: place of each row in `out`, shape (N,); 0..N-1 if not given.
        Raises: ConfigError: rows outside the stream, a buffer of another shape or dtype. IntegrityError: a file is
            missing or shorter than the manifest says.
        """
        self._check_buffer(out, len(rows) if slots is None else int(slots.max(initial=-1)) + 1)
        slots = np.arange(len(rows)) if slots is None else slots
        row_bytes = self.manifest.row_bytes
        target = out.reshape(-1).data.cast("B")
        with self._lock:
            for part, first, slot, count in self._runs(stream_index, rows, slots):
                piece = target[slot * row_bytes : (slot + count) * row_bytes]
                self._read_exactly(part.path + ".bin", (first - part.first_row) * row_bytes, piece)

    def segments(self, stream_index: int, rows: np.ndarray) -> Segments:
        """Return the documents inside rows of a stream, in the order of `rows`."""
        pointers, hashes, lengths, flags = [b""], [b""], [b""], [b""]
        ends = [-1]  # last pointer of each run: what follows it belongs to another place
        with self._lock:
            for part, first, _, count in self._runs(stream_index, rows, np.arange(len(rows))):
                for column, data in zip(
                    (pointers, hashes, lengths, flags),
                    self._read_segments(part, first - part.first_row, count),
                    strict=True,
                ):
                    column.append(data)
                ends.append(ends[-1] + count + 1)
        counts = np.delete(np.diff(np.frombuffer(b"".join(pointers), "<i8")), ends[1:-1])
        row_ptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=row_ptr[1:])
        return Segments(
            row_ptr,
            np.frombuffer(b"".join(hashes), "<u8"),
            np.frombuffer(b"".join(lengths), "<i4"),
            np.frombuffer(b"".join(flags), "u1"),
        )

    def batch(
        self,
        plan: MixPlan,
        k0: int,
        count: int,
        slots: slice | np.ndarray = slice(None),
        out: np.ndarray | None = None,
    ) -> Batch:
        """Read rows k0 .. k0 + count - 1 of a plan: one step.

        Args:
            plan: made for this data set.
            k0: first global row of the step.
            count: rows of the whole step, over all ranks.
            slots: which slots of the step to read: a rank passes ``slice(rank, None, world_size)``. Slots are the rows
                in the order of `order.slot_permutation`, so every split of them is a fair mix.
            out: buffer for the tokens (pinned memory, say), as `read_rows` takes it; a new array if not given. The
                batch holds a view of it, so with read-ahead of n batches rotate n + 2 buffers.
        """
        k = k0 + slot_permutation(plan.seed, k0, count)[slots]
        refs = rows_for(plan, self.manifest, k0, count)
        refs = RowRefs(*(column[k - k0] for column in refs))
        if out is None:
            out = np.empty((len(k), self.manifest.sequence_length), dtype=self.dtype)
        tokens = out[: len(k)]
        gathered: list[tuple[np.ndarray, Segments]] = []
        for stream_index in np.unique(refs.stream_index):
            places = np.flatnonzero(refs.stream_index == stream_index)
            places = places[np.argsort(refs.row[places])]  # ascending offsets are kinder to disks
            self.read_rows(int(stream_index), refs.row[places], tokens, places)
            gathered.append((places, self.segments(int(stream_index), refs.row[places])))
        return Batch(k, refs, tokens, _scatter_segments(gathered, len(k)))

    def _check_buffer(self, out: np.ndarray, num_rows: int) -> None:
        wrong_shape = out.ndim != 2 or out.shape[1] != self.manifest.sequence_length
        if wrong_shape or out.dtype != self.dtype or not out.flags.c_contiguous or len(out) < num_rows:
            raise ConfigError(
                f"a buffer of {out.dtype} {out.shape} cannot take rows: C-contiguous {self.dtype} "
                f"(>= {num_rows}, {self.manifest.sequence_length}) is needed"
            )

    def _runs(
        self, stream_index: int, rows: np.ndarray, slots: np.ndarray
    ) -> Iterator[tuple[PartEntry, int, int, int]]:
        """Yield (part, first row of the stream, first slot, count) for rows that lie together in file and buffer."""
        stream: Stream = self.manifest.streams[stream_index]
        if len(rows) == 0:
            return
        if int(rows.min()) < 0 or int(rows.max()) >= stream.rows:
            raise ConfigError(f"rows {int(rows.min())}..{int(rows.max())} of {stream.name}: it has {stream.rows}")
        parts = np.searchsorted(self._first_rows[stream_index], rows, side="right") - 1
        together = (np.diff(rows) == 1) & (np.diff(slots) == 1) & (np.diff(parts) == 0)
        begins = np.concatenate(([0], np.flatnonzero(~together) + 1, [len(rows)]))
        first, slot, part = rows[begins[:-1]].tolist(), slots[begins[:-1]].tolist(), parts[begins[:-1]].tolist()
        for i, count in enumerate(np.diff(begins).tolist()):
            yield stream.parts[part[i]], first[i], slot[i], count

    def _read_exactly(self, relative: str, offset: int, target: memoryview) -> None:
        done = self._files.read_into(relative, offset, target)
        if done < len(target):
            raise IntegrityError(
                f"{relative}: ends at byte {offset + done}, {len(target) - done} bytes too early: "
                "truncated; restore it or pack again"
            )

    def _read(self, relative: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes."""
        buffer = bytearray(size)
        return bytes(buffer[: self._files.read_into(relative, offset, memoryview(buffer))])

    def _read_segments(self, part: PartEntry, first: int, count: int) -> tuple[bytes, bytes, bytes, bytes]:
        """Read row_ptr, doc_hash, seg_len and flags of rows that follow each other."""
        relative = part.path + ".seg"
        if relative not in self._seg_sizes:
            self._seg_sizes[relative] = decode_seg_header(self._read(relative, 0, SEG_HEADER.size), relative)
        num_rows, num_segments = self._seg_sizes[relative]
        if num_rows != part.rows:
            raise IntegrityError(f"{relative}: {num_rows} rows, the manifest says {part.rows}: pack again")
        row_ptr = self._read(relative, SEG_HEADER.size + 8 * first, 8 * (count + 1))
        begin, end = int.from_bytes(row_ptr[:8], "little"), int.from_bytes(row_ptr[-8:], "little")
        if len(row_ptr) != 8 * (count + 1) or not 0 <= begin <= end <= num_segments:
            raise IntegrityError(f"{relative}: row {first} points at segment {begin} of {num_segments}: pack again")
        size, hashes = end - begin, SEG_HEADER.size + 8 * (num_rows + 1)
        doc_hash = self._read(relative, hashes + 8 * begin, 8 * size)
        seg_len = self._read(relative, hashes + 8 * num_segments + 4 * begin, 4 * size)
        flags = self._read(relative, hashes + 12 * num_segments + begin, size)
        if len(doc_hash) + len(seg_len) + len(flags) != 13 * size:
            raise IntegrityError(f"{relative}: ends inside row {first}: truncated; restore it or pack again")
        return row_ptr, doc_hash, seg_len, flags


def _scatter_segments(gathered: list[tuple[np.ndarray, Segments]], num_rows: int) -> Segments:
    """Bring the segments of several streams into the order of the batch."""
    counts = np.zeros(num_rows, dtype=np.int64)
    for places, piece in gathered:
        counts[places] = np.diff(piece.row_ptr)
    row_ptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    doc_hash = np.empty(int(row_ptr[-1]), dtype=np.uint64)
    seg_len = np.empty(int(row_ptr[-1]), dtype=np.int32)
    flags = np.empty(int(row_ptr[-1]), dtype=np.uint8)
    for places, piece in gathered:
        shift = np.repeat(row_ptr[places] - piece.row_ptr[:-1], np.diff(piece.row_ptr))
        target = np.arange(len(piece.seg_len)) + shift
        doc_hash[target], seg_len[target], flags[target] = piece.doc_hash, piece.seg_len, piece.flags
    return Segments(row_ptr, doc_hash, seg_len, flags)
