"""Speed of the signal kernel: MB of UTF-8 per second of process CPU time, one thread, after compilation.

    python benchmarks/signals.py docs/en-peps.jsonl.gz law/zh-laws.jsonl.gz ...

Each file is JSON lines (plain or gzip) with a `text` field. Prints one JSON object; `exponent` is the slope of
log(time) over log(bytes) between one and sixteen copies of the input.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import platform
import time
from pathlib import Path

import numba

from refinery.kernels.decide import decide
from refinery.kernels.preset import load_rules
from refinery.kernels.signals import signals
from refinery.kernels.text import TextViews, views_of


def read_texts(path: Path, limit_bytes: int) -> list[str]:
    texts: list[str] = []
    size = 0
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= limit_bytes:
                break
    return texts


def cpu_seconds(views: TextViews, repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        begin = time.process_time()
        signals(views)
        best = min(best, time.process_time() - begin)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--limit-mb", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    begin = time.perf_counter()
    signals(views_of(["warm up"]))
    report = {
        "python": platform.python_version(), "numba": numba.__version__, "machine": platform.processor() or
        platform.machine(), "first_call_seconds": round(time.perf_counter() - begin, 2), "files": {},
    }  # fmt: skip
    rules = load_rules(["gopher", "fineweb", "c4"])
    for path in args.paths:
        texts = read_texts(path, int(args.limit_mb * 1e6))
        views = views_of(texts)
        seconds = cpu_seconds(views, args.repeats)
        sixteenth = views_of(texts[: max(1, len(texts) // 16)])
        sixteen = views_of(texts[: max(1, len(texts) // 16)] * 16)
        ratio = cpu_seconds(sixteen, 1) / cpu_seconds(sixteenth, args.repeats)
        columns = signals(views)
        begin = time.process_time()
        kept = int(decide(columns, rules).keep.sum())
        report["files"][path.name] = {
            "docs": views.num_docs, "mb": round(len(views.data) / 1e6, 2), "kept": kept,
            "mb_per_cpu_second": round(len(views.data) / 1e6 / seconds, 1),
            "exponent": round(math.log(ratio) / math.log(16), 3),
            "decide_ms": round((time.process_time() - begin) * 1e3, 2),
        }  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
