"""How much memory a run needs, said before the first step; how long a step should take, said before it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from refinery.errors import ConfigError
from refinery.trainer import eager
from refinery.trainer.config import ModelConfig, TrainConfig
from refinery.trainer.metrics import effective_flops, matmul_params
from refinery.trainer.presets import all_presets, preset_model


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a forecast of speed needs to know of a device."""

    peak_flops: float
    """Dense bfloat16 peak, FLOP/s."""
    bytes_per_second: float
    """Memory bandwidth."""


H200 = Hardware(989e12, 4.8e12)
"""Data sheet: dense bfloat16 without sparsity, HBM3e."""
MATMUL_EFFICIENCY = 0.78
"""Share of the peak that large bfloat16 products reach on Hopper."""
ATTENTION_EFFICIENCY = {64: 0.18, 128: 0.235}
"""The same for attention forward and backward by size of a head, of the pairs inside documents: torch's kernel
(FlashAttention 2) for documents of a median of 545 tokens, measured on an H200. Newer kernels reach 0.4 and 0.5."""
BANDWIDTH_EFFICIENCY = 0.9
OPTIMIZER_BYTES_PER_PARAM = 34
"""Weight, gradient and two moments read, weight and two moments written, the copy in bfloat16 written, clipping."""


def activation_values(model: ModelConfig) -> int:
    """Return values that one token leaves in one block for its backward pass.

    Input and output of both norms, the joined projection (kept whole by the view of its values), rotated queries and
    keys, attention's output, and four of the feed-forward's width.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return 4 * model.d_model + 3 * queries + 3 * keys + 4 * model.d_ff


def eager_activation_values(model: ModelConfig, sequence_length: int) -> int:
    """Return the same for `refinery.trainer.eager`, which float32 on a CPU takes.

    Both norms keep their values before and after the gain. Attention over short rows keeps its copies of queries, keys
    and values, its output, and its weights for the keys up to each block of queries; over long rows what it keeps
    elsewhere.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    if sequence_length > eager.SHORT_ROW:
        return activation_values(model)
    seen = (sequence_length + eager.QUERY_BLOCK) // 2
    return 4 * model.d_model + 2 * queries + 2 * keys + model.num_heads * seen + 4 * model.d_ff


def memory_need_bytes(
    config: TrainConfig, model: ModelConfig, sequence_length: int, world_size: int, value_bytes: int
) -> int:
    """Return the forecast peak of one device: state, activations kept for backward, one chunk of logits.

    State is float32 weight, gradient and two moments, sharded among devices. `value_bytes` is the size of an
    activation, 2 or 4; float32 is taken to be on a CPU, in bfloat16 the cast weights are kept. Recomputed blocks keep
    their input only, one of them at a time everything. Compiled, a block normalises again in its backward pass instead
    of keeping both results, and of a chunk only the logits and their gradient exist, in the type of the activations
    (within 2 % of what 125m and 1.3b took on an H200).
    """
    tokens = config.micro_batch_rows * sequence_length
    per_block = activation_values(model) if value_bytes == 2 else eager_activation_values(model, sequence_length)
    compiled = config.compile and value_bytes == 2
    if compiled:
        per_block -= 2 * model.d_model
    every = {"none": 0, "selective": 2, "full": 1}[config.activation_checkpointing]
    recomputed = -(-model.num_layers // every) if every else 0
    kept_blocks = model.num_layers - recomputed + (1 if recomputed else 0)
    activations = tokens * (per_block * kept_blocks + model.d_model * (recomputed + 2)) * value_bytes
    cast_weights = 2 * model.num_non_embedding_params * kept_blocks // model.num_layers if value_bytes == 2 else 0
    chunk = min(config.chunk_tokens, tokens)
    logits = 2 * value_bytes if compiled else 8 + value_bytes
    head = chunk * model.vocab_size * logits + model.vocab_size * model.d_model * (4 + value_bytes)
    moment_bytes = 4 if config.optim.moments == "bfloat16" else 8
    return int((8 + moment_bytes) * model.num_params / world_size + activations + cast_weights + head)


def predicted_step_seconds(
    model: ModelConfig, num_tokens: int, attended_pairs: int, hardware: Hardware = H200, *, world_size: int = 1
) -> float:
    """Return the seconds that one optimiser step should take, from FLOPs and bytes alone: a roofline, no measurement.

    Matrix products and attention run at their shares of the peak, one after the other. What is fused between them moves
    about 14 d + 4 ff values of 2 bytes per token and block, three times over forward and backward; the loss moves its
    logits six times in bfloat16 where it is compiled; the optimiser moves its state once a step. On an H200 steps took
    10 to 15 % longer.
    """
    matmul = 6.0 * matmul_params(model) * num_tokens / (hardware.peak_flops * MATMUL_EFFICIENCY)
    efficiency = ATTENTION_EFFICIENCY[64 if model.head_dim <= 64 else 128]
    pairs = effective_flops(model, 0, attended_pairs) / (hardware.peak_flops * efficiency)
    between = 3 * 2 * (14 * model.d_model + 4 * model.d_ff) * model.num_layers * num_tokens
    logits = 6 * 2 * model.vocab_size * num_tokens
    state = OPTIMIZER_BYTES_PER_PARAM * model.num_params
    traffic = (between + logits + state) / (hardware.bytes_per_second * BANDWIDTH_EFFICIENCY)
    return (matmul + pairs + traffic) / world_size


def available_bytes(device: torch.device) -> int:
    """Return free memory of the device; on CPU what the system could hand out now (0 = unknown)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    # free pages alone would count the page cache as used
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def check_memory(config: TrainConfig, sequence_length: int, world_size: int, device: torch.device) -> int:
    """Return the forecast in bytes.

    Raises: ConfigError: the device has less than that; the message names the largest of our presets that fits.
    """
    low_precision = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    value_bytes = 2 if low_precision else 4
    need = memory_need_bytes(config, config.model, sequence_length, world_size, value_bytes)
    have = available_bytes(device)
    if have and need > have:
        fits = [name for name in all_presets() if "-" not in name and memory_need_bytes(
            config, preset_model(name, config.model.vocab_size), sequence_length, world_size, value_bytes) <= have]
        raise ConfigError(
            f"this run needs about {need / 1e9:.1f} GB, {device} has {have / 1e9:.1f} GB free; lower micro_batch_rows "
            f"(now {config.micro_batch_rows}), set activation_checkpointing: full, use more devices, "
            f"or take a smaller model (largest preset that fits: {fits[-1] if fits else 'none'})")
    return need
