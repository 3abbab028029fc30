"""A 64k vocabulary from 5 GB of text, 40 % of it Chinese: memory of the driver and of a task, CPU seconds.

    python benchmarks/tokenizer_scale.py [--bytes N] [--vocab-size N] [--workdir DIR] [--keep] [--out FILE]

There is 0.2 GB of real text in the folder in REFINERY_SHARED, so its clauses are recombined and varied
(benchmarks/recombined_text.py), written as the sample that the tokenize stage leaves, and counted and learnt by the
stage's own path: part tasks count, Spark sums, the driver learns the merges from (pretoken, count). Prints how distinct
pretokens grow in the real text and in ours. Memory is the highest resident set of each process, read twice a second.
Bounds, exit 1 when missed: the driver stays under 4 GB, Python and JVM together; distinct Chinese pretokens grow
at least as fast as in the real text. Needs half of `--bytes` on disk; the sample is deleted afterwards.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import recombined_text

from refinery.contracts.tables import TOKENIZER_SAMPLE
from refinery.io import parts as part_files
from refinery.kernels.pretokens import PretokenCounter
from refinery.recipe_sections import Spark
from refinery.stages.pretoken_counts import count_sample
from refinery.stages.session import make_session
from refinery.tokenization.char_classes import char_classes
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_counted

_ZH = ("law/zh", "docs/zh", "books/zh", "encyclopaedia/zh", "dialogue/zh")
_ZH_SHARE = 0.4
_PART_BYTES = 64_000_000
_ODDS = {"zh": (0.06, 0.02), "other": (0.06, 0.02)}
_MOST_DRIVER_MB = 4000


def _pools(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"zh": [], "other": []}
    for path in sorted(folder.rglob("*.jsonl.gz")):
        group = "zh" if path.relative_to(folder).as_posix().startswith(_ZH) else "other"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts = (json.loads(line).get("text") for line in lines)
            found[group] += [text.encode("utf-8", "replace").decode() for text in texts if text]
    return found


def _growth(texts: list[str], pool: recombined_text.Clauses, group: str, longest: int) -> dict[str, Any]:
    """Return distinct pretokens by size of the real text, drawn by a fixed step, and of ours, twice as far."""
    total = sum(len(text.encode()) for text in texts)
    marks = [total // 16, total // 8, total // 4, total // 2, int(total * 0.98)]
    step = next(step for step in (7919, 104_729) if len(texts) % step)
    shuffled = (texts[number * step % len(texts)] for number in range(len(texts)))
    made = recombined_text.documents(pool, 1, longest, _ODDS[group])
    real = recombined_text.growth(shuffled, PretokenCounter(char_classes(), 3), marks)
    ours_marks = [mark for mark in [*marks, *(total * times for times in (2, 4, 8))] if mark <= longest]
    ours = recombined_text.growth((text.decode() for text in made), PretokenCounter(char_classes(), 3), ours_marks)
    return {
        "real": dict(zip(map(str, marks), real, strict=True)),
        "ours": dict(zip(map(str, ours_marks), ours, strict=True)),
        "heaps_real": round(recombined_text.exponent(marks[1:], real[1:]), 3),
        "heaps_ours": round(recombined_text.exponent(ours_marks[1:], ours[1:]), 3),
    }


def _write_sample(workdir: str, pools: dict[str, recombined_text.Clauses], num_bytes: int) -> list[dict[str, Any]]:
    sampled = []
    for part in range(max(1, round(num_bytes / _PART_BYTES))):
        texts: list[str] = []
        for group, share in (("zh", _ZH_SHARE), ("other", 1 - _ZH_SHARE)):
            size = int(min(num_bytes, _PART_BYTES) * share)
            made = recombined_text.documents(pools[group], 2 + part, size, _ODDS[group])
            texts += [text.decode() for text in made]
        rows = len(texts)
        columns = [
            pa.array([(part << 32) | row for row in range(rows)], pa.int64()),
            *(pa.array([value] * rows, pa.string()) for value in ("made", "train", None)),
            pa.array(texts, pa.large_string()),
        ]
        table = pa.table(columns, names=TOKENIZER_SAMPLE.names)
        part_files.write_part(
            part_files.part_path(workdir, "tokenize", "sample", part), table, TOKENIZER_SAMPLE, str(part)
        )
        size = sum(len(text.encode()) for text in texts)
        sampled.append({"sample": {"part": part}, "docs": rows, "bytes": size})
    return sampled


class _Watch:
    """Looks at the memory and CPU of this process and all under it, twice a second."""

    def __init__(self) -> None:
        self.peaks_mb: dict[str, int] = {}
        self.cpu_s: dict[str, dict[int, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        parents, names = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(stat[1])
                names[int(folder.name)] = ((folder / "comm").read_text().strip(), stat)
            except (OSError, ValueError, IndexError):
                continue
        for pid, (name, stat) in names.items():
            above, depth = pid, 0
            while above not in (os.getpid(), 0) and above in parents:
                above, depth = parents[above], depth + 1
            if above != os.getpid():
                continue
            kind = "driver_python" if depth == 0 else "driver_jvm" if name == "java" else "task_python"
            try:
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            except OSError:
                continue
            high = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
            self.peaks_mb[kind] = max(self.peaks_mb.get(kind, 0), high * 1024 // 1_000_000)
            ticks = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
            self.cpu_s.setdefault(kind, {})[pid] = ticks

    def stop(self) -> dict[str, Any]:
        self._look()
        self._stop.set()
        self._thread.join()
        seconds = {kind: round(sum(found.values()), 1) for kind, found in self.cpu_s.items()}
        return {"peak_rss_mb": dict(sorted(self.peaks_mb.items())), "cpu_s": seconds}


def _train(options: argparse.Namespace, workdir: str, sampled: list[dict[str, Any]]) -> dict[str, Any]:
    recipe = TokenizerRecipe(name="scale", vocab_size=options.vocab_size, sample_bytes=options.bytes)
    spark = make_session(Spark(), "tokenizer scale")
    started = time.monotonic()
    sample = count_sample(spark, workdir, sampled, recipe)
    counted = time.monotonic()
    spark.stop()
    cpu = time.process_time()
    info = train_counted(sample, recipe, Path(workdir, "tokenizer"))
    sys.stderr.write(f"counted in {counted - started:.0f} s\n")
    return {
        "vocab_size": info.vocab_size,
        "sample_bytes": sample.num_bytes,
        "sample_docs": sample.num_docs,
        "distinct_pretokens": sample.num_cut + len(sample.pretokens.counts),
        "kept_pretokens": len(sample.pretokens.counts),
        "kept_bytes": len(sample.pretokens.data),
        "smallest_count_kept": sample.smallest_count,
        "text_cut_frac": round(sample.num_cut_bytes / sample.num_bytes, 5),
        "count_wall_s": round(counted - started, 1),
        "learn_cpu_s": round(time.process_time() - cpu, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="A vocabulary from gigabytes: memory and CPU.")
    parser.add_argument("--bytes", type=int, default=5_000_000_000)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--growth-bytes", type=int, default=600_000_000, help="of each kind, to measure growth on")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = Path(os.environ.get("REFINERY_SHARED", ""), "data")
    if not os.environ.get("REFINERY_SHARED") or not shared.is_dir():
        sys.stdout.write("needs REFINERY_SHARED, a folder with data/**/*.jsonl.gz\n")
        return 1
    if options.workdir is not None:
        Path(options.workdir).mkdir(parents=True, exist_ok=True)
    workdir = tempfile.mkdtemp(prefix="tokenizer-scale-", dir=options.workdir)
    try:
        result = _run(options, shared, workdir)
    finally:
        shutil.rmtree(workdir)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if all(result["checks"].values()) else 1


def _run(options: argparse.Namespace, shared: Path, workdir: str) -> dict[str, Any]:
    # The text is made in a child, so that its memory is no part of the driver's.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        parts = _pools(shared)
        pools = {group: recombined_text.clauses(texts) for group, texts in parts.items()}
        longest = min(options.growth_bytes, options.bytes)
        growth = {group: _growth(texts, pools[group], group, longest) for group, texts in parts.items()}
        made = {"growth": growth, "sampled": _write_sample(workdir, pools, options.bytes)}
        with os.fdopen(writer, "w") as pipe:
            json.dump(made, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        content = pipe.read()
    if os.waitpid(child, 0)[1] != 0 or not content:
        raise SystemExit("making the text failed")
    made = json.loads(content)
    sys.stderr.write(f"{json.dumps(made['growth'])}\nmade {sum(row['bytes'] for row in made['sampled']):,} bytes\n")
    watch = _Watch()
    trained = _train(options, workdir, made["sampled"])
    used = watch.stop()
    driver = used["peak_rss_mb"]["driver_python"] + used["peak_rss_mb"]["driver_jvm"]
    zh = made["growth"]["zh"]
    checks = {
        "driver_under_4_gb": driver < _MOST_DRIVER_MB,
        "grows_as_real_text": all(
            zh["ours"][mark] >= 0.95 * count for mark, count in zh["real"].items() if mark in zh["ours"]
        ),
    }
    return {**trained, **used, "driver_mb": driver, "growth": made["growth"], "checks": checks}


if __name__ == "__main__":
    sys.exit(main())
