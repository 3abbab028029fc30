"""The model: a decoder with pre-RMSNorm, rotary positions, grouped-query attention and a gated feed-forward.

Parameters stay in float32 (or whatever FSDP hands out) and are cast to the type of the activations where they are
used, so the residual stream is bfloat16 on CUDA and gradients arrive in float32 without autocast. Query, key and
value are one matrix, gate and up another: fewer and wider products, which small models need on a large GPU.

Shapes: B rows, L tokens, D d_model, H query heads, K key/value heads, E head_dim, F d_ff, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from refinery.errors import IntegrityError
from refinery.hashing import stage_seed
from refinery.trainer import eager
from refinery.trainer.attention import AttentionPlan, attend, rotary_tables, rotate
from refinery.trainer.config import ModelConfig
from refinery.trainer.loss import LossSums, chunked_cross_entropy

ParameterSource = Callable[[str, torch.Size], torch.Tensor]
"""Name and full shape of a parameter -> its float32 value on CPU."""


class Linear(nn.Linear):
    """Linear layer that casts its weight to the type of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input @ weight.T + bias."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(input, self.weight.to(input.dtype), bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last dimension (Zhang & Sennrich 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise; the mean square is taken in float32 by torch."""
        if eager.is_eager_cpu(x):
            return eager.rms_norm(x, self.weight, self.eps)
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention inside documents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_dim = config.head_dim
        self.qkv = Linear(config.d_model, sum(self.heads) * config.head_dim, bias=config.qkv_bias)
        self.out = Linear(config.num_heads * config.head_dim, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x_BLD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Return the attention update, shape (B, L, D)."""
        batch, length, _ = x_BLD.shape
        qkv = self.qkv(x_BLD).view(batch, length, sum(self.heads), self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split(self.heads, dim=2)
            q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        else:
            qk, v = qkv.split((self.heads[0] + self.heads[1], self.heads[2]), dim=2)
            q, k = rotate(qk, cos, sin).split(self.heads[:2], dim=2)
        out_BLHE = attend(q, k, v, plan)
        return self.out(out_BLHE.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = Linear(config.d_ff, config.d_model, bias=False)
        self.activation = config.activation

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward update, shape (B, L, D)."""
        gate_up = self.gate_up(x_BLD)
        if self.activation == "silu" and eager.is_eager_cpu(gate_up):
            return self.down(eager.gated_silu(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        gated = functional.silu(gate) if self.activation == "silu" else functional.gelu(gate, approximate="tanh")
        return self.down(gated * up)


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x_BLD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Return the residual stream after this layer."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cos, sin, plan)
        return x_BLD + self.ffn(self.ffn_norm(x_BLD))


class Decoder(nn.Module):
    """Embedding, blocks, final norm, head and loss."""

    def __init__(
        self, config: ModelConfig, *, compute_dtype: torch.dtype = torch.float32,
        activation_checkpointing: str = "none", chunk_tokens: int = 2048, compile_loss: bool = False) -> None:
        super().__init__()
        self.config = config
        self.compile_loss = compile_loss
        self.compute_dtype = compute_dtype
        self.recompute_every = {"none": 0, "selective": 2, "full": 1}[activation_checkpointing]
        self.chunk_tokens = chunk_tokens
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size, bias=False)

    def head_weight(self) -> torch.Tensor:
        """Return the output matrix, shape (V, D)."""
        return self.embed.weight if self.head is None else self.head.weight

    def hidden_states(self, tokens_BL: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Return the states that the head reads, shape (B, L, D)."""
        x_BLD = self.embed(tokens_BL).to(self.compute_dtype)
        cos, sin = rotary_tables(self.config, plan.positions, self.compute_dtype)
        for index, block in enumerate(self.blocks):
            if self.recompute_every and torch.is_grad_enabled() and index % self.recompute_every == 0:
                x_BLD = checkpoint(block, x_BLD, cos, sin, plan, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BLD = block(x_BLD, cos, sin, plan)
        return self.norm(x_BLD)

    def forward(
        self, tokens_BL: torch.Tensor, plan: AttentionPlan, labels_BL: torch.Tensor | None = None, z_weight: float = 0.0
    ) -> LossSums | torch.Tensor:
        """Return loss sums when labels are given, else float32 logits of shape (B, L, V)."""
        hidden_BLD = self.hidden_states(tokens_BL, plan)
        if labels_BL is None:
            return functional.linear(hidden_BLD, self.head_weight().to(hidden_BLD.dtype)).float()
        return chunked_cross_entropy(
            hidden_BLD.flatten(0, 1), self.head_weight(), labels_BL.flatten(),
            chunk_tokens=self.chunk_tokens, z_weight=z_weight, compiled=self.compile_loss)


def initial_values(config: ModelConfig, seed: int) -> ParameterSource:
    """Return random initial weights by name: normal(0, init_std), gains 1, biases 0, output projections scaled down.

    Every tensor has its own generator, keyed by seed and name, so values depend on neither the order of creation
    nor the number of ranks.
    """
    scaled = config.init_std / math.sqrt(2 * config.num_layers)

    def value(name: str, shape: torch.Size) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        generator = torch.Generator().manual_seed(stage_seed(seed, f"init:{name}") & (2**63 - 1))
        std = scaled if name.endswith(("attention.out.weight", "ffn.down.weight")) else config.init_std
        return torch.randn(shape, generator=generator) * std

    return value


def fill_parameters(model: nn.Module, source: ParameterSource) -> None:
    """Copy full values into parameters, one at a time; a sharded parameter takes its own slice without traffic.

    Raises: IntegrityError: a value has another shape.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            full = source(name, parameter.shape)
            if full.shape != parameter.shape:
                raise IntegrityError(f"{name} has shape {tuple(full.shape)}, the model wants {tuple(parameter.shape)}; "
                                     "use the config that the weights were saved with")
            shard_like(full, parameter, parameter)


def shard_like(full: torch.Tensor, like: torch.Tensor, into: torch.Tensor) -> None:
    """Copy a full tensor into `into`, taking this rank's slice where `like` is sharded."""
    if isinstance(like, DTensor) and isinstance(into, DTensor):
        placed = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        into.to_local().copy_(placed.to_local())
    else:
        into.copy_(full)


def full_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter's name and full value on CPU; a collective call on all ranks where sharded."""
    for name, parameter in model.named_parameters():
        yield name, gather_full(parameter.detach())


def gather_full(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in full on CPU; collective when it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
