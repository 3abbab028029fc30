"""Everything a report says about a run, gathered from manifests and records into plain values.

Nothing here reads text or rows: stage manifests, the shard manifest's facts, the health file and the run record hold
all counts already. What a run did not do is None or empty, and the page leaves it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refinery.contracts.manifest import CountRow, StageManifest
from refinery.contracts.runs import RunRecord
from refinery.io import storage
from refinery.recipe import Recipe
from refinery.report.facts import (
    Amount,
    Drop,
    Flow,
    Mix,
    MixRow,
    PackedStream,
    Packing,
    RuleOverlap,
    RunFacts,
    Timing,
    Training,
)
from refinery.stages.mix_plan import mix_lines
from refinery.stages.workspace import load_stage

DIMENSIONS = ("source", "domain", "role", "lang", "split")
MAX_CURVE_POINTS = 400
"""Points kept of a training curve: a phone shows fewer, and the page stays small."""
_COUNTS_OF_ANOTHER = ("pack", "train")
"""Stages whose counts repeat an earlier stage's or are empty: they decide about no document."""


def collect(workdir: str, recipe: Recipe) -> RunFacts:
    """Gather a run's facts.

    Raises:
        IntegrityError: a manifest or the run record is damaged.
    """
    stages = [s for s in recipe.stages() if s != "report"]
    loaded = {stage: load_stage(workdir, stage) for stage in stages}
    manifests = {stage: m for stage, m in loaded.items() if m is not None}
    deciding = [m for m in manifests.values() if m.counts and m.stage not in _COUNTS_OF_ANOTHER]
    ratio = TokenRatio(manifests["tokenize"].counts if "tokenize" in manifests else ())
    flows = _flows(deciding, ratio)
    ingest = manifests["ingest"].facts if "ingest" in manifests else {}
    return RunFacts(
        name=recipe.name,
        workdir=workdir,
        recipe_sha256=recipe.sha256(),
        flows=flows,
        drops=_drops(deciding, ratio),
        labels=_labels(deciding, ratio),
        bytes_per_token=ratio.bytes_per_token,
        overlaps=_overlaps(manifests),
        bad_records=ingest.get("bad_records", {}),
        bad_listed=ingest.get("bad_listed", []),
        pii_masked=ingest.get("pii_masked", {}),
        clusters=_clusters(manifests),
        mix=_mix(manifests),
        packing=_packing(manifests),
        health=_json(workdir, "tokenize", "health.json") if "tokenize" in manifests else None,
        training=_training(workdir) if "train" in manifests else None,
        timings=[_timing(m, flows) for m in manifests.values()],
        missing=[stage for stage in stages if loaded[stage] is None],
        manifests=manifests,
    )


class TokenRatio:
    """Tokens per byte of surviving text for stages that ran before the tokenizer.

    By (domain, language) where survivors have it, else by domain (the language was not known yet), else overall.
    """

    def __init__(self, counts: Iterable[CountRow]) -> None:
        self._sums: dict[tuple[str, ...], list[int]] = {(): [0, 0]}
        for row in counts:
            if row.kind == "kept":
                for key in ((row.domain, row.lang), (row.domain,), ()):
                    sums = self._sums.setdefault(key, [0, 0])
                    sums[0] += row.tokens
                    sums[1] += row.bytes

    @property
    def bytes_per_token(self) -> float | None:
        """Over all survivors; null before tokenisation."""
        tokens, size = self._sums[()]
        return size / tokens if tokens else None

    def amount(self, row: CountRow, *, estimated: bool) -> Amount:
        """Return a row's amount, tokens estimated where the stage did not know them."""
        if not estimated:
            return Amount(row.docs, row.bytes, row.tokens)
        keys: tuple[tuple[str, ...], ...] = ((row.domain, row.lang), (row.domain,), ())
        tokens, size = next((self._sums[key] for key in keys if self._sums.get(key, [0, 0])[1]), (0, 0))
        return Amount(row.docs, row.bytes, round(row.bytes * tokens / size) if size else 0)


def _is_estimated(manifest: StageManifest) -> bool:
    return not any(row.tokens for row in manifest.counts)


def _sum(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def _flows(manifests: Sequence[StageManifest], ratio: TokenRatio) -> list[Flow]:
    flows: list[Flow] = []
    for manifest in manifests:
        estimated = _is_estimated(manifest)
        left = {
            kind: _sum(ratio.amount(r, estimated=estimated) for r in manifest.counts if r.kind == kind)
            for kind in ("kept", "dropped", "cut")
        }
        out = left["kept"] + left["dropped"]
        accounted = Amount(out.docs, out.bytes + left["cut"].bytes, out.tokens + left["cut"].tokens)
        entered = flows[-1].kept if flows else accounted
        balanced = (entered.docs, entered.bytes) == (accounted.docs, accounted.bytes)
        flows.append(Flow(manifest.stage, entered, left["kept"], left["dropped"], left["cut"], estimated, balanced))
    return flows


def _drops(manifests: Sequence[StageManifest], ratio: TokenRatio) -> list[Drop]:
    """Return the drops and cuts in order of stages, largest first inside a stage."""
    drops: list[Drop] = []
    for manifest in manifests:
        grouped: dict[tuple[str, str], list[CountRow]] = {}
        for row in manifest.counts:
            if row.kind != "kept":
                grouped.setdefault((row.kind, row.reason), []).append(row)
        estimated = _is_estimated(manifest)
        mine = [
            Drop(
                manifest.stage,
                reason,
                kind,
                _sum(ratio.amount(r, estimated=estimated) for r in rows),
                estimated,
                {d: _by(rows, d, ratio, estimated=estimated) for d in DIMENSIONS},
            )
            for (kind, reason), rows in grouped.items()
        ]
        drops += sorted(mine, key=lambda d: (-d.amount.docs, d.reason))
    return drops


def _by(rows: Iterable[CountRow], dimension: str, ratio: TokenRatio, *, estimated: bool) -> dict[str, Amount]:
    sums: dict[str, Amount] = {}
    for row in rows:
        value = getattr(row, dimension)
        sums[value] = sums.get(value, Amount()) + ratio.amount(row, estimated=estimated)
    return dict(sorted(sums.items()))


def _labels(
    manifests: Sequence[StageManifest], ratio: TokenRatio
) -> dict[str, dict[str, tuple[Amount, Amount, Amount]]]:
    if not manifests:
        return {}
    judging = [m for m in manifests if m.stage != "mix"] or manifests
    labels: dict[str, dict[str, tuple[Amount, Amount, Amount]]] = {}
    for dimension in DIMENSIONS:
        sums = []
        known = next((m for m in manifests if m.stage == "screen" and dimension == "lang"), manifests[0])
        for manifest, kinds in (
            (known, ("kept", "dropped")),
            (judging[-1], ("kept",)),
            (manifests[-1], ("kept",)),
        ):
            rows = [row for row in manifest.counts if row.kind in kinds]
            sums.append(_by(rows, dimension, ratio, estimated=_is_estimated(manifest)))
        values = sorted(set().union(*sums))
        labels[dimension] = {
            v: (sums[0].get(v, Amount()), sums[1].get(v, Amount()), sums[2].get(v, Amount())) for v in values
        }
    return labels


def _overlaps(manifests: Mapping[str, StageManifest]) -> list[RuleOverlap]:
    facts = manifests["rules"].facts if "rules" in manifests else {}
    names, docs = facts.get("rule_names", []), facts.get("cut_by_rule", [])
    alone = facts.get("cut_by_rule_alone", [0] * len(names))
    rows = [RuleOverlap(*row) for row in zip(names, docs, alone, strict=False) if row[1]]
    return sorted(rows, key=lambda r: (-r.docs, r.rule))


def _clusters(manifests: Mapping[str, StageManifest]) -> Mapping[str, Any] | None:
    if "dedup_documents" not in manifests:
        return None
    manifest = manifests["dedup_documents"]
    pairs = manifest.volatile.get("num_candidate_pairs")
    return {**manifest.facts, "num_candidate_pairs": pairs, "settings": manifest.recipe_slice}


def _mix(manifests: Mapping[str, StageManifest]) -> Mix | None:
    if "mix" not in manifests:
        return None
    facts = manifests["mix"].facts
    realised = list(manifests["pack"].facts.get("realised", [])) if "pack" in manifests else []
    domain_of = {s["stream"]: s["domain"] for s in facts["streams"]}
    written: dict[str, list[float]] = {}
    packed_rows = {s["stream"]: s["rows"] for s in manifests["pack"].facts["streams"]} if realised else {}
    for stream in realised:
        sums = written.setdefault(domain_of.get(stream["stream"], stream["stream"]), [0, 0, 0])
        sums[0] += stream["loss_tokens"]
        sums[1] += stream["rows"]
        sums[2] += packed_rows.get(stream["stream"], 0)
    domains = manifests["pack"].facts.get("domains", {}) if "pack" in manifests else {}
    planned_total = sum(s["tokens"] for s in facts["streams"]) or 1
    written_total = sum(sums[0] for sums in written.values())
    rows = []
    for name, asked in facts["asked_shares"].items():
        mine = [s for s in facts["streams"] if s["domain"] == name]
        if not asked and not mine:
            continue
        tokens, unique = sum(s["tokens"] for s in mine), sum(s["unique_tokens"] for s in mine)
        sums = written.get(name, [0, 0, 0])
        epochs = sums[1] / sums[2] if sums[2] else tokens / unique if unique else 0.0
        rows.append(
            MixRow(
                name,
                asked,
                tokens / planned_total,
                sums[0] / written_total if written_total else None,
                tokens,
                int(sums[0]) if written_total else None,
                unique,
                epochs,
                domains.get(name, {}).get("first_repeat_row"),
            )
        )
    rows.sort(key=lambda row: (-row.asked_frac, row.name))
    notes = mix_lines(facts) if "share_caps" in facts else []
    return Mix(facts["budget_tokens"], len(facts["phases"]), rows, facts.get("natural_shares", {}), realised, notes)


def _packing(manifests: Mapping[str, StageManifest]) -> Packing | None:
    if "pack" not in manifests:
        return None
    manifest = manifests["pack"]
    columns = ("stream", "rows", "documents", "tokens", "padding_tokens", "utf8_bytes")
    return Packing(
        policy=manifest.recipe_slice["policy"],
        sequence_length=manifest.recipe_slice["sequence_length"],
        documents_cut=manifest.facts["documents_cut"],
        dropped_tokens=manifest.facts["dropped_tokens"],
        content_hash=manifest.facts["shard_content_hash"],
        streams=[PackedStream(*(s[c] for c in columns)) for s in manifest.facts["streams"]],
        concat_rows=manifest.facts.get("concat_rows"),
    )


def _training(workdir: str) -> Training | None:
    path = storage.join(workdir, "train", "run.json")
    if not storage.exists(path):
        return None
    record = RunRecord.from_json(storage.read_bytes(path).decode("utf-8"))
    steps = [e for e in _json_lines(workdir, "train", "metrics.jsonl") if e.get("kind") == "train"]
    losses = [(int(e["step"]), float(e["loss"])) for e in steps if _is_finite(e.get("loss"))]
    speeds = sorted(float(e["tokens_per_second"]) for e in steps if _is_finite(e.get("tokens_per_second")))
    stride = max(1, math.ceil(len(losses) / MAX_CURVE_POINTS))
    return Training(
        record=record,
        curve=[losses[i] for i in range(0, len(losses), stride)] + (losses[-1:] if stride > 1 else []),
        forgetting=_json(workdir, "train", "forgetting.json") or {},
        num_anomalies=sum(1 for _ in _json_lines(workdir, "train", "anomalies.jsonl")),
        tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _timing(manifest: StageManifest, flows: Sequence[Flow]) -> Timing:
    entered = next((f.entered.bytes for f in flows if f.stage == manifest.stage), 0)
    if manifest.stage == "pack" and flows:
        entered = flows[-1].kept.bytes
    volatile = manifest.volatile
    return Timing(
        stage=manifest.stage,
        seconds=float(volatile.get("seconds", 0.0)),
        core_seconds=volatile.get("part_seconds"),
        bytes_in=entered,
        peak_rss_bytes=volatile.get("driver_peak_rss_bytes"),
        finished_at=str(volatile.get("finished_at", "")),
        host=str(volatile.get("host", "")),
        git_commit=str(volatile.get("git_commit", "")),
    )


def _json(workdir: str, *names: str) -> dict[str, Any] | None:
    path = storage.join(workdir, *names)
    if not storage.exists(path):
        return None
    try:
        value = json.loads(storage.read_bytes(path))
    except ValueError:
        return None  # a page about the rest of the run is worth more than none
    return value if isinstance(value, dict) else None


def _json_lines(workdir: str, *names: str) -> list[dict[str, Any]]:
    path = storage.join(workdir, *names)
    if not storage.exists(path):
        return []
    entries = []
    for line in storage.read_bytes(path).splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # a line cut short by a kill
            continue
    return [e for e in entries if isinstance(e, dict)]
