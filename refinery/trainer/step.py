"""One optimiser step: accumulate the gradient of a global batch, judge it, apply it or refuse it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from refinery.trainer.attention import AttentionPlan, plan_attention, to_device
from refinery.trainer.config import TrainConfig
from refinery.trainer.data import ModelRows, StepRows
from refinery.trainer.loss import IGNORE, LossSums
from refinery.trainer.optim import clip_gradients, gradient_norm, set_learning_rate
from refinery.trainer.parallel import Ranks, sync_gradients
from refinery.trainer.schedule import learning_rate
from refinery.trainer.state import Run, StepResult


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, on the device."""

    tokens: torch.Tensor
    labels: torch.Tensor
    plan: AttentionPlan
    streams: torch.Tensor


def micro_batches(rows: ModelRows, config: TrainConfig, device: torch.device) -> Iterator[MicroBatch]:
    """Yield a step's rows in passes of `micro_batch_rows`, each put on the device when it is asked for."""
    for start in range(0, len(rows.tokens), config.micro_batch_rows):
        part = rows.rows(start, start + config.micro_batch_rows)
        num_rows, length = part.tokens.shape
        plan = plan_attention(part.segments.seg_len, num_rows, length, device, doc_mask=config.doc_mask)
        yield MicroBatch(
            to_device(part.tokens, device), to_device(part.labels, device), plan, to_device(part.streams, device))


def uploaded(rows: ModelRows, config: TrainConfig, device: torch.device) -> tuple[MicroBatch, ...]:
    """Return all of `micro_batches`: for the thread that reads ahead, so that a GPU does not wait for the next step.

    On a CPU each pass has a mask of rows times length squared, which is made one at a time instead.
    """
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return tuple(micro_batches(rows, config, device))


def train_step(run: Run, rows: StepRows) -> StepResult:
    """Compute the gradient of one global batch, judge it, and apply it unless refused."""
    config, ranks, local = run.config, run.ranks, rows.local
    length = local.tokens.shape[1]
    rate = learning_rate(config.schedule, rows.step, config.steps) * run.counters.rate_factor
    num_targets, pairs = float(local.num_targets), float(local.attended_pairs)
    if ranks.world_size > 1:  # alone, nothing waits for the device here
        counts = torch.tensor([num_targets, pairs], dtype=torch.float64, device=ranks.device)
        num_targets, pairs = ranks.sum(counts).tolist()
    sums_S2 = torch.zeros(len(run.source.streams), 3, dtype=torch.float64, device=ranks.device)
    local_rows: list[torch.Tensor] = []
    run.optimizer.zero_grad(set_to_none=True)
    num_passes = -(-len(local.tokens) // config.micro_batch_rows)
    for number, part in enumerate(rows.prepared or micro_batches(local, config, ranks.device), 1):
        sync_gradients(run.model, enabled=number == num_passes)
        out: LossSums = run.model(part.tokens, part.plan, part.labels, config.z_loss)
        # FSDP averages over ranks, so the global mean needs the factor world_size
        (out.total * (ranks.world_size / max(1.0, num_targets))).backward()
        row_sums = torch.stack((
            out.nll.view(part.labels.shape).double().sum(1), (part.labels != IGNORE).sum(1).double(),
            torch.full((len(part.labels),), float(length), dtype=torch.float64, device=ranks.device)), dim=1)
        local_rows.append(row_sums)
        sums_S2.index_add_(0, part.streams, row_sums)
    norm_tensor = gradient_norm(run.model)
    norm = float(norm_tensor)
    table = ranks.sum(sums_S2).tolist()
    loss = sum(nll for nll, _, _ in table) / max(1.0, num_targets)
    refused = run.guard.reason_to_refuse(loss, norm)
    if not refused:
        clip_gradients(run.model, norm_tensor, config.optim.clip_norm)
        set_learning_rate(run.optimizer, rate)
        run.optimizer.step()
    named = list(zip(run.source.streams, table, strict=True))
    row_losses = _row_losses(torch.cat(local_rows), rows, ranks) if refused else ()
    return StepResult(
        loss, norm, rate, refused, {s: nll / n for s, (nll, n, _) in named if n},
        {s: int(tokens) for s, (_, _, tokens) in named if tokens}, int(pairs), row_losses)


def _row_losses(local_R3: torch.Tensor, rows: StepRows, ranks: Ranks) -> tuple[float, ...]:
    """Return the mean nats of every row of the global batch; each rank knows its own share, every world_size-th row."""
    table = torch.zeros(rows.num_rows, 2, dtype=torch.float64, device=ranks.device)
    table[ranks.rank :: ranks.world_size] = local_R3[:, :2]
    return tuple(nll / n if n else 0.0 for nll, n in ranks.sum(table).tolist())
