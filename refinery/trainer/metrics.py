"""What a run writes about itself: metrics.jsonl, model FLOPs, MFU against the right peak, memory.

FLOPs of training are 6 per matmul parameter and token plus attention (PaLM 2204.02311, appendix B). Two figures: the
PaLM one counts full T x T attention per row; the effective one counts the query-key pairs that causal attention inside
documents needs, so packing short documents cannot inflate it. Recomputation is never counted.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from refinery.errors import ConfigError
from refinery.process_memory import peak_resident_bytes
from refinery.trainer.config import ModelConfig

# dense bfloat16 peaks in FLOP/s from the vendors' data sheets; the doubled "sparse" figures are a common mistake
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def matmul_params(config: ModelConfig) -> int:
    """Return parameters that take part in a matrix product per token: blocks without gains and biases, and the head."""
    attention = config.d_model * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * (attention + 3 * config.d_model * config.d_ff) + config.vocab_size * config.d_model


def palm_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Return training FLOPs per token with full attention over the row: 6 N + 12 layers heads head_dim T."""
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * sequence_length
    return float(6 * matmul_params(config) + attention)


def effective_flops(config: ModelConfig, num_tokens: int, attended_pairs: int) -> float:
    """Return training FLOPs of tokens whose causal attention has this many query-key pairs in all.

    A pair costs 4 heads head_dim forward (scores and values) and twice that backward, per layer.
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * attended_pairs
    return float(6 * matmul_params(config)) * num_tokens + float(attention)


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bfloat16 peak of a device in FLOP/s, or None where it is not known (CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory use so far: allocator on CUDA, resident set of the process on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


class JsonLines:
    """Append-only JSON lines; each line is flushed, so a killed run loses at most the one being written."""

    def __init__(self, path: Path, *, keep_through_step: int | None = None) -> None:
        """Open for append.

        Args:
            path: the file.
            keep_through_step: on resume, drop lines of later steps: they will be written again.
        """
        if path.exists():
            kept = [] if keep_through_step is None else [
                line for line in read_json_lines(path) if line["step"] <= keep_through_step]
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(_dump(line) for line in kept), encoding="utf-8")
            temporary.replace(path)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append one line; non-finite floats become null."""
        self._stream.write(_dump(values))
        self._stream.flush()

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._stream.fileno())
        self._stream.close()


class EventWriter:
    """TensorBoard events of the same lines, for those who watch runs there; needs the tensorboard package."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a folder; events of later steps than first_step, from before a resume, are marked as gone.

        Raises: ConfigError: the package is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ConfigError(f"tensorboard: true, but its package cannot be imported ({error}); "
                              "`pip install tensorboard`, or leave it out: metrics.jsonl is always written") from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Write the numbers of a metrics line; a stream's validation goes under its name."""
        prefix = f"validation/{line['stream']}/" if line["kind"] == "eval" else f"{line['kind']}/"
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(prefix + key, value, line["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()  # type: ignore[no-untyped-call]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False) + "\n"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines; a torn last line (kill during a write) is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
