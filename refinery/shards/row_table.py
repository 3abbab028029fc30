"""``NAME.rows.parquet``: one line of numbers per row, for reports and for bits per byte.

Columns: row int64, loss_tokens int32, utf8_bytes int64, loss_bytes int64, num_docs int32. `utf8_bytes` is the text
behind all document tokens of the row, `loss_bytes` that behind the predicted ones. Apart from `reader`, because this is
the only part of a shard that needs pyarrow.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinery.shards.format import Segments

ROWS_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("loss_tokens", pa.int32(), nullable=False),
        pa.field("utf8_bytes", pa.int64(), nullable=False),
        pa.field("loss_bytes", pa.int64(), nullable=False),
        pa.field("num_docs", pa.int32(), nullable=False),
    ]
)


def encode_rows(segments: Segments, utf8_bytes: np.ndarray, loss_bytes: np.ndarray) -> bytes:
    """Return the bytes of ``.rows.parquet`` for R rows."""
    columns = (
        np.arange(segments.num_rows, dtype=np.int64),
        segments.loss_tokens.astype(np.int32),
        utf8_bytes.astype(np.int64),
        loss_bytes.astype(np.int64),
        segments.num_docs.astype(np.int32),
    )
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=ROWS_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_rows_table(path: Path) -> pa.Table:
    """Read one ``.rows.parquet`` file."""
    return pq.read_table(path, schema=ROWS_SCHEMA)
