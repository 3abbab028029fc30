"""Speed of the trainer on one GPU: MFU, data wait, memory against the forecast, FSDP at world 1, a textbook loop.

    python benchmarks/gpu_train.py [--sizes 125m,350m,1.3b] [--lengths 4096,2048] [--steps N] [--seconds 460]
                                   [--out FILE]
    python benchmarks/gpu_train.py --device cpu --smoke        the same code end to end; nothing is judged

One command, compile included, under 8 minutes: what `--seconds` no longer leaves room for is listed under ``left_out``.
Nothing is downloaded; shards of random documents (log-normal, median 545 tokens) are written to a temporary folder.

For each length and size: first the step time predicted from FLOPs and bytes (`refinery.trainer.forecast`), then the
trainer as it is (shards on disk, document masks, guard, metrics): median step, tokens per second, effective MFU
(attention by the sum of squared document lengths of these very rows), PaLM's figure beside it, share of time that the
loop waited for data, peak memory against the forecast. Then the loop of nanoGPT's kind over the same token file and
model at the first length, and at one size the bare loop with and without FSDP2 at world 1.

Bounds, judged on CUDA only: effective MFU at the first length 125m 42 %, 350m 46 %, 1.3b 50 %; data wait under 1 %;
memory within 10 % of the forecast; FSDP under 2 % (with one process the trainer leaves it out); tokens per second at
least the textbook loop's. Exits 1 when one is missed, 2 without a CUDA device. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from train_loops import (
    Marks,
    bare_marks,
    machine,
    per_step,
    synthetic_shards,
    textbook_marks,
    token_file,
    trainer_marks,
)

from refinery.trainer.config import EvalConfig, ScheduleConfig, TrainConfig
from refinery.trainer.forecast import memory_need_bytes, predicted_step_seconds
from refinery.trainer.metrics import effective_flops, palm_flops_per_token, peak_flops
from refinery.trainer.presets import preset_model
from refinery.trainer.shard_source import ShardSource

VOCAB = 32_768
MEDIAN_TOKENS = 545.0
WARM_STEPS = 4
MFU_FLOORS = {"125m": 0.42, "350m": 0.46, "1.3b": 0.50}
MAX_DATA_WAIT, MAX_FSDP_COST, MAX_MEMORY_ERROR = 0.01, 0.02, 0.10
# tokens of one forward pass and of one step: the activations of a pass take up to 60 GB
TOKENS = {"125m": (65_536, 131_072), "350m": (32_768, 131_072), "1.3b": (32_768, 65_536), "tiny": (512, 1_024)}


@dataclass(frozen=True)
class Part:
    """One measurement's place: what is trained, on which rows, where."""

    size: str
    length: int
    config: TrainConfig
    source: ShardSource
    data: Path
    folder: Path
    device: torch.device


def make_config(size: str, length: int, steps: int, device: torch.device) -> TrainConfig:
    """Return the run of one size and length."""
    micro, batch = TOKENS[size]
    on_gpu = device.type == "cuda"
    return TrainConfig(
        model=preset_model(size, VOCAB if on_gpu else 512, length), steps=steps, batch_tokens=batch,
        micro_batch_rows=max(1, micro // length), device=device.type, compile=on_gpu, chunk_tokens=8192,
        schedule=ScheduleConfig(kind="constant", max_lr=1e-4), evaluate=EvalConfig(), deterministic=False)


def attended_pairs(part: Part) -> float:
    """Return query-key pairs inside documents of a mean step, from the segments of the rows that are read."""
    num_rows = part.config.batch_tokens // part.length
    lengths = part.source.batch(0, num_rows * part.config.steps).segments.seg_len.astype(float)
    return float((lengths * (lengths + 1) / 2).sum()) / part.config.steps


def predict(part: Part) -> dict[str, float]:
    """Return what should come out, before anything is measured."""
    model, tokens = part.config.model, part.config.batch_tokens
    pairs = attended_pairs(part)
    seconds = predicted_step_seconds(model, tokens, int(pairs))
    return {"step_seconds": seconds, "tokens_per_second": tokens / seconds,
            "mfu_effective": effective_flops(model, tokens, int(pairs)) / seconds / 989e12,
            "memory_bytes": float(memory_need_bytes(part.config, model, part.length, 1,
                                                    2 if part.device.type == "cuda" else 4))}


def speed(part: Part, marks: Marks) -> dict[str, float | None]:
    """Return step time and both MFU figures of measured marks."""
    seconds = float(per_step(marks, WARM_STEPS)[1])
    tokens, peak = part.config.batch_tokens, peak_flops(part.device)
    flops = effective_flops(part.config.model, tokens, int(attended_pairs(part)))
    palm = palm_flops_per_token(part.config.model, part.length) * tokens
    return {"step_seconds": seconds, "tokens_per_second": tokens / seconds,
            "mfu_effective": None if peak is None else flops / seconds / peak,
            "mfu_palm": None if peak is None else palm / seconds / peak}


def clear(device: torch.device) -> None:
    """Forget what the measurement before left."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def measure_trainer(part: Part) -> dict[str, Any]:
    """Run the trainer; return speed, data wait and memory."""
    clear(part.device)
    begin = time.perf_counter()
    marks, lines = trainer_marks(part.config, part.source, part.folder / f"{part.size}-{part.length}", part.device)
    need = memory_need_bytes(part.config, part.config.model, part.length, 1, 2 if part.device.type == "cuda" else 4)
    peak = max(line["peak_memory_bytes"] for line in lines)
    return {**speed(part, marks), "data_wait_frac": statistics.fmean(x["data_wait_frac"] for x in lines[WARM_STEPS:]),
            "peak_memory_bytes": peak, "memory_of_forecast": peak / need, "first_loss": lines[0]["loss"],
            "last_loss": lines[-1]["loss"], "seconds_in_all": time.perf_counter() - begin}


def measure_textbook(part: Part) -> dict[str, Any]:
    """Run the loop of nanoGPT's kind over the same token file."""
    clear(part.device)
    return speed(part, textbook_marks(part.config, token_file(part.data), part.length, part.device))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Be a group of one: FSDP asks for one."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure_fsdp(part: Part) -> dict[str, Any]:
    """Run the bare loop alone and wrapped in FSDP2 at world 1; return both and the cost."""
    clear(part.device)
    alone = float(per_step(bare_marks(part.config, part.source, part.device), WARM_STEPS)[1])
    clear(part.device)
    with process_group(part.device):
        wrapped = float(per_step(bare_marks(part.config, part.source, part.device, sharded=True), WARM_STEPS)[1])
    return {"size": part.size, "length": part.length, "step_seconds": alone, "step_seconds_fsdp": wrapped,
            "cost": wrapped / alone - 1, "trainer_uses_it_at_world_1": False}


def missed(result: dict[str, Any], first_length: int) -> list[str]:
    """Return the bounds that the measurements miss."""
    found = []
    for row in result["rows"]:
        name, trainer = f"{row['size']} at {row['length']}", row["trainer"]
        if row["length"] == first_length and trainer["mfu_effective"] < MFU_FLOORS.get(row["size"], 0.0):
            found.append(f"{name}: effective MFU {trainer['mfu_effective']:.3f} < {MFU_FLOORS[row['size']]}")
        if trainer["data_wait_frac"] >= MAX_DATA_WAIT:
            found.append(f"{name}: data wait {trainer['data_wait_frac']:.4f} >= {MAX_DATA_WAIT}")
        if abs(trainer["memory_of_forecast"] - 1) > MAX_MEMORY_ERROR:
            found.append(f"{name}: memory is {trainer['memory_of_forecast']:.2f} of the forecast")
        if "textbook" in row and trainer["tokens_per_second"] < row["textbook"]["tokens_per_second"]:
            found.append(f"{name}: slower than the textbook loop")
    if result["fsdp"] and result["fsdp"]["cost"] >= MAX_FSDP_COST and result["fsdp"]["trainer_uses_it_at_world_1"]:
        found.append(f"FSDP at world 1 costs {result['fsdp']['cost']:.3f}")
    return found


def measure(given: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Run every part that time allows, the trainer's first."""
    end = time.perf_counter() + given.seconds
    result: dict[str, Any] = {"benchmark": "gpu_train", "device": device.type, "machine": machine(), "rows": [],
                              "fsdp": None, "left_out": []}
    parts: list[Part] = []
    longest = 0.0
    for length in given.lengths:
        rows = given.steps * max(TOKENS[size][1] for size in given.sizes) // length
        data = folder / f"data-{length}"
        source = synthetic_shards(data, VOCAB if device.type == "cuda" else 512, length, rows, MEDIAN_TOKENS)
        for size in given.sizes:
            part = Part(size, length, make_config(size, length, given.steps, device), source, data, folder, device)
            row: dict[str, Any] = {"size": size, "length": length, "params": part.config.model.num_params,
                                   "batch_tokens": part.config.batch_tokens, "predicted": predict(part)}
            if time.perf_counter() + longest > end:
                result["left_out"].append(f"trainer {size} at {length}")
                continue
            begin = time.perf_counter()
            row["trainer"] = measure_trainer(part)
            longest = max(longest, time.perf_counter() - begin)
            row["measured_of_predicted"] = (
                row["predicted"]["step_seconds"] / row["trainer"]["step_seconds"])
            result["rows"].append(row)
            parts.append(part)
    _beside(result, parts, given, end, longest)
    return result


def _beside(result: dict[str, Any], parts: list[Part], given: argparse.Namespace, end: float, longest: float) -> None:
    """Measure the textbook loop at the first length and FSDP at one size, as far as time allows."""
    for row, part in zip(result["rows"], parts, strict=True):
        if part.length != given.lengths[0]:
            continue
        if time.perf_counter() + longest > end:
            result["left_out"].append(f"textbook {part.size} at {part.length}")
            continue
        row["textbook"] = measure_textbook(part)
        row["trainer_of_textbook"] = row["trainer"]["tokens_per_second"] / row["textbook"]["tokens_per_second"]
    middle = parts[min(1, len(parts) - 1)] if parts else None
    if middle is None or time.perf_counter() + 2 * longest > end:
        result["left_out"].append("fsdp at world 1")
        return
    # half the steps: two runs of it must fit
    steps = max(WARM_STEPS + 3, middle.config.steps // 2)
    result["fsdp"] = measure_fsdp(replace(middle, config=replace(middle.config, steps=steps)))


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--sizes", default="125m,350m,1.3b")
    parser.add_argument("--lengths", default="4096,2048")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=460.0, help="start nothing that would end after this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("no CUDA device: this measures a GPU; --device cpu --smoke only shows that it runs\n")
        return 2
    if given.smoke:
        given.sizes, given.lengths, given.steps = "tiny", "128,64", WARM_STEPS + 3
    given.sizes, given.lengths = given.sizes.split(","), [int(value) for value in given.lengths.split(",")]
    unknown = sorted(set(given.sizes) - set(TOKENS))
    if unknown:
        sys.stderr.write(f"no batch is set for {unknown[0]}; sizes: {', '.join(TOKENS)}\n")
        return 2
    device = torch.device(given.device)
    torch.set_float32_matmul_precision("high")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(given, device, Path(temporary))
    result["missed"] = missed(result, given.lengths[0]) if device.type == "cuda" else "not judged on a CPU"
    result["seconds"] = round(time.perf_counter() - begin, 1)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 1 if device.type == "cuda" and result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
