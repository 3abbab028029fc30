"""How close a rule's bound lies to the text it spares: signal histograms, and the kept documents nearest to the cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refinery.contracts.manifest import StageManifest
from refinery.io import parts as part_files
from refinery.report.samples import RuleBound, Sample, Spared, chosen_parts, known_bounds, read_texts

NUM_BINS = 32
_LOG_RATIO = 20.0


def read_spared(
    workdir: str, manifests: Mapping[str, StageManifest], reasons: Sequence[str], count: int
) -> list[Spared]:
    """Return for each given reason its signal's histogram and up to `count` kept documents next to the bound.

    Args:
        workdir: the run's folder.
        manifests: finished stages.
        reasons: drop reasons; those that rest on no stored number are left out.
        count: documents per reason.
    """
    bounds = known_bounds(manifests)
    found = [bounds[reason] for reason in reasons if reason in bounds]
    return [_spared(workdir, manifests[b.stage], b, count) for b in found if manifests[b.stage].part_hashes(b.table)]


def _spared(workdir: str, manifest: StageManifest, bound: RuleBound, count: int) -> Spared:
    values, ids, kept = _columns(workdir, manifest, bound)
    finite = np.isfinite(values)
    edges = bin_edges(values[finite], [b for b in (bound.min, bound.max) if b is not None])
    heights = np.histogram(np.clip(values[finite], edges[0], edges[-1]), bins=edges)[0]
    inside = kept & finite
    distance = np.full(len(values), np.inf)
    for limit, sign in ((bound.min, 1.0), (bound.max, -1.0)):
        if limit is not None:
            gap = sign * (values - limit)
            inside &= gap >= 0
            distance = np.minimum(distance, np.abs(gap))
    near = np.flatnonzero(inside)
    near = near[np.lexsort((ids[near], distance[near]))][:count]
    samples = [Sample(int(ids[i]), "", bound.name, signal=bound.signal, value=float(values[i])) for i in near.tolist()]
    return Spared(bound, _with_keys(workdir, read_texts(workdir, samples)), edges.tolist(), heights.tolist())


def _columns(workdir: str, manifest: StageManifest, bound: RuleBound) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, ids, kept = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, bool)]
    for part in chosen_parts(manifest, "decisions"):
        table = part_files.read_part(workdir, bound.stage, bound.table, part, ["doc_id", bound.signal])
        keep = part_files.read_part(workdir, bound.stage, "decisions", part, ["keep"]).column("keep")
        values.append(table.column(bound.signal).cast("float64").fill_null(np.nan).to_numpy())
        ids.append(table.column("doc_id").to_numpy())
        kept.append(keep.fill_null(False).to_numpy(zero_copy_only=False))
    return np.concatenate(values), np.concatenate(ids), np.concatenate(kept)


def bin_edges(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Return `NUM_BINS` + 1 edges over the middle 98 % of the values, widened so that every bound lies inside.

    Bins are even, or even in logarithm where the values run far past a positive bound (counts of words).
    """
    low, high = (float(q) for q in np.quantile(values, [0.01, 0.99])) if len(values) else (0.0, 1.0)
    low, high = min(low, *limits), max(high, *limits)
    positive = [limit for limit in limits if limit > 0]
    if low >= 0 and positive and high > _LOG_RATIO * min(positive):
        return np.geomspace(max(low, min(positive) / _LOG_RATIO), high * 1.05, NUM_BINS + 1)
    margin = (high - low) * 0.05 or max(abs(high) * 0.1, 1e-6)
    return np.linspace(low - margin if low != 0 else low, high + margin, NUM_BINS + 1)


def _with_keys(workdir: str, samples: Sequence[Sample]) -> list[Sample]:
    parts: Mapping[int, list[str]] = {
        part: part_files.read_part(workdir, "ingest", "documents", part, ["doc_key"]).column("doc_key").to_pylist()
        for part in sorted({s.doc_id >> 32 for s in samples})
    }
    return [
        Sample(**{**s.__dict__, "doc_key": parts[s.doc_id >> 32][s.doc_id & 0xFFFFFFFF]})  # frozen: a filled copy
        for s in samples
    ]
