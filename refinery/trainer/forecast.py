"""How much memory a run needs, said before the first step."""

from __future__ import annotations

from pathlib import Path

import torch

from refinery.errors import ConfigError
from refinery.trainer.config import ModelConfig, TrainConfig
from refinery.trainer.presets import all_presets, preset_model

STATE_BYTES_PER_PARAM = 16
"""float32 weight, gradient and two moments."""


def memory_need_bytes(
    config: TrainConfig, model: ModelConfig, sequence_length: int, world_size: int, value_bytes: int
) -> int:
    """Return the forecast peak of one device: state, activations kept for backward, one chunk of logits.

    Activations per token and layer: about 14 d + 4 ff values (norms, projections, rotations, gate products), the
    residual stream only where blocks are recomputed. `value_bytes` is the size of an activation: 2 or 4.
    """
    tokens = config.micro_batch_rows * sequence_length
    per_layer = 14 * model.d_model + 4 * model.d_ff
    kept = {"none": model.num_layers, "selective": model.num_layers / 2, "full": 1}[config.activation_checkpointing]
    activations = tokens * (per_layer * kept + model.d_model * model.num_layers) * value_bytes
    logits = 2 * min(config.chunk_tokens, tokens) * model.vocab_size * 4 + model.num_embedding_params * 4
    return int(STATE_BYTES_PER_PARAM * model.num_params / world_size + activations + logits)


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
