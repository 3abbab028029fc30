"""What a run tells: metrics lines, anomalies with their documents, validation points, the run record."""

from __future__ import annotations

import logging
import platform
import time
from dataclasses import asdict
from typing import Any

import torch

from refinery.contracts.runs import LossPoint, RunRecord
from refinery.trainer.data import StepRows
from refinery.trainer.evaluate import stream_loss, write_forgetting
from refinery.trainer.metrics import effective_flops, palm_flops_per_token, peak_flops, peak_memory_bytes
from refinery.trainer.state import Clock, Run, StepResult

log = logging.getLogger(__name__)


def is_due(every: int, step: int) -> bool:
    """Return whether something done every so many steps is due after this one; 0 = never."""
    return every > 0 and step % every == 0


def account(run: Run, rows: StepRows, result: StepResult, clock: Clock) -> None:
    """Advance the counters, write the anomaly and the metrics line."""
    config, counters = run.config, run.counters
    num_tokens = rows.num_rows * run.source.sequence_length
    flops = effective_flops(config.model, num_tokens, result.attended_pairs)
    counters.step = rows.step + 1
    counters.next_row = rows.first_row + rows.num_rows
    counters.tokens += num_tokens
    counters.flops += flops
    clock.tokens += num_tokens
    clock.flops += flops
    for stream, tokens in result.stream_tokens.items():
        counters.stream_tokens[stream] = counters.stream_tokens.get(stream, 0) + tokens
    if result.refused:
        counters.skipped += 1
        _log_anomaly(run, rows, result)
    else:
        counters.recent_losses = [*counters.recent_losses[-31:], result.loss]
    if run.metrics is not None and (is_due(config.log_every_steps, counters.step) or counters.step == config.steps):
        run.tell(_metrics_line(run, result, clock))
        clock.reset()


def _metrics_line(run: Run, result: StepResult, clock: Clock) -> dict[str, Any]:
    counters = run.counters
    seconds = max(1e-9, time.perf_counter() - clock.mark)
    peak = peak_flops(run.ranks.device)
    whole_peak = None if peak is None else peak * run.ranks.world_size * seconds
    palm = clock.tokens * palm_flops_per_token(run.config.model, run.source.sequence_length)
    return {
        "kind": "train", "step": counters.step, "tokens": counters.tokens, "loss": result.loss,
        "learning_rate": result.rate, "gradient_norm": result.norm, "refused": result.refused or None,
        "stream_losses": result.stream_losses, "stream_tokens": dict(counters.stream_tokens),
        "tokens_per_second": clock.tokens / seconds,
        "mfu_effective": None if whole_peak is None else clock.flops / whole_peak,
        "mfu_palm": None if whole_peak is None else palm / whole_peak,
        "data_wait_frac": clock.data_wait / seconds, "peak_memory_bytes": peak_memory_bytes(run.ranks.device),
        "seconds": clock.total(),
    }


def _log_anomaly(run: Run, rows: StepRows, result: StepResult) -> None:
    """Name the rows and documents of a refused step; the whole global batch, whatever this rank's share.

    A document's hash is the first 16 digits of its key, which is all that `refinery explain` needs.
    """
    log.warning("step %d refused: %s (loss %.4g, gradient norm %.4g)",
                rows.step + 1, result.refused, result.loss, result.norm)
    if run.anomalies is None:
        return
    batch = run.source.batch(rows.first_row, rows.num_rows)
    segments = batch.segments
    rows_told = [
        {"row": int(batch.k[i]), "stream": run.source.streams[int(batch.streams[i])],
         "loss_nats": result.row_losses[i],
         "doc_hashes": [f"{int(value):016x}" for value in segments.doc_hash[segments.row(i)] if value]}
        for i in range(rows.num_rows)]
    run.anomalies.write({
        "kind": "refused", "step": rows.step + 1, "reason": result.refused, "loss": result.loss,
        "gradient_norm": result.norm, "learning_rate": result.rate, "first_row": rows.first_row,
        "num_rows": rows.num_rows, "stream_losses": result.stream_losses, "rows": rows_told})


def validate(run: Run, *, rate: float, clock: Clock) -> None:
    """Validate every stream, remember and log the points."""
    counters = run.counters
    replay = sum(counters.stream_tokens.get(stream, 0) for stream in run.source.replay_streams)
    for stream, rows in run.validation.items():
        measured = stream_loss(run.model, rows, run.ranks, run.config.micro_batch_rows, doc_mask=run.config.doc_mask)
        point = LossPoint(
            step=counters.step, tokens=counters.tokens, stream=stream, loss_nats=measured.loss_nats,
            bits_per_byte=measured.bits_per_byte, target_tokens=measured.target_tokens, learning_rate=rate,
            replay_frac=replay / counters.tokens if counters.tokens else 0.0)
        counters.points.append(point)
        run.tell({"kind": "eval", **asdict(point)})
    if run.ranks.is_main and run.validation:
        write_forgetting(counters.points, run.out_dir / "forgetting.json")
    clock.reset()


def run_record(run: Run, name: str, status: str) -> RunRecord:
    """Return the record of a run that has ended."""
    config, counters = run.config, run.counters
    recent = counters.recent_losses
    device = run.ranks.device
    return RunRecord(
        name=name, status=status, init=config.init_from or "scratch", num_params=config.model.num_params,
        num_non_embedding_params=config.model.num_non_embedding_params, steps=counters.step, tokens=counters.tokens,
        sequence_length=run.source.sequence_length, num_skipped_steps=counters.skipped, num_restarts=counters.restarts,
        final_train_loss_nats=sum(recent) / len(recent) if recent else 0.0, train_flops=counters.flops,
        seconds=counters.seconds, points=tuple(counters.points), stream_tokens=dict(counters.stream_tokens),
        data=run.source.describe(counters.next_row), config=config.to_dict(),
        hardware={"device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                  "world_size": run.ranks.world_size, "threads": torch.get_num_threads(),
                  "torch": torch.__version__, "python": platform.python_version()})
