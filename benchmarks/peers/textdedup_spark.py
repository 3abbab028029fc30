"""text-dedup's Spark script (``text_dedup/minhash_spark.py`` of its wheel), tuned for one machine.

    python textdedup_spark.py FILE.jsonl FOLDER [--shuffle N] [--shipped]

It runs as it is installed but for two things. It imports graphframes, which needs a jar that is on no package index:
`connected_components` below stands in for its one call, in one process, which is cheaper than GraphFrames' rounds. And
8,192 shuffle partitions and 4,096 and 256 repartitions, made for terabytes, become N (`--shipped` leaves them).
14 bands of 8 rows, word 5-grams, as the others. It runs twice in one session, on a few documents first, so that Spark's
start and compiling stand apart, as ours do. Prints CPU seconds of this process, the JVM and its workers from the first
look at the data to the last file, and the ids of the documents that it removed.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import sys
import time
import types
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

BANDS, ROWS = 14, 8


def connected_components(edges):
    """Return node -> smallest node of its component."""
    parent = {}

    def root(x):
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in edges:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {node: root(node) for node in list(parent)}


class GraphFrame:
    """What the script asks of graphframes."""

    def __init__(self, vertices, edges):
        self.edges = edges

    def connectedComponents(self):  # noqa: N802
        """Return the columns id and component."""
        table = self.edges.select("src", "dst").toArrow()
        labels = connected_components(zip(*(table.column(k).to_pylist() for k in (0, 1)), strict=True))
        found = pa.table({"id": pa.array(labels, pa.int64()), "component": pa.array(labels.values(), pa.int64())})
        return SparkSession.getActiveSession().createDataFrame(found)


def source_of_script(shuffle):
    """Return the script's source, with smaller numbers of partitions if `shuffle` is given."""
    path = Path(importlib.util.find_spec("text_dedup").submodule_search_locations[0], "minhash_spark.py")
    source = path.read_text(encoding="utf-8")
    changes = [('shuffle.partitions", "8192"', "8192", 1), ("repartition(4096)", "4096", 2), ("max(256, min", "256", 1)]
    for text, number, times in changes if shuffle else []:
        if source.count(text) != times:
            raise SystemExit(f"{text!r} is not {times} times in {path}: another version of text-dedup?")
        source = source.replace(text, text.replace(number, str(shuffle)))
    return compile(source, str(path), "exec")


def cpu():
    """Return CPU seconds of this process and everything below it, reaped children included."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def run_script(source, folder, rows):
    """Run the script on some rows; return the numbers of those that are left."""
    (folder / "in").mkdir(parents=True)
    table = pa.table({"number": range(len(rows)), "text": [row["text"] for row in rows]})
    pq.write_table(table, folder / "in" / "part.parquet", row_group_size=1000)
    options = {"input": folder / "in", "output": folder / "out", "checkpoint_dir": folder / "checkpoints"}
    options |= {"threshold": 0.8, "b": BANDS, "r": ROWS, "num_perm": BANDS * ROWS, "ngram_size": 5, "min_length": 5}
    options |= {"column": "text", "index": "number"}
    sys.argv = ["minhash_spark.py", *(str(x) for name, value in options.items() for x in (f"--{name}", value))]
    wall, before = time.monotonic(), cpu()
    with contextlib.suppress(SystemExit):  # how it ends when there are no duplicates
        exec(source, {"__name__": "__main__"})
    used = {"cpu_s": cpu() - before, "wall_s": time.monotonic() - wall}
    kept = set()  # file by file: folders that begin with an underscore are hidden from Arrow
    for path in (folder / "out").rglob("*.parquet"):
        kept |= set(pq.ParquetFile(path).read(["number"]).column("number").to_pylist())
    return used, kept


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shuffle", type=int, default=16)
    parser.add_argument("--shipped", action="store_true")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.source.read_bytes().splitlines()]
    shuffle = None if arguments.shipped else arguments.shuffle
    source = source_of_script(shuffle)
    sys.modules["graphframes"] = types.SimpleNamespace(GraphFrame=GraphFrame)
    logging.disable(logging.WARNING)
    settings = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.memory": "4g"}
    settings |= {"spark.local.dir": str(arguments.folder / "spill"), "spark.ui.enabled": "false"}
    # as our sessions: the first compiler only, one collector thread; a short run spends less on its start so
    settings["spark.driver.extraJavaOptions"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    # the script sets 100 of it, which a session that runs ignores
    settings["spark.default.parallelism"] = str(shuffle or 100)
    SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    run_script(source, arguments.folder / "warm", rows[:300])
    used, kept = run_script(source, arguments.folder / "whole", rows)
    gone = [rows[k]["id"] for k in sorted(set(range(len(rows))) - kept)]
    print(json.dumps({**used, "partitions": shuffle, "removed": gone}))


main()
