"""The embedding half of dedup_sentences: choose sentences, check that the model reads them, write their vectors.

What the exact half takes is not embedded. A vector is stored in float16 with the address of its sentence and without
its text; `sentence_matching` compares what is stored, so the answer is the same wherever the vectors meet.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import PART_SHIFT, VECTORS
from refinery.errors import ConfigError
from refinery.hashing import hex_key, key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.io.survivors import read_labels
from refinery.kernels.sentences import is_block
from refinery.process_memory import return_freed_memory
from refinery.stages.decisions import located
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.sentence_matching import matched_sentences
from refinery.stages.sentence_repeats import STAGE, SentencesTask, exact_causes, read_layout, sentence_texts
from refinery.stages.task_resources import gpu_profile, task_gpu

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from refinery.stages.workspace import Run

VECTORS_VERSION = 3
LANGUAGE_SAMPLE = 200
"""Sentences on which a model's knowledge of a language is checked."""
_SAMPLE_PARTS = 4
MAX_WORD_BYTES = 40
"""A sentence with more bytes per word than this, on average, is no sentence: base64, minified code, one 5 MB word."""


def similar_sentences(run: Run, task: SentencesTask, parts: list[int]) -> tuple[pa.Table, dict[str, Any]]:
    """Return the sentences that go because one of the same meaning is kept, and facts for the report.

    Returns: a table doc_id, start, because_of, because_doc, because_start, because_end, similarity; facts.

    Raises:
        ConfigError: the model or CUDA is missing, or the model does not know a language that it is asked for.
    """
    settings = task.settings["embeddings"]
    counted = run_part_tasks(run.spark, parts, functools.partial(count_part, task))
    total = sum(sum(r["languages"].values()) for r in counted)
    rate = min(1.0, settings["max_sentences"] / max(total, 1))
    shares = check_languages(run.spark, task, {p: r["languages"] for p, r in zip(parts, counted, strict=True)})
    profile = gpu_profile(run.spark, settings["gpu_amount"])
    work = functools.partial(vectors_part, task, rate)
    written = run_part_tasks(run.spark, parts, work, run.report_progress(STAGE), profile)
    removed, facts = matched_sentences(run.spark, task, parts, profile)
    facts |= {
        "num_sentences": total,
        "num_embedded": sum(r["vectors"]["rows"] for r in written),
        "num_blocks": sum(r["blocks"] for r in written),
        "num_too_short": sum(r["short"] for r in counted),
        "num_too_long": sum(r["long"] for r in counted),
        "unknown_token_frac": shares,
        "model": settings["model"],
    }
    return removed, {"embeddings": facts}


def chosen_sentences(task: SentencesTask, part: int, rate: float) -> tuple[np.ndarray, pa.Table, dict[str, int]]:
    """Choose the sentences of one part that are compared by meaning.

    Args:
        task: the stage's task.
        part: part number.
        rate: share of the documents that are drawn, by the hash of their keys.
    Returns: indices into the part's layout; doc_id, start, end, lang and scope of each; how many were short or long.
    """
    settings = task.settings["embeddings"]
    layout = read_layout(task.workdir, part)
    labels = read_labels(task.workdir, part, ["doc_id", "doc_key", "lang", "source", "domain"], task.upto)
    rows = layout.doc_ids & ((1 << PART_SHIFT) - 1)
    known = pc.is_in(labels.column("lang"), pa.array(settings["languages"], pa.string()))
    drawn = keyed_uniform(task.seed, "sentences", key_prefix_uint64(labels.column("doc_key").to_pylist())) < rate
    asked = (known.to_numpy(zero_copy_only=False).astype(bool) & drawn)[rows]
    asked[exact_causes(task, part, layout).sentence] = False
    size = layout.spans.ends - layout.spans.starts - layout.layout.space
    short = layout.words < settings["min_words"]
    long = (layout.words > settings["max_words"]) | (size > MAX_WORD_BYTES * np.maximum(layout.words, 1))
    index = np.flatnonzero(asked & ~short & ~long)
    scope = np.zeros(labels.num_rows, dtype=np.int64)
    if settings["scope"] != "all":
        names = labels.column(settings["scope"]).to_pylist()
        numbers = {name: int(hex_key("scope", name)[:15], 16) for name in set(names)}
        scope = np.array([numbers[name] for name in names], dtype=np.int64)
    table = pa.table(
        {
            "doc_id": layout.doc_ids[index],
            "start": layout.spans.starts[index],
            "end": (layout.spans.ends - layout.layout.space)[index],
            "lang": labels.column("lang").take(pa.array(rows[index])),
            "scope": scope[rows[index]],
        }
    )
    return index, table, {"short": int((asked & short).sum()), "long": int((asked & ~short & long).sum())}


def count_part(task: SentencesTask, part: int) -> dict[str, Any]:
    """Count the sentences of one part that could be embedded, by language."""
    _, table, left_out = chosen_sentences(task, part, 1.0)
    counts = pc.value_counts(table.column("lang").combine_chunks()).to_pylist()
    return {"languages": {row["values"]: row["counts"] for row in counts}, **left_out}


def check_languages(
    spark: SparkSession, task: SentencesTask, counts: dict[int, dict[str, int]]
) -> dict[str, float]:
    """Return, per language, the share of tokens of a sample that the model does not know.

    Workers tell it, which open the model anyway: the driver needs neither torch nor the memory for a model.

    Args:
        spark: the session.
        task: the stage's task.
        counts: part -> language -> sentences.

    Raises:
        ConfigError: a share is too large, the model cannot be opened, or CUDA is asked for and missing.
    """
    samples = []
    for language in sorted({lang for by_language in counts.values() for lang in by_language}):
        ranked = sorted((-by_language.get(language, 0), part) for part, by_language in counts.items())
        samples.append((language, [part for _, part in ranked[:_SAMPLE_PARTS]]))
    told = run_part_tasks(spark, range(len(samples)), functools.partial(language_task, task, samples))
    refused = [answer["refused"] for answer in told if "refused" in answer]
    if refused:
        raise ConfigError(refused[0])
    return {language: answer["share"] for (language, _), answer in zip(samples, told, strict=True)}


def language_task(task: SentencesTask, samples: list[tuple[str, list[int]]], number: int) -> dict[str, Any]:
    """Return the share of unknown tokens in one language's sample, or why there is none.

    Args:
        task: the stage's task.
        samples: (language, parts to sample).
        number: of the language.
    """
    from refinery.gpu.embed import resolve_device, worker_embedder  # noqa: PLC0415 - torch, only where it is needed

    settings = task.settings["embeddings"]
    language, parts = samples[number]
    try:
        device = "cpu" if settings["gpu_amount"] else resolve_device(settings["device"])
        embedder = worker_embedder(settings["model"], device, settings["revision"], None)
        sample: list[str] = []
        for part in parts:
            _, table, _ = chosen_sentences(task, part, 1.0)
            mine = table.filter(pc.equal(table.column("lang"), language))
            texts = sentence_texts(task, part, mine.slice(0, LANGUAGE_SAMPLE // len(parts)))
            sample += [text for text in texts if not is_block(text)]
        return {"share": round(embedder.check_language(language, sample), 6)}
    except ConfigError as error:
        return {"refused": str(error)}


def vectors_part(task: SentencesTask, rate: float, part: int) -> dict[str, Any]:
    """Embed the chosen sentences of one part; the batches are a function of the part alone."""
    settings = task.settings["embeddings"]
    path = part_files.part_path(task.workdir, STAGE, "vectors", part)
    _, table, _ = chosen_sentences(task, part, rate)
    identity = [task.model_state, settings["device"]]
    rows = fingerprint_of(*(table.column(c).to_pylist() for c in ("doc_id", "start", "end", "scope")))
    print_ = fingerprint_of("vectors", VECTORS_VERSION, identity, rows, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        vectors = np.empty((0, 1), dtype=np.float16)
        texts = sentence_texts(task, part, table)
        blocks = np.fromiter(map(is_block, texts), dtype=bool, count=len(texts))
        table = table.filter(pa.array(~blocks))
        if table.num_rows:
            from refinery.gpu.embed import resolve_device, worker_embedder  # noqa: PLC0415 - torch, only where needed

            device = resolve_device(settings["device"])
            embedder = worker_embedder(settings["model"], device, settings["revision"], task_gpu())
            prose = [text for text, block in zip(texts, blocks.tolist(), strict=True) if not block]
            vectors = embedder.encode(prose).astype("<f2")
        made = {
            "sentence_id": (np.int64(part) << PART_SHIFT) | np.arange(table.num_rows, dtype=np.int64),
            **{name: table.column(name) for name in ("doc_id", "start", "end", "scope")},
            "vector": packed_vectors(vectors),
        }
        found = part_files.write_part(path, pa.table(made), VECTORS, print_, {"blocks": int(blocks.sum())})
        return_freed_memory()  # the worker lives on, beside others
    return {**found.result, "vectors": located(part, found)}


def packed_vectors(vectors: np.ndarray) -> pa.Array:
    """Return float16 rows as large binary, little-endian."""
    width = vectors.shape[1] * 2
    offsets = pa.py_buffer(np.arange(len(vectors) + 1, dtype=np.int64) * width)
    data = pa.py_buffer(np.ascontiguousarray(vectors, dtype="<f2"))
    return pa.Array.from_buffers(pa.large_binary(), len(vectors), [None, offsets, data])
