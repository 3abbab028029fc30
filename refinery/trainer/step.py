"""One optimiser step: accumulate the gradient of a global batch, judge it, apply it or refuse it."""

from __future__ import annotations

import torch

from refinery.trainer.attention import plan_attention, to_device
from refinery.trainer.data import StepRows
from refinery.trainer.loss import IGNORE, LossSums
from refinery.trainer.optim import clip_gradients, gradient_norm, set_learning_rate
from refinery.trainer.parallel import Ranks, sync_gradients
from refinery.trainer.schedule import learning_rate
from refinery.trainer.state import Run, StepResult


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
    for start in range(0, len(local.tokens), config.micro_batch_rows):
        part = local.rows(start, start + config.micro_batch_rows)
        sync_gradients(run.model, enabled=start + config.micro_batch_rows >= len(local.tokens))
        labels = to_device(part.labels, ranks.device)
        plan = plan_attention(part.segments.seg_len, len(labels), length, ranks.device, doc_mask=config.doc_mask)
        out: LossSums = run.model(to_device(part.tokens, ranks.device), plan, labels, config.z_loss)
        # FSDP averages over ranks, so the global mean needs the factor world_size
        (out.total * (ranks.world_size / max(1.0, num_targets))).backward()
        row_sums = torch.stack((
            out.nll.view(labels.shape).double().sum(1), (labels != IGNORE).sum(1).double(),
            torch.full((len(labels),), float(length), dtype=torch.float64, device=ranks.device)), dim=1)
        local_rows.append(row_sums)
        sums_S2.index_add_(0, to_device(part.streams, ranks.device), row_sums)
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
