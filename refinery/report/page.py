"""One self-contained HTML page about a run, for people: no script, no network, light and dark, wide and narrow."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from refinery.io import storage
from refinery.recipe import Recipe
from refinery.report import charts, visible
from refinery.report.choice_facts import NearCut, curve_points, pool_shifts, read_near_cut
from refinery.report.collect import DIMENSIONS, collect
from refinery.report.cut_samples import read_cut_samples
from refinery.report.facts import Drop, RunFacts, Training
from refinery.report.hit_samples import MAX_HITS, HitSample, read_hit_samples
from refinery.report.html import render_page
from refinery.report.samples import Sample, Spared, read_samples
from refinery.report.summary import advice, as_json, removals, sentences, stem, stream_title
from refinery.report.thresholds import read_spared

MAX_ROWS = 14
"""Rows of a table of reasons or rules; further ones are folded away."""
MAX_COLUMNS = 12
"""Sources, domains or languages beside each other in one table."""
MAX_HISTOGRAMS = 12
"""Rules whose threshold is drawn: those that removed most."""
_NOT_A_JUDGEMENT = frozenset({"mix.over_ceiling", "mix.no_share"})
_STAGE_TITLES = {
    "ingest": "Ingest",
    "screen": "Screen",
    "rules": "Rules",
    "quality": "Quality",
    "select": "Selection",
    "dedup_documents": "Deduplication of documents",
    "dedup_sentences": "Deduplication of sentences",
    "decontaminate": "Decontamination",
    "tokenize": "Tokenizer",
    "mix": "Mix",
    "pack": "Packing",
    "train": "Training",
}


def write_report(workdir: str, recipe: Recipe) -> str:
    """Write ``report/index.html`` and ``report/summary.json`` of a run and return the path of the page.

    A run that is not finished is reported as far as it came.

    Raises:
        IntegrityError: a manifest or a table is damaged. TransientError: the disk refused.
    """
    facts = collect(workdir, recipe)
    samples = read_samples(workdir, facts.manifests, recipe.report.samples)
    samples |= read_cut_samples(workdir, facts.manifests, recipe.report.samples)
    ruled = [d.reason for d in removals(facts) if d.stage == "rules"][:MAX_HISTOGRAMS]
    spared = read_spared(workdir, facts.manifests, ruled, recipe.report.samples)
    near_cut = read_near_cut(workdir, facts.manifests, recipe.report.samples)
    hits = read_hit_samples(workdir, facts.manifests, MAX_HITS if recipe.report.samples else 0)
    path = storage.join(workdir, "report", "index.html")
    summary = json.dumps(as_json(facts), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    storage.write_atomic(storage.join(workdir, "report", "summary.json"), summary.encode())
    storage.write_atomic(path, render(facts, samples, spared, hits, near_cut).encode())
    return path


def render(
    facts: RunFacts,
    samples: Mapping[str, Sequence[Sample]],
    spared: Sequence[Spared],
    hits: Sequence[HitSample] = (),
    near_cut: Sequence[NearCut] = (),
) -> str:
    """Return the page as HTML."""
    values = {
        "facts": facts,
        "samples": samples,
        "hits": hits,
        "spared": {s.bound.name: s for s in spared},
        "sentences": sentences(facts),
        "advice": advice(facts),
        "dimensions": [d for d in DIMENSIONS if len(facts.labels.get(d, {})) > 1],
        "columns": {d: _largest(facts, d) for d in DIMENSIONS},
        "not_a_judgement": _NOT_A_JUDGEMENT,
        "drop_lists": _main_and_rest(facts.drops),
        "stage_facts": {stage: manifest.facts for stage, manifest in facts.manifests.items()},
        "near_cut": near_cut,
        "shifts": {
            stage: {d: pool_shifts(facts.manifests[stage].counts, d) for d in ("source", "lang")}
            for stage in ("quality", "select")
            if stage in facts.manifests
        },
        "rule_lists": [facts.overlaps[:MAX_ROWS], facts.overlaps[MAX_ROWS:]],
        "charts": Charts(facts, spared),
        "contents": _contents(facts, samples),
        "python": platform.python_version(),
    }
    filters = {
        "stem": stem,
        "stream_title": stream_title,
        "stage_title": lambda stage: _STAGE_TITLES.get(stage, stage),
    }
    return render_page("report.html", values, filters)


def _main_and_rest(drops: Sequence[Drop]) -> list[list[Drop]]:
    """Split reasons into those that removed most and the others, both in order of stages."""
    main = sorted(drops, key=lambda d: (-d.amount.docs, d.reason))[:MAX_ROWS]
    return [[d for d in drops if d in main], [d for d in drops if d not in main]]


def _largest(facts: RunFacts, dimension: str) -> list[str]:
    """Return at most `MAX_COLUMNS` values of a dimension, those of the most bytes: a crawl has a hundred languages."""
    values = facts.labels.get(dimension, {})
    return sorted(sorted(values, key=lambda v: (-values[v][0].bytes, v))[:MAX_COLUMNS])


def _contents(facts: RunFacts, samples: Mapping[str, Sequence[Sample]]) -> list[tuple[str, str]]:
    listed = [
        ("funnel", "Funnel", bool(facts.flows)),
        ("drops", "What left, and why", bool(facts.drops)),
        ("lines", "Lines that rules cut", _has_line_rules(facts)),
        ("languages", "Languages", "screen" in facts.manifests),
        ("rules", "Rules", bool(facts.overlaps)),
        ("quality", "Quality", "quality" in facts.manifests),
        ("selection", "Selection", "select" in facts.manifests),
        ("ingest", "Unreadable records and masking", bool(facts.bad_records or facts.pii_masked)),
        ("clusters", "Duplicates", facts.clusters is not None),
        ("sentences", "Repeated sentences", "dedup_sentences" in facts.manifests),
        ("containment", "Documents inside others", bool(_sentence_facts(facts).get("containment"))),
        ("evals", "Evaluation items in the documents", "decontaminate" in facts.manifests),
        ("tokenizer", "Tokenizer", facts.health is not None),
        ("mix", "Mix", facts.mix is not None),
        ("packing", "Packing", facts.packing is not None),
        ("training", "Training", facts.training is not None),
        ("time", "Time and speed", bool(facts.timings)),
        ("samples", "Documents to read", any(samples.values())),
        ("about", "About this run", True),
    ]
    return [(anchor, title) for anchor, title, present in listed if present]


def _has_line_rules(facts: RunFacts) -> bool:
    return "rules" in facts.manifests and "line_rules" in facts.manifests["rules"].facts


def _sentence_facts(facts: RunFacts) -> Mapping[str, Any]:
    return facts.manifests["dedup_sentences"].facts if "dedup_sentences" in facts.manifests else {}


class Charts:
    """The pictures of one page."""

    def __init__(self, facts: RunFacts, spared: Sequence[Spared]) -> None:
        self._facts = facts
        self._spared = {s.bound.name: s for s in spared}

    def funnel(self, unit: str, index: int) -> Markup:
        """Return the bar of one stage: what it kept and dropped, of everything that came in."""
        flow = self._facts.flows[index]
        whole = max(getattr(self._facts.first, unit), 1)
        kept, entered = getattr(flow.kept, unit), getattr(flow.entered, unit)
        return charts.bar(kept / whole, (entered - kept) / whole)

    def drop(self, drop: Drop) -> Markup:
        """Return a bar: a reason's bytes, of what came in."""
        return charts.bar(0.0, drop.amount.bytes / max(self._facts.first.bytes, 1))

    def mix(self, column: str) -> Markup:
        """Return the shares of one column of the mix (``asked``, ``planned``, ``written``) as one bar."""
        rows = self._facts.mix.rows if self._facts.mix else []
        shares = [charts.Share(r.name, getattr(r, f"{column}_frac") or 0.0, i) for i, r in enumerate(rows)]
        told = ", ".join(f"{s.name} {visible.percent(s.frac)}" for s in shares)
        return charts.stacked(shares, f"{column}: {told}")

    def clusters(self) -> Markup:
        """Return the histogram of cluster sizes."""
        rows = [(int(low), int(count)) for low, count in (self._facts.clusters or {}).get("cluster_sizes", [])]
        return charts.histogram(
            [
                (name, count)
                for name, count in zip(size_names([low for low, _ in rows]), (c for _, c in rows), strict=True)
            ],
            "documents in the group",
            "groups",
            "Groups of duplicates by size",
        )

    def validation(self, unit: str) -> Markup:
        """Return validation losses over steps, ``bits_per_byte`` or ``loss_nats``."""
        streams = self._facts.training.streams() if self._facts.training else {}
        series = [
            charts.Series(stream_title(s), [(p.step, value) for p in points if (value := getattr(p, unit)) is not None])
            for s, points in streams.items()
        ]
        name = "bits per byte" if unit == "bits_per_byte" else "nats per token"
        return charts.lines(series, "optimiser steps", name, f"Validation loss by stream over steps, {name}")

    def training(self, training: Training) -> Markup:
        """Return the training loss over steps."""
        series = [charts.Series("training", training.curve)]
        return charts.lines(series, "optimiser steps", "nats per token", "Training loss over steps")

    def scores(self, source: str) -> Markup:
        """Return the histogram of one source's quality scores with the threshold drawn in."""
        facts = self._facts.manifests["quality"].facts
        heights = facts["histograms"][source]
        bins = [(charts.short_number(i / len(heights)), float(height)) for i, height in enumerate(heights)]
        cut = None if facts["threshold"] is None else float(facts["threshold"]) * len(heights)
        return charts.histogram(bins, "score", "documents", f"Quality scores of {source}; dashed: threshold", cut)

    def curve(self, facts: Mapping[str, Any], name: str) -> Markup:
        """Return the ROC (``roc``) or precision-recall curve of held-out documents with its 95 % band."""
        axes = ("false positive rate", "true positive rate") if name == "roc" else ("recall", "precision")
        series = [charts.Series(title, points) for title, points in curve_points(facts, name)]
        return charts.lines(series, *axes, f"{axes[1]} over {axes[0]} on the hold-out, with its 95 % band")

    def threshold(self, reason: str) -> Markup:
        """Return the histogram of a rule's signal with its cut drawn in."""
        spared = self._spared[reason]
        limit = spared.bound.min if spared.bound.min is not None else spared.bound.max
        return charts.histogram(
            [(charts.short_number(edge), height) for edge, height in zip(spared.edges, spared.heights, strict=False)],
            spared.bound.signal,
            "documents",
            f"Documents by {spared.bound.signal}; the dashed line is the bound",
            None if limit is None else float(np.interp(limit, spared.edges, range(len(spared.edges)))),
        )


def size_names(lows: Sequence[int]) -> list[str]:
    """Return names of size classes given their lower ends: ``2``, ``4–5``, ``10,001+``."""
    names = []
    for low, following in zip(lows, [*lows[1:], None], strict=True):
        if following is None:
            names.append(f"{low:,}+")
        else:
            names.append(f"{low:,}" if following == low + 1 else f"{low:,}–{following - 1:,}")
    return names
