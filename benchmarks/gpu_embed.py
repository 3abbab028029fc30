"""What a GPU does of sentence dedup: embed, find neighbours, train cells. The floor first, then what was measured.

    python benchmarks/gpu_embed.py [--device cuda] [--processes 12] [--out FILE] [--smoke]

No Java, no download: a model of MiniLM-L6's shape with random weights, and a WordPiece vocabulary made on the spot.
Prints JSON: the floor from FLOPs and bytes; sentences/s of 25 tokens from Parquet to Parquet by the processes of
``python -m refinery.gpu embed``, with the model's FLOP/s, and what a core reads, tokenises, pads and writes without the
model; the neighbour search as a share of the matrix-product rate that was measured on the same shape; k-means of 10 M x
384 into 16,384 cells, 20 steps. Without CUDA it says so and exits 2; ``--device cpu --smoke`` runs every step on a few
rows and judges nothing. Exits 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from refinery.gpu.embed import _batches, open_embedder, padded_ids
from refinery.gpu.feed import EmbedJob, embed_parquet, write_vectors
from refinery.gpu.kmeans import torch_kmeans
from refinery.gpu.neighbours import _CUDA_BLOCK_ROWS, propose_tiles, tiles_of

LAYERS, HIDDEN, HEADS, INNER, VOCABULARY = 6, 384, 12, 1536, 30_522
TOKENS = 25
BOUNDS = {"sentences_per_second": 100_000.0, "neighbour_share": 0.5, "kmeans_seconds": 60.0}
# Peaks of dense bf16 FLOP/s and bytes/s by name; others have no floor.
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12), "L4": (121e12, 0.3e12)}


def model_flops_per_sentence(tokens: int) -> float:
    """Return forward FLOPs: two per weight and token, and the products of attention."""
    weights = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    return tokens * (2 * weights + LAYERS * 4 * tokens * HIDDEN)


def floor(device_name: str, kmeans_rows: int, cells: int, steps: int) -> dict[str, Any]:
    """Return what FLOPs and bytes alone would take."""
    peak = next((value for name, value in PEAKS.items() if name in device_name), None)
    flops = model_flops_per_sentence(TOKENS)
    kmeans_flops = 2.0 * kmeans_rows * cells * HIDDEN * steps
    kmeans_bytes = steps * (2.0 * 2 * kmeans_rows * cells + 8.0 * 3 * kmeans_rows * HIDDEN)
    told = {"flops_per_sentence": flops, "kmeans_flops": kmeans_flops, "kmeans_bytes": kmeans_bytes}
    if peak is None:
        return {**told, "device": f"no peak is known for {device_name}"}
    rate, bandwidth = peak
    return {
        **told, "device": device_name, "sentences_per_second": rate / flops,
        "kmeans_seconds": kmeans_flops / rate + kmeans_bytes / bandwidth,
        "neighbour_share": 1.0, "bytes_per_sentence_out": 2 * HIDDEN,
    }  # fmt: skip


def write_model(folder: Path) -> str:
    """Write a sentence-transformers folder of MiniLM-L6's shape with random weights."""
    from sentence_transformers import SentenceTransformer, models  # noqa: PLC0415 - optional, slow to import
    from transformers import BertConfig, BertModel, BertTokenizerFast  # noqa: PLC0415

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=512,
    )  # fmt: skip
    bare = folder / "bert"
    BertModel(config).save_pretrained(bare, safe_serialization=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n:05d}" for n in range(VOCABULARY - 5))]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="ascii")
    BertTokenizerFast(vocab_file=str(vocabulary), vocab=str(vocabulary)).save_pretrained(bare)
    whole = SentenceTransformer(
        modules=[models.Transformer(str(bare), max_seq_length=256), models.Pooling(HIDDEN), models.Normalize()],
        device="cpu",
    )
    whole.save(str(folder / "model"), safe_serialization=True)
    return str(folder / "model")


def write_sentences(folder: Path, count: int, rows_per_group: int) -> str:
    """Write sentences of 25 tokens on average, 15 to 35, the two special ones included."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(TOKENS - 12, TOKENS + 9, count)
    words = np.array([f"w{n:05d}" for n in range(VOCABULARY - 5)])[rng.integers(0, VOCABULARY - 5, int(lengths.sum()))]
    ends = np.cumsum(lengths)
    texts = [" ".join(words[e - n : e].tolist()) for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
    path = folder / "sentences.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), path, row_group_size=rows_per_group)
    return str(path)


def timed(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the seconds of one call, the first one left out."""
    work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def host(model: str, path: str, count: int) -> dict[str, float]:
    """Measure what is left without the model: sentences that one core reads, tokenises, pads and writes in a second."""
    embedder = open_embedder(model, "cpu")
    out = Path(path).with_suffix(".host.parquet")
    began = time.process_time()
    texts = pq.read_table(path).column("text").slice(0, count).to_pylist()
    read = time.process_time()
    ids = embedder.token_ids(texts)
    tokenised = time.process_time()
    lengths = np.array([len(row) for row in ids])
    for rows in _batches(np.argsort(-lengths, kind="stable"), lengths, 131_072):
        padded_ids([ids[row] for row in rows], 0)
    padded = time.process_time()
    write_vectors(out, np.arange(len(ids)), np.zeros((len(ids), HIDDEN), dtype=np.float32), embedder)
    seconds = time.process_time() - began
    return {
        "host_sentences_per_cpu_second": len(ids) / seconds, "read_share": (read - began) / seconds,
        "tokenise_share": (tokenised - read) / seconds, "pad_share": (padded - tokenised) / seconds,
    }  # fmt: skip


def embedding(device: str, processes: int, smoke: bool) -> dict[str, Any]:
    """Measure Parquet to Parquet, the processes' start apart: a short run first, then the difference to a long one."""
    counts = (64, 192) if smoke else (50_000 * processes, 250_000 * processes)
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_model(folder)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        for number, count in enumerate(counts):
            path = write_sentences(folder, count, max(32, counts[0] // max(1, 2 * processes)))
            job = EmbedJob("text", str(folder / f"out-{number}"), model, device, None)
            began = time.perf_counter()
            told = embed_parquet([path], job, processes)
            seconds.append(time.perf_counter() - began)
        host_cost = host(model, path, 20_000)
    longer = seconds[1] - seconds[0]
    rate = (counts[1] - counts[0]) / longer if longer > 0 else counts[1] / seconds[1]
    tokens = told.tokens / max(1, told.sentences)
    return {
        "sentences": counts[1], "processes": processes, "tokens_per_sentence": tokens,
        "seconds_short_run": seconds[0], "seconds_long_run": seconds[1],
        "sentences_per_second_with_start": counts[1] / seconds[1], "sentences_per_second": rate,
        "model_flops_per_second": rate * model_flops_per_sentence(round(tokens)), **host_cost,
    }  # fmt: skip


def neighbours(device: str, smoke: bool) -> dict[str, Any]:
    """Measure the search in one large cell and in many small ones beside bare products of the same shape."""
    rows, dtype = (512, torch.float32) if smoke else (131_072, torch.bfloat16)
    block = 128 if smoke else _CUDA_BLOCK_ROWS
    table = torch.nn.functional.normalize(torch.randn(rows + 1, HIDDEN, device=device), dim=1).to(dtype)
    table[-1] = 0
    side = table[: min(block, rows)]
    product = timed(lambda: side @ side.T, device, 3 if smoke else 50)
    told: dict[str, Any] = {"matrix_product_flops_per_second": 2.0 * len(side) ** 2 * HIDDEN / product}
    shapes = {"one_cell": np.zeros(rows, dtype=np.int64), "small_cells": np.arange(rows) % max(1, rows // 2048)}
    for name, cells in shapes.items():
        tiles = list(tiles_of(cells, block))
        multiplied = sum(t.rows.shape[0] * t.rows.shape[1] * t.columns.shape[1] for t in tiles)
        seconds = timed(lambda tiles=tiles: [propose_tiles(table, t, 0.95) for t in tiles], device, 1 if smoke else 3)
        told[f"{name}_seconds"] = seconds
        told[f"{name}_share"] = 2.0 * multiplied * HIDDEN / seconds / told["matrix_product_flops_per_second"]
    return {**told, "neighbour_share": told["one_cell_share"]}


def kmeans(device: str, rows: int, cells: int, steps: int) -> dict[str, Any]:
    """Measure the training of cells on vectors that lie on the device."""
    torch.manual_seed(0)
    narrow = torch.float16 if device == "cuda" else torch.float32
    vectors = torch.empty(rows, HIDDEN, dtype=narrow, device=device)
    for first in range(0, rows, 1_000_000):
        part = torch.randn(min(1_000_000, rows - first), HIDDEN, device=device)
        vectors[first : first + len(part)] = torch.nn.functional.normalize(part, dim=1).to(narrow)
    _wait(device)
    began = time.perf_counter()
    torch_kmeans(vectors, cells, iterations=steps, seed=0)
    _wait(device)
    return {"rows": rows, "cells": cells, "steps": steps, "kmeans_seconds": time.perf_counter() - began}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--processes", type=int, help="that feed one device; 12 at most by default")
    parser.add_argument("--smoke", action="store_true", help="a few rows of everything, no bounds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            f"torch {torch.__version__} sees no CUDA device; run this on a machine with a GPU and a CUDA build of "
            "torch, or try every step with --device cpu --smoke\n"
        )
        return 2
    if options.device == "cpu" and not options.smoke:
        sys.stderr.write("on a CPU only --smoke is of use: the full sizes would take days\n")
        return 2
    sizes = (600, 8, 2) if options.smoke else (10_000_000, 16_384, 20)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    report: dict[str, Any] = {"floor": floor(name, *sizes)}
    print(json.dumps(report), flush=True)
    report |= {"machine": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    report["smoke"] = options.smoke
    report["neighbours"] = neighbours(options.device, options.smoke)
    sys.stderr.write(json.dumps(report["neighbours"]) + "\n")  # what is there, should the rest fail
    report["kmeans"] = kmeans(options.device, *sizes)
    sys.stderr.write(json.dumps(report["kmeans"]) + "\n")
    if options.device == "cuda":
        torch.cuda.empty_cache()  # the processes that embed share the device with this one
    processes = options.processes or (1 if options.smoke else max(1, min(12, (os.cpu_count() or 2) - 2)))
    report["embedding"] = embedding(options.device, processes, options.smoke)
    found = {
        "sentences_per_second": report["embedding"]["sentences_per_second"],
        "neighbour_share": report["neighbours"]["neighbour_share"],
        "kmeans_seconds": report["kmeans"]["kmeans_seconds"],
    }
    missed = [
        key for key, bound in BOUNDS.items()
        if (found[key] > bound if key == "kmeans_seconds" else found[key] < bound)
    ]  # fmt: skip
    if options.device == "cuda":
        report["peak_device_bytes_of_this_process"] = torch.cuda.max_memory_allocated()
    report |= {"bounds": BOUNDS, "missed": [] if options.smoke else missed}
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return int(bool(report["missed"]))


if __name__ == "__main__":
    raise SystemExit(main())
