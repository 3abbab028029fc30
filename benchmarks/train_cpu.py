"""Speed of the trainer on CPU beside a bare loop over the same model, and beside a loop of nanoGPT's kind.

    python benchmarks/train_cpu.py [--preset tiny] [--vocab N] [--length N] [--rows N] [--steps N] [--repeats N]
                                   [--threads N] [--out FILE]

Three contenders (`train_loops`), AdamW step included, taking turns: the trainer, reading packed shards from disk with
its own loader; the bare loop; the textbook loop over the same token file. Tokens per CPU second of the whole process
(prefetch thread included) and per second of wall clock: median over the steps, best repeat, the first three steps left
out. On a shared machine only the CPU figures mean something. ``loader_share`` is the CPU time of reading, labels and
documents of the same steps alone, as a share of the trainer's; ``data_wait_frac`` is what the loop waited.

Exits 1 when the trainer is under 90 % of the bare loop or under the textbook loop (CPU time), or the loader's share is
2 % or more. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from train_loops import bare_marks, machine, per_step, synthetic_shards, textbook_marks, token_file, trainer_marks

from refinery.trainer.config import EvalConfig, ScheduleConfig, TrainConfig
from refinery.trainer.data import prefetch_steps
from refinery.trainer.metrics import palm_flops_per_token
from refinery.trainer.presets import preset_model
from refinery.trainer.shard_source import ShardSource

WARM_STEPS = 3
CPU = torch.device("cpu")
BOUNDS = {"trainer_of_bare": 0.9, "trainer_of_textbook": 1.0}
MAX_LOADER_SHARE = 0.02


def make_config(given: argparse.Namespace) -> TrainConfig:
    """Return the run that all three loops make."""
    return TrainConfig(
        model=preset_model(given.preset, given.vocab, given.length), steps=given.steps,
        batch_tokens=given.rows * given.length, micro_batch_rows=given.rows, threads=given.threads, device="cpu",
        schedule=ScheduleConfig(kind="constant", max_lr=1e-3), evaluate=EvalConfig(), deterministic=False)


def loader_seconds(config: TrainConfig, source: ShardSource) -> float:
    """Return CPU seconds per step of reading rows, labels and documents, with nothing else going on."""
    num_rows = config.batch_tokens // source.sequence_length
    steps = [(step, step * num_rows, num_rows) for step in range(config.steps)]
    begin = time.process_time()
    with prefetch_steps(source, steps, rank=0, world_size=1, doc_mask=True) as batches:
        for _ in batches:
            pass
    return (time.process_time() - begin) / config.steps


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    numbers = {"vocab": 8192, "length": 256, "rows": 16, "steps": 20, "repeats": 3, "threads": 1}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = make_config(given)
    seconds: dict[str, list[np.ndarray]] = {"trainer": [], "bare": [], "textbook": []}
    waits, loader = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = synthetic_shards(folder / "data", given.vocab, given.length, given.rows * given.steps, 120.0)
        for repeat in range(given.repeats):
            marks, lines = trainer_marks(config, source, folder / f"run-{repeat}", CPU)
            seconds["trainer"].append(per_step(marks, WARM_STEPS))
            waits.append(statistics.fmean(line["data_wait_frac"] for line in lines[WARM_STEPS:]))
            seconds["bare"].append(per_step(bare_marks(config, source, CPU), WARM_STEPS))
            textbook = textbook_marks(config, token_file(folder / "data"), given.length, CPU)
            seconds["textbook"].append(per_step(textbook, WARM_STEPS))
            loader.append(loader_seconds(config, source))
        source.close()
    best = {name: np.min(values, axis=0) for name, values in seconds.items()}
    tokens = config.batch_tokens
    flops = palm_flops_per_token(config.model, given.length) * tokens
    result = {
        "benchmark": "train_cpu", "machine": machine(), "preset": given.preset, "vocab": given.vocab,
        "length": given.length, "rows": given.rows, "params": config.model.num_params,
        "tokens_per_cpu_second": {name: round(tokens / value[0]) for name, value in best.items()},
        "tokens_per_second": {name: round(tokens / value[1]) for name, value in best.items()},
        "gflops_per_cpu_second": round(flops / best["trainer"][0] / 1e9, 1),
        "trainer_of_bare": round(float(best["bare"][0] / best["trainer"][0]), 3),
        "trainer_of_textbook": round(float(best["textbook"][0] / best["trainer"][0]), 3),
        "loader_share": round(min(loader) / float(best["trainer"][0]), 4), "data_wait_frac": round(min(waits), 4),
        "bounds": {**BOUNDS, "loader_share": MAX_LOADER_SHARE},
    }
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    missed = [name for name, bound in BOUNDS.items() if result[name] < bound]
    missed += ["loader_share"] if result["loader_share"] >= MAX_LOADER_SHARE else []
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
