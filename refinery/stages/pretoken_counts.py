"""Count the pretokens of the tokenizer's sample: part tasks count, Spark carries, the driver gets what it has room for.

A task hands its counts on in buckets, by the pretoken's hash: 64 rows of packed bytes a part, not one row a pretoken.
Spark brings the rows of each bucket together, a task sums them and writes what it found. What is cut follows from the
summed counts, so it depends neither on parts nor on workers. A row a pretoken, summed by Spark itself, cost 8 us each
in the JVM: 35 CPU seconds for 128 MB of text, with 2.1 million distinct ones.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import PRETOKENS
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.kernels.pretokens import PretokenCounter, PretokenCounts, selected, split_by_hash
from refinery.kernels.text import text_views
from refinery.stages.part_tasks import apply_groups, map_parts
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import CountedSample, pretoken_counter, smallest_count_kept

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NUM_BUCKETS = 64
"""Fixed, since it names files; 5 GB of text with 30 million distinct pretokens would be about 8 MB a bucket."""
_BLOCKS = pa.schema(
    [
        pa.field("bucket", pa.int32()),
        pa.field("lengths", pa.binary()),
        pa.field("data", pa.binary()),
        pa.field("counts", pa.binary()),
    ]
)
"""Pretokens of one bucket: lengths int32 and counts int64, little-endian, and their bytes, one after the other."""
_TASK_BYTES = 64_000_000
"""Distinct pretokens that a task holds before it hands its counts on and starts anew."""


def count_sample(
    spark: SparkSession, workdir: str, sampled: Sequence[dict[str, Any]], recipe: TokenizerRecipe
) -> CountedSample:
    """Count the training documents of the sample.

    Args:
        spark: the session.
        workdir: of the run; the sample's parts lie under it, and the counts by bucket are written there.
        sampled: result of every sample task, with ``part``, ``docs`` and ``bytes`` of its training documents.
        recipe: gives the split pattern and `max_pretoken_bytes`.
    """
    parts = [result["sample"]["part"] for result in sampled]
    blocks = map_parts(spark, parts, functools.partial(count_part, workdir, recipe), _BLOCKS)
    summed = apply_groups(blocks, ["bucket"], functools.partial(sum_bucket, workdir))
    sizes: Counter[int] = Counter()
    distinct: Counter[int] = Counter()
    for bucket in summed:
        for count, size, number in bucket["tallies"]:
            sizes[count] += size
            distinct[count] += number
    smallest = smallest_count_kept(sizes.items(), recipe.max_pretoken_bytes)
    numbers = sorted(bucket["bucket"] for bucket in summed)
    kept = [_kept(workdir, number, smallest) for number in numbers]
    for number in numbers:  # read once; a vocabulary that stands is never counted again
        storage.remove(part_files.part_path(workdir, "tokenize", "pretokens", number))
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.offsets) for part in kept)])
    return CountedSample(
        PretokenCounts(
            np.cumsum(lengths),
            np.concatenate([np.empty(0, np.uint8), *(part.data for part in kept)]),
            np.concatenate([np.empty(0, np.int64), *(part.counts for part in kept)]),
        ),
        num_docs=sum(result["docs"] for result in sampled),
        num_bytes=sum(result["bytes"] for result in sampled),
        smallest_count=smallest,
        num_cut=sum(number for count, number in distinct.items() if count < smallest),
        num_cut_bytes=sum(size * count for count, size in sizes.items() if count < smallest),
    )


def count_part(workdir: str, recipe: TokenizerRecipe, part: int) -> Iterator[pa.RecordBatch]:
    """Yield the counts of one part of the sample, in blocks that hold each pretoken once."""
    table = part_files.read_part(workdir, "tokenize", "sample", part)
    texts = table.filter(pc.equal(table.column("split"), "train")).column("text")
    counter = pretoken_counter(recipe)
    for batch in texts.chunks:
        for start in range(0, len(batch), 1000):
            counter.add(text_views(batch.slice(start, 1000)))
            if counter.num_bytes > _TASK_BYTES:
                yield _blocks(counter.counts())
                counter.clear()
    yield _blocks(counter.counts())


def _blocks(counted: PretokenCounts) -> pa.RecordBatch:
    rows = [
        {
            "bucket": number,
            "lengths": np.diff(block.offsets).astype("<i4").tobytes(),
            "data": block.data.tobytes(),
            "counts": block.counts.astype("<i8").tobytes(),
        }
        for number, block in enumerate(split_by_hash(counted, NUM_BUCKETS))
        if len(block.counts)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=_BLOCKS)


def sum_bucket(workdir: str, blocks: pa.Table) -> dict[str, Any]:
    """Sum the blocks of one bucket and write the pretokens with their counts; return its tallies by count."""
    counter = PretokenCounter(np.zeros(0, np.uint8), 0)
    for number in range(blocks.num_rows):
        lengths, data, counts = (blocks.column(name)[number].as_buffer() for name in ("lengths", "data", "counts"))
        offsets = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, "<i4"), dtype=np.int64)])
        counter.add_counted(
            PretokenCounts(offsets, np.frombuffer(data, np.uint8), np.frombuffer(counts, "<i8").astype(np.int64))
        )
    bucket = blocks.column("bucket")[0].as_py()
    counted = counter.counts()
    # By bytes: which part came first must not show.
    words = pa.Array.from_buffers(
        pa.large_binary(), len(counted.counts), [None, pa.py_buffer(counted.offsets), pa.py_buffer(counted.data)]
    )
    table = pa.table([words, pa.array(counted.counts)], names=PRETOKENS.names).sort_by("pretoken")
    path = part_files.part_path(workdir, "tokenize", "pretokens", bucket)
    part_files.write_part(path, table, PRETOKENS, fingerprint_of("pretokens", bucket))
    values, where, numbers = np.unique(counted.counts, return_inverse=True, return_counts=True)
    sizes = np.bincount(where, weights=np.diff(counted.offsets)).astype(np.int64)
    tallies = np.stack([values, sizes, numbers], axis=1).tolist() if len(values) else []
    return {"bucket": bucket, "tallies": tallies}


def _kept(workdir: str, bucket: int, smallest: int) -> PretokenCounts:
    table = part_files.read_part(workdir, "tokenize", "pretokens", bucket)
    views = text_views(table.column("pretoken"))
    counts = table.column("occurrences").to_numpy().astype(np.int64)
    counted = PretokenCounts(views.offsets, views.data, counts)
    return selected(counted, np.flatnonzero(counts >= smallest))
