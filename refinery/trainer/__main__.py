"""`python -m refinery.trainer --recipe RECIPE` or `--config train.json`, alone or under torchrun.

With a recipe, its train stage writes train.json first, into the run's folder; `refinery train RECIPE` later takes the
finished training as it stands.

train.json names the data (`manifest`, `plan`), the output folder (`out_dir`), the model (`model`: a preset's name, a
mapping, or nothing with `init_from`) and, under `options`, any key of `TrainConfig`. Missing options come from the
preset (learning rate, batch) and the manifest (document mask). With `tokenizer`, a folder, a finished run is also
exported to `out_dir`/model in the layout that transformers loads.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refinery.errors import ConfigError, IntegrityError, RefineryError, TransientError
from refinery.process_memory import keep_freed_memory
from refinery.tokenization.info import plain_tokenizer, probe_ids, verify_tokenizer
from refinery.trainer.checkpoint import load_model
from refinery.trainer.config import ModelConfig, TrainConfig, model_from_dict
from refinery.trainer.hf import export_hf, read_hf_config
from refinery.trainer.loop import train
from refinery.trainer.parallel import join_ranks, leave_ranks
from refinery.trainer.presets import find_preset, preset_model
from refinery.trainer.shard_source import ShardSource, open_shards

log = logging.getLogger("refinery.trainer")

KEYS = {"manifest", "plan", "out_dir", "model", "options", "name", "verify", "tokenizer"}


@dataclass(frozen=True, slots=True)
class TrainFile:
    """Content of train.json, resolved against its data."""

    config: TrainConfig
    source: ShardSource
    out_dir: Path
    name: str
    tokenizer: Path | None


def load_train_file(path: Path, plan: Path | None = None) -> TrainFile:
    """Read train.json, open its data and fill in defaults; paths are relative to the file.

    Args:
        path: train.json.
        plan: mix plan instead of the file's, for a run that goes on with a plan that `refinery remix` continued.
    Raises:
        ConfigError: unknown or missing keys, or a model that does not fit the data.
        IntegrityError: damaged data.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); "
                          "give the file that the train stage writes") from error
    unknown = sorted(set(values) - KEYS)
    missing = sorted({"manifest", "plan", "out_dir"} - set(values))
    if unknown or missing:
        raise ConfigError(f"{path}: unknown keys {unknown}, missing keys {missing}; known: {', '.join(sorted(KEYS))}")
    folder = path.parent
    manifest = folder / values["manifest"]
    root = manifest.parent if manifest.name.endswith(".json") else manifest
    source = open_shards(root, plan or folder / values["plan"], verify=values.get("verify", "start"))
    config = resolve_config(values.get("model"), dict(values.get("options", {})), source)
    tokenizer = folder / values["tokenizer"] if values.get("tokenizer") else None
    if tokenizer is not None:
        verify_tokenizer(tokenizer, source.manifest.tokenizer.sha256)
    if config.init_from and not config.vocab_extension:
        check_init_tokenizer(Path(config.init_from), source)
    return TrainFile(config, source, folder / values["out_dir"], values.get("name", ""), tokenizer)


def resolve_config(model: str | dict[str, Any] | None, options: dict[str, Any], source: ShardSource) -> TrainConfig:
    """Return the full config of a run.

    Args:
        model: preset name, mapping of `ModelConfig`, or None = "tiny", or the shape of `init_from`.
        options: keys of `TrainConfig` without model.
        source: opened data; gives vocabulary, row length and document mask.
    Raises: ConfigError: as `TrainConfig.from_dict`.
    """
    length = source.sequence_length
    options.setdefault("doc_mask", source.manifest.packing.document_mask)
    shape: ModelConfig
    if model is None and options.get("init_from"):
        shape = read_hf_config(Path(options["init_from"]))
        if source.vocab_size > shape.vocab_size:  # tokens were added: their rows come from vocab_extension
            shape = dataclasses.replace(shape, vocab_size=-(-source.vocab_size // 64) * 64)
    elif model is None or isinstance(model, str):
        name = model or "tiny"
        preset = find_preset(name)
        # a multiple of 64 keeps the head's matrix product on fast paths
        shape = preset_model(name, -(-source.vocab_size // 64) * 64, length)
        rows = max(1, preset.batch_tokens // length)
        options.setdefault("batch_tokens", rows * length)
        schedule = {"max_lr": preset.max_lr, **options.get("schedule", {})}
        options["schedule"] = schedule
    else:
        shape = model_from_dict({"vocab_size": source.vocab_size, "max_sequence_length": length, **model})
    if "steps" not in options and "batch_tokens" in options:
        options["steps"] = source.total_rows * length // options["batch_tokens"]
    return TrainConfig.from_dict({"model": shape, **options})


def check_init_tokenizer(folder: Path, source: ShardSource) -> None:
    """Refuse a checkpoint whose own tokenizer gives other ids than those in the shards; one without files passes.

    Raises: IntegrityError: the manifest's probe texts have other ids.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    theirs = dict(probe_ids(plain_tokenizer(path.read_bytes(), str(path))))
    for text, ids in source.manifest.tokenizer.probe:
        if text in theirs and theirs[text] != tuple(ids):
            raise IntegrityError(f"{path} gives {text!r} the ids {theirs[text]}, the shards have {tuple(ids)}; "
                                 "tokenize with the checkpoint's tokenizer, or start from another checkpoint")


def prepare_recipe(recipe: Path) -> Path:
    """Let the train stage of a recipe write train.json and return its path; on rank 0 first, then on the others.

    The stage belongs to the pipeline, which this package does not import: it runs in a process of its own.

    Raises: ConfigError, IntegrityError: as the stage says.
    """
    ranks = join_ranks("auto")
    if not ranks.is_main:
        ranks.wait()
    command = [sys.executable, "-m", "refinery.cli", "train", str(recipe), "--prepare", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        raise (IntegrityError if done.returncode == IntegrityError.exit_code else ConfigError)(said)
    if ranks.is_main:
        ranks.wait()
    return Path(json.loads(done.stdout)["train_file"])


def profile_window(text: str) -> tuple[int, int]:
    """Parse "a:b", the steps a to b - 1. Raises: ConfigError: not two rising whole numbers."""
    first, _, last = text.partition(":")
    if not first.isdecimal() or not last.isdecimal() or int(first) >= int(last):
        raise ConfigError(f"--profile is {text!r}, must be a:b with a < b, for example 10:12")
    return int(first), int(last)


def is_main_rank() -> bool:
    """Say whether this process is the one that writes; torchrun numbers processes in RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def _export(run: TrainFile, tokenizer: Path) -> None:
    """Write the finished model for transformers, and for a continued training to start from."""
    target = run.out_dir / "model"
    shutil.rmtree(target, ignore_errors=True)
    files = tuple(tokenizer / name for name in ("tokenizer.json", "tokenizer_config.json", "info.json"))
    eos = run.source.manifest.tokenizer.eos_id
    export_hf(load_model(run.out_dir), target, tokenizer_files=files, eos_id=eos if eos >= 0 else None)


def _show(config: TrainConfig, line: dict[str, Any]) -> None:
    step = f"step {line['step']:,}/{config.steps:,}"
    if line["kind"] == "eval":
        bits = "" if line["bits_per_byte"] is None else f"  {line['bits_per_byte']:.4f} bits/byte"
        log.info("validation at %s  %s  %.4f nats%s", step, line["stream"], line["loss_nats"], bits)
    elif line["kind"] == "train":
        mfu = "" if line["mfu_effective"] is None else f"  mfu {line['mfu_effective']:.1%}"
        ahead = (config.steps - line["step"]) * config.batch_tokens_at(config.steps)
        left = ahead / max(1e-9, line["tokens_per_second"])
        log.info("%s  loss %.4f  lr %.3g  norm %.3g  %s tokens/s%s  %s left", step, line["loss"], line["learning_rate"],
                 line["gradient_norm"], f"{line['tokens_per_second']:,.0f}", mfu, _duration(left))


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds // 60) % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(seconds) % 60:02} s"


def main(arguments: list[str] | None = None) -> int:
    """Run one training; return the exit code of `refinery.errors`."""
    parser = argparse.ArgumentParser(prog="python -m refinery.trainer", description="Train from packed shards.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="train.json")
    what.add_argument("--recipe", type=Path, help="recipe whose shards are packed")
    parser.add_argument("--plan", type=Path, help="mix plan instead of the file's, made by `refinery remix --at-row`")
    parser.add_argument("--profile", default="", metavar="A:B", help="trace steps A to B - 1 into profile.json")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run = load_train_file(parsed.config or prepare_recipe(parsed.recipe), parsed.plan)
        config = run.config
        if parsed.profile:
            config = dataclasses.replace(config, profile=profile_window(parsed.profile))
        if config.device == "cpu" or not torch.cuda.is_available():
            keep_freed_memory()
        record = train(config, run.source, run.out_dir, name=run.name, progress=functools.partial(_show, config))
        if run.tokenizer is not None and record.status in ("finished", "early_stop") and is_main_rank():
            _export(run, run.tokenizer)
    except RefineryError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except OSError as error:  # a disk that fills under the metrics; checkpoints say so themselves
        log.error("TransientError: %s; the last checkpoint is untouched: free space or look at the disk, then resume",
                  error)
        return TransientError.exit_code
    finally:
        leave_ranks()
    log.info("%s after %d steps, %d tokens: %s", record.status, record.steps, record.tokens, record.final_losses())
    return 0


if __name__ == "__main__":
    sys.exit(main())
