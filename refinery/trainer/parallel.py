"""One process or many: the same training code under `python -m` and under `torchrun`.

With one process nothing is wrapped (FSDP at world 1 only costs). With more, FSDP2 `fully_shard` per block and at the
root: weights in the compute type when gathered, float32 shards, gradients reduced in float32. Small models keep
gathered weights between forward and backward.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from refinery.errors import ConfigError
from refinery.trainer.model import Decoder

RESHARD_ABOVE_PARAMS = 1_500_000_000
"""Models up to this size keep gathered weights after the forward pass: 3 GB in bfloat16."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where this process stands."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the process that writes files."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def join_ranks(device: str) -> Ranks:
    """Choose the device and, under torchrun, join the process group.

    Raises: ConfigError: cuda asked for where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("device is 'cuda' but torch sees no CUDA device; use device: auto or cpu, or a CUDA build")
    kind = "cuda" if has_cuda and device != "cpu" else "cpu"
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world_size == 1:
        return Ranks(0, 1, place)
    if not dist.is_initialized():
        # both, so that a run on the CPUs of a machine with GPUs finds its group too
        backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return Ranks(dist.get_rank(), dist.get_world_size(), place)


def leave_ranks() -> None:
    """Leave the process group, if in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def place_model(model: Decoder, ranks: Ranks, compute_dtype: torch.dtype) -> None:
    """Shard a model that is still on the meta device (world > 1) and give it storage on its device."""
    if ranks.world_size > 1:
        shard_model(model, ranks, compute_dtype)
    model.to_empty(device=ranks.device)


def shard_model(model: Decoder, ranks: Ranks, compute_dtype: torch.dtype) -> None:
    """Wrap every block and the whole model in FSDP2; needs a process group, at world 1 too (a benchmark's cost)."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    reshard = model.config.num_params > RESHARD_ABOVE_PARAMS
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def sync_gradients(model: nn.Module, *, enabled: bool) -> None:
    """Reduce gradients in the next backward pass, or leave them to the last one of an accumulation."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)


def reshard(model: nn.Module) -> None:
    """Give gathered weights back: a forward pass without a backward leaves them in place of the sharded parameters."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
