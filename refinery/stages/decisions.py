"""Aligned decisions tables: one row per document of the part, null where a stage was not asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.io.parts import PartFile


def decisions_table(
    doc_ids: pa.ChunkedArray,
    entered: np.ndarray,
    reasons: pa.Array,
    stage: str,
    because_of: pa.Array | None = None,
    rule_bits: np.ndarray | None = None,
) -> pa.Table:
    """Build the decisions of one part.

    Args:
        doc_ids: int64, one per row of the part.
        entered: bool, shape (rows,): documents that earlier stages kept; for the others everything is null.
        reasons: string array: why a document goes, null if it stays.
        stage: the deciding stage.
        because_of: doc_key of the document that caused a removal.
        rule_bits: int64, shape (rows,): every rule that would have cut.
    """
    count = len(entered)
    dropped = pc.and_(pa.array(entered), pc.is_valid(reasons))
    nothing = pa.nulls(count, pa.string())
    return pa.table(
        {
            "doc_id": doc_ids,
            "keep": pc.if_else(pa.array(entered), pc.invert(dropped), pa.scalar(None, pa.bool_())),
            "drop_reason": pc.if_else(dropped, reasons, nothing),
            "rule_bits": pa.array(np.zeros(count, np.int64) if rule_bits is None else rule_bits),
            "stage": pc.if_else(dropped, pa.scalar(stage), nothing),
            "because_of": pc.if_else(dropped, because_of, nothing) if because_of is not None else nothing,
        }
    )


def located(part: int, file: PartFile) -> dict[str, Any]:
    """Return what a stage manifest records of a written part."""
    return {"part": part, "rows": file.rows, "content_hash": file.content_hash, "num_bytes": file.num_bytes}


def reasons_where(mask: np.ndarray, reason: str) -> pa.Array:
    """Return a string array: the reason where the mask holds, null elsewhere."""
    return pc.if_else(pa.array(mask), pa.scalar(reason), pa.scalar(None, pa.string()))
