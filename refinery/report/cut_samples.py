"""Sentences and lines that were cut out of kept documents, with the text around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import PART_SHIFT
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.report.samples import MAX_EXCERPT_CHARS, Sample, chosen_parts, read_texts

CONTEXT_BYTES = 240
"""Text shown on either side of a cut."""
WHOLE_TEXT_CHARS = 2**31 - 1


class Cut(NamedTuple):
    """One cut; sorts by the hash of its document's key."""

    rank: int
    doc_key: str
    start: int
    end: int
    doc_id: int
    reason: str
    because_of: str


def read_cut_samples(workdir: str, manifests: Mapping[str, StageManifest], count: int) -> dict[str, list[Sample]]:
    """Return up to `count` cuts of each reason; one document gives one cut of a reason at most."""
    best: dict[str, list[Cut]] = {}
    for manifest in manifests.values() if count else ():
        for part in chosen_parts(manifest, "cuts"):
            for cut in _cuts(workdir, manifest.stage, part, count):
                best.setdefault(cut.reason, []).append(cut)
    return {reason: _samples(workdir, sorted(cuts)[:count]) for reason, cuts in sorted(best.items())}


def _cuts(workdir: str, stage: str, part: int, count: int) -> list[Cut]:
    table = part_files.read_part(workdir, stage, "cuts", part)
    if not table.num_rows:
        return []
    rows = pa.array(table.column("doc_id").to_numpy() & ((1 << PART_SHIFT) - 1))
    keys = part_files.read_part(workdir, "ingest", "documents", part, ["doc_key"]).column("doc_key").take(rows)
    ranks = keyed_uint64(0, "report", key_prefix_uint64(keys.to_pylist()))
    reasons = table.column("reason").to_numpy(zero_copy_only=False)
    found = []
    for reason in np.unique(reasons.astype(str)):
        mine = np.flatnonzero(reasons == reason)
        _, first = np.unique(ranks[mine], return_index=True)
        for at in mine[first[:count]].tolist():
            row = table.slice(at, 1).to_pylist()[0]
            because = row["because_of"] or ""
            key = keys[at].as_py()
            found.append(Cut(int(ranks[at]), key, row["start"], row["end"], row["doc_id"], str(reason), because))
    return found


def _samples(workdir: str, cuts: Sequence[Cut]) -> list[Sample]:
    asked = [Sample(cut.doc_id, cut.doc_key, cut.reason, because_of=cut.because_of) for cut in cuts]
    read = read_texts(workdir, asked, WHOLE_TEXT_CHARS)
    return [
        replace(s, excerpt="", shortened=False, diff=around(s.excerpt.encode(), cut.start, cut.end))
        for s, cut in zip(read, cuts, strict=True)
    ]


def around(text: bytes, start: int, end: int) -> list[tuple[str, str]]:
    """Return the bytes [start, end) of a text as removed, between a little of what stands before and after."""
    before = text[max(0, start - CONTEXT_BYTES) : start].decode("utf-8", "ignore")
    gone = text[start:end].decode("utf-8", "ignore")
    after = text[end : end + CONTEXT_BYTES].decode("utf-8", "ignore")
    shown = gone if len(gone) <= MAX_EXCERPT_CHARS else gone[:MAX_EXCERPT_CHARS] + " …"
    return [(kind, piece) for kind, piece in (("same", before), ("removed", shown), ("same", after)) if piece]
