r"""Bytes of one shard part: ``.bin`` (tokens), ``.idx`` (Megatron index), ``.seg`` (documents inside each row).

All integers are little-endian. R rows, L tokens in a row, S segments, V vocabulary.

``NAME.bin``: R * L token ids, no header; uint16 if V < 65,500, else int32. Row r begins at byte r * L * itemsize.

``NAME.idx``, Megatron's IndexedDataset index with sequence = row = document (round trip tested):

    offset              type        content
    0                   9 bytes     b"MMIDIDX\0\0"
    9                   u64         1, version
    17                  u8          8 for uint16, 4 for int32
    18                  u64         R, sequences
    26                  u64         R + 1, entries of the document index
    34                  i32[R]      sequence lengths in tokens, all L
    34 + 4 R            i64[R]      byte offset of each sequence in .bin
    34 + 12 R           i64[R + 1]  document index 0..R

``NAME.seg``, documents inside rows (64-bit arrays first, so every array is aligned to its own width):

    offset              type        content
    0                   8 bytes     b"RFNSEG1\0"
    8                   u64         R
    16                  u64         S
    24                  i64[R + 1]  row_ptr: segments of row r are row_ptr[r]..row_ptr[r + 1] - 1
    32 + 8 R            u64[S]      doc_hash: first 64 bits of doc_key; 0 for padding
    32 + 8 R + 8 S      i32[S]      seg_len in tokens, > 0; the segments of a row add up to L
    32 + 8 R + 12 S     u8[S]       flags: 1 starts its document, 2 ends its document, 4 padding (last in its row)

Rows hold L tokens, not L + 1: labels are the next token of the same segment, and IGNORE_INDEX at the last token of
each segment and in padding. That costs 1 / L of the predictions and keeps rows aligned for kernels and for Megatron.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError, IntegrityError

STARTS_DOCUMENT = 1
ENDS_DOCUMENT = 2
PADDING = 4
IGNORE_INDEX = -100
"""Label of a position that is not predicted (PyTorch's default for cross-entropy)."""

IDX_MAGIC = b"MMIDIDX\x00\x00"
IDX_HEADER = struct.Struct("<9sQBQQ")
SEG_MAGIC = b"RFNSEG1\x00"
SEG_HEADER = struct.Struct("<8sQQ")
UINT16_VOCAB_BOUND = 65_500
"""Megatron's `optimal_dtype` writes uint16 below this vocabulary size."""
DTYPE_CODES = {"uint16": 8, "int32": 4}
MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
SUFFIXES = (".bin", ".idx", ".seg", ".rows.parquet")


class IndexHeader(NamedTuple):
    """First 34 bytes of an ``.idx`` file."""

    dtype_code: int
    num_sequences: int
    num_document_entries: int

    @property
    def num_bytes(self) -> int:
        """Size that the whole ``.idx`` file must have."""
        return IDX_HEADER.size + 12 * self.num_sequences + 8 * self.num_document_entries


@dataclass(frozen=True, slots=True)
class Segments:
    """Documents inside R rows; arrays as in ``.seg``."""

    row_ptr: np.ndarray
    """int64, shape (R + 1,)."""
    doc_hash: np.ndarray
    """uint64, shape (S,)."""
    seg_len: np.ndarray
    """int32, shape (S,), tokens."""
    flags: np.ndarray
    """uint8, shape (S,)."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.row_ptr) - 1

    @property
    def is_padding(self) -> np.ndarray:
        """bool, shape (S,)."""
        return (self.flags & PADDING) != 0

    def row(self, index: int) -> slice:
        """Return the slice of the segments of one row."""
        return slice(int(self.row_ptr[index]), int(self.row_ptr[index + 1]))

    def row_sums(self, amount: np.ndarray) -> np.ndarray:
        """Add up an integer per segment, shape (S,), to int64 per row, shape (R,)."""
        total = np.zeros(len(amount) + 1, dtype=np.int64)
        np.cumsum(amount, out=total[1:])
        return total[self.row_ptr[1:]] - total[self.row_ptr[:-1]]

    @property
    def loss_tokens(self) -> np.ndarray:
        """int64, shape (R,): positions whose next token is in the same document segment."""
        return self.row_sums(np.where(self.is_padding, 0, self.seg_len - 1))

    @property
    def padding_tokens(self) -> np.ndarray:
        """int64, shape (R,)."""
        return self.row_sums(np.where(self.is_padding, self.seg_len, 0))

    @property
    def num_docs(self) -> np.ndarray:
        """int64, shape (R,): documents that lie in the row, whole or in part."""
        return self.row_sums((~self.is_padding).astype(np.int64))

    def problem(self, sequence_length: int) -> str:
        """Say what breaks the rules of the format; the empty string if nothing does."""
        shapes = {len(self.doc_hash), len(self.seg_len), len(self.flags)}
        if len(self.row_ptr) < 1 or len(shapes) != 1:
            return f"arrays disagree about the number of segments: {sorted(shapes)}"
        if int(self.row_ptr[0]) != 0 or int(self.row_ptr[-1]) != len(self.seg_len) or (np.diff(self.row_ptr) < 1).any():
            return "row_ptr does not rise from 0 to the number of segments with at least one segment in every row"
        if len(self.seg_len) and int(self.seg_len.min()) < 1:
            return f"a segment has {int(self.seg_len.min())} tokens; the least is 1"
        wrong = np.flatnonzero(self.row_sums(self.seg_len) != sequence_length)
        if len(wrong):
            return f"segments of row {wrong[0]} do not add up to {sequence_length} tokens"
        padding = np.flatnonzero(self.is_padding)
        if len(padding) and not np.isin(padding + 1, self.row_ptr[1:]).all():
            return "padding is not the last segment of its row"
        if len(padding) and ((self.flags[padding] != PADDING).any() or self.doc_hash[padding].any()):
            return "padding carries a document hash or document flags"
        return ""


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype of token ids on disk: uint16 below 65,500 ids, else int32."""
    if not 0 < vocab_size <= 2**31 - 1:
        raise ConfigError(f"vocab_size {vocab_size} is outside 1..{2**31 - 1}: name a real tokenizer")
    return np.dtype("<u2") if vocab_size < UINT16_VOCAB_BOUND else np.dtype("<i4")


def encode_idx(num_rows: int, sequence_length: int, dtype: np.dtype) -> bytes:
    """Return the bytes of ``.idx`` for R rows of L tokens."""
    header = IDX_HEADER.pack(IDX_MAGIC, 1, DTYPE_CODES[dtype.name], num_rows, num_rows + 1)
    lengths = np.full(num_rows, sequence_length, dtype="<i4")
    offsets = np.arange(num_rows, dtype="<i8") * (sequence_length * dtype.itemsize)
    documents = np.arange(num_rows + 1, dtype="<i8")
    return b"".join((header, lengths.tobytes(), offsets.tobytes(), documents.tobytes()))


def decode_idx_header(raw: bytes, path: str) -> IndexHeader:
    """Read the header of ``.idx``.

    Raises: IntegrityError: too short, wrong magic, version or dtype code.
    """
    if len(raw) < IDX_HEADER.size:
        raise IntegrityError(f"{path}: {len(raw)} bytes are no .idx header ({IDX_HEADER.size} needed): write it again")
    magic, version, code, sequences, entries = IDX_HEADER.unpack_from(raw)
    if magic != IDX_MAGIC or version != 1 or code not in MEGATRON_DTYPES:
        raise IntegrityError(
            f"{path}: magic {magic!r}, version {version}, dtype code {code}; a Megatron index of version 1 is needed"
        )
    return IndexHeader(code, sequences, entries)


def decode_idx(raw: bytes, path: str) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    """Read a whole ``.idx``, ours or a foreign one without modes.

    Returns: (dtype, lengths int32 (R,), byte offsets int64 (R,), document index int64).
    Raises: IntegrityError: wrong header or size.
    """
    header = decode_idx_header(raw, path)
    if len(raw) != header.num_bytes:
        raise IntegrityError(f"{path}: {len(raw)} bytes, its header promises {header.num_bytes}: write it again")
    position = IDX_HEADER.size
    lengths = np.frombuffer(raw, "<i4", header.num_sequences, position)
    offsets = np.frombuffer(raw, "<i8", header.num_sequences, position + 4 * header.num_sequences)
    documents = np.frombuffer(raw, "<i8", header.num_document_entries, position + 12 * header.num_sequences)
    return np.dtype(MEGATRON_DTYPES[header.dtype_code]), lengths, offsets, documents


def encode_seg(segments: Segments) -> bytes:
    """Return the bytes of ``.seg``."""
    return b"".join(
        (
            SEG_HEADER.pack(SEG_MAGIC, segments.num_rows, len(segments.seg_len)),
            segments.row_ptr.astype("<i8").tobytes(),
            segments.doc_hash.astype("<u8").tobytes(),
            segments.seg_len.astype("<i4").tobytes(),
            segments.flags.astype("u1").tobytes(),
        )
    )


def seg_num_bytes(num_rows: int, num_segments: int) -> int:
    """Return the size of a ``.seg`` file."""
    return SEG_HEADER.size + 8 * (num_rows + 1) + 13 * num_segments


def decode_seg_header(raw: bytes, path: str) -> tuple[int, int]:
    """Return (R, S) of a ``.seg`` file.

    Raises: IntegrityError: too short or wrong magic.
    """
    if len(raw) < SEG_HEADER.size or raw[:8] != SEG_MAGIC:
        raise IntegrityError(f"{path}: begins with {raw[:8]!r}, not with {SEG_MAGIC!r}: no .seg file of version 1")
    _, num_rows, num_segments = SEG_HEADER.unpack_from(raw)
    return num_rows, num_segments


def decode_seg(raw: bytes, path: str) -> Segments:
    """Read a whole ``.seg``.

    Raises: IntegrityError: wrong header or size. Whether segments tile the rows is `Segments.problem`.
    """
    num_rows, num_segments = decode_seg_header(raw, path)
    if len(raw) != seg_num_bytes(num_rows, num_segments):
        raise IntegrityError(
            f"{path}: {len(raw)} bytes, its header promises {seg_num_bytes(num_rows, num_segments)}: write it again"
        )
    hashes = SEG_HEADER.size + 8 * (num_rows + 1)
    return Segments(
        np.frombuffer(raw, "<i8", num_rows + 1, SEG_HEADER.size),
        np.frombuffer(raw, "<u8", num_segments, hashes),
        np.frombuffer(raw, "<i4", num_segments, hashes + 8 * num_segments),
        np.frombuffer(raw, "u1", num_segments, hashes + 12 * num_segments),
    )


def next_token_labels(tokens: np.ndarray, segments: Segments) -> np.ndarray:
    """Return the labels of rows.

    Args:
        tokens: ids, shape (R, L).
        segments: of these rows.
    Returns: int64, shape (R, L): the next token, IGNORE_INDEX where it belongs to another segment and in padding.
    """
    num_rows, sequence_length = tokens.shape
    labels = np.full(num_rows * sequence_length + 1, IGNORE_INDEX, dtype=np.int64)
    labels[:-2] = tokens.reshape(-1)[1:]
    ends = np.cumsum(segments.seg_len, dtype=np.int64)
    labels[ends - 1] = IGNORE_INDEX
    for s in np.flatnonzero(segments.is_padding):
        labels[ends[s] - segments.seg_len[s] : ends[s]] = IGNORE_INDEX
    return labels[:-1].reshape(num_rows, sequence_length)
