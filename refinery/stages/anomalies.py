"""Name the documents behind refused training steps: key, source, address, and what each stage said of them.

The trainer knows rows and the hashes of their documents; this run's tables know the rest. `train` adds it to
``anomalies.jsonl`` when the trainer has ended, however it ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.tables import PART_SHIFT
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.recipe import STAGE_ORDER
from refinery.stages.workspace import load_stage

MAX_DOCUMENTS = 32
"""Documents named per refused step: those of the rows with the highest loss."""
_HASH_DIGITS = 16
_COLUMNS = ("doc_id", "doc_key", "source", "domain", "role", "lang", "url")


def suspects(refused: Mapping[str, Any], limit: int = MAX_DOCUMENTS) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (document hash, its row) of a refused step, highest row loss first, not finite ones before all.

    Args:
        refused: a line of ``anomalies.jsonl`` of kind refused.
        limit: at most this many documents.
    """
    rows = sorted(refused["rows"], key=lambda row: (row["loss_nats"] is not None, -(row["loss_nats"] or 0.0)))
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        for digits in row["doc_hashes"]:
            found.setdefault(digits, row)
    return list(found.items())[:limit]


def name_documents(workdir: str, path: str) -> int:
    """Add ``documents`` to every refused step in the file that has none yet; return how many documents were named.

    Args:
        workdir: the run's folder; documents of other runs are left out.
        path: ``anomalies.jsonl``.
    """
    if not storage.exists(path):
        return 0
    lines = [json.loads(line) for line in storage.read_bytes(path).decode("utf-8").splitlines()]
    waiting = [line for line in lines if line["kind"] == "refused" and "documents" not in line]
    wanted = {digits for line in waiting for digits, _ in suspects(line)}
    if not wanted:
        return 0
    facts = {known["doc_key"][:_HASH_DIGITS]: known for known in _look_up(workdir, wanted)}
    for line in waiting:
        line["documents"] = [
            {**facts[digits], "row": row["row"], "row_loss_nats": row["loss_nats"]}
            for digits, row in suspects(line)
            if digits in facts
        ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    storage.write_atomic(path, text.encode())
    return sum(len(line["documents"]) for line in waiting)


def _look_up(workdir: str, hashes: set[str]) -> list[dict[str, Any]]:
    """Return identity and verdicts of the documents whose keys begin with these digits."""
    digits = pa.array(sorted(hashes))
    found: list[dict[str, Any]] = []
    ingest = load_stage(workdir, "ingest")
    for part in sorted(ingest.part_hashes("documents")) if ingest is not None else ():
        table = part_files.read_part(workdir, "ingest", "documents", part, list(_COLUMNS))
        begins = pc.utf8_slice_codeunits(table.column("doc_key"), 0, _HASH_DIGITS)
        rows = table.filter(pc.is_in(begins, digits)).to_pylist()
        verdicts = _verdicts(workdir, part, [row["doc_id"] & ((1 << PART_SHIFT) - 1) for row in rows]) if rows else []
        for row, said in zip(rows, verdicts, strict=True):
            del row["doc_id"]
            found.append({**row, "stages": said})
    return found


def _verdicts(workdir: str, part: int, rows: list[int]) -> list[dict[str, str]]:
    """Return, per row of a part, what every stage that judges documents said: kept, dropped or not asked."""
    said: list[dict[str, str]] = [{} for _ in rows]
    for name in STAGE_ORDER:
        stage = load_stage(workdir, name) if name != "report" else None
        if stage is None or part not in stage.part_hashes("decisions"):
            continue
        column = part_files.read_part(workdir, name, "decisions", part, ["keep"]).column("keep")
        for target, keep in zip(said, column.take(pa.array(rows)).to_pylist(), strict=True):
            target[name] = {True: "kept", False: "dropped", None: "not asked"}[keep]
    return said
