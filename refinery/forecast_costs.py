"""Measured costs that forecasts are worked out from, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MEASURED = "benchmarks/pipeline.py on 25 and 100 MB, 2026-11-21, 2 cores of an AMD EPYC (Zen 5), busy"
DEMO_MEASURED = "an estimate from runs of recipes/demo.yaml on a busy machine; training of the classifier is fixed"
TRAINER_MEASURED = "run record of preset tiny, 2026-11-21, on the same 2 cores"


class Cost(NamedTuple):
    """What a stage costs; text is UTF-8 bytes that enter it."""

    fixed_seconds: float
    """CPU seconds per stage, whatever the size: Spark jobs, manifests."""
    mb_per_core_second: float
    """CPU of all processes, after the fixed part."""
    disk_per_text_byte: float
    """Bytes that stay in the stage's folder per byte of text."""
    source: str = MEASURED


UNMEASURED = Cost(1.0, 10.0, 0.02, "not measured: a guess between the other stages")
"""Of stages that have no line below."""

COSTS: Mapping[str, Cost] = {
    "ingest": Cost(0.7, 49.0, 0.33),
    "screen": Cost(0.2, 47.0, 0.003),
    "rules": Cost(0.2, 22.0, 0.05, "English 29 MB/s; Chinese with its words 17, their bitmaps 6 %, laws and novels"),
    "quality": Cost(5.0, 8.0, 0.02, DEMO_MEASURED),
    "select": Cost(0.6, 27.0, 0.1),
    "dedup_documents": Cost(2.9, 114.0, 0.04),
    "dedup_sentences": Cost(1.5, 126.0, 0.02),
    "decontaminate": Cost(2.0, 60.0, 0.01, "26.7 MB against HumanEval, CMRC 2018 dev and GSM8K test, on one core"),
    "tokenize": Cost(1.5, 8.4, 0.38),
    "mix": Cost(0.3, 51.0, 0.003),
    "pack": Cost(0.2, 28.0, 0.0),
}
"""Per stage. Embeddings and the training of a tokenizer and a model have their own terms below."""

LINES = Cost(1.5, 60.0, 0.15, "benchmarks/repeats.py, and part tasks on 18 MB of the demo's text")
"""What repeated lines add to dedup_sentences."""
CONTAINMENT = Cost(2.5, 40.0, 0.15, LINES.source)
"""What the containment report adds."""
INDEX_BUILD_BYTES_PER_NGRAM = 120.0
"""Sorting n-grams while an eval index is built, beside what stays: 94 measured with a million n-grams."""
SPARK_START_SECONDS = 8.0
TOKENIZER_MB_PER_SECOND = 3.0
"""Training one vocabulary of 32k: 19 MB took 6.2 CPU seconds (benchmarks/tokenizer_training.py)."""
TOKENIZER_MEMORY_PER_BYTE = 10.0
"""19 MB of mixed text took 340 MB beyond the start of the process; large samples less a byte."""
SENTENCES_PER_CORE_SECOND = 40.0
"""Embedding with MiniLM on a CPU; a GPU does thousands."""
TRAIN_FLOPS_PER_CORE_SECOND = 3e10
TRAIN_STATE_BYTES_PER_PARAM = 16
CHECKPOINT_BYTES_PER_PARAM = 12
"""float32 weight and two moments."""
BYTES_PER_TOKEN = 3.7
"""English 4.0 and Chinese 3.9 with 32,768 ids, 3.4 with 4,096."""
SHARD_BYTES_PER_TOKEN = 2.3
"""uint16 ids, padding, row and segment tables."""
WORKER_BYTES = 350 * 2**20
"""A Python worker with kernels, Arrow and the language model, before it holds text."""
WORKER_BYTES_PER_PART_BYTE = 4.0
"""Text as Python strings, as Arrow columns, and the file being written."""
DRIVER_BYTES = 450 * 2**20
"""The driver's Python process; the JVM comes on top."""
