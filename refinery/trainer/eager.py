"""Norm, rotation, gate and attention over short rows with backward passes written by hand, for float32 on a CPU.

There every operation is a pass over memory that nothing fuses. Written out, a step of `tiny` takes a fifth to a quarter
less CPU time than with the plain formulas and torch's kernel (8 rows of 256 tokens, one core). Elsewhere the plain
formulas stand: on CUDA the compiler fuses them, and in bfloat16 they round in another order.

Shapes: B rows, L tokens per row, H query heads, K key/value heads, E head_dim, G = H / K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

QUERY_BLOCK = 32
"""Queries taken together: only the keys up to the last of them are multiplied, so 32 of 256 save 44 % of the work."""
SHORT_ROW = 512
"""Longest row whose attention weights are kept for backward; torch's kernel, which keeps none, takes longer ones."""


def is_eager_cpu(x: torch.Tensor) -> bool:
    """Say whether a tensor is on the path of this module."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * gain."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:  # type: ignore[override]
        """Return the normalised tensor; the tensor without its gain is kept."""
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, gain)
        return unit * gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        """With u = x * scale: dx = scale * (g * gain - u * mean(g * gain * u)), dgain = sum of g * u."""
        unit, scale, gain = ctx.saved_tensors
        along = grad * unit
        grad_gain = along.flatten(0, -2).sum(0)
        mean = (along @ gain).div_(len(gain)).unsqueeze(-1)
        return (grad * gain).addcmul_(unit, mean, value=-1).mul_(scale), grad_gain, None


class _Rotation(torch.autograd.Function):
    """(low, high) -> (low cos - high sin, high cos + low sin); backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the rotated tensor; nothing of it is kept."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        """Rotate the gradient back."""
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    half = x.shape[-1] // 2
    low_sin, high_sin = sin.split(half, dim=-1)
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], low_sin, value=-sign)
    out[..., half:].addcmul_(x[..., :half], high_sin, value=sign)
    return out


class _Gate(torch.autograd.Function):
    """silu(gate) * up of a joined (gate, up)."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the gated values; the input and the sigmoid are kept."""
        gate, up = gate_up.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        ctx.save_for_backward(gate_up, sigmoid)
        return (gate * sigmoid).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """With s the sigmoid and a = gate * s: dup = g * a, dgate = g * up * (s + a * (1 - s))."""
        gate_up, sigmoid = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        activated = gate * sigmoid
        torch.mul(grad, activated, out=grad_up)
        slope = torch.addcmul(sigmoid, activated, 1 - sigmoid)
        torch.mul(slope.mul_(up), grad, out=grad_gate)
        return grad_gate_up


class _ShortAttention(torch.autograd.Function):
    """Attention in blocks of queries over the keys before them, its weights kept for backward.

    Inside, queries are (B * K, L * G, E): the G heads that share keys stand beside each other, so one product serves
    them and a block of queries is a contiguous range.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return (B, L, H, E)."""
        batch, length, heads, head_dim = q.shape
        groups = heads // k.shape[2]
        queries = _by_key_head(q, k.shape[2]).mul_(head_dim**-0.5)
        keys, values = _by_key_head(k, k.shape[2]), _by_key_head(v, k.shape[2])
        outs, weights = [], []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            scores = queries[:, start * groups : stop * groups] @ keys[:, :stop].transpose(1, 2)
            by_head = scores.view(batch, -1, stop - start, groups, stop)
            by_head += bias[:, None, start:stop, None, :stop]
            weights.append(torch.softmax(scores, dim=-1))
            outs.append(weights[-1] @ values[:, :stop])
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.dims = q.shape
        return _by_token(torch.cat(outs, dim=1), q.shape)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Go through the blocks again, with the weights as they were."""
        queries, keys, values, *weights = ctx.saved_tensors
        batch, length, heads, head_dim = ctx.dims
        key_heads = len(keys) // batch
        groups = heads // key_heads
        grad_out = _by_key_head(grad, key_heads)
        grad_queries, grad_keys, grad_values = [], torch.zeros_like(keys), torch.zeros_like(values)
        for number, start in enumerate(range(0, length, QUERY_BLOCK)):
            stop = min(start + QUERY_BLOCK, length)
            block = slice(start * groups, stop * groups)
            grad_weights = grad_out[:, block] @ values[:, :stop].transpose(1, 2)
            grad_scores = torch._softmax_backward_data(grad_weights, weights[number], -1, torch.float32)
            grad_values[:, :stop] += weights[number].transpose(1, 2) @ grad_out[:, block]
            grad_keys[:, :stop] += grad_scores.transpose(1, 2) @ queries[:, block]
            grad_queries.append(grad_scores @ keys[:, :stop])
        grad_q = _by_token(torch.cat(grad_queries, dim=1), ctx.dims).mul_(head_dim**-0.5)
        key_dims = (batch, length, key_heads, head_dim)
        return grad_q, _by_token(grad_keys, key_dims), _by_token(grad_values, key_dims), None


def _by_key_head(x_BLHE: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Return a copy of shape (B * K, L * G, E)."""
    batch, length, heads, head_dim = x_BLHE.shape
    grouped = x_BLHE.reshape(batch, length, key_heads, heads // key_heads, head_dim).permute(0, 2, 1, 3, 4)
    copy = torch.empty(grouped.shape, dtype=x_BLHE.dtype).copy_(grouped)
    return copy.view(batch * key_heads, -1, head_dim)


def _by_token(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Undo `_by_key_head`; returns a contiguous tensor of the given (B, L, H, E)."""
    batch, length, heads, head_dim = dims
    groups = x.shape[1] // length
    return x.view(batch, heads // groups, length, groups, head_dim).permute(0, 2, 1, 3, 4).reshape(dims)


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / sqrt(mean(x^2) + eps) * gain over the last dimension, float32."""
    return _Norm.apply(x, gain, eps)  # type: ignore[no-any-return]


def rotate(x_BLHE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + E/2) by their angle; see `refinery.trainer.attention.rotate`."""
    return _Rotation.apply(x_BLHE, cos, sin)  # type: ignore[no-any-return]


def gated_silu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up for gate and up joined in the last dimension."""
    return _Gate.apply(gate_up)  # type: ignore[no-any-return]


def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias_BLL: torch.Tensor) -> torch.Tensor:
    """Return attention output of shape (B, L, H, E).

    Args:
        q: float32, shape (B, L, H, E).
        k: float32, shape (B, L, K, E).
        v: like k.
        bias_BLL: float32, added to the scores: 0 where a query (second index) sees a key, -inf where not. Keys after
            the query are never seen, and every query sees one key at least.
    """
    return _ShortAttention.apply(q, k, v, bias_BLL)  # type: ignore[no-any-return]
