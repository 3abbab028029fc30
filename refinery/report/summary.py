"""A run in sentences: what came in, what stayed, what took most away, what was learned, what deserves a look."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from refinery.report.facts import Drop, Flow, RunFacts
from refinery.report.visible import duration, number, percent, plural, size

DEFAULT_MAX_EPOCHS = 4.0
"""Epochs over which repeated tokens are worth about as much as new ones (Muennighoff et al., 2305.16264)."""
_SMALL_VALIDATION_DOCS = 20
_SHARE_TOLERANCE_FRAC = 0.02
_PADDING_FRAC = 0.03


def stem(reason: str) -> str:
    """Return a reason without its stage: ``dedup_documents.near`` -> ``near``."""
    return reason.rpartition(".")[2] or reason


def sentences(facts: RunFacts) -> list[str]:
    """Return the summary of a run, one sentence or two per matter; empty matters are left out."""
    told = [
        _what_came(facts),
        _what_took_most(facts),
        _what_mix_left(facts),
        _shards(facts),
        _model(facts),
        _time(facts),
    ]
    return [sentence for sentence in told if sentence]


def judged_flows(facts: RunFacts) -> list[Flow]:
    """Return the stages that judge documents: the mix takes what its budget needs and judges nothing."""
    return [flow for flow in facts.flows if flow.stage != "mix"]


def removals(facts: RunFacts) -> list[Drop]:
    """Return the reasons of the judging stages, most documents first."""
    judged = [d for d in facts.drops if d.stage != "mix" and d.kind == "dropped"]
    return sorted(judged, key=lambda d: (-d.amount.docs, d.reason))


def _what_came(facts: RunFacts) -> str:
    flows = judged_flows(facts)
    if not flows:
        return "No stage has finished yet."
    first, last = flows[0].entered, flows[-1].kept
    came = f"{plural(first.docs, 'document')} ({size(first.bytes)}) came in"
    if last == first:
        return came + "; all were kept."
    docs, bytes_ = last.docs / max(first.docs, 1), last.bytes / max(first.bytes, 1)
    deduplicated = any(f.stage.startswith("dedup") for f in flows)
    judges = "filters and deduplication" if deduplicated else "filters"
    return f"{came}; {judges} kept {last.docs:,} of them: {percent(docs)} of the documents and " + (
        f"{percent(bytes_)} of the bytes."
    )


def _what_took_most(facts: RunFacts) -> str:
    found = removals(facts)
    if not found:
        return ""
    first = facts.first
    named = [
        f"{d.reason} ({plural(d.amount.docs, 'document')}, "
        f"{percent(d.amount.bytes / max(first.bytes, 1))} of the bytes)"
        for d in found[:3]
    ]
    return "What removed most: " + "; ".join(named) + "."


def _what_mix_left(facts: RunFacts) -> str:
    flow = next((f for f in facts.flows if f.stage == "mix"), None)
    if flow is None or facts.mix is None:
        return ""
    took = (
        f"The mix took {plural(flow.kept.docs, 'document')} ({number(flow.kept.tokens)} tokens, validation included) "
        f"for a budget of {number(facts.mix.budget_tokens)} tokens"
    )
    if not flow.dropped.docs:
        return took + "; nothing was left over."
    return took + f"; {plural(flow.dropped.docs, 'good document')} beyond that stay for larger budgets."


def _shards(facts: RunFacts) -> str:
    packing = facts.packing
    if packing is None:
        return ""
    total = packing.total
    return (
        f"Packed, they fill {plural(total.rows, 'row')} of {packing.sequence_length:,} tokens to "
        f"{percent(total.fill_frac, 2)}, with {plural(packing.dropped_tokens, 'token')} lost."
    )


def _model(facts: RunFacts) -> str:
    if facts.training is None:
        return ""
    record = facts.training.record
    told = []
    for stream, points in facts.training.streams().items():
        first, last = points[0], points[-1]
        if first.bits_per_byte is not None and last.bits_per_byte is not None:
            span = f"{first.bits_per_byte:.2f} to {last.bits_per_byte:.2f} bits per byte"
        else:
            span = f"{first.loss_nats:.2f} to {last.loss_nats:.2f} nats per token"
        told.append(f"from {span} on {stream_title(stream)}")
    size_ = f"A model of {number(record.num_params)} parameters trained for {plural(record.steps, 'step')}"
    read = f"{size_} ({number(record.tokens)} tokens)"
    if not told:
        return read + "; it was not validated."
    verb = "went" if any(p[-1].loss_nats > p[0].loss_nats for p in facts.training.streams().values()) else "fell"
    return f"{read}; its validation loss {verb} " + ", ".join(told) + "."


def stream_title(stream: str) -> str:
    """Return a stream's name for people: domain, role where it is not pool, language."""
    parts = stream.rsplit("/", 4)
    if len(parts) != 5:
        return stream
    domain, role, lang, bucket, _split = parts
    more = [p for p in (role if role != "pool" else "", lang if lang != "und" else "", bucket) if p and p != "w0"]
    return f"{domain} ({', '.join(more)})" if more else domain


def _time(facts: RunFacts) -> str:
    total = sum(t.seconds for t in facts.timings)
    if not total:
        return ""
    slowest = max(facts.timings, key=lambda t: t.seconds)
    return f"It took {duration(total)} in all, most of it in {slowest.stage} ({duration(slowest.seconds)})."


def advice(facts: RunFacts) -> list[str]:
    """Return what deserves a look, gravest first; an empty list says that nothing stood out."""
    found = [f"{f.stage}: the counts do not add up; run it again with --force." for f in facts.flows if not f.balanced]
    found += [f"{stage} has not been run yet." for stage in facts.missing]
    return found + _data_advice(facts) + _mix_advice(facts) + _model_advice(facts)


def _data_advice(facts: RunFacts) -> list[str]:
    found = []
    bad = sum(sum(reasons.values()) for reasons in facts.bad_records.values())
    if bad:
        found.append(f"{plural(bad, 'record')} could not be read; the list is under Ingest.")
    for source, (before, judged, _taken) in facts.labels.get("source", {}).items():
        left = judged.docs
        if before.docs and left == 0:
            found.append(f"Nothing of source {source} survived ({plural(before.docs, 'document')} came in).")
        elif before.docs and left < before.docs / 2:
            found.append(
                f"Source {source} lost {percent(1 - left / before.docs)} of its documents; read the samples of its "
                "main reasons before you trust that."
            )
    if "decontaminate" in facts.manifests:
        found += [f"Decontamination: {line}." for line in facts.manifests["decontaminate"].facts.get("warnings", [])]
    if "quality" in facts.manifests:
        found += [f"Quality: {line}." for line in facts.manifests["quality"].facts.get("warnings", [])]
    if "select" in facts.manifests:
        found += [f"Selection: {line}" for line in facts.manifests["select"].facts.get("warnings", [])]
    largest = (facts.clusters or {}).get("largest_cluster", 0)
    if largest > 100:
        found.append(f"The largest group of duplicates holds {largest:,} documents: often a template or a licence.")
    return found


def _mix_advice(facts: RunFacts) -> list[str]:
    found = []
    for row in facts.mix.rows if facts.mix else ():
        if row.written_frac is not None and abs(row.written_frac - row.asked_frac) > _SHARE_TOLERANCE_FRAC:
            found.append(
                f"{row.name} has {percent(row.written_frac)} of what will be read; "
                f"{percent(row.asked_frac)} were asked."
            )
        if row.epochs > DEFAULT_MAX_EPOCHS + 0.01:
            found.append(f"{row.name} is read {row.epochs:.1f} times; beyond about 4 epochs repeats add little.")
    packing = facts.packing
    if packing and packing.total.rows and 1 - packing.total.fill_frac > _PADDING_FRAC:
        found.append(
            f"{percent(1 - packing.total.fill_frac)} of all positions are padding; use longer rows or more text."
        )
    if packing and packing.dropped_tokens:
        found.append(f"Packing dropped {number(packing.dropped_tokens)} tokens (policy {packing.policy}).")
    small = [
        f"{stream_title(stream.stream)} ({number(stream.docs)})"
        for stream in (packing.streams if packing else ())
        if stream.stream.endswith("/validation") and stream.docs < _SMALL_VALIDATION_DOCS
    ]
    if small:
        found.append(
            f"Few documents are held out of {', '.join(small)}: their losses are noisy; "
            "raise ingest.validation_frac or add text."
        )
    return found


def _model_advice(facts: RunFacts) -> list[str]:
    found = []
    verdict = (facts.health or {}).get("verdict", {})
    if verdict.get("word") not in (None, "good", "ok"):
        found += [f"Tokenizer: {reason}" for reason in verdict.get("reasons", [])]
    if facts.training is None:
        return found
    for stream, points in facts.training.streams().items():
        best = min(p.loss_nats for p in points)
        if points[-1].loss_nats > points[0].loss_nats:
            found.append(
                f"Loss on {stream_title(stream)} is higher than before training: forgotten, or too high a rate."
            )
        elif points[-1].loss_nats > best * 1.01:
            found.append(f"Loss on {stream_title(stream)} has risen again since its best point ({best:.3f} nats).")
    if facts.training.record.num_skipped_steps:
        found.append(f"{plural(facts.training.record.num_skipped_steps, 'update')} were refused: see anomalies.jsonl.")
    if facts.training.record.status != "finished":
        found.append(f"Training ended as {facts.training.record.status}.")
    return found


def as_json(facts: RunFacts) -> dict[str, Any]:
    """Return the machine-readable summary: everything on the page but the documents to read."""
    training = facts.training
    return {
        "format": "refinery.report",
        "version": 1,
        "name": facts.name,
        "recipe_sha256": facts.recipe_sha256,
        "summary": sentences(facts),
        "to_look_at": advice(facts),
        "funnel": [asdict(flow) for flow in facts.flows],
        "drops": [asdict(drop) for drop in facts.drops],
        "bytes_per_token": facts.bytes_per_token,
        "stage_facts": {stage: m.facts for stage, m in facts.manifests.items()},
        "rule_overlaps": [asdict(overlap) for overlap in facts.overlaps],
        "bad_records": facts.bad_records,
        "pii_masked": facts.pii_masked,
        "clusters": facts.clusters,
        "mix": asdict(facts.mix) if facts.mix else None,
        "packing": asdict(facts.packing) if facts.packing else None,
        "validation": [asdict(p) for p in training.record.points] if training else [],
        "forgetting": training.forgetting if training else {},
        "stages": [
            {
                **asdict(t),
                "bytes_per_second": t.bytes_per_second,
                "bytes_per_core_second": t.bytes_per_core_second,
            }
            for t in facts.timings
        ],
        "missing": list(facts.missing),
    }
