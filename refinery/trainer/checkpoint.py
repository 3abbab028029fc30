"""Checkpoints: safetensors and JSON, exact, without pickle, valid or absent.

A checkpoint is a folder `step-00000010` with `state.json` and numbered safetensors files. It is written under a
temporary name, every file is synced, the folder is renamed, then the `latest` pointer is replaced: a kill at any
moment leaves the previous checkpoint. Tensors are stored in full, one after the other, whatever the number of ranks;
rank 0 holds at most one file (2 GB) of them at a time. That makes one format which any world size reads.
`state.json` names the data set, plan and model, and the sha256 of each file; a checkpoint of others is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from refinery.errors import ConfigError, IntegrityError, TransientError
from refinery.trainer.config import model_from_dict
from refinery.trainer.model import Decoder, fill_parameters, full_parameters
from refinery.trainer.optim import optimizer_tensors, restore_optimizer
from refinery.trainer.parallel import Ranks

FILE_BYTES = 2 << 30
CHECKPOINT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """What besides tensors makes a run go on exactly."""

    step: int
    """Optimiser steps done, refused ones included."""
    next_row: int
    """Global row index of the next batch: the whole state of the data."""
    tokens: int
    """Tokens read."""
    extra: dict[str, Any]
    """Windows and counters of the loop, JSON values."""


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress,
    identity: dict[str, Any], ranks: Ranks, keep: int) -> None:
    """Write one checkpoint and drop the oldest; collective.

    Args:
        folder: holds all checkpoints of the run.
        model: weights.
        optimizer: moments.
        progress: counters.
        identity: what a resume must match: data hashes, model, seed.
        ranks: rank 0 writes.
        keep: newest checkpoints to leave; 0 = all.
    """
    name = f"step-{progress.step:08d}"
    temporary = folder / f".{name}.tmp"
    if ranks.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    files: dict[str, str] = {}
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = 0
    for key, tensor in _all_tensors(model, optimizer):
        if not ranks.is_main:
            continue
        pending[key] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        if pending_bytes >= FILE_BYTES:
            _write_tensors(temporary, pending, files)
            pending, pending_bytes = {}, 0
    if ranks.is_main:
        _write_tensors(temporary, pending, files)
        state = {"version": CHECKPOINT_VERSION, "step": progress.step, "next_row": progress.next_row,
                 "tokens": progress.tokens, "extra": progress.extra, "identity": identity, "files": files}
        try:
            _write_synced(temporary / "state.json", json.dumps(state, indent=1, sort_keys=True).encode())
            _commit(folder, temporary, name, keep)
        except OSError as error:
            raise _not_written(temporary, 0, error) from error
    ranks.wait()


def _all_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in full_parameters(model):
        yield f"weight:{name}", tensor
    yield from optimizer_tensors(model, optimizer)


def _write_tensors(folder: Path, tensors: dict[str, torch.Tensor], files: dict[str, str]) -> None:
    path = folder / f"tensors-{len(files):05d}.safetensors"
    try:
        save_file(tensors, path)
        sync_path(path)
    except (OSError, SafetensorError) as error:
        raise _not_written(folder, sum(tensor.nbytes for tensor in tensors.values()), error) from error
    files[path.name] = _sha256(path)


def _not_written(folder: Path, num_bytes: int, error: Exception) -> TransientError:
    """Remove what was begun and return what to tell."""
    shutil.rmtree(folder, ignore_errors=True)
    return TransientError(f"cannot write {num_bytes or 'a few'} bytes to {folder} ({error}); the checkpoint before is "
                          "untouched: free space or lower checkpoint.keep, then resume")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_path(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _commit(folder: Path, temporary: Path, name: str, keep: int) -> None:
    sync_path(temporary)
    final = folder / name
    if final.exists():
        # a run that went back to an older checkpoint writes this step again; moving aside keeps one valid at any time
        shutil.rmtree(folder / f".{name}.old", ignore_errors=True)
        final.rename(folder / f".{name}.old")
    temporary.rename(final)
    _write_synced(folder / ".latest.tmp", name.encode())
    (folder / ".latest.tmp").replace(folder / "latest")
    sync_path(folder)
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    older = sorted(path for path in folder.glob("step-*") if path.name <= name)
    for path in older[: len(older) - keep if keep else 0]:
        shutil.rmtree(path, ignore_errors=True)


def find_latest(folder: Path) -> Path | None:
    """Return the newest valid checkpoint folder, or None where there is none yet.

    Raises: IntegrityError: the pointer names a checkpoint that is not there.
    """
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    for candidate in (folder / name, folder / f".{name}.old"):
        if (candidate / "state.json").is_file():
            return candidate
    raise IntegrityError(f"{pointer} names {name!r}, which is not there; write the name of an existing "
                         "step-… folder into it, or delete it to start anew")


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Progress:
    """Put weights and moments back and return the counters.

    Args:
        path: one `step-…` folder.
        model: of the saved shape.
        optimizer: over the model's parameters, or None for weights only.
    Raises:
        IntegrityError: a file is missing or changed, or of another shape.
    """
    state = read_state(path)
    tensors: dict[str, Any] = {}
    for name, digest in state["files"].items():
        file = path / name
        if not file.is_file() or _sha256(file) != digest:
            raise IntegrityError(f"{file} is missing or its sha256 is not the recorded one; "
                                 "resume from an older step-… folder by naming it in `latest`")
        handle = safe_open(str(file), framework="pt")
        tensors.update(dict.fromkeys(handle.keys(), handle))
    fill_parameters(model, lambda name, _: tensors[f"weight:{name}"].get_tensor(f"weight:{name}"))
    if optimizer is not None:
        restore_optimizer(model, optimizer, set(tensors), lambda key: tensors[key].get_tensor(key))
    return Progress(state["step"], state["next_row"], state["tokens"], state["extra"])


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint.

    Raises: IntegrityError: it is unreadable or of another version.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{path}/state.json cannot be read ({error}); "
                             "resume from an older step-… folder") from error
    if state.get("version") != CHECKPOINT_VERSION:
        raise IntegrityError(f"{path} has checkpoint version {state.get('version')}, this program reads "
                             f"{CHECKPOINT_VERSION}; resume with the program that wrote it")
    return dict(state)


def check_identity(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Compare what a checkpoint belongs to with the present run.

    Raises:
        IntegrityError: another data set, tokenizer or plan.
        ConfigError: another model or seed.
    """
    for key, value in now["data"].items():
        if saved["data"].get(key) != value:
            raise IntegrityError(f"{path} was trained on {key} {saved['data'].get(key)!r}, this run has {value!r}; "
                                 "give the data set and plan of the checkpoint, or a new output folder")
    for key, value in now.items():
        if key != "data" and saved.get(key) != value:
            raise ConfigError(f"{path} was written with {key} = {saved.get(key)!r}, this run has {value!r}; "
                              "use the same value or a new output folder")


def load_model(path: Path) -> Decoder:
    """Return the model of a checkpoint on CPU, unsharded, for sampling and export.

    Args:
        path: one `step-…` folder, or the folder of a run.
    Raises:
        ConfigError: no checkpoint there.
        IntegrityError: it is damaged.
    """
    folder = path if (path / "state.json").is_file() else find_latest(path / "checkpoints")
    if folder is None:
        raise ConfigError(f"{path} holds no checkpoint; give a run's folder or one of its checkpoints/step-… folders")
    model = Decoder(model_from_dict(read_state(folder)["identity"]["model"]))
    load_checkpoint(folder, model, None)
    return model
