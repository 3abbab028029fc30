"""Graphs made to break things: a giant bucket, a long chain, and both ways through them."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pytest

from refinery.kernels.components import components
from refinery.stages.dedup_components import spark_components
from tests.stages.corpus import ENGLISH, prose
from tests.stages.runs import run_stages, whole_table


def _run_copies(spark, root, count, parts):
    """Run `count` pages of one template, each with a word of its own; return (pairs, kept, largest cluster)."""
    template = prose(random.Random(3), ENGLISH, 120)
    with (root / "in.jsonl").open("w", encoding="utf-8") as file:
        for n in range(count):
            words = list(template)
            words[7 + n % 100] = f"novelty{n}"
            file.write(json.dumps({"id": f"p{n}", "text": " ".join(words)}) + "\n")
    values = {
        "name": "giant", "workdir": str(root / "run"), "seed": 1,
        "inputs": [{"source": "s", "domain": "d", "format": "jsonl", "paths": [str(root / "in.jsonl")]}],
        "ingest": {"part_bytes": count * 800 // parts, "validation_frac": 0.0},
        "dedup_documents": {"keep": ["longest"]},
    }  # fmt: skip
    made = run_stages(spark, values, ("ingest", "dedup_documents"))["dedup_documents"]
    kept = sum(c.docs for c in made.counts if c.kind == "kept")
    return made.volatile["num_candidate_pairs"], kept, made.facts["largest_cluster"]


@pytest.mark.spark
def test_a_giant_bucket_stays_linear(spark, tmp_path):
    pairs, kept, largest = _run_copies(spark, tmp_path, 3000, 3)
    assert pairs < 60 * 3000 < 3000 * 2999 // 2
    assert largest == 3000
    assert kept <= 30, "what LSH finds of pairs just above the bound"


@pytest.mark.slow
@pytest.mark.spark
def test_two_hundred_thousand_near_copies_in_two_gigabytes(spark, tmp_path):
    """The whole stage in a process of its own; the memory of it, the JVM and the workers is added up twice a second.

    A small run before it fills the cache of compiled kernels: compiling them takes 0.1 GB a process.
    """
    code = (
        "import sys, threading; from pathlib import Path; import psutil; from refinery.recipe import Spark\n"
        "from refinery.stages.session import make_session\n"
        "from tests.stages.test_dedup_giants import _run_copies, proportional_bytes\n"
        "spark = make_session(Spark(master='local[2]', driver_memory='1g'), 'giant')\n"
        "peak, done = [0], threading.Event()\n"
        "def watch():\n"
        "    while not done.wait(0.5): peak[0] = max(peak[0], proportional_bytes(psutil.Process()))\n"
        "watcher = threading.Thread(target=watch); watcher.start()\n"
        "try: print(_run_copies(spark, Path(sys.argv[1]), int(sys.argv[2]), 12))\n"
        "finally: done.set(); watcher.join()\n"
        "print(peak[0])\n"
    )
    for name, count in (("small", 2000), ("giant", 200_000)):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", code, str(tmp_path / name), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    told, peak = done.stdout.strip().splitlines()[-2:]
    pairs, kept, largest = map(int, told.strip("()").split(","))
    assert pairs < 60 * 200_000
    assert largest == 200_000
    assert kept <= 2000
    assert 10**8 < int(peak) < 2 * 10**9


def proportional_bytes(process):
    """Return the memory of a process and everything below it, shared pages counted once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += each.memory_full_info().pss
    return total


def _labels(spark, left, right):
    labels, rounds = spark_components(spark.createDataFrame(pa.table({"a": left, "b": right})))
    table = labels.toArrow().sort_by("node")
    return table.column("node").to_numpy(), table.column("label").to_numpy(), rounds


def _chain(length):
    """Return a chain whose nodes lie in no order: the worst case of labels that walk."""
    nodes = np.random.default_rng(1).permutation(length).astype(np.int64) * 7
    return nodes[:-1], nodes[1:]


@pytest.mark.spark
@pytest.mark.parametrize("make", ["random", "chain"])
def test_spark_components_equal_union_find(spark, make):
    rng = np.random.default_rng(4)
    if make == "random":
        left, right = rng.integers(0, 900, 700) << 33, rng.integers(0, 900, 700) << 33
        left, right = np.append(left, [5, 6]), np.append(right, [5, 5])
    else:
        left, right = _chain(3000)
    nodes, labels, rounds = _labels(spark, left, right)
    expected = components(left, right)
    assert np.array_equal(nodes, expected.nodes)
    assert np.array_equal(labels, expected.labels)
    assert rounds <= 14


@pytest.mark.slow
@pytest.mark.spark
def test_a_chain_of_a_million_settles_in_logarithmic_rounds(spark):
    left, right = _chain(1_000_000)
    nodes, labels, rounds = _labels(spark, left, right)
    assert len(nodes) == 1_000_000
    assert not labels.any()
    assert rounds <= 25


@pytest.mark.spark
def test_clusters_are_found_in_the_table_that_mix_reads(spark, tmp_path):
    _run_copies(spark, tmp_path, 40, 1)
    rows = whole_table(str(tmp_path / "run"), "dedup_documents", "clusters", ["doc_id", "size", "representative"])
    assert rows.filter(rows.column("representative")).column("size").to_pylist() == [40]
