"""Speed of the whole way from raw text to shards, by stage, with Spark's start and model training apart.

    python benchmarks/pipeline.py [--megabytes 40] [--part-megabytes 16] [--cores N] [--out FILE]

Input: public Chinese and German laws, English documents and novels in the folder REFINERY_SHARED/data; without it, text
that the Python environment carries (said in the output; there may be less than was asked for). The run is done on a
quarter of the input and on all of it: `exponent` is log(CPU ratio) / log(size ratio), 1.0 is linear. The tokenizer is
trained before anything is timed; quality classifiers and embeddings are left out.

Three clocks per stage: CPU seconds of every process (driver, JVM, Python workers), of the part tasks alone, and wall
seconds. MB are 10^6 bytes of UTF-8 text that entered the stage; "per core" is per CPU second of every process. The
kernels are timed alone, on one thread, best of three. Prints a table, writes JSON under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from refinery.io.records import InputSpec, RawDocument
from refinery.io.sources import read_split
from refinery.io.splits import plan_splits
from refinery.kernels.minhash import MinHashConfig, signatures_of_text
from refinery.kernels.signals import signals
from refinery.kernels.text import views_of
from refinery.recipe import Recipe, parse_recipe
from refinery.stages.pipeline import STAGES, run_stage
from refinery.stages.session import make_session
from refinery.stages.workspace import Run, git_commit
from refinery.tokenization.recipe import recipe_from_mapping
from refinery.tokenization.train import train_bpe

_SOURCES = {  # source: file under REFINERY_SHARED/data, domain, role, share of the bytes
    "zh-laws": ("law/zh-laws.jsonl.gz", "law", "target", 0.45),
    "de-laws": ("law/de-gesetze.jsonl.gz", "law-de", "pool", 0.22),
    "en-docs": ("docs/en-peps.jsonl.gz", "docs", "pool", 0.13),
    "en-novels": ("books/en-eltec-novels.jsonl.gz", "books", "replay", 0.20),
}
_ENVIRONMENT = {  # source: collection, domain, role, share of the bytes
    "python-docs": ("docs", "docs", "target", 0.30),
    "package-readmes": ("readme", "readme", "pool", 0.15),
    "package-licences": ("licences", "licences", "pool", 0.15),
    "python-code": ("code", "code", "replay", 0.40),
}
_FILE_BYTES = 4_000_000
_SPLIT_BYTES = 4_000_000


def _shared_texts(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _environment_texts(collection: str, max_bytes: int) -> Iterator[str]:
    options = {"collection": collection, "max_bytes": max_bytes}
    spec = InputSpec(
        source=collection, domain=collection, role="pool", format="python_environment", paths=(), options=options
    )
    for split in plan_splits(spec, _SPLIT_BYTES):
        for found in read_split(spec, split):
            if isinstance(found, RawDocument):
                yield found.text


def make_input(folder: Path, num_bytes: int, shared: Path | None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Write raw jsonl.gz files of about `num_bytes` of text; return the recipe's inputs and the bytes per source."""
    inputs, sizes = [], {}
    for source, (where, domain, role, share) in (_SOURCES if shared else _ENVIRONMENT).items():
        wanted = int(num_bytes * share)
        texts = _shared_texts(shared / where) if shared else _environment_texts(where, wanted)
        (folder / source).mkdir(parents=True)
        sizes[source] = _write_files(folder / source, texts, wanted)
        entry = {"source": source, "domain": domain, "role": role, "format": "jsonl", "paths": [str(folder / source)]}
        inputs.append(entry)
    return inputs, sizes


def _write_files(folder: Path, texts: Iterator[str], wanted: int) -> int:
    total, lines, held, number = 0, [], 0, 0

    def flush() -> None:
        (folder / f"{number:04d}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), 6))

    for n, text in enumerate(texts):
        size = len(text.encode())
        lines.append(json.dumps({"id": str(n), "text": text}, ensure_ascii=False) + "\n")
        total, held = total + size, held + size
        if held >= _FILE_BYTES or total >= wanted:
            flush()
            lines, held, number = [], 0, number + 1
        if total >= wanted:
            return total
    if lines:
        flush()
    return total


def make_recipe(
    inputs: list[dict[str, Any]],
    workdir: Path,
    tokenizer: Path,
    args: argparse.Namespace,
    validation_frac: float = 0.01,
) -> Recipe:
    """Return the card from ingest to pack, without what trains a model."""
    domains = sorted({i["domain"] for i in inputs if i["role"] != "replay"})
    shares = {d: round(0.8 / len(domains), 4) for d in domains}
    shares[domains[0]] = round(0.8 - sum(list(shares.values())[1:]), 4)
    code = any(i["domain"] == "code" for i in inputs)
    target = next(i["domain"] for i in inputs if i["role"] == "target")
    return parse_recipe(
        {
            "name": "bench",
            "seed": 20261121,
            "workdir": str(workdir),
            "inputs": inputs,
            "ingest": {"part_bytes": int(args.part_megabytes * 1e6), "pii": "mask", "validation_frac": validation_frac},
            "screen": {"languages": []},
            "rules": {"presets": ["gopher", "fineweb", "zh_web"], "by_domain": {"code": ["code"]} if code else {}},
            "select": {"target": target, "keep_frac": 0.9},
            "dedup_documents": {"jaccard": 0.8},
            "dedup_sentences": {"exact": True},
            "tokenizer": {"path": str(tokenizer)},
            "mix": {"budget_tokens": "auto", "stages": [{"domains": shares, "replay": 0.2}]},
            "pack": {"sequence_length": 2048},
            "spark": {"master": f"local[{args.cores}]"},
        }
    )


class Clock:
    """CPU seconds of this process and all below it, and the peak of their memory, sampled."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.peak_by_kind: dict[str, int] = {}
        self._me = psutil.Process()
        self._own_seconds = 0.0
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Clock:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()

    def _processes(self) -> list[psutil.Process]:
        return [self._me, *self._me.children(recursive=True)]

    def cpu_seconds(self) -> dict[str, float]:
        """Return user and system seconds so far of driver, JVM and Python workers, this clock's own left out.

        Seconds of ended processes are with the parent that reaped them, so the JVM's children count as workers.
        """
        found = {"driver": -self._own_seconds, "jvm": 0.0, "workers": 0.0}
        for process in self._processes():
            try:
                times, name = process.cpu_times(), process.name()
            except psutil.Error:
                continue
            kind = "driver" if process == self._me else "jvm" if "java" in name else "workers"
            found[kind] += times.user + times.system
            found["driver" if kind == "driver" else "workers"] += times.children_user + times.children_system
        return found

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            by_kind: dict[str, int] = {}
            for process in self._processes():
                try:
                    kind = "driver" if process == self._me else "jvm" if "java" in process.name() else "workers"
                    by_kind[kind] = by_kind.get(kind, 0) + process.memory_full_info().pss
                    if kind == "workers":
                        by_kind["largest_worker"] = max(by_kind.get("largest_worker", 0), process.memory_info().rss)
                except psutil.Error:
                    continue
            self._own_seconds = time.thread_time()
            self.peak_bytes = max(self.peak_bytes, sum(v for k, v in by_kind.items() if k != "largest_worker"))
            for kind, value in by_kind.items():
                self.peak_by_kind[kind] = max(self.peak_by_kind.get(kind, 0), value)


def measure(recipe: Recipe, spark: Any, clock: Clock) -> dict[str, Any]:
    """Run the stages of a recipe one by one; return clocks and bytes by stage."""
    run_ = Run(recipe)
    run_.use_session(spark)
    stages: dict[str, Any] = {}
    entered = 0
    for name in (s for s in recipe.stages() if s in STAGES):
        cpu, wall = clock.cpu_seconds(), time.monotonic()
        manifest = run_stage(run_, name)
        spent = {kind: value - cpu[kind] for kind, value in clock.cpu_seconds().items()}
        seconds, wall = sum(spent.values()), time.monotonic() - wall
        kept = [c for c in manifest.counts if c.kind == "kept"]
        entered = entered or sum(c.bytes for c in manifest.counts)  # ingest: what it read
        folder = Path(recipe.workdir) / name
        stages[name] = {
            "text_bytes_in": entered,
            "docs_kept": sum(c.docs for c in kept),
            "tokens_kept": sum(c.tokens for c in kept),
            "cpu_seconds": round(seconds, 2),
            "cpu_seconds_by_kind": {kind: round(value, 2) for kind, value in spent.items()},
            "part_cpu_seconds": round(manifest.volatile.get("part_seconds", 0.0), 2),
            "wall_seconds": round(wall, 2),
            "disk_bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
            "mb_per_core_second": round(entered / 1e6 / max(seconds, 1e-9), 2),
        }
        entered = sum(c.bytes for c in kept) or entered
    raw = stages["ingest"]["text_bytes_in"]
    cpu = sum(s["cpu_seconds"] for s in stages.values())
    wall = sum(s["wall_seconds"] for s in stages.values())
    return {
        "text_bytes": raw,
        "num_parts": len(list((Path(recipe.workdir) / "ingest" / "documents").glob("part-*"))),
        "cpu_seconds": round(cpu, 2),
        "part_cpu_seconds": round(sum(s["part_cpu_seconds"] for s in stages.values()), 2),
        "wall_seconds": round(wall, 2),
        "mb_per_core_second": round(raw / 1e6 / cpu, 3),
        "mb_per_wall_second": round(raw / 1e6 / wall, 3),
        "stages": stages,
    }


def measure_kernels(texts: list[str]) -> dict[str, float]:
    """Return MB per CPU second of the signal and MinHash kernels on one thread, best of three, compiled before."""
    views = views_of(texts)
    config = MinHashConfig(num_hashes=112)
    kernels: dict[str, Callable[[], object]] = {
        "signals": lambda: signals(views),
        "minhash_112": lambda: signatures_of_text(views, config),
    }
    found = {}
    for name, work in kernels.items():
        work()
        best = math.inf
        for _ in range(3):
            start = time.process_time()
            work()
            best = min(best, time.process_time() - start)
        found[name] = round(len(views.data) / 1e6 / best, 1)
    return found


def _sample_texts(inputs: list[dict[str, Any]], source: str, num_bytes: int) -> list[str]:
    texts, total = [], 0
    folder = next(Path(i["paths"][0]) for i in inputs if i["source"] == source)
    for file in sorted(folder.glob("*.gz")):
        for text in _shared_texts(file):
            texts.append(text)
            total += len(text.encode())
            if total >= num_bytes:
                return texts
    return texts


def train_tokenizer(inputs: list[dict[str, Any]], folder: Path, num_bytes: int) -> Path:
    """Train a byte-level BPE on a sample of every source; not timed."""
    texts = [t for i in inputs for t in _sample_texts(inputs, i["source"], num_bytes // len(inputs))]
    vocab_size = 32768 if sum(len(text) for text in texts) > 3_000_000 else 4096  # little text teaches few merges
    values = {"name": "bench", "vocab_size": vocab_size, "num_reserved": 14, "sample_bytes": num_bytes, "seed": 1}
    train_bpe(texts, recipe_from_mapping(values), folder)
    return folder


def machine() -> dict[str, Any]:
    """Return hardware, versions, commit and load."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    names = ("pyspark", "pyarrow", "numpy", "numba", "tokenizers", "kitoken", "fasttext")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except ImportError:
            versions[name] = "absent"
    return {
        "cpu": models[0] if models else platform.processor(),
        "num_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def exponents(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """Return log(CPU ratio) / log(size ratio) of the whole and of each stage that took at least half a second."""
    scale = math.log(large["text_bytes"] / small["text_bytes"])
    found = {"whole": round(math.log(large["cpu_seconds"] / small["cpu_seconds"]) / scale, 3)}
    for name, one in small["stages"].items():
        if one["cpu_seconds"] >= 0.5:
            found[name] = round(math.log(large["stages"][name]["cpu_seconds"] / one["cpu_seconds"]) / scale, 3)
    return found


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    large, growth = report["runs"][-1], report["growth_exponent"]
    sizes = [f"{r['text_bytes'] / 1e6:.1f}" for r in report["runs"]]
    print(
        f"\ninput: {report['input']}, {' and '.join(sizes)} MB; {report['cores']} cores, load {report['load']}, "
        f"{large['num_parts']} parts"
    )
    titles = ("MB in", "CPU s", "driver", "JVM", "workers", "parts", "wall s", "MB/s/core", "growth")
    print(f"{'stage':<16}" + "".join(f"{title:>10}" for title in titles))
    total = {k: large[k] for k in ("cpu_seconds", "part_cpu_seconds", "wall_seconds", "mb_per_core_second")}
    kinds = [s["cpu_seconds_by_kind"] for s in large["stages"].values()]
    total |= {
        "text_bytes_in": large["text_bytes"],
        "cpu_seconds_by_kind": {k: sum(d[k] for d in kinds) for k in kinds[0]},
    }
    for name, s in {**large["stages"], "raw to shards": total}.items():
        by_kind = s["cpu_seconds_by_kind"]
        figures = (s["text_bytes_in"] / 1e6, s["cpu_seconds"], by_kind["driver"], by_kind["jvm"], by_kind["workers"])
        figures += (s["part_cpu_seconds"], s["wall_seconds"], s["mb_per_core_second"])
        figures += (growth.get("whole" if name == "raw to shards" else name, math.nan),)
        print(f"{name:<16}" + "".join(f"{value:>10.2f}" for value in figures))
    start = report["spark_start"]
    print(f"Spark start and warm-up, apart: {start['cpu_seconds']:.1f} CPU s, {start['wall_seconds']:.1f} s")
    for language, speeds in report["kernels_mb_per_cpu_second"].items():
        print(f"kernels, {language}: " + ", ".join(f"{k} {v:.0f} MB/s" for k, v in speeds.items()))
    parts = ", ".join(f"{k} {v / 2**20:.0f}" for k, v in sorted(report["peak_bytes_by_kind"].items()))
    print(f"peak memory {report['peak_bytes'] / 2**30:.2f} GiB (MiB: {parts})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=40.0, help="MB of text of the larger run")
    parser.add_argument("--part-megabytes", type=float, default=16.0, help="ingest.part_bytes, in MB")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help="folder for input and runs; a temporary one by default")
    args = parser.parse_args()
    given = os.environ.get("REFINERY_SHARED")
    shared = Path(given) / "data" if given and (Path(given) / "data").is_dir() else None
    with tempfile.TemporaryDirectory(dir=args.work) as name, Clock() as clock:
        report = _benchmark(Path(name), args, shared, clock)
    out = args.out or Path(__file__).parent / "results" / f"pipeline-{report['machine']['commit'] or 'unknown'}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)
    print(f"written to {out}")


def _benchmark(root: Path, args: argparse.Namespace, shared: Path | None, clock: Clock) -> dict[str, Any]:
    load = os.getloadavg()
    sizes = (args.megabytes * 1e6 / 4, args.megabytes * 1e6)
    prepared = [make_input(root / f"input{k}", int(size), shared) for k, size in enumerate(sizes)]
    print(f"input made: {[sum(s.values()) for _, s in prepared]} bytes", flush=True)
    tokenizer = train_tokenizer(prepared[-1][0], root / "tokenizer", int(min(sizes[1] / 4, 20e6)))
    source = "en-docs" if shared else "python-docs"
    kernels = {"English": measure_kernels(_sample_texts(prepared[-1][0], source, 8_000_000))}
    if shared:
        kernels["Chinese"] = measure_kernels(_sample_texts(prepared[-1][0], "zh-laws", 8_000_000))
    clock.peak_bytes = 0  # what follows is the pipeline's own memory
    cpu, wall = clock.cpu_seconds(), time.monotonic()
    warm_input, _ = make_input(root / "warm", 500_000 * args.cores, shared)
    recipe = make_recipe(warm_input, root / "run-warm", tokenizer, args, 0.2)
    spark = make_session(recipe.spark, "bench")
    measure(recipe, spark, clock)
    start = {
        "cpu_seconds": sum(clock.cpu_seconds().values()) - sum(cpu.values()),
        "wall_seconds": time.monotonic() - wall,
    }
    runs = []
    for k, (inputs, _) in enumerate(prepared):
        print(f"run {k + 1} of {len(prepared)}", flush=True)
        runs.append(measure(make_recipe(inputs, root / f"run{k}", tokenizer, args), spark, clock))
    spark.stop()
    return {
        "benchmark": "pipeline",
        "machine": machine(),
        "input": "public law, docs and novels" if shared else "text of the Python environment",
        "source_bytes": prepared[-1][1],
        "cores": args.cores,
        "part_megabytes": args.part_megabytes,
        "load": round(load[0], 1),
        "spark_start": start,
        "runs": runs,
        "growth_exponent": exponents(*runs),
        "kernels_mb_per_cpu_second": kernels,
        "peak_bytes": clock.peak_bytes,
        "peak_bytes_by_kind": clock.peak_by_kind,
    }


if __name__ == "__main__":
    main()
