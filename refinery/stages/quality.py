"""quality: a fastText classifier over pool documents, trained on sources of the recipe or given.

Training sees documents of ``split = train`` only, one in ten held out by hash to say how well the model separates.
The threshold is a score, or the score at which a share of the pool's text is kept.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DECISIONS, QUALITY, TRAINING
from refinery.errors import ConfigError, DataError
from refinery.hashing import key_prefix_uint64, keyed_uniform, sha256_hex
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels.classifier_metrics import roc_auc_interval
from refinery.kernels.fasttext_model import (
    Classifier,
    TrainSettings,
    open_classifier,
    open_external_classifier,
    score,
    train_classifier,
)
from refinery.kernels.preparation import prepare
from refinery.kernels.text import TextViews, text_views
from refinery.recipe import Quality
from refinery.stages.decisions import decisions_table, located, reasons_where
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.tallies import TALLY_COLUMNS, tally
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)

NAME = "quality"
ALGORITHM_VERSION = 1
HOLDOUT_FRAC = 0.1
SCORE_BINS = 10_000
"""Thresholds by share of text are multiples of 1 / SCORE_BINS: sums per bin, not scores, travel to the driver."""
MAX_LINE_BYTES = 8192
"""Text of one document that training reads; scoring reads all of it."""
POSITIVE, NEGATIVE = "positive", "negative"


@dataclass(frozen=True)
class QualityTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    rates: dict[str, float]
    """Source -> share of its documents trained on."""
    model: str = ""
    model_sha256: str = ""


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Train or open the classifier, score the pool, decide."""
    started = time.monotonic()
    recipe = run_.recipe
    section = recipe.quality
    if section is None:
        raise ConfigError("the recipe has no quality section; name positives, negatives and keep_token_frac")
    upto, upstream, seen = upstream_of(run_, NAME)
    recipe_slice = {**section.model_dump(mode="json"), "seed": recipe.seed}
    if section.model is not None:
        recipe_slice["model"] = sha256_hex(storage.read_bytes(section.model))
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    settings = section.model_dump(mode="json")
    rates = _training_rates(section, upstream[-1])
    task = QualityTask(recipe.workdir, recipe.seed, settings, upto, run_.slice_rows, seen, rates)
    task, model_facts = _with_model(run_, task, section)
    parts = sorted(seen)
    scored = run_part_tasks(run_.spark, parts, functools.partial(score_part, task), run_.report_progress(NAME))
    threshold = section.threshold if section.threshold is not None else _threshold(section, scored)
    decided = run_part_tasks(run_.spark, parts, functools.partial(decide_part, task, threshold))
    counts = merge_counts(r["counts"] for r in decided)
    check_conservation(NAME, upstream[-1].counts, counts)
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=part_entries("quality", scored, "quality") + part_entries("decisions", decided, "decisions"),
        counts=counts,
        facts={**model_facts, "threshold": threshold, "histograms": _histograms(scored)},
        volatile={"part_seconds": sum(r["cpu_seconds"] for r in scored + decided)},
    )
    return commit_stage(run_, manifest, started)


def _training_rates(section: Quality, before: StageManifest) -> dict[str, float]:
    """Return the share of each training source's documents that is drawn, classes bounded alike."""
    if section.model is not None:
        return {}
    docs: dict[str, int] = {}
    for row in before.counts:
        if row.kind == "kept" and row.split == "train":
            docs[row.source] = docs.get(row.source, 0) + row.docs
    rates: dict[str, float] = {}
    for label, sources in ((POSITIVE, section.positives), (NEGATIVE, section.negatives)):
        total = sum(docs.get(s, 0) for s in sources)
        if total == 0:
            raise DataError(
                f"quality.{label}s ({', '.join(sources)}) have no training document left after the stages before; "
                "loosen those or name other sources"
            )
        rates |= dict.fromkeys(sources, min(1.0, section.max_train_docs / total))
    both = sorted(set(section.positives) & set(section.negatives))
    if both:
        raise ConfigError(f"sources {both} are both positives and negatives; name each once")
    return rates


def _with_model(run_: Run, task: QualityTask, section: Quality) -> tuple[QualityTask, dict[str, Any]]:
    """Return the task with a model file, and what is known of the model."""
    if section.model is not None:
        path = Path(section.model)
        opened = open_external_classifier(path, section.positive_label, section.preparation)
        return QualityTask(**{**task.__dict__, "model": str(path), "model_sha256": opened.sha256}), {
            "model_sha256": opened.sha256
        }
    sampled = run_part_tasks(run_.spark, sorted(task.upstream), functools.partial(training_part, task))
    lines_print = fingerprint_of([r["training"]["content_hash"] for r in sampled])
    settings = TrainSettings(
        dim=section.dim,
        epoch=section.epoch,
        lr=section.learning_rate,
        word_ngrams=section.word_ngrams,
        seed=task.seed % 2**31,
    )
    folder = storage.local_path(storage.join(task.workdir, NAME))
    path, marker = folder / "model.bin", folder / "_fingerprint"
    wanted = fingerprint_of(lines_print, asdict(settings), section.preparation)
    if not (path.is_file() and marker.is_file() and marker.read_text(encoding="utf-8") == wanted):
        marker.unlink(missing_ok=True)
        lines = ((label, line) for label, holdout, line in _training_lines(task) if not holdout)
        train_classifier(lines, path, settings, section.preparation)
        storage.write_atomic(str(marker), wanted.encode())
    classifier = open_classifier(path, POSITIVE)
    facts = {"model_sha256": classifier.sha256, "held_out": _held_out(task, classifier)}
    return QualityTask(**{**task.__dict__, "model": str(path), "model_sha256": classifier.sha256}), facts


def training_part(task: QualityTask, part: int) -> dict[str, Any]:
    """Write the prepared training lines of one part."""
    path = part_files.part_path(task.workdir, NAME, "training", part)
    print_ = fingerprint_of(
        "training", ALGORITHM_VERSION, task.seed, task.rates, task.settings["preparation"], task.upstream[part]
    )
    found = part_files.found_part(path, print_)
    if found is None:
        tables = [TRAINING.empty_table()]
        columns = ["doc_id", "source", "split", "text_hash", "text"]
        pieces = read_survivors(task.workdir, part, columns, task.upto, task.slice_rows)
        tables += [_lines_of(task, piece.table) for piece in pieces]
        found = part_files.write_part(path, pa.concat_tables(tables), TRAINING, print_)
    return {"training": located(part, found)}


def _lines_of(task: QualityTask, table: pa.Table) -> pa.Table:
    sources = table.column("source").to_pylist()
    keys = key_prefix_uint64(table.column("text_hash").to_pylist())
    rates = np.array([task.rates.get(s, 0.0) for s in sources])
    train = pc.equal(table.column("split"), "train").to_numpy(zero_copy_only=False)
    drawn = np.flatnonzero(train & (keyed_uniform(task.seed, "quality.sample", keys) < rates))
    chosen = table.take(pa.array(drawn))
    lines = _shortened(prepare(text_views(chosen.column("text")), task.settings["preparation"]))
    positives = set(task.settings["positives"])
    labels = [POSITIVE if sources[i] in positives else NEGATIVE for i in drawn]
    holdout = keyed_uniform(task.seed, "quality.holdout", keys[drawn]) < HOLDOUT_FRAC
    return pa.table(
        {"doc_id": chosen.column("doc_id"), "label": labels, "holdout": holdout, "line": _binary(lines)}
    ).cast(TRAINING)


def _shortened(lines: TextViews) -> TextViews:
    """Cut training lines to `MAX_LINE_BYTES` at a blank: a book must not outweigh a hundred pages, nor take as long."""
    kept = bytearray()
    offsets = [0]
    for start, end in zip(lines.offsets[:-1].tolist(), lines.offsets[1:].tolist(), strict=True):
        line = lines.data[start:end].tobytes()
        if len(line) > MAX_LINE_BYTES:
            line = (
                line[: max(line.rfind(b" ", 0, MAX_LINE_BYTES), 0)]
                or line[:MAX_LINE_BYTES].decode("utf-8", "ignore").encode()
            )
        kept += line
        offsets.append(len(kept))
    return TextViews(np.array(offsets, dtype=np.int64), np.frombuffer(bytes(kept), dtype=np.uint8))


def _binary(lines: TextViews) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(lines.offsets)), pa.py_buffer(np.ascontiguousarray(lines.data))]
    return pa.Array.from_buffers(pa.large_binary(), lines.num_docs, buffers)


def _training_lines(task: QualityTask) -> Iterator[tuple[str, bool, bytes]]:
    for part in sorted(task.upstream):
        table = part_files.read_part(task.workdir, NAME, "training", part, ["label", "holdout", "line"])
        yield from zip(*(table.column(c).to_pylist() for c in ("label", "holdout", "line")), strict=True)


def _held_out(task: QualityTask, classifier: Classifier) -> dict[str, Any]:
    """Return how well the model separates documents that it did not see."""
    rows = [(label, line) for label, holdout, line in _training_lines(task) if holdout]
    labels = np.array([label == POSITIVE for label, _ in rows], dtype=bool)
    facts: dict[str, Any] = {"positives": int(labels.sum()), "negatives": int((~labels).sum())}
    if not (labels.any() and (~labels).any()):
        return facts
    scores = score(classifier, text_views(pa.array([line for _, line in rows], pa.large_binary())))
    found = roc_auc_interval(scores, labels)
    facts |= {"roc_auc": round(found.auc, 6), "roc_auc_standard_error": round(found.standard_error, 6)}
    return facts


def score_part(task: QualityTask, part: int) -> dict[str, Any]:
    """Score one part's surviving pool documents."""
    path = part_files.part_path(task.workdir, NAME, "quality", part)
    print_ = fingerprint_of(
        "quality", ALGORITHM_VERSION, task.model_sha256, task.settings["preparation"], task.upstream[part]
    )
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", "source", "domain", "num_bytes"], task.upto)
        scores = np.full(documents.num_rows, np.nan, dtype=np.float32)
        classifier = _open(task)
        for piece in read_survivors(task.workdir, part, ["role", "text"], task.upto, task.slice_rows):
            pool = pc.equal(piece.table.column("role"), "pool").to_numpy(zero_copy_only=False)
            texts = piece.table.column("text").filter(pa.array(pool))
            scores[piece.rows[pool]] = score(classifier, prepare(text_views(texts), classifier.preparation))
        table = pa.table({"doc_id": documents.column("doc_id"), "score": pa.array(scores, from_pandas=True)})
        counted = np.where(_exempt(task, documents), np.nan, scores)
        found = part_files.write_part(path, table, QUALITY, print_, {"bins": _bins(documents, counted)})
    return {**found.result, "quality": located(part, found)}


def _exempt(task: QualityTask, documents: pa.Table) -> np.ndarray:
    domains = pa.array(task.settings["exempt_domains"], pa.string())
    return pc.is_in(documents.column("domain"), domains).to_numpy(zero_copy_only=False)


def _open(task: QualityTask) -> Classifier:
    if task.settings["model"] is None:
        return open_classifier(Path(task.model), POSITIVE)
    return open_external_classifier(
        Path(task.model), task.settings["positive_label"], task.settings["preparation"], task.model_sha256
    )


def _bins(documents: pa.Table, scores: np.ndarray) -> dict[str, list[list[int]]]:
    """Return per source [bin, documents, bytes] of the documents that the threshold decides about."""
    scored = np.flatnonzero(~np.isnan(scores))
    sources = np.array(documents.column("source").to_pylist(), dtype=object)[scored]
    sizes = documents.column("num_bytes").to_numpy()[scored]
    bins = np.minimum((scores[scored].astype(np.float64) * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    out: dict[str, list[list[int]]] = {}
    for source in sorted(set(sources)):
        mine = sources == source
        values, inverse, docs = np.unique(bins[mine], return_inverse=True, return_counts=True)
        sums = np.zeros(len(values), dtype=np.int64)
        np.add.at(sums, inverse, sizes[mine])
        out[source] = [[int(v), int(d), int(b)] for v, d, b in zip(values, docs, sums, strict=True)]
    return out


def _threshold(section: Quality, scored: list[dict[str, Any]]) -> float:
    """Return the highest bin edge that keeps the wanted share of the pool's bytes."""
    sums = np.zeros(SCORE_BINS, dtype=np.int64)
    for result in scored:
        for rows in result["bins"].values():
            for bin_, _, size in rows:
                sums[bin_] += size
    if sums.sum() == 0:
        raise DataError(
            "quality found no pool document to score; sources of role pool are empty after the stages before"
        )
    kept = np.cumsum(sums[::-1])[::-1]
    wanted = (section.keep_token_frac or 1.0) * sums.sum()
    return int(np.flatnonzero(kept >= wanted)[-1]) / SCORE_BINS


def _histograms(scored: list[dict[str, Any]], num: int = 50) -> dict[str, list[int]]:
    """Return documents per source in `num` equal score bins, for the report."""
    out: dict[str, list[int]] = {}
    for result in scored:
        for source, rows in result["bins"].items():
            counts = out.setdefault(source, [0] * num)
            for bin_, docs, _ in rows:
                counts[bin_ * num // SCORE_BINS] += docs
    return dict(sorted(out.items()))


def decide_part(task: QualityTask, threshold: float, part: int) -> dict[str, Any]:
    """Write one part's decisions: scored documents below the threshold go, unless their domain is exempt."""
    path = part_files.part_path(task.workdir, NAME, "decisions", part)
    scores_table = part_files.read_part(task.workdir, NAME, "quality", part, ["score"]).column("score")
    print_ = fingerprint_of(
        NAME, ALGORITHM_VERSION, threshold, task.settings["exempt_domains"], task.model_sha256, task.upstream[part]
    )
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        low = (scores_table.to_numpy() < threshold) & ~_exempt(task, documents)
        reasons = reasons_where(low, f"{NAME}.low_score")
        table = decisions_table(documents.column("doc_id"), entered, reasons, NAME)
        found = part_files.write_part(path, table, DECISIONS, print_, {"counts": tally(documents, entered, reasons)})
    return {**found.result, "decisions": located(part, found)}
