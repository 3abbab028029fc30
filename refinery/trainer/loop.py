"""The training loop: rows in, weights, metrics and a run record out.

One step = the rows of one global batch, accumulated over micro-batches, one judged update. Everything that a resume
needs is the step counter, the next row, the tensors and the guard's window; metrics after the checkpoint are dropped
on resume and written again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from refinery.contracts.runs import RunRecord, write_run_record
from refinery.errors import ConfigError, DataError
from refinery.trainer.checkpoint import check_identity, find_latest, load_checkpoint, read_state, save_checkpoint
from refinery.trainer.config import TrainConfig
from refinery.trainer.data import RowSource, prefetch_steps, rows_in_batch
from refinery.trainer.evaluate import load_validation, should_stop_early
from refinery.trainer.forecast import check_memory
from refinery.trainer.hf import pretrained_values
from refinery.trainer.metrics import EventWriter, JsonLines
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from refinery.trainer.optim import build_optimizer
from refinery.trainer.parallel import Ranks, join_ranks, place_model
from refinery.trainer.recovery import go_back
from refinery.trainer.reporting import account, is_due, run_record, validate
from refinery.trainer.safety import SpikeGuard
from refinery.trainer.schedule import learning_rate
from refinery.trainer.state import Clock, Counters, ProgressCallback, Run
from refinery.trainer.step import train_step, uploaded

log = logging.getLogger(__name__)

def train(
    config: TrainConfig, source: RowSource, out_dir: Path, *, name: str = "", progress: ProgressCallback | None = None
) -> RunRecord:
    """Train to the end, a stop signal, an early stop or too many refused updates.

    Writes into `out_dir`: metrics.jsonl, anomalies.jsonl, forgetting.json, checkpoints/, run.json.

    Args:
        config: the run.
        source: the rows; see `data.RowSource`.
        out_dir: folder of this run; an earlier checkpoint in it is continued.
        name: of the run, for people; the folder's name if empty.
        progress: called with every metrics line on rank 0.
    Raises:
        ConfigError: model, data and config do not fit each other, or not enough memory.
        IntegrityError: the checkpoint found is damaged or of another data set.
        DataError: too many updates in a row were refused (a checkpoint of the state before them exists if any does).
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    ranks = join_ranks(config.device)
    with _torch_settings(config), _stop_signal() as stop:
        run = _start(config, source, out_dir, ranks, progress)
        try:
            status = _run_steps(run, stop)
        finally:
            for lines in (run.metrics, run.anomalies, run.events):
                if lines is not None:
                    lines.close()
    record = run_record(run, name or out_dir.name, status)
    if ranks.is_main:
        write_run_record(record, out_dir / "run.json")
    if status == "failed":
        raise DataError(f"{run.guard.trouble}, after {run.counters.restarts} of {config.safety.max_restarts} restarts; "
                        f"see {out_dir}/anomalies.jsonl for rows and documents, lower schedule.max_lr or allow "
                        "safety.max_restarts, and resume from the last checkpoint")
    return record


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the type of activations: the configured one, or bfloat16 on cuda and float32 on CPU."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def build_model(config: TrainConfig, ranks: Ranks) -> Decoder:
    """Return the model on its device, sharded if there are several ranks, without values yet."""
    dtype = compute_dtype(config, ranks.device)
    with torch.device("meta"):
        model = Decoder(config.model, compute_dtype=dtype, chunk_tokens=config.chunk_tokens,
                        activation_checkpointing=config.activation_checkpointing, compile_loss=config.compile)
    place_model(model, ranks, dtype)
    if config.compile:
        for block in model.blocks:
            block.compile()
    return model


def run_identity(config: TrainConfig, source: RowSource, num_rows: int) -> dict[str, Any]:
    """Return what a checkpoint after num_rows rows is tied to; a resume must have the same."""
    return {"data": source.describe(num_rows), "model": asdict(config.model), "seed": config.seed,
            "doc_mask": config.doc_mask, "init_from": config.init_from}


def _start(
    config: TrainConfig, source: RowSource, out_dir: Path, ranks: Ranks, progress: ProgressCallback | None) -> Run:
    """Check that everything fits, build or load the model, open the logs."""
    _check(config, source, ranks)
    check_memory(config, source.sequence_length, ranks.world_size, ranks.device)
    model = build_model(config, ranks)
    optimizer = build_optimizer(model, config.optim)
    guard, counters = SpikeGuard(config.safety), Counters()
    latest = find_latest(out_dir / "checkpoints") if config.checkpoint.resume else None
    if latest is not None:
        state = read_state(latest)
        check_identity(state["identity"], run_identity(config, source, state["next_row"]), latest)
        saved = load_checkpoint(latest, model, optimizer)
        guard.restore(saved.extra["guard"])
        counters = Counters.from_progress(saved)
        log.info("resumed from %s at step %d", latest, counters.step)
    elif config.init_from:
        fill_parameters(model, pretrained_values(Path(config.init_from), config.model, config.vocab_extension))
    else:
        fill_parameters(model, initial_values(config.model, config.seed))
    validation = load_validation(source, config.evaluate, doc_mask=config.doc_mask)
    run = Run(config, source, out_dir, ranks, model, optimizer, guard, counters, validation, progress=progress)
    if ranks.is_main:
        run.events = EventWriter(out_dir / "tensorboard", counters.step) if config.tensorboard else None
        run.metrics = JsonLines(out_dir / "metrics.jsonl", keep_through_step=counters.step)
        run.anomalies = JsonLines(out_dir / "anomalies.jsonl", keep_through_step=counters.step)
    return run


def _check(config: TrainConfig, source: RowSource, ranks: Ranks) -> None:
    """Refuse data that the model cannot take, a run longer than its plan, and a warm-up longer than the run."""
    if source.vocab_size > config.model.vocab_size:
        raise ConfigError(f"model.vocab_size is {config.model.vocab_size}, the tokenizer has {source.vocab_size} ids; "
                          "enlarge the model's vocabulary or use its own tokenizer")
    if source.sequence_length > config.model.max_sequence_length:
        raise ConfigError(f"rows have {source.sequence_length} tokens, model.max_sequence_length is "
                          f"{config.model.max_sequence_length}; pack shorter rows or raise it")
    learning_rate(config.schedule, 0, config.steps)
    needed = 0
    for step in range(config.steps):
        needed += rows_in_batch(config.batch_tokens_at(step), source.sequence_length, ranks.world_size)
        if needed > source.total_rows:
            raise ConfigError(f"the plan has {source.total_rows} rows, enough for {step} of {config.steps} steps; "
                              "lower steps or batch_tokens, or make a longer plan")


def _run_steps(run: Run, stop: threading.Event) -> str:
    """Run until something ends the run; return the status."""
    config, counters = run.config, run.counters
    clock = Clock(counters.seconds)
    if counters.step == 0:
        if config.evaluate.at_start:
            validate(run, rate=0.0, clock=clock)
        if config.safety.max_restarts:
            _save(run, clock)
    steps, row = [], counters.next_row
    for step in range(counters.step, config.steps):
        num_rows = rows_in_batch(config.batch_tokens_at(step), run.source.sequence_length, run.ranks.world_size)
        steps.append((step, row, num_rows))
        row += num_rows
    device = run.ranks.device
    prepare = functools.partial(uploaded, config=config, device=device) if device.type == "cuda" else None
    batches = prefetch_steps(run.source, steps, rank=run.ranks.rank, world_size=run.ranks.world_size,
                             doc_mask=config.doc_mask, prepare=prepare)
    status = "finished"
    with batches, _profiler(run) as advance_profile:
        upcoming = iter(batches)
        while True:
            waited = time.perf_counter()
            rows = next(upcoming, None)
            if rows is None:
                break
            clock.data_wait += time.perf_counter() - waited
            result = train_step(run, rows)
            advance_profile()
            account(run, rows, result, clock)
            if run.guard.trouble and not _went_back(run, clock):
                counters.seconds = clock.total()
                return "failed"
            if is_due(config.evaluate.every_steps, counters.step) or counters.step == config.steps:
                validate(run, rate=result.rate, clock=clock)
                if config.evaluate.early_stop_stream and should_stop_early(counters.points, config.evaluate):
                    status = "early_stop"
            if run.ranks.any(stop.is_set()):
                status = "stopped"
            last = status != "finished" or counters.step == config.steps
            if last or (is_due(config.checkpoint.every_steps, counters.step) and _worth_keeping(run)):
                _save(run, clock)
            if last:
                break
    return status


def _went_back(run: Run, clock: Clock) -> bool:
    """Go back to the last good weights and save that state; False where the run has to end."""
    if not go_back(run, run.guard.trouble):
        return False
    _save(run, clock)
    return True


def _worth_keeping(run: Run) -> bool:
    """Say whether this moment may replace older checkpoints: not one of a trouble that a restart would undo."""
    return run.guard.is_healthy or run.counters.restarts >= run.config.safety.max_restarts


def _save(run: Run, clock: Clock) -> None:
    """Write a checkpoint of this moment; one of a bad moment pushes no good one out."""
    run.counters.seconds = clock.total()
    progress = run.counters.to_progress(run.guard, run.counters.seconds)
    identity = run_identity(run.config, run.source, run.counters.next_row)
    save_checkpoint(run.out_dir / "checkpoints", run.model, run.optimizer, progress, identity, run.ranks,
                    run.config.checkpoint.keep if _worth_keeping(run) else 0)
    clock.reset()


@contextlib.contextmanager
def _torch_settings(config: TrainConfig) -> Iterator[None]:
    """Set threads and determinism for the run and put the process back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic and not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGINT into an event that the loop reads between steps; main thread only."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    earlier = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _profiler(run: Run) -> Iterator[Callable[[], None]]:
    """Trace the configured steps into profile.json; yields what to call after each step, before it is counted."""
    window = run.config.profile
    if window is None or not run.ranks.is_main:
        yield lambda: None
        return
    first, last = window
    profiler = torch.profiler.profile()
    recording = False

    def advance() -> None:
        nonlocal recording
        if not recording and run.counters.step + 1 == first:
            profiler.start()
            recording = True
        elif recording and run.counters.step + 1 >= last:
            profiler.stop()
            recording = False
            profiler.export_chrome_trace(str(run.out_dir / "profile.json"))

    if first == run.counters.step:
        profiler.start()
        recording = True
    yield advance
    if recording:
        profiler.stop()
