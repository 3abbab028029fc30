"""tokenize: one vocabulary for the run, and the ids of every surviving document.

The vocabulary is trained here on a sample that follows the mix's shares (membership is a function of seed and
doc_key), or taken as given. ``tokens`` is an aligned table: ids are little-endian uint16 or int32, each document ended
by the end-of-text id.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import CountRow, StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import TOKENIZER_SAMPLE, TOKENS
from refinery.hashing import key_prefix_uint64
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels.text import text_views
from refinery.recipe import Recipe
from refinery.stages.decisions import located
from refinery.stages.mix_plan import phase_domains
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.pretoken_counts import count_sample
from refinery.stages.tallies import TALLY_COLUMNS, tally
from refinery.stages.vocabulary import Origin, make_vocabulary, origin_of
from refinery.stages.workspace import (
    Run,
    check_conservation,
    commit_stage,
    part_entries,
    stage_fingerprint,
    up_to_date,
    upstream_of,
)
from refinery.tokenization.encode import open_encoder
from refinery.tokenization.health import health
from refinery.tokenization.info import load_info
from refinery.tokenization.sample import sample_mask, sample_thresholds

NAME = "tokenize"
ALGORITHM_VERSION = 2
HEALTH_SAMPLE_BYTES = 2_000_000
"""Held-out text that the health report reads."""


@dataclass(frozen=True)
class TokenizeTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    """Part -> hash of its documents and of the decisions before this stage."""
    thresholds: dict[str, float]
    """``domain/split`` -> share of documents drawn into the sample."""
    tokenizer: str = ""
    tokenizer_sha256: str = ""


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Train or take the vocabulary, then encode every surviving document."""
    started = time.monotonic()
    recipe = run_.recipe
    upto, upstream, seen = upstream_of(run_, NAME)
    last = upstream[-1]
    origin = origin_of(recipe)
    recipe_slice = origin.identity
    inputs = {m.stage: m.content_hash for m in upstream}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None and load_info(storage.join(recipe.workdir, NAME, "tokenizer")).sha256 == done.facts["sha256"]:
        return done
    thresholds = _thresholds(recipe, last.counts, origin)
    task = TokenizeTask(recipe.workdir, recipe.seed, upto, run_.slice_rows, seen, thresholds)
    parts = sorted(seen)
    sampled = run_part_tasks(run_.spark, parts, functools.partial(sample_part, task), None)
    place = storage.local_path(storage.join(recipe.workdir, NAME, "tokenizer"))
    sample_print = fingerprint_of([r["sample"]["content_hash"] for r in sampled])
    make_vocabulary(
        place,
        origin,
        functools.partial(count_sample, run_.spark, recipe.workdir, sampled),
        lambda: (text for _, _, text in _sample_rows(recipe.workdir, parts, "train")),
        sample_print,
    )
    folder = str(place)
    info = load_info(folder)
    task = TokenizeTask(**{**task.__dict__, "tokenizer": folder, "tokenizer_sha256": info.sha256})
    results = run_part_tasks(run_.spark, parts, functools.partial(encode_part, task), run_.report_progress(NAME))
    counts = merge_counts(r["counts"] for r in results)
    check_conservation(NAME, last.counts, counts)
    sample = list(held_out(recipe.workdir, parts))
    report = health(open_encoder(folder), sample) if sample else {"verdict": "no held-out text to examine"}
    storage.write_atomic(storage.join(recipe.workdir, NAME, "health.json"), json.dumps(report, indent=1).encode())
    manifest = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=part_entries("tokens", results, "tokens"),
        counts=counts,
        facts={"sha256": info.sha256, "vocab_size": info.vocab_size, "name": info.name},
        volatile={
            "part_seconds": sum(r["cpu_seconds"] for r in results),
            "engine": results[0]["engine"] if results else "",
        },
    )
    return commit_stage(run_, manifest, started)


def check_origin(recipe: Recipe) -> None:
    """Check that the tokenizer or tokenizer recipe is there and readable.

    Raises:
        ConfigError: it is missing or wrong.
    """
    if recipe.tokenizer is not None:
        origin_of(recipe)


def _thresholds(recipe: Recipe, counts: list[CountRow] | Any, origin: Origin) -> dict[str, float]:
    """Return per ``domain/split`` the share of documents to sample: training text by weights, held-out text evenly."""
    kept: dict[str, dict[str, int]] = {"train": {}, "validation": {}}
    for row in counts:
        if row.kind == "kept":
            kept[row.split][row.domain] = kept[row.split].get(row.domain, 0) + row.bytes
    held_out = sum(kept["validation"].values())
    drawn = {f"{d}/validation": min(1.0, HEALTH_SAMPLE_BYTES / held_out) for d in kept["validation"]}
    if origin.sample_bytes:
        asked = origin.recipe.weights if origin.recipe is not None else None
        weights = _domain_weights(recipe, kept["train"]) if asked is None else asked
        shares = sample_thresholds(kept["train"], weights, origin.sample_bytes)
        drawn |= {f"{domain}/train": share for domain, share in shares.items()}
    return drawn


def _domain_weights(recipe: Recipe, train_bytes: dict[str, int]) -> dict[str, float]:
    """Return the sample weight of each domain: its share of the mix; replay's share by the bytes of its domains."""
    total = sum(train_bytes.values())
    if recipe.mix is None:
        return {domain: size / total for domain, size in train_bytes.items()}
    weights = dict.fromkeys(train_bytes, 0.0)
    replay = sorted({i.domain for i in recipe.inputs if i.role == "replay"})
    replay_bytes = sum(train_bytes.get(d, 0) for d in replay)
    for stage in recipe.mix.stages:
        for domain, share in phase_domains(stage, _without_replay(recipe, train_bytes)).items():
            weights[domain] = weights.get(domain, 0.0) + stage.share * share
        for domain in replay if stage.replay else ():
            weights[domain] = weights.get(domain, 0.0) + stage.share * stage.replay * train_bytes.get(domain, 0) / max(
                replay_bytes, 1
            )
    return weights


def _without_replay(recipe: Recipe, train_bytes: dict[str, int]) -> dict[str, float]:
    """Return each domain's share of the bytes outside replay, which stands in for its tokens."""
    named = {i.domain for i in recipe.inputs if i.role != "replay"}
    sizes = {domain: size for domain, size in sorted(train_bytes.items()) if domain in named}
    return {domain: size / max(1, sum(sizes.values())) for domain, size in sizes.items()}


def sample_part(task: TokenizeTask, part: int) -> dict[str, Any]:
    """Write the documents of one part that the sample draws."""
    path = part_files.part_path(task.workdir, NAME, "sample", part)
    print_ = fingerprint_of("sample", ALGORITHM_VERSION, task.seed, task.thresholds, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        names = sorted(task.thresholds)
        limits = np.array([task.thresholds[n] for n in names] + [0.0])
        code = {name: i for i, name in enumerate(names)}
        tables = [TOKENIZER_SAMPLE.empty_table()]
        columns = ["doc_id", "doc_key", "domain", "split", "lang", "text"]
        for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
            domains, splits = piece.table.column("domain").to_pylist(), piece.table.column("split").to_pylist()
            codes = np.array([code.get(f"{d}/{s}", len(names)) for d, s in zip(domains, splits, strict=True)], np.int64)
            keys = key_prefix_uint64(piece.table.column("doc_key").to_pylist())
            mask = sample_mask(keys, codes, limits, task.seed)
            tables.append(piece.table.filter(pa.array(mask)).select(TOKENIZER_SAMPLE.names).cast(TOKENIZER_SAMPLE))
        table = pa.concat_tables(tables)
        train = table.column("text").filter(pa.compute.equal(table.column("split"), "train"))
        totals = {"docs": len(train), "bytes": pa.compute.sum(pa.compute.binary_length(train)).as_py() or 0}
        found = part_files.write_part(path, table, TOKENIZER_SAMPLE, print_, totals)
    return {"sample": located(part, found), **found.result}


def _sample_rows(workdir: str, parts: list[int], split: str) -> Iterator[tuple[str, str, str]]:
    for part in parts:
        table = part_files.read_part(workdir, NAME, "sample", part)
        for row in table.filter(pa.compute.equal(table.column("split"), split)).to_pylist():
            yield row["domain"], row["lang"] or "und", row["text"]


def held_out(workdir: str, parts: list[int]) -> Iterator[tuple[str, str, str]]:
    """Yield held-out documents for the health report; of a run without any, the first of the training sample."""
    found = False
    for row in _sample_rows(workdir, parts, "validation"):
        found = True
        yield row
    if not found:
        budget = HEALTH_SAMPLE_BYTES
        for row in _sample_rows(workdir, parts, "train"):
            yield row
            budget -= len(row[2])
            if budget < 0:
                return


def encode_part(task: TokenizeTask, part: int) -> dict[str, Any]:
    """Write the ids of one part's surviving documents."""
    path = part_files.part_path(task.workdir, NAME, "tokens", part)
    print_ = fingerprint_of(NAME, ALGORITHM_VERSION, task.tokenizer_sha256, task.upstream[part])
    encoder = open_encoder(task.tokenizer, task.tokenizer_sha256)
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        count = documents.num_rows
        entered = keep_mask(task.workdir, part, count, task.upto)
        lengths = np.zeros(count, dtype=np.int64)
        # Room for a token a byte and an end each: pages that receive no id are never touched, and pieces joined at the
        # end would be held twice. A vocabulary with a normaliser may need more.
        ids = np.empty(pc.sum(documents.column("num_bytes")).as_py() + count if count else 0, dtype=encoder.dtype)
        end = 0
        for piece in read_survivors(task.workdir, part, ["text"], task.upto, task.slice_rows):
            encoded = encoder.encode_batch(text_views(piece.table.column("text")))
            lengths[piece.rows] = np.diff(encoded.offsets)
            if end + len(encoded.ids) > len(ids):
                ids.resize(2 * (end + len(encoded.ids)), refcheck=False)
            ids[end : end + len(encoded.ids)] = encoded.ids
            end += len(encoded.ids)
        ids.resize(end, refcheck=False)
        table = _tokens_table(documents.column("doc_id"), entered, lengths, ids)
        result = {"counts": tally(documents, entered, None, lengths)}
        found = part_files.write_part(path, table, TOKENS, print_, result)
    return {**found.result, "tokens": located(part, found), "engine": encoder.engine}


def _tokens_table(doc_ids: pa.ChunkedArray, entered: np.ndarray, lengths: np.ndarray, ids: np.ndarray) -> pa.Table:
    ids = ids.astype(ids.dtype.newbyteorder("<"), copy=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]) * ids.dtype.itemsize
    valid = pa.array(entered).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(ids)]
    binary = pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)
    counts = pa.array(lengths, mask=~entered)
    return pa.table({"doc_id": doc_ids, "num_tokens": counts, "ids": binary})
