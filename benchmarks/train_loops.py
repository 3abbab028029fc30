"""Rows on disk and loops to compare the trainer with: used by train_cpu.py and gpu_train.py.

* ``trainer_marks``: `refinery.trainer.loop.train` from shards on disk, document masks, guard and metrics on;
* ``bare_marks``: forward, backward, clip and step of the same model on batches prepared beforehand, nothing else;
* ``textbook_marks``: the loop of nanoGPT's kind: windows at random offsets of a memory-mapped token file, causal
  attention across documents, full logits, torch's cross-entropy, the model compiled as a whole where asked.

Every one returns (CPU seconds, wall seconds) marks, one after each step.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from refinery.kernels import packing
from refinery.shards.format import Segments
from refinery.shards.manifest import PackingInfo, StreamKey, TokenizerInfo, build_manifest
from refinery.shards.plan import first_plan
from refinery.shards.writer import ShardSpec, write_manifest, write_shard
from refinery.trainer.attention import AttentionPlan, plan_attention
from refinery.trainer.config import TrainConfig
from refinery.trainer.data import model_rows
from refinery.trainer.loop import compute_dtype, train
from refinery.trainer.loss import IGNORE
from refinery.trainer.metrics import read_json_lines
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from refinery.trainer.optim import build_optimizer, set_learning_rate
from refinery.trainer.parallel import Ranks, shard_model
from refinery.trainer.shard_source import ShardSource

Marks = list[tuple[float, float]]
STREAM = StreamKey("synthetic", "target", "en", 0, "train")
RATE = 1e-3


class EnoughStepsError(Exception):
    """Ends a measured training before its final checkpoint, which is not what is measured."""


def synthetic_shards(folder: Path, vocab: int, length: int, num_rows: int, median_tokens: float) -> ShardSource:
    """Write packed rows of random documents, log-normal in length, and open them with a plan over all of them.

    Args:
        folder: new folder for the data set.
        vocab: ids are uniform under it.
        length: tokens per row.
        num_rows: rows at least.
        median_tokens: of a document; the deviation of the logarithm is 1.2 (real web text is like that).
    """
    rng = np.random.default_rng(20261122)
    mean = median_tokens * np.exp(0.72)
    count = int(1.3 * num_rows * length / mean) + 8
    lengths = np.clip(rng.lognormal(np.log(median_tokens), 1.2, count), 8, 16 * length).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = rng.integers(1, vocab, int(offsets[-1]), dtype=np.int32)
    ids[offsets[1:] - 1] = 0
    ties = rng.integers(1, 2**63, count).astype(np.uint64)
    plan = packing.plan_rows(lengths, ties, length)
    rows = packing.write_rows(plan, offsets, ids, 0)
    segments = Segments(plan.row_ptr, plan.segment_hashes(ties), plan.length, plan.flags)
    spec = ShardSpec(sequence_length=length, vocab_size=vocab, eos_id=0, pad_id=0)
    row_bytes = packing.row_bytes(plan, rows, np.full(vocab, 4))
    part = write_shard(folder / STREAM.name, "part-00000", rows, segments, row_bytes, spec)
    tokenizer = TokenizerInfo(sha256="00" * 32, vocab_size=vocab, eos_id=0, bos_id=-1, pad_id=0)
    packing_info = PackingInfo(policy="best_fit", sequence_length=length, seed=1)
    manifest = build_manifest(tokenizer, packing_info, {STREAM: [part]})
    write_manifest(folder, manifest)
    return ShardSource(folder, manifest, first_plan(manifest, 1, [(len(rows), {STREAM.name: 1.0})]))


def token_file(folder: Path) -> Path:
    """Return the one ``.bin`` of `synthetic_shards`: raw ids, as nanoGPT's kind of loop reads them."""
    return folder / STREAM.name / "part-00000.bin"


def now(device: torch.device) -> tuple[float, float]:
    """Return CPU seconds of the process and wall seconds, the device's queue being empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time(), time.perf_counter()


def per_step(marks: Marks, warm: int) -> np.ndarray:
    """Return median CPU and wall seconds per step, shape (2,), without the first `warm` intervals."""
    return np.median(np.diff(np.array(marks), axis=0)[warm:], axis=0)


def trainer_marks(
    config: TrainConfig, source: ShardSource, folder: Path, device: torch.device
) -> tuple[Marks, list[dict[str, Any]]]:
    """Train config.steps steps; return marks and the lines of metrics.jsonl."""
    marks: Marks = []

    def progress(line: dict[str, Any]) -> None:
        if line["kind"] == "train":
            marks.append(now(device))
            if line["step"] == config.steps:
                raise EnoughStepsError

    with contextlib.suppress(EnoughStepsError):
        train(config, source, folder, progress=progress)
    return marks, [line for line in read_json_lines(folder / "metrics.jsonl") if line["kind"] == "train"]


def new_model(config: TrainConfig, device: torch.device, *, sharded: bool = False) -> Decoder:
    """Return the model with its initial values, FSDP-wrapped at world 1 if asked (needs a process group)."""
    dtype = compute_dtype(config, device)
    with torch.device("meta"):
        model = Decoder(config.model, compute_dtype=dtype, chunk_tokens=config.chunk_tokens,
                        activation_checkpointing=config.activation_checkpointing, compile_loss=config.compile)
    if sharded:
        shard_model(model, Ranks(0, 1, device), dtype)
    model.to_empty(device=device)
    fill_parameters(model, initial_values(config.model, config.seed))
    return model


def _loop(config: TrainConfig, model: nn.Module, device: torch.device, losses: Callable[[int], Any]) -> Marks:
    """Run config.steps steps; losses(step) yields the micro-batches' shares of the mean loss."""
    optimizer = build_optimizer(model, config.optim)
    set_learning_rate(optimizer, RATE)
    marks: Marks = []
    for step in range(config.steps):
        optimizer.zero_grad(set_to_none=True)
        for loss in losses(step):
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        marks.append(now(device))
    return marks


def bare_marks(config: TrainConfig, source: ShardSource, device: torch.device, *, sharded: bool = False) -> Marks:
    """Run the model on batches that lie on the device already; no loader, guard, metrics or streams."""
    model = new_model(config, device, sharded=sharded)
    if config.compile:
        for block in model.blocks:
            block.compile()
    num_rows = config.batch_tokens // source.sequence_length
    prepared = []
    for first in range(0, config.steps * num_rows, config.micro_batch_rows):
        rows = model_rows(source.batch(first, config.micro_batch_rows), doc_mask=config.doc_mask)
        plan = plan_attention(rows.segments.seg_len, len(rows.tokens), source.sequence_length, device,
                              doc_mask=config.doc_mask)
        prepared.append((torch.from_numpy(rows.tokens).to(device), torch.from_numpy(rows.labels).to(device), plan,
                         rows.num_targets))
    accumulate = num_rows // config.micro_batch_rows

    def losses(step: int) -> Any:
        batch = prepared[step * accumulate : (step + 1) * accumulate]
        targets = sum(part[3] for part in batch)
        for tokens, labels, plan, _ in batch:
            yield model(tokens, plan, labels, 0.0).total / targets

    return _loop(config, model, device, losses)


def textbook_marks(config: TrainConfig, path: Path, length: int, device: torch.device) -> Marks:
    """Run the loop of nanoGPT's kind over the same token file, the same number of rows a step."""
    model = new_model(config, device)
    ids = np.memmap(path, dtype=np.uint16 if config.model.vocab_size < 65_500 else np.int32, mode="r")
    rng = np.random.default_rng(1)
    rows = config.micro_batch_rows
    accumulate = config.batch_tokens // length // rows
    ramp = torch.arange(length, device=device).expand(rows, length)
    plan = AttentionPlan("causal", ramp, None, None)

    def forward(tokens: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(tokens, plan).flatten(0, 1), following.flatten(), ignore_index=IGNORE)

    run = torch.compile(forward) if config.compile else forward

    def losses(step: int) -> Any:
        for _ in range(accumulate):
            windows = np.stack([ids[at : at + length + 1] for at in rng.integers(0, len(ids) - length - 1, rows)])
            pair = torch.from_numpy(windows.astype(np.int64))
            pair = (pair.pin_memory() if device.type == "cuda" else pair).to(device, non_blocking=True)
            yield run(pair[:, :-1].contiguous(), pair[:, 1:].contiguous()) / accumulate

    return _loop(config, model, device, losses)


def machine() -> dict[str, object]:
    """Return what a reader must know of the machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
            "gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
            "commit": commit.stdout.strip()}
