"""Count what left a stage, by reason and by every label that a report splits on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

LABELS = ("source", "domain", "role", "lang", "split")
TALLY_COLUMNS = (*LABELS, "num_bytes")


def tally(
    table: pa.Table, entered: np.ndarray | None, reasons: pa.Array | None, tokens: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Count documents, bytes and tokens by outcome and labels.

    Args:
        table: aligned rows with the columns of `TALLY_COLUMNS`.
        entered: bool, shape (rows,): which documents came into the stage; None means all.
        reasons: string array, shape (rows,): why a document was dropped, null if it was kept; None means all kept.
        tokens: int64, shape (rows,): tokens per document, if known.
    Returns: plain rows of `refinery.contracts.manifest.CountRow` fields, sorted.
    """
    if reasons is None:
        reasons = pa.nulls(table.num_rows, pa.string())
    counted = table.select(list(TALLY_COLUMNS)).append_column("reason", reasons)
    counted = counted.append_column(
        "tokens", pa.array(np.zeros(table.num_rows, np.int64) if tokens is None else tokens.astype(np.int64))
    )
    if entered is not None:
        counted = counted.filter(pa.array(entered))
    groups = counted.group_by(["reason", *LABELS]).aggregate(
        [("num_bytes", "sum"), ("tokens", "sum"), ("num_bytes", "count")]
    )
    rows = [
        {
            "kind": "kept" if row["reason"] is None else "dropped",
            "reason": row["reason"] or "",
            **{label: row[label] or "" for label in LABELS},
            "docs": row["num_bytes_count"],
            "bytes": row["num_bytes_sum"],
            "tokens": row["tokens_sum"],
        }
        for row in groups.to_pylist()
    ]
    return sorted(rows, key=lambda r: [r[k] for k in ("kind", "reason", *LABELS)])


def tally_cuts(table: pa.Table, cut_bytes: np.ndarray, reason: str) -> list[dict[str, Any]]:
    """Count documents that were shortened and the bytes that they lost, by labels.

    Args:
        table: aligned rows with the columns of `TALLY_COLUMNS`.
        cut_bytes: int64, shape (rows,): bytes cut out of each document that stays.
        reason: why.
    """
    touched = np.flatnonzero(cut_bytes)
    if not len(touched):
        return []
    rows = table.select(list(LABELS)).take(pa.array(touched)).append_column("bytes", pa.array(cut_bytes[touched]))
    groups = rows.group_by(list(LABELS)).aggregate([("bytes", "sum"), ("bytes", "count")])
    out = [
        {
            "kind": "cut",
            "reason": reason,
            **{label: row[label] or "" for label in LABELS},
            "docs": row["bytes_count"],
            "bytes": row["bytes_sum"],
            "tokens": 0,
        }
        for row in groups.to_pylist()
    ]
    return sorted(out, key=lambda r: [r[label] for label in LABELS])
