"""Validation per stream on fixed rows, and what a run forgot: loss against step 0.

Nats per token depend on the tokenizer; bits per byte do not. They count the bytes behind predicted tokens only:
nats per token * predicted tokens / their bytes / ln 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from refinery.contracts.runs import LossPoint
from refinery.errors import ConfigError, DataError
from refinery.trainer.attention import plan_attention
from refinery.trainer.config import EvalConfig
from refinery.trainer.data import ModelRows, RowSource, model_rows
from refinery.trainer.loss import IGNORE, LossSums
from refinery.trainer.model import Decoder
from refinery.trainer.parallel import Ranks, reshard


class StreamLoss(NamedTuple):
    """Loss of one validation stream."""

    loss_nats: float
    """Mean nats per predicted token."""
    bits_per_byte: float | None
    """None where the bytes of the rows are not known."""
    target_tokens: int
    """Predicted tokens."""


def load_validation(source: RowSource, config: EvalConfig, *, doc_mask: bool) -> dict[str, ModelRows]:
    """Read the fixed validation rows of every stream once.

    Raises:
        ConfigError: a stream in the config that the data set does not have.
        DataError: a stream without a single predicted token.
    """
    known = source.validation_streams()
    unknown = sorted(set(config.streams) | {config.early_stop_stream} - {""} - set(known))
    unknown = [name for name in unknown if name and name not in known]
    if unknown:
        raise ConfigError(f"evaluate names stream {unknown[0]!r}; the data set has {', '.join(known) or 'none'}")
    rows = {}
    for name in config.streams or known:
        rows[name] = model_rows(source.validation_rows(name, config.max_rows), doc_mask=doc_mask)
        if rows[name].num_targets == 0:
            raise DataError(f"validation stream {name!r} has no predicted token; leave it out of evaluate.streams")
    return rows


@torch.no_grad()
def stream_loss(model: Decoder, rows: ModelRows, ranks: Ranks, micro_batch_rows: int, *, doc_mask: bool) -> StreamLoss:
    """Return the loss over fixed rows; the same number for any world size up to float summation.

    Each rank takes its share of every group of rows; a rank without a share still runs the model, on ignored labels,
    because gathering sharded weights needs all of them.
    """
    num_rows, length = rows.tokens.shape
    sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    model.eval()
    for group in range(0, num_rows, micro_batch_rows * ranks.world_size):
        start = min(num_rows, group + ranks.rank * micro_batch_rows)
        part = rows.rows(start, min(num_rows, start + micro_batch_rows))
        empty = len(part.tokens) == 0
        if empty:
            part = rows.rows(0, 1)
        plan = plan_attention(
            part.segments.seg_len, len(part.tokens), length, ranks.device, doc_mask=doc_mask)
        labels = torch.from_numpy(part.labels).to(ranks.device)
        if empty:
            labels = torch.full_like(labels, IGNORE)
        out = model(torch.from_numpy(part.tokens).to(ranks.device), plan, labels)
        if isinstance(out, LossSums):
            sums += torch.stack((out.nll.double().sum(), (labels != IGNORE).sum().double()))
    model.train()
    reshard(model)
    nll, targets = ranks.sum(sums).tolist()
    loss = nll / targets
    text_bytes = int(rows.loss_bytes.sum())
    text_targets = int(rows.segments.loss_tokens.sum())
    return StreamLoss(loss, loss * text_targets / text_bytes / math.log(2) if text_bytes else None, int(targets))


def forgetting(points: Sequence[LossPoint]) -> dict[str, Any]:
    """Return, per stream, the loss at step 0, now, and the change; positive = forgotten.

    The change is null when the run has no validation at step 0.
    """
    table: dict[str, Any] = {}
    for point in points:
        entry = table.setdefault(point.stream, {"start_nats": None, "best_nats": math.inf, "curve": []})
        if point.step == 0:
            entry["start_nats"] = point.loss_nats
        entry["best_nats"] = min(entry["best_nats"], point.loss_nats)
        entry["now_nats"] = point.loss_nats
        entry["now_bits_per_byte"] = point.bits_per_byte
        start = entry["start_nats"]
        entry["change_nats"] = None if start is None else point.loss_nats - start
        entry["curve"].append([point.step, point.tokens, point.loss_nats, entry["change_nats"], point.replay_frac])
    return table


def write_forgetting(points: Sequence[LossPoint], path: Path) -> None:
    """Write `forgetting` as JSON under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(forgetting(points), indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def should_stop_early(points: Sequence[LossPoint], config: EvalConfig) -> bool:
    """Return whether the watched stream has not improved for `patience` validations."""
    losses = [point.loss_nats for point in points if point.stream == config.early_stop_stream]
    return len(losses) > config.patience and min(losses[-config.patience :]) >= min(losses[: -config.patience])
