"""Attention over packed rows: which tokens see which, positions that restart per document, and three executions.

`varlen` (CUDA) walks the documents of a batch with cumulative lengths; `mask` (CPU and tests) is scaled dot product
attention with a dense block-diagonal causal mask; `causal` ignores documents. In float32 on a CPU short rows go through
`refinery.trainer.eager`: torch's kernel multiplies what the mask hides and keeps no weights for backward, which costs
two thirds more time there. flex attention is left out: its block mask can cost more than attention and it has no CPU
backward.

Shapes: B rows, L tokens per row, H query heads, K key/value heads, E head_dim.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from refinery.trainer import eager
from refinery.trainer.config import ModelConfig


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Who sees whom in one micro-batch, on the device."""

    kind: str
    """varlen, mask or causal."""
    positions: torch.Tensor
    """int64: position inside the document (inside the row when documents are not masked)."""
    mask: torch.Tensor | None
    """bool, True = visible, shape (B, 1, L, L); kind mask only."""
    cu_docs: torch.Tensor | None
    """int32, cumulative document starts over the flattened batch; kind varlen only."""
    bias: torch.Tensor | None = None
    """float32, 0 = visible and -inf = not, shape (B or 1, L, L); short rows on a CPU only."""
    tells_grouping: bool = False
    """Whether this torch's varlen wants to be told that query heads share keys; kind varlen only."""


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on the device; to CUDA through pinned memory, because a pageable copy waits for the queue."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def document_positions(segment_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return position inside the segment and segment number of every token of a flattened batch.

    Args:
        segment_lengths: positive integers, shape (S,); they tile the rows one after the other.
    Returns: int64 positions and int64 segment numbers, both of shape (sum of lengths,).
    """
    lengths = segment_lengths.astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    return np.arange(len(numbers)) - starts[numbers], numbers


def document_offsets(segment_lengths: np.ndarray) -> np.ndarray:
    """Return int32 starts of the segments of a flattened batch and its end.

    No empty ones behind them: the kernel starts blocks for a whole row of every document, whatever its length.

    Args:
        segment_lengths: positive integers, shape (S,).
    Returns: shape (S + 1,).
    """
    return np.concatenate(([0], np.cumsum(segment_lengths))).astype(np.int32)


def plan_attention(
    segment_lengths: np.ndarray, num_rows: int, length: int, device: torch.device, *, doc_mask: bool
) -> AttentionPlan:
    """Prepare positions and the mask or the cumulative lengths for one micro-batch.

    Args:
        segment_lengths: shape (S,), of all rows one after the other.
        num_rows: B.
        length: L.
        device: where the model runs; decides between varlen and mask.
        doc_mask: keep attention and positions inside documents.
    """
    short = device.type == "cpu" and length <= eager.SHORT_ROW
    if not doc_mask:
        ramp = torch.arange(length, device=device).expand(num_rows, length)
        return AttentionPlan("causal", ramp, None, None, _bias_of(_causal(length, device)[None]) if short else None)
    positions, numbers = document_positions(segment_lengths)
    positions_BL = to_device(positions.reshape(num_rows, length), device)
    if device.type == "cuda":
        offsets = to_device(document_offsets(segment_lengths), device)
        torch._dynamo.maybe_mark_dynamic(offsets, 0)  # documents vary from batch to batch: compile once for any number
        return AttentionPlan("varlen", positions_BL, None, offsets, tells_grouping=_varlen_tells_grouping())
    numbers_BL = to_device(numbers.reshape(num_rows, length), device)
    mask_BLL = (numbers_BL[:, :, None] == numbers_BL[:, None, :]) & _causal(length, device)
    return AttentionPlan("mask", positions_BL, mask_BLL[:, None], None, _bias_of(mask_BLL) if short else None)


def _causal(length: int, device: torch.device) -> torch.Tensor:
    """Return which of the earlier tokens each one sees: all of them and itself."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril_()


def _bias_of(mask: torch.Tensor) -> torch.Tensor:
    """Return 0 where the mask is true and -inf where not, float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))


@functools.cache
def _varlen_tells_grouping() -> bool:
    """Tell whether `varlen_attn` knows enable_gqa; torch 2.11 does not, and its kernel shares keys unasked."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - CUDA builds only

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def attend(q_BLHE: torch.Tensor, k_BLKE: torch.Tensor, v_BLKE: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Return attention output of shape (B, L, H, E); scores are scaled by 1 / sqrt(E)."""
    if plan.kind == "varlen" and plan.cu_docs is not None:
        return _attend_varlen(q_BLHE, k_BLKE, v_BLKE, plan.cu_docs, plan.tells_grouping)
    if plan.bias is not None and eager.is_eager_cpu(q_BLHE):
        return eager.short_attention(q_BLHE, k_BLKE, v_BLKE, plan.bias)
    grouped = q_BLHE.shape[2] != k_BLKE.shape[2]
    out_BHLE = functional.scaled_dot_product_attention(
        q_BLHE.transpose(1, 2), k_BLKE.transpose(1, 2), v_BLKE.transpose(1, 2),
        attn_mask=plan.mask, is_causal=plan.kind == "causal", enable_gqa=grouped)
    return out_BHLE.transpose(1, 2)


def _attend_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_docs: torch.Tensor, tells_grouping: bool
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - CUDA builds only

    batch, length, heads, head_dim = q.shape
    options: dict[str, Any] = {"enable_gqa": heads != k.shape[2]} if tells_grouping else {}
    out = varlen_attn(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), cu_docs, cu_docs, length, length,
        window_size=(-1, 0), **options)
    if isinstance(out, tuple):
        out = out[0]
    return out.view(batch, length, heads, head_dim)


def rotary_frequencies(config: ModelConfig, device: torch.device) -> torch.Tensor:
    """Return float32 angular frequencies of shape (E / 2,), with Llama 3.1 scaling when configured."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * torch.pi / frequencies
    ratio = scaling.original_max_positions / wavelengths
    keep = ((ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotary_tables(
    config: ModelConfig, positions_BL: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of shape (B, L, 1, E) in `dtype`; angles are computed in float32."""
    with torch.autocast(positions_BL.device.type, enabled=False):
        angles = positions_BL[:, :, None].float() * rotary_frequencies(config, positions_BL.device)
        doubled = torch.cat((angles, angles), dim=-1)[:, :, None]
        return doubled.cos().to(dtype), doubled.sin().to(dtype)


def rotate(x_BLHE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + E/2) by their angle: the half-rotation layout of Hugging Face checkpoints."""
    if eager.is_eager_cpu(x_BLHE):
        return eager.rotate(x_BLHE, cos, sin)
    low, high = x_BLHE.chunk(2, dim=-1)
    return x_BLHE * cos + torch.cat((-high, low), dim=-1) * sin
