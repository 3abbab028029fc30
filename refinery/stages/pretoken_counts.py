"""Count the pretokens of the tokenizer's sample: part tasks count, Spark sums, the driver gets what it has room for.

Narrow rows only: a pretoken and its count. What is cut follows from the summed counts, so it does not depend on parts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.io import parts as part_files
from refinery.kernels.pretokens import PretokenCounts
from refinery.kernels.text import text_views
from refinery.stages.part_tasks import map_parts
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import CountedSample, pretoken_counter, smallest_count_kept

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PRETOKENS = pa.schema([pa.field("pretoken", pa.binary()), pa.field("occurrences", pa.int64())])
_TASK_BYTES = 64_000_000
"""Distinct pretokens that a task holds before it hands its counts on and starts anew."""
_SLICE_ROWS = 1 << 16


def count_sample(
    spark: SparkSession, workdir: str, sampled: Sequence[dict[str, Any]], recipe: TokenizerRecipe
) -> CountedSample:
    """Count the training documents of the sample.

    Args:
        spark: the session.
        workdir: of the run; the sample's parts lie under it.
        sampled: result of every sample task, with ``part``, ``docs`` and ``bytes`` of its training documents.
        recipe: gives the split pattern and `max_pretoken_bytes`.
    """
    from pyspark.sql import functions as F  # noqa: PLC0415, N812 - the usual name

    parts = [result["sample"]["part"] for result in sampled]
    rows = map_parts(spark, parts, functools.partial(count_part, workdir, recipe), PRETOKENS)
    counts = rows.groupBy("pretoken").agg(F.sum("occurrences").alias("occurrences")).persist()
    size = F.octet_length("pretoken")
    tallies = counts.groupBy("occurrences").agg(F.sum(size).alias("size"), F.count("*").alias("distinct")).collect()
    smallest = smallest_count_kept(((t["occurrences"], t["size"]) for t in tallies), recipe.max_pretoken_bytes)
    kept = counts.where(F.col("occurrences") >= smallest).toArrow()
    counts.unpersist()
    cut = [t for t in tallies if t["occurrences"] < smallest]
    offsets, data = text_views(kept.column("pretoken"))
    return CountedSample(
        PretokenCounts(offsets, data, kept.column("occurrences").to_numpy().astype(np.int64)),
        num_docs=sum(result["docs"] for result in sampled),
        num_bytes=sum(result["bytes"] for result in sampled),
        smallest_count=smallest,
        num_cut=sum(t["distinct"] for t in cut),
        num_cut_bytes=sum(t["size"] * t["occurrences"] for t in cut),
    )


def count_part(workdir: str, recipe: TokenizerRecipe, part: int) -> Iterator[pa.RecordBatch]:
    """Yield (pretoken, count) of one part of the sample, in pieces that hold each pretoken once."""
    table = part_files.read_part(workdir, "tokenize", "sample", part)
    texts = table.filter(pc.equal(table.column("split"), "train")).column("text")
    counter = pretoken_counter(recipe)
    for batch in texts.chunks:
        for start in range(0, len(batch), 1000):
            counter.add(text_views(batch.slice(start, 1000)))
            if counter.num_bytes > _TASK_BYTES:
                yield from _rows(counter.counts())
                counter.clear()
    yield from _rows(counter.counts())


def _rows(counted: PretokenCounts) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(counted.counts), _SLICE_ROWS):
        counts = counted.counts[start : start + _SLICE_ROWS]
        bounds = counted.offsets[start : start + len(counts) + 1]
        data = pa.py_buffer(counted.data[bounds[0] : bounds[-1]].tobytes())
        offsets = pa.py_buffer((bounds - bounds[0]).astype(np.int32).tobytes())
        words = pa.Array.from_buffers(pa.binary(), len(counts), [None, offsets, data])
        yield pa.record_batch([words, pa.array(counts.copy())], schema=PRETOKENS)
