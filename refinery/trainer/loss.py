"""Cross-entropy over a large vocabulary without the full logits: chunks of tokens, float32 inside a chunk.

The gradient is computed in the forward pass, chunk by chunk, so logits exist for one chunk only and are never
computed twice. The result is a *sum*; the caller divides by the number of valid tokens of the whole batch, so that
accumulation and world size do not change the loss. (torch's own fused `linear_cross_entropy` is biased by several
percent in bfloat16 for reductions sum and mean in 2.13, measured.)

Where the blocks are compiled, so is what happens to the logits of a chunk: eager operations pass 13 GB through memory
for 8,192 tokens of 32,768 ids, the fused ones read the logits of the product, in its type, and write the gradient.

Shapes: N tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

IGNORE = -100
"""Label of positions without a target: last token of a document, padding, end of row."""


class LossSums(NamedTuple):
    """Sums over the tokens of one micro-batch."""

    total: torch.Tensor
    """float32 scalar with gradient: sum of negative log likelihoods, plus z-loss if on."""
    nll: torch.Tensor
    """float32, no gradient: negative log likelihood in nats per token, 0 where ignored."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of token losses; saves the finished gradients of hidden states and head."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor,
        chunk_tokens: int, z_weight: float, compiled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss and, if a gradient is wanted, both gradients."""
        of_chunk = _compiled_chunk() if compiled else _chunk_in_place
        with_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        weight = head_VD.to(hidden_ND.dtype)
        nll_N = torch.zeros(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if with_grad else None
        grad_head = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device) if with_grad else None
        for start in range(0, len(labels_N), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            valid = labels_N[part] != IGNORE
            logits = hidden_ND[part] @ weight.T
            nll_N[part], log_z, grad = of_chunk(logits, labels_N[part], valid, z_weight, with_grad)
            total += nll_N[part].sum() + z_weight * torch.where(valid, log_z, 0.0).square().sum()
            if grad_hidden is None or grad_head is None:
                continue
            grad_hidden[part] = grad @ weight
            grad_head += grad.T @ hidden_ND[part]
        if grad_hidden is not None and grad_head is not None:
            ctx.save_for_backward(grad_hidden, grad_head.to(head_VD.dtype))
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_total: torch.Tensor, grad_nll: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None]:
        """Scale the saved gradients."""
        grad_hidden, grad_head = ctx.saved_tensors
        scaled_hidden = grad_hidden * grad_total.to(grad_hidden.dtype)
        return scaled_hidden, grad_head * grad_total.to(grad_head.dtype), None, None, None, None


Chunk = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Loss by token, 0 where ignored; logarithm of its normaliser; gradient of the logits (empty if not wanted)."""


def _chunk_in_place(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, valid_N: torch.Tensor, z_weight: float, with_grad: bool
) -> Chunk:
    """Loss and gradient of one chunk, in as few passes as operations by themselves allow."""
    target = labels_N.clamp_min(0)[:, None]
    logits = logits_NV.float()
    target_logit = logits.gather(1, target)[:, 0]
    # one exponential serves the loss and its gradient: 10 % less time here than logsumexp and a second one
    top = logits.amax(dim=-1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    log_z = (top + sums.log())[:, 0]
    nll = torch.where(valid_N, log_z - target_logit, 0.0)
    if not with_grad:
        return nll, log_z, logits[:0]
    scale = sums.reciprocal()
    if z_weight:
        scale *= 1.0 + 2.0 * z_weight * log_z[:, None]
    grad = exponentials.mul_(scale)
    grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
    return nll, log_z, _without_ignored(grad, valid_N).to(logits_NV.dtype)


def _chunk(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, valid_N: torch.Tensor, z_weight: float, with_grad: bool
) -> Chunk:
    """Loss and gradient of one chunk as the compiler likes it: nothing in place, the target's place by comparison."""
    logits = logits_NV.float()
    top = logits.amax(dim=-1, keepdim=True)
    sums = (logits - top).exp().sum(dim=-1, keepdim=True)
    log_z = (top + sums.log())[:, 0]
    target_logit = logits_NV.gather(1, labels_N.clamp_min(0)[:, None])[:, 0].float()
    nll = torch.where(valid_N, log_z - target_logit, 0.0)
    if not with_grad:
        return nll, log_z, logits_NV[:0]
    scale = sums.reciprocal() * (1.0 + 2.0 * z_weight * log_z[:, None])
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == labels_N[:, None]
    grad = (logits - top).exp() * scale - hit.float()
    return nll, log_z, torch.where(valid_N[:, None], grad, 0.0).to(logits_NV.dtype)


@functools.cache
def _compiled_chunk() -> Callable[..., Chunk]:
    """Return `_chunk` compiled; shapes may differ from chunk to chunk."""
    return torch.compile(_chunk, fullgraph=True)


def _without_ignored(grad_NV: torch.Tensor, valid_N: torch.Tensor) -> torch.Tensor:
    """Put zeros into the rows of ignored positions, in place; filled, because a NaN logit there must not spread."""
    if grad_NV.device.type == "cpu":  # few rows are: naming them beats a pass over all logits
        return grad_NV.index_fill_(0, (~valid_N).nonzero()[:, 0], 0.0)
    return grad_NV.masked_fill_(~valid_N[:, None], 0.0)


def chunked_cross_entropy(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor, *, chunk_tokens: int, z_weight: float = 0.0,
    compiled: bool = False) -> LossSums:
    """Return the summed cross-entropy of `hidden @ head.T` against labels.

    Args:
        hidden_ND: float32 or bfloat16; products run in this type, everything else in float32.
        head_VD: output matrix.
        labels_N: int64 token ids, IGNORE where there is none.
        chunk_tokens: tokens per chunk; memory is chunk_tokens * V * 4 bytes, twice with a gradient; compiled, of the
            type of `hidden_ND` instead of 4 bytes.
        z_weight: weight of logsumexp^2 per token (PaLM 2204.02311).
        compiled: compile what happens to the logits of a chunk.
    """
    with torch.autocast(hidden_ND.device.type, enabled=False):
        total, nll_N = _ChunkedCrossEntropy.apply(hidden_ND, head_VD, labels_N, chunk_tokens, z_weight, compiled)
    return LossSums(total, nll_N)
