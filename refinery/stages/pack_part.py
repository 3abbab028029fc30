"""One shard part from the token ids of its documents, row block by row block.

The ids of a part arrive from the shuffle as Arrow chunks. They are not sorted, joined or copied: rows are gathered
from the chunks in blocks and go to disk as they come, so a task holds the ids once and a few blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from refinery.kernels.packing import PackPlan, TokenChunks, plan_rows, row_range_bytes, write_row_range
from refinery.kernels.text import text_views
from refinery.shards.format import Segments
from refinery.shards.manifest import PartEntry
from refinery.shards.writer import Block, ShardSpec, write_blocks

_BLOCK_BYTES = 16 << 20


class PackedPart(NamedTuple):
    """What was written of one part."""

    entry: PartEntry
    documents_cut: int
    dropped_tokens: int
    concat_rows: int
    """Rows that `concat` would need for the same tokens."""


def pack_part(
    target: tuple[Path, str], ids: pa.ChunkedArray, doc_hash: np.ndarray, token_bytes: np.ndarray, spec: ShardSpec,
    policy: str,
) -> PackedPart:  # fmt: skip
    """Lay documents into rows and write the files of one part; the result does not depend on their order.

    Args:
        target: folder of the stream and name of the part.
        ids: binary, one value per document: its token ids in the dtype of the data set, little-endian.
        doc_hash: uint64, shape (D,): first 64 bits of each `doc_key`.
        token_bytes: int64, shape (vocab_size,): UTF-8 bytes behind each id.
        spec: row length, vocabulary, special ids.
        policy: as `plan_rows` takes it.
    Raises: as `write_blocks`.
    """
    documents, lengths = _documents(ids, spec.dtype)
    plan = plan_rows(lengths, doc_hash, spec.sequence_length, policy)
    segments = Segments(plan.row_ptr, plan.segment_hashes(doc_hash), plan.length, plan.flags)
    entry = write_blocks(*target, _blocks(plan, documents, token_bytes.astype(np.int32), spec), segments, spec)
    concat_rows = -(-int(lengths.sum()) // spec.sequence_length)
    return PackedPart(entry, plan.num_docs_cut, plan.dropped_tokens, concat_rows)


def _documents(ids: pa.ChunkedArray, dtype: np.dtype) -> tuple[TokenChunks, np.ndarray]:
    """Return where each document lies, and its length in tokens."""
    tokens, first, lengths = [], [], []
    for chunk in ids.chunks:
        views = text_views(chunk)
        tokens.append(np.frombuffer(views.data, dtype=dtype))
        offsets = views.offsets // dtype.itemsize
        first.append(offsets[:-1])
        lengths.append(np.diff(offsets))
    chunk_of = np.repeat(np.arange(len(tokens), dtype=np.int64), [len(part) for part in first])
    return TokenChunks(tokens, chunk_of, np.concatenate(first)), np.concatenate(lengths)


def _blocks(plan: PackPlan, documents: TokenChunks, token_bytes: np.ndarray, spec: ShardSpec) -> Iterator[Block]:
    step = max(1, _BLOCK_BYTES // (spec.sequence_length * spec.dtype.itemsize))
    buffer = np.empty((min(step, plan.num_rows), spec.sequence_length), dtype=spec.dtype)
    for begin in range(0, plan.num_rows, step):
        rows = range(begin, min(begin + step, plan.num_rows))
        out = buffer[: len(rows)]
        write_row_range(plan, rows, documents, spec.pad_id, out)
        yield (out, *row_range_bytes(plan, rows, out, token_bytes))
