"""Hits of evaluation items to read: the document's stretch beside the item's, each with a little text around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import PART_SHIFT
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.report.cut_samples import WHOLE_TEXT_CHARS, around
from refinery.report.samples import Sample, chosen_parts, read_texts

STAGE = "decontaminate"
MAX_HITS = 50
"""Hits on the page: enough to judge precision to a few per cent."""


@dataclass(frozen=True)
class HitSample:
    """One hit, ready to be set side by side."""

    doc_key: str
    source: str
    eval: str
    item: str
    field: str
    item_covered_frac: float
    doc_covered_frac: float
    num_ngrams: int
    document: Sequence[tuple[str, str]]
    """(same | removed, text): the document around the stretch, and the stretch."""
    item_text: Sequence[tuple[str, str]]
    """The same of the item."""


def read_hit_samples(workdir: str, manifests: Mapping[str, StageManifest], count: int = MAX_HITS) -> list[HitSample]:
    """Return up to `count` hits, chosen by the hash of document and item, in the order of evals and items."""
    manifest = manifests.get(STAGE)
    if manifest is None or not count:
        return []
    chosen: list[tuple[int, dict[str, Any]]] = []
    for part in chosen_parts(manifest, "hits"):
        table = part_files.read_part(workdir, STAGE, "hits", part)
        if table.num_rows:
            numbers = table.column("item_number").to_numpy().astype(np.uint64)
            ranks = keyed_uint64(0, "report", key_prefix_uint64(table.column("doc_key").to_pylist()) ^ numbers)
            best = np.argsort(ranks, kind="stable")[:count]
            rows = table.take(pa.array(best)).to_pylist()
            chosen += zip(ranks[best].tolist(), rows, strict=True)
    chosen = sorted(chosen, key=lambda c: (c[0], c[1]["doc_key"], c[1]["doc_start"]))[:count]
    rows = sorted((row for _, row in chosen), key=lambda r: (r["item_number"], r["doc_key"], r["doc_start"]))
    texts = _item_texts(workdir, [row["item_number"] for row in rows])
    documents = read_texts(workdir, [Sample(r["doc_id"], r["doc_key"], "") for r in rows], WHOLE_TEXT_CHARS)
    return [
        HitSample(
            doc_key=row["doc_key"],
            source=document.source,
            eval=row["eval"],
            item=row["item"],
            field=row["field"],
            item_covered_frac=row["item_covered_frac"],
            doc_covered_frac=row["doc_covered_frac"],
            num_ngrams=row["num_ngrams"],
            document=around(document.excerpt.encode(), row["doc_start"], row["doc_end"]),
            item_text=around(texts[row["item_number"]].encode(), row["item_start"], row["item_end"]),
        )
        for row, document in zip(rows, documents, strict=True)
    ]


def hits_of(workdir: str, doc_id: int) -> list[dict[str, Any]]:
    """Return every hit of one document with the item's text that it holds."""
    part = doc_id >> PART_SHIFT
    if not storage.exists(part_files.part_path(workdir, STAGE, "hits", part)):
        return []
    table = part_files.read_part(workdir, STAGE, "hits", part)
    rows = table.filter(pc.equal(table.column("doc_id"), doc_id)).drop_columns(["doc_id", "doc_key"]).to_pylist()
    texts = _item_texts(workdir, [row["item_number"] for row in rows]) if rows else {}
    for row in rows:
        text = texts[row["item_number"]].encode()
        row["text"] = text[row["item_start"] : row["item_end"]].decode("utf-8", "ignore")
    return rows


def _item_texts(workdir: str, numbers: Sequence[int]) -> dict[int, str]:
    """Return the texts of items by their numbers, which are their rows."""
    wanted = sorted(set(numbers))
    texts = part_files.read_part(workdir, STAGE, "items", 0, ["text"]).column("text").take(pa.array(wanted, pa.int64()))
    return dict(zip(wanted, texts.to_pylist(), strict=True))
