"""AdamW with decay on matrices only, one global clip, and its state by parameter name for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from refinery.errors import IntegrityError
from refinery.trainer.config import OptimConfig
from refinery.trainer.model import gather_full, shard_like

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names torch gives AdamW's first and second moment."""


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW whose moments are kept in bfloat16: float32 arithmetic, rounded to the nearest when stored.

    torch's own takes moments of the parameter's type only. The formula and the order of operations are those of
    `torch.optim.AdamW` (Loshchilov & Hutter 1711.05101, algorithm 2).
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), device=parameter.device)
                    for moment in MOMENTS:
                        state[moment] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                first = state["exp_avg"].float().lerp_(parameter.grad, 1 - beta1)
                second = state["exp_avg_sq"].float().mul_(beta2).addcmul_(
                    parameter.grad, parameter.grad, value=1 - beta2)
                state["exp_avg"].copy_(first)
                state["exp_avg_sq"].copy_(second)
                correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
                scale = (second / correction2).sqrt_().add_(group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] / correction1 * first / scale)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW over two groups: tensors of two or more dimensions are decayed, gains and biases are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.moments == "bfloat16":
        return RoundedAdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps)
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Return the global L2 norm of all gradients as a float32 scalar; collective where they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(model: nn.Module, norm: torch.Tensor, max_norm: float) -> None:
    """Scale gradients so that their global norm is at most max_norm; 0 leaves them."""
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield "moment:parameter" names and full values on CPU; collective where sharded, empty before any update."""
    for name, parameter in model.named_parameters():
        if not optimizer.state:
            return
        state = optimizer.state.get(parameter)
        if not state:
            raise IntegrityError(f"the optimizer has no moments for {name} but for others; it was built over other "
                                 "parameters than the model now has")
        yield f"step:{name}", state["step"].detach().cpu()
        for moment in MOMENTS:
            yield f"{moment}:{name}", gather_full(state[moment])


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, names: set[str], read: Callable[[str], torch.Tensor]
) -> None:
    """Put saved moments back; a parameter that has none saved stays without.

    Args:
        model: parameters in their final placement.
        optimizer: over those parameters.
        names: saved names, as `optimizer_tensors` gave them.
        read: name -> full tensor on CPU.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"step:{name}" not in names:
                continue
            # fused AdamW on CUDA wants its step counter on the device
            state = {"step": read(f"step:{name}").to(parameter.device)}
            for moment in MOMENTS:
                kept = torch.bfloat16 if isinstance(optimizer, RoundedAdamW) else torch.float32
                state[moment] = torch.zeros_like(parameter, dtype=kept)
                shard_like(read(f"{moment}:{name}"), parameter, state[moment])
            optimizer.state[parameter] = state
