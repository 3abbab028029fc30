"""Lines of one document on which line rules fired: which rule, what it did, and which others would have cut it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import PART_SHIFT
from refinery.io import parts as part_files

_DONE = {"cut_line": "cut", "cut_match": "cut out of its line", "drop_document": "drops the document"}
MAX_TOLD = 40
"""Lines told in text; JSON has all."""


def found_lines(workdir: str, rules: StageManifest, doc_id: int, text: bytes) -> list[dict[str, Any]]:
    """Return every line, or piece of one, on which a line rule fired, in order.

    Args:
        workdir: the run's folder.
        rules: manifest of a rules stage with line rules.
        doc_id: the document.
        text: its text as ingested, UTF-8.
    """
    table = part_files.read_part(workdir, rules.stage, "line_findings", doc_id >> PART_SHIFT)
    names = rules.facts["line_rules"]["names"]
    found = []
    for row in table.filter(pc.equal(table.column("doc_id"), doc_id)).to_pylist():
        others = [name for i, name in enumerate(names) if row["line_rule_bits"] >> i & 1 and name != row["rule"]]
        piece = text[row["start"] : row["end"]].decode("utf-8", "replace")
        number = text.count(b"\n", 0, row["start"] + len(piece) - len(piece.lstrip("\n"))) + 1
        found.append(
            {
                "line": number,
                "start": row["start"],
                "end": row["end"],
                "rule": row["rule"],
                "action": row["action"],
                "also": others,
                "text": piece,
            }
        )
    return found


def line_texts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is told of found lines, one string each."""
    told = []
    for found in lines[:MAX_TOLD]:
        also = f", as would {', '.join(found['also'])}" if found["also"] else ""
        told.append(f"line {found['line']} {_DONE[found['action']]} by {found['rule']}{also}: {found['text'][:120]!r}")
    if len(lines) > MAX_TOLD:
        told.append(f"and {len(lines) - MAX_TOLD:,} more")
    return told
