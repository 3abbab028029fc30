"""What document dedup costs at any size: core-hours, shuffle bytes, disk; a model of stated constants, checked on runs.

    python benchmarks/dedup_cost.py                       # 10 TB of text, and 15 T tokens
    python benchmarks/dedup_cost.py --bytes N --documents N
    python benchmarks/dedup_cost.py --check RESULT.json   # against dedup_documents.py; exit 1 if it is 1.5 times off
    python benchmarks/dedup_cost.py --clusters N          # components and decisions in Spark, N and 4 N documents

The constants are CPU seconds and bytes measured on one core (docs/LOG.md), those of the Spark half for what shuffles.
The share of documents that are candidates, and pairs per candidate, are those of the planted collection; a crawl that
was never deduplicated has more of both, which is what `--candidates` and `--pairs` are for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dedup_documents import Meter, shuffle_bytes

from refinery.contracts.tables import COPIES, EDGES, EXACT_KEYS
from refinery.recipe_sections import Spark
from refinery.stages.dedup_spark import resolved
from refinery.stages.session import make_session

BANDS, HASHES = 14, 112
SMALLEST_CHECKED = 40_000_000
"""Of smaller runs the CPU is that of starting workers, which differs from run to run by seconds."""
BYTES_PER_TOKEN = 4.0
BYTES_PER_DOCUMENT = 4500.0
"""Of filtered web text; FineWeb: 15 T tokens in 2.4e10 documents are 2.5 kB each, Chinese pages are shorter."""


@dataclass(frozen=True)
class Constants:
    """CPU seconds and bytes per unit."""

    sign_byte: float = 1 / 90e6
    """Reading text, signature, band keys and writing them."""
    shingle_byte: float = 1 / 200e6
    """Reading all text again and making the sets of candidates."""
    decide_document: float = 12e-6
    local_row: float = 0.4e-6
    """A band row in one process: read, sort, bucket."""
    spark_row: float = 12e-6
    """A band row in Spark: scan, shuffle, sort, Arrow, kernel. Slope from 10 to 40 MB, clusters included."""
    pair: float = 20e-6
    """A candidate pair: join of two sets, merge."""
    spark_node: float = 117e-6
    """A document of a cluster in Spark: rounds of components, resolution, write. Slope from 100,000 to 400,000."""
    fixed: float = 0.8
    """Spark jobs and worker starts of one stage, in one process."""
    spark_fixed: float = 8.0
    """The same for the Spark half: plans, compiled code, rounds."""
    disk_row: float = 9.5
    disk_document: float = 90.0
    """Exact keys and decisions."""
    disk_shingle: float = 3.6
    disk_pair: float = 14.0


@dataclass(frozen=True)
class Cost:
    """What one run takes."""

    core_hours: float
    shuffle_bytes: float
    disk_bytes: float
    by_step: dict[str, float]
    """Core-hours."""


def cost(
    num_bytes: float, documents: float, *, candidates: float = 0.35, pairs: float = 3.0, spark: bool = True,
    constants: Constants | None = None,
) -> Cost:  # fmt: skip
    """Return the cost of one run.

    Args:
        num_bytes: UTF-8 text that reaches the stage.
        documents: their number.
        candidates: share of documents that share a bucket with another one.
        pairs: candidate pairs per candidate.
        spark: the half for graphs beyond one process.
        constants: None: as measured.
    """
    k = constants or Constants()
    rows = documents * BANDS
    found = documents * candidates
    num_pairs = found * pairs
    shingles = num_bytes / documents / 5.5  # one per word, six bytes with its space
    seconds = {
        "signatures": num_bytes * k.sign_byte,
        "buckets": rows * (k.spark_row if spark else k.local_row),
        "shingle sets": num_bytes * k.shingle_byte,
        "verification": num_pairs * k.pair,
        "clusters": found * (k.spark_node if spark else 4e-6),
        "decisions": documents * k.decide_document,
        "start": k.spark_fixed if spark else k.fixed,
    }
    shuffle = rows * 33 + 3 * num_pairs * 24 + 2 * num_pairs * shingles * 4 + 20 * 2 * found * 16 + documents * 60
    signature = HASHES * 4 + 8
    disk = rows * k.disk_row + documents * (k.disk_document + signature)
    disk += found * shingles * k.disk_shingle + num_pairs * k.disk_pair
    steps = {name: s / 3600 for name, s in seconds.items()}
    return Cost(sum(steps.values()), shuffle if spark else 0.0, disk, steps)


def check(path: Path) -> list[dict[str, float]]:
    """Return measured over predicted CPU, disk and shuffles of every run in a result of dedup_documents.py."""
    report = json.loads(path.read_text(encoding="utf-8"))
    compared = []
    for run in report.get("scales", [report["ours"]]):
        share = min(1.0, 2 * run["candidate_pairs"] / run["documents"] / 2.0)
        pairs = run["candidate_pairs"] / (share * run["documents"])
        told = cost(run["bytes"], run["documents"], candidates=share, pairs=pairs, spark=report.get("spark", False))
        disk = sum(run["disk_bytes"].values())
        shuffled = {"shuffle_ratio": round(run["shuffle_bytes"] / told.shuffle_bytes, 3)} if told.shuffle_bytes else {}
        compared.append(
            {
                "bytes": run["bytes"],
                "cpu_measured": run["cpu_s"],
                "cpu_ratio": round(run["cpu_s"] / (told.core_hours * 3600), 3),
                "disk_measured": disk,
                "disk_ratio": round(disk / told.disk_bytes, 3),
                **shuffled,
            }
        )
    return compared


def _graph(num_documents: int) -> tuple[pa.Table, pa.Table]:
    """Return (documents, verified edges): clusters of Pareto sizes, each a random tree with a few edges more."""
    rng = np.random.default_rng(3)
    first = np.minimum(2 + rng.pareto(1.3, num_documents).astype(np.int64), 5000)
    ends = np.cumsum(first)
    sizes = first[: int(np.searchsorted(ends, num_documents)) + 1]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    node = np.arange(len(starts), dtype=np.int64)
    inside = node - starts
    parent = starts + (rng.random(len(node)) * inside).astype(np.int64)
    left, right = parent[inside > 0], node[inside > 0]
    extra = rng.random(len(node)) < 0.5
    extra &= inside > 1
    other = starts + (rng.random(len(node)) * inside).astype(np.int64)
    pairs = np.unique(np.stack([np.r_[left, other[extra]], np.r_[right, node[extra]]], axis=1), axis=0)
    jaccard = 0.8 + 0.2 * rng.random(len(pairs))
    count = len(node)
    keys = np.char.zfill((node * 2654435761 % 2**32).astype(str), 32).tolist()
    columns = {
        "doc_id": node, "exact_key": keys, "url_key": pa.nulls(count, pa.int64()), "scope": np.zeros(count, np.int64),
        "num_shingles": np.full(count, 700), "priority": np.full(count, 3), "quality": pa.nulls(count, pa.float32()),
        "num_bytes": rng.integers(500, 9000, count), "date": pa.nulls(count, pa.string()), "source": ["s"] * count,
        "doc_key": keys,
    }  # fmt: skip
    edges = pa.table({"a": pairs[:, 0], "b": pairs[:, 1], "jaccard": jaccard})
    return pa.table(columns).cast(EXACT_KEYS), edges.cast(EDGES)


def measure_clusters(num_documents: int) -> dict[str, Any]:
    """Return CPU seconds and shuffle bytes of `dedup_spark.resolved` on N and 4 N documents, and their slope."""
    session = make_session(Spark(master="local[2]"), "clusters")
    points = []
    with tempfile.TemporaryDirectory() as folder:
        for number, size in enumerate((num_documents // 10, num_documents, 4 * num_documents)):
            paths = [str(Path(folder, f"{name}-{number}.parquet")) for name in ("nodes", "edges")]
            for table, path in zip(_graph(size), paths, strict=True):
                pq.write_table(table, path, row_group_size=100_000)
            nodes, edges = (session.read.parquet(path) for path in paths)
            copies = session.createDataFrame(COPIES.empty_table())
            shuffled = shuffle_bytes(session)
            with Meter() as meter:
                rows = resolved(nodes, copies, edges, ["s"], ["longest"]).localCheckpoint().count()
            told = {"documents": rows, "cpu_s": round(meter.seconds, 2), "peak_pss_bytes": meter.peak}
            points.append({**told, "shuffle_bytes": shuffle_bytes(session) - shuffled})
    session.stop()
    small, large = points[1:]  # the first one compiles
    more = large["documents"] - small["documents"]
    slopes = {k: (large[k] - small[k]) / more for k in ("cpu_s", "shuffle_bytes")}
    return {"runs": points, "per_document": slopes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=float)
    parser.add_argument("--documents", type=float)
    parser.add_argument("--candidates", type=float, default=0.35)
    parser.add_argument("--pairs", type=float, default=3.0)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--clusters", type=int)
    arguments = parser.parse_args()
    if arguments.clusters:
        print(json.dumps(measure_clusters(arguments.clusters), indent=1))
        return 0
    if arguments.check:
        compared = check(arguments.check)
        print(json.dumps(compared, indent=1))
        large = [r for r in compared if r["bytes"] >= SMALLEST_CHECKED]
        ratios = [v for r in large for name, v in r.items() if name.endswith("_ratio")]
        return int(any(not 1 / 1.5 <= v <= 1.5 for v in ratios))
    sizes = [arguments.bytes] if arguments.bytes else [10e12, 15e12 * BYTES_PER_TOKEN]
    for size in sizes:
        documents = arguments.documents or size / BYTES_PER_DOCUMENT
        told = cost(size, documents, candidates=arguments.candidates, pairs=arguments.pairs)
        print(json.dumps({"bytes": size, "documents": documents, **asdict(told)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
