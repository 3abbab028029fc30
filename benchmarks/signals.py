"""Speed of the signal kernel: MB of UTF-8 per second of process CPU time, one thread, after compilation.

    python benchmarks/signals.py docs/en-peps.jsonl.gz law/zh-laws.jsonl.gz ...
    python benchmarks/signals.py --english docs/en-peps.jsonl.gz --chinese law/zh-laws.jsonl.gz

Each file is JSON lines (plain or gzip) with a `text` field. Prints one JSON object; `exponent` is the slope of
log(time) over log(bytes) between one and sixteen copies of the input. With `--english` and `--chinese` datatrove's
chain of Gopher, C4 and FineWeb filters runs on the same files (environment of `peers.py`), dolma's gopher_v1 and c4_v1
taggers and NeMo Curator's twenty Gopher filters on the English one, jieba on the Chinese one, bounds are checked, and a
miss ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path

import jieba
import numba
from peers import run_peer

from refinery.kernels.decide import decide
from refinery.kernels.preset import load_rules
from refinery.kernels.segmentation import segment_han
from refinery.kernels.signals import signals
from refinery.kernels.text import TextViews, views_of

sys.path.append(str(Path(__file__).parent / "peers"))  # what the peers' scripts read with, so that both read the same
from texts_in import read_texts


def cpu_seconds(views: TextViews, repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        begin = time.process_time()
        signals(views)
        best = min(best, time.process_time() - begin)
    return best


BOUNDS = {
    "english_mb_s": 50.0, "chinese_with_words_mb_s": 15.0, "times_datatrove": 150.0, "times_datatrove_split": 20.0,
    "times_datatrove_chinese": 40.0, "segmentation_times_jieba": 15.0, "times_dolma": 40.0, "times_nemo": 40.0,
}  # fmt: skip


def beside_peers(english: Path, chinese: Path, limit_mb: float, peer_mb: float) -> dict[str, float]:
    """Measure the kernel and the peers on the same two files; MB per CPU second and how many times as fast."""
    en, zh = (views_of(read_texts(path, limit_mb * 1e6)[0]) for path in (english, chinese))
    segment_han(views_of(["预热"]))
    english_s = cpu_seconds(en, 5)
    words_s = chinese_s = math.inf
    for _ in range(5):
        begin = time.process_time()
        found = segment_han(zh)
        between = time.process_time()
        signals(zh, found.boundaries)
        words_s = min(words_s, between - begin)
        chinese_s = min(chinese_s, time.process_time() - begin)
    row = {
        "english_mb_s": len(en.data) / 1e6 / english_s, "chinese_with_words_mb_s": len(zh.data) / 1e6 / chinese_s,
        "segmentation_mb_s": len(zh.data) / 1e6 / words_s,
    }  # fmt: skip
    runs = (("", english, "eng", "own"), ("_split", english, "eng", "split"), ("_chinese", chinese, "cmn", "own"))
    for name, path, language, words in runs:
        result = run_peer("datatrove", "datatrove_chain.py", path.resolve(), peer_mb, language, words)["result"]
        row[f"datatrove{name}_mb_s"] = result["bytes"] / 1e6 / result["cpu_s"]
        ours = row["chinese_with_words_mb_s" if name == "_chinese" else "english_mb_s"]
        row[f"times_datatrove{name}"] = ours / row[f"datatrove{name}_mb_s"]
    for name in ("dolma", "nemo"):
        result = run_peer(name, f"{name}_rules.py", english.resolve(), peer_mb)["result"]
        row[f"{name}_mb_s"] = result["bytes"] / 1e6 / result["cpu_s"]
        row[f"times_{name}"] = row["english_mb_s"] / row[f"{name}_mb_s"]
    row["jieba_mb_s"] = jieba_mb_s(read_texts(chinese, peer_mb * 1e6)[0])
    row["segmentation_times_jieba"] = row["segmentation_mb_s"] / row["jieba_mb_s"]
    return {key: round(value, 2) for key, value in row.items()}


def jieba_mb_s(texts: list[str]) -> float:
    jieba.setLogLevel(60)
    jieba.lcut("预热", HMM=False)
    begin = time.process_time()
    for text in texts:
        jieba.lcut(text, HMM=False)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - begin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--english", type=Path)
    parser.add_argument("--chinese", type=Path)
    parser.add_argument("--peer-mb", type=float, default=1.0)
    parser.add_argument("--limit-mb", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    begin = time.perf_counter()
    signals(views_of(["warm up"]))
    report = {
        "python": platform.python_version(), "numba": numba.__version__, "machine": platform.processor() or
        platform.machine(), "first_call_seconds": round(time.perf_counter() - begin, 2), "files": {},
    }  # fmt: skip
    rules = load_rules(["gopher", "fineweb"])
    for path in args.paths:
        texts, _ = read_texts(path, args.limit_mb * 1e6)
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
    missed: list[str] = []
    if args.english and args.chinese:
        row = beside_peers(args.english, args.chinese, args.limit_mb, args.peer_mb)
        missed = [name for name, bound in BOUNDS.items() if row[name] < bound]
        report |= {"beside_peers": row, "bounds": BOUNDS, "missed": missed}
    print(json.dumps(report, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
