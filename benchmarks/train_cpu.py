"""Speed of the trainer on CPU beside a bare loop over the same model, and beside a plain textbook loop.

    python benchmarks/train_cpu.py [--preset tiny] [--vocab N] [--length N] [--rows N] [--steps N] [--repeats N]
                                   [--threads N] [--out FILE]

Three contenders on the same rows, AdamW step included, taking turns:

* ``trainer``: `refinery.trainer.loop.train` with document masks, per-stream losses, spike guard, metrics line per step;
* ``bare``: forward, backward, clip and step of the same model on tensors prepared beforehand, nothing else;
* ``plain``: the textbook loop: the same blocks, causal attention without documents, full logits and torch's
  cross-entropy.

Tokens per CPU second of the whole process (prefetch thread included) and per second of wall clock: median over the
steps, best repeat, the first three steps left out. On a shared machine only the CPU figure means something. Rows lie in
memory, so the data share is labels, masks and the prefetch thread; ``data_wait_frac`` is what the loop waited. Exits 1
when the trainer is under 90 % of the bare loop (CPU time) or waits 2 % or more. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from refinery.trainer.attention import plan_attention
from refinery.trainer.config import EvalConfig, OptimConfig, ScheduleConfig, TrainConfig
from refinery.trainer.data import model_rows
from refinery.trainer.loop import train
from refinery.trainer.memory import MemorySource, rows_of_documents
from refinery.trainer.metrics import palm_flops_per_token, read_json_lines
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from refinery.trainer.optim import build_optimizer
from refinery.trainer.presets import preset_model

WARM_STEPS = 3
CPU = torch.device("cpu")


def make_source(vocab: int, length: int, rows: int) -> MemorySource:
    """Rows of random documents, log-normal in length (median 120 tokens)."""
    rng = np.random.default_rng(20261121)
    documents, total = [], 0
    while total < rows * length:
        size = int(np.clip(rng.lognormal(4.8, 1.0), 8, 4 * length))
        documents.append(rng.integers(0, vocab, size).astype(np.uint16))
        total += size
    return MemorySource(rows=rows_of_documents(documents, length), vocab_size=vocab, streams=("random",))


def make_config(arguments: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        model=preset_model(arguments.preset, arguments.vocab, arguments.length), steps=arguments.steps,
        batch_tokens=arguments.rows * arguments.length, micro_batch_rows=arguments.rows, threads=arguments.threads,
        schedule=ScheduleConfig(kind="constant", max_lr=1e-3), evaluate=EvalConfig(), deterministic=False)


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def per_step(marks: list[tuple[float, float]]) -> np.ndarray:
    """Median CPU and wall seconds per step, shape (2,)."""
    return np.median(np.diff(np.array(marks), axis=0)[WARM_STEPS:], axis=0)


def run_trainer(config: TrainConfig, source: MemorySource) -> tuple[np.ndarray, float]:
    """CPU and wall seconds per step, and the mean share of time spent waiting for data."""
    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(config, source, Path(folder), progress=lambda line: marks.append(now()))
        waits = [line["data_wait_frac"] for line in read_json_lines(Path(folder) / "metrics.jsonl")]
    return per_step(marks), statistics.fmean(waits[WARM_STEPS:])


def run_loop(config: TrainConfig, source: MemorySource, *, plain: bool) -> np.ndarray:
    """CPU and wall seconds per step of a loop without anything around the model."""
    model = Decoder(config.model, chunk_tokens=config.chunk_tokens)
    fill_parameters(model, initial_values(config.model, config.seed))
    optimizer = build_optimizer(model, OptimConfig())
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    num_rows = config.micro_batch_rows
    prepared = []
    for step in range(config.steps):
        rows = model_rows(source.batch(step * num_rows, num_rows), doc_mask=not plain)
        plan = plan_attention(rows.segments.seg_len, num_rows, source.sequence_length, CPU, doc_mask=not plain)
        prepared.append((torch.from_numpy(rows.tokens), torch.from_numpy(rows.labels), plan, rows.num_targets))
    marks: list[tuple[float, float]] = []
    for tokens, labels, plan, num_targets in prepared:
        optimizer.zero_grad(set_to_none=True)
        if plain:
            loss = functional.cross_entropy(model(tokens, plan).flatten(0, 1), labels.flatten())
        else:
            loss = model(tokens, plan, labels).total / num_targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        marks.append(now())
    return per_step(marks)


def machine() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
            "torch": torch.__version__, "python": platform.python_version(), "commit": commit.stdout.strip()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = make_source(arguments.vocab, arguments.length, arguments.rows * arguments.steps)
    config = make_config(arguments)
    tokens = arguments.rows * arguments.length
    seconds: dict[str, list[np.ndarray]] = {"trainer": [], "bare": [], "plain": []}
    waits = []
    for _ in range(arguments.repeats):
        steps, wait = run_trainer(config, source)
        seconds["trainer"].append(steps)
        waits.append(wait)
        seconds["bare"].append(run_loop(config, source, plain=False))
        seconds["plain"].append(run_loop(config, source, plain=True))
    best = {name: np.min(values, axis=0) for name, values in seconds.items()}
    flops = palm_flops_per_token(config.model, arguments.length) * tokens
    result = {
        "benchmark": "train_cpu", "machine": machine(), "preset": arguments.preset, "vocab": arguments.vocab,
        "length": arguments.length, "rows": arguments.rows, "params": config.model.num_params,
        "tokens_per_cpu_second": {name: round(tokens / value[0]) for name, value in best.items()},
        "tokens_per_second": {name: round(tokens / value[1]) for name, value in best.items()},
        "gflops_per_cpu_second": round(flops / best["trainer"][0] / 1e9, 1),
        "trainer_of_bare": round(best["bare"][0] / best["trainer"][0], 3),
        "trainer_of_plain": round(best["plain"][0] / best["trainer"][0], 3),
        "data_wait_frac": round(min(waits), 4),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 0 if result["trainer_of_bare"] >= 0.9 and result["data_wait_frac"] < 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
