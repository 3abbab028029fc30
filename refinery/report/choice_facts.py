"""What quality and select did to the pool: documents about the cut, and the shares of sources and languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refinery.contracts.manifest import CountRow, StageManifest
from refinery.contracts.tables import PART_SHIFT
from refinery.io import parts as part_files
from refinery.io.survivors import read_labels
from refinery.report.samples import LOW_SCORE, Sample, chosen_parts, read_texts


@dataclass(frozen=True)
class NearCut:
    """Documents nearest to one group's cut."""

    group: str
    threshold: float
    below: Sequence[Sample]
    above: Sequence[Sample]


@dataclass(frozen=True)
class Shift:
    """How much of the pool one source or language is, before and after a stage, in bytes."""

    name: str
    before_frac: float
    after_frac: float
    kept_frac: float


def pool_shifts(counts: Sequence[CountRow], dimension: str) -> list[Shift]:
    """Return the share of each source (or ``lang``, ``domain``) of the pool, largest first."""
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for row in counts:
        if row.role == "pool" and row.kind in ("kept", "dropped"):
            name = getattr(row, dimension) or "und"
            before[name] = before.get(name, 0) + row.bytes
            after[name] = after.get(name, 0) + (row.bytes if row.kind == "kept" else 0)
    whole, left = max(sum(before.values()), 1), max(sum(after.values()), 1)
    shifts = [Shift(n, size / whole, after[n] / left, after[n] / max(size, 1)) for n, size in before.items()]
    return sorted(shifts, key=lambda s: (-s.before_frac, s.name))


def read_near_cut(workdir: str, manifests: Mapping[str, StageManifest], count: int) -> list[NearCut]:
    """Return the documents just below and just above the cut of each group, up to `count` of each side."""
    manifest = manifests.get("quality")
    thresholds: dict[str, float] = {} if manifest is None else dict(manifest.facts.get("thresholds") or {})
    if manifest is None or not count or not thresholds:
        return []
    upto = [s for s in ("screen",) if s in manifests]
    found: dict[tuple[str, bool], list[tuple[float, int]]] = {}
    for part in chosen_parts(manifest, "decisions"):
        _nearest(workdir, manifest, part, upto, found, count)
    near = []
    for group, threshold in sorted(thresholds.items())[:8]:
        sides = []
        for is_kept in (False, True):
            rows = sorted(found.get((group, is_kept), []), key=lambda r: (abs(r[0] - threshold), r[1]))[:count]
            sides.append([Sample(i, "", LOW_SCORE, signal="score", value=score) for score, i in rows])
        below, above = (_with_keys(workdir, read_texts(workdir, side)) for side in sides)
        near.append(NearCut(group, threshold, below, above))
    return near


def _nearest(
    workdir: str,
    manifest: StageManifest,
    part: int,
    upto: Sequence[str],
    found: dict[tuple[str, bool], list[tuple[float, int]]],
    count: int,
) -> None:
    cut_by = manifest.recipe_slice.get("cut_by", [])
    scores = part_files.read_part(workdir, "quality", "quality", part, ["doc_id", "score"])
    decided = part_files.read_part(workdir, "quality", "decisions", part, ["keep", "drop_reason"])
    labels = read_labels(workdir, part, ["domain", "lang"], upto)
    values = scores.column("score").to_numpy()
    ids = scores.column("doc_id").to_numpy()
    keep = decided.column("keep").fill_null(False).to_numpy(zero_copy_only=False)
    gone = np.array([r == LOW_SCORE for r in decided.column("drop_reason").to_pylist()], dtype=bool)
    named = [[v or "und" for v in labels.column(c).to_pylist()] for c in ("domain", "lang") if c in cut_by]
    groups = np.array(["/".join(g) for g in zip(*named, strict=True)] if named else [""] * len(ids), dtype=object)
    for group, threshold in manifest.facts["thresholds"].items():
        for is_kept, side in ((True, keep & (values >= np.float32(threshold))), (False, gone)):
            rows = np.flatnonzero(side & (groups == group) & ~np.isnan(values))
            rows = rows[np.lexsort((ids[rows], np.abs(values[rows] - threshold)))][:count]
            found.setdefault((group, is_kept), []).extend((float(values[i]), int(ids[i])) for i in rows.tolist())


def _with_keys(workdir: str, samples: Sequence[Sample]) -> list[Sample]:
    parts = {
        part: part_files.read_part(workdir, "ingest", "documents", part, ["doc_key"]).column("doc_key")
        for part in sorted({s.doc_id >> PART_SHIFT for s in samples})
    }
    row = (1 << PART_SHIFT) - 1
    return [replace(s, doc_key=parts[s.doc_id >> PART_SHIFT][s.doc_id & row].as_py()) for s in samples]


def curve_points(facts: Mapping[str, Any], name: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the lines of one curve with its band: (name, points); nothing where the hold-out has no curve."""
    rows = facts.get(name, [])
    if not rows:
        return []
    places = (("measured", 1), ("95 % low", 2), ("95 % high", 3))
    return [(label, [(r[0], r[at]) for r in rows]) for label, at in places]
