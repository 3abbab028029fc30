"""Memory of dedup_sentences with embeddings: every process of the stage together, and the largest task.

    python benchmarks/sentences_memory.py [--bytes 20000000] [--sentences 3000] [--master local[2]] [--out FILE]

English documents below REFINERY_SHARED/data, as many bytes as asked, go through ingest and then through the whole stage
(exact, embeddings, guard, cuts) twice, each time in a process of its own. ``model`` embeds with the packaged MiniLM, at
most `--sentences` of them: the peak of a task that holds the model. ``all`` embeds every sentence with the same model
without its layers (the mean of its word vectors: the width is the same, the tokens too, a hundred times as fast): the
peak of cells, blocks, pairs and guard at full size, with more pairs than the model itself would find. Together they
bound a run of the model over every sentence, which an idle machine can do with ``--sentences 1000000``.

``all_processes`` is the largest sum of proportional set sizes of driver, JVM and Python workers, read five times a
second from the first part task to the manifest; ``largest_task`` is the kernel's own high-water mark of resident
memory over the Python workers, shared libraries included. Exits 1 above 3 GB. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

BOUND = 3e9
_SOURCES = (
    "neardup/en-rust-book-src.jsonl.gz", "neardup/en-rust-book-2021.jsonl.gz", "neardup/en-rust-book-nostarch.jsonl.gz",
    "docs/en-peps.jsonl.gz", "dialogue/en-schema-guided.jsonl.gz", "books/en-eltec-novels.jsonl.gz",
)  # fmt: skip


class MemoryMeter:
    """Peak memory of this process and everything below it, while the block runs."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.all_processes = self.largest_task = 0
        self.by_kind: dict[str, int] = {}

    def __enter__(self) -> MemoryMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            kinds: dict[str, int] = {}
            for process in [me, *me.children(recursive=True)]:
                try:
                    kind = "driver" if process == me else "jvm" if "java" in process.name() else "workers"
                    kinds[kind] = kinds.get(kind, 0) + process.memory_full_info().pss
                    if kind == "workers":
                        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
                        mark = re.search(r"VmHWM:\s*(\d+) kB", status)
                        self.largest_task = max(self.largest_task, int(mark[1]) * 1024 if mark else 0)
                except (psutil.Error, OSError):
                    continue
            self.all_processes = max(self.all_processes, sum(kinds.values()))
            for kind, value in kinds.items():
                self.by_kind[kind] = max(self.by_kind.get(kind, 0), value)


def write_input(folder: Path, num_bytes: int) -> int:
    """Write English documents as JSON lines until there are so many bytes of text; return the bytes."""
    root, total = Path(os.environ.get("REFINERY_SHARED", ".")) / "data", 0
    with (folder / "in.jsonl").open("w", encoding="utf-8") as out:
        for name in _SOURCES:
            with gzip.open(root / name, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines):
                    if total >= num_bytes:
                        return total
                    text = json.loads(line)["text"]
                    out.write(json.dumps({"id": f"{name}-{number}", "text": text}) + "\n")
                    total += len(text.encode())
    return total


def write_bare_model(folder: Path) -> str:
    """Write the packaged model without its layers and return the folder."""
    from torch import nn  # noqa: PLC0415

    from refinery.gpu.embed import open_embedder  # noqa: PLC0415

    model = open_embedder(device="cpu", dtype="float32").model
    model[0].auto_model.encoder.layer = nn.ModuleList()
    model[0].auto_model.config.num_hidden_layers = 0
    model.save(str(folder / "bare"), safe_serialization=True)
    return str(folder / "bare")


def run_once(kind: str, num_bytes: int, sentences: int, master: str) -> dict[str, Any]:
    """Run ingest and the stage, and return what the stage used."""
    from refinery.recipe import parse_recipe  # noqa: PLC0415
    from refinery.stages.pipeline import run_stage  # noqa: PLC0415
    from refinery.stages.workspace import Run  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = write_input(folder, num_bytes)
        embeddings: dict[str, Any] = {"device": "cpu", "similarity": 0.95}
        embeddings |= {"max_sentences": sentences} if kind == "model" else {"model": write_bare_model(folder)}
        page = {"source": "pages", "domain": "web", "role": "pool", "format": "jsonl", "lang": "en",
                "paths": [str(folder / "in.jsonl")]}  # fmt: skip
        recipe = parse_recipe({
            "name": "memory", "seed": 1, "workdir": str(folder / "run"), "inputs": [page],
            "ingest": {"validation_frac": 0.0}, "spark": {"master": master},
            "dedup_sentences": {"exact": True, "embeddings": embeddings},
        })  # fmt: skip
        run = Run(recipe)
        run_stage(run, "ingest")
        began = time.monotonic()
        with MemoryMeter() as meter:
            manifest = run_stage(run, "dedup_sentences")
        facts = manifest.facts["embeddings"]
        return {
            "text_bytes": size, "all_processes_bytes": meter.all_processes, "largest_task_bytes": meter.largest_task,
            "peak_bytes_by_kind": meter.by_kind, "wall_seconds": round(time.monotonic() - began, 1),
            **{k: facts[k] for k in ("num_sentences", "num_embedded", "num_pairs", "num_vetoed", "num_removed")},
        }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=20_000_000)
    parser.add_argument("--sentences", type=int, default=3000, help="most that MiniLM embeds; 52 per CPU second here")
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--only", choices=("model", "all"), help="run one of the two, in this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(run_once(options.only, options.bytes, options.sentences, options.master)))
        return 0
    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    for kind in ("model", "all"):
        command = [sys.executable, __file__, "--only", kind, "--bytes", str(options.bytes), "--sentences",
                   str(options.sentences), "--master", options.master]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr[-4000:])
            return 2
        report[kind] = json.loads(done.stdout.splitlines()[-1])
    report["bound_bytes"] = BOUND
    for name in ("all_processes_bytes", "largest_task_bytes"):
        report[name] = max(report[kind][name] for kind in ("model", "all"))
    report["passed"] = report["all_processes_bytes"] <= BOUND and report["largest_task_bytes"] <= BOUND
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return int(not report["passed"])


if __name__ == "__main__":
    raise SystemExit(main())
