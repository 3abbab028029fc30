"""Documents inside others, for one document's explanation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest
from refinery.io import parts as part_files

STAGE = "dedup_sentences"
MAX_NAMED = 8


def contained_of(workdir: str, manifests: Mapping[str, StageManifest], doc_id: int) -> list[dict[str, Any]]:
    """Return the pairs of the containment table that name a document: rows as stored, largest share first."""
    manifest = manifests.get(STAGE)
    if manifest is None or not manifest.part_hashes("containment"):
        return []
    table = part_files.read_part(workdir, STAGE, "containment", 0)
    mine = pc.or_(pc.equal(table.column("a"), doc_id), pc.equal(table.column("b"), doc_id))
    rows = table.filter(mine).drop_columns(["a", "b"]).to_pylist()
    return sorted(rows, key=lambda row: (-row["containment"], row["a_key"], row["b_key"]))


def contained_lines(doc_key: str, pairs: list[dict[str, Any]]) -> list[str]:
    """Return the pairs of a document as lines for people."""
    lines = []
    for row in pairs[:MAX_NAMED]:
        share = f"{row['containment']:.0%}"
        if row["a_key"] == doc_key:
            lines.append(f"  {share} of its n-grams stand in {row['b_key']} ({row['b_split']})")
        else:
            lines.append(f"  holds {share} of the n-grams of {row['a_key']} ({row['a_split']})")
    if len(pairs) > MAX_NAMED:
        lines.append(f"  and {len(pairs) - MAX_NAMED} more such documents")
    return lines
