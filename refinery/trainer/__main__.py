"""`python -m refinery.trainer --config train.json`, alone or under torchrun.

train.json names the data (`manifest`, `plan`), the output folder (`out_dir`), the model (`model`: a preset's name, a
mapping, or nothing with `init_from`) and, under `options`, any key of `TrainConfig`. Missing options come from the
preset (learning rate, batch) and the manifest (document mask). With `tokenizer`, a folder, a finished run is also
exported to `out_dir`/model in the layout that transformers loads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refinery.errors import ConfigError, RefineryError
from refinery.trainer.checkpoint import load_model
from refinery.trainer.config import ModelConfig, TrainConfig, model_from_dict
from refinery.trainer.hf import export_hf, read_hf_config
from refinery.trainer.loop import train
from refinery.trainer.parallel import leave_ranks
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


def _show(line: dict[str, Any]) -> None:
    if line["kind"] == "eval":
        bits = "" if line["bits_per_byte"] is None else f"  {line['bits_per_byte']:.4f} bits/byte"
        log.info("step %d  validation %s  %.4f nats%s", line["step"], line["stream"], line["loss_nats"], bits)
    else:
        mfu = "" if line["mfu_effective"] is None else f"  mfu {line['mfu_effective']:.1%}"
        log.info("step %d  loss %.4f  lr %.3g  norm %.3g  %.0f tokens/s%s", line["step"], line["loss"],
                 line["learning_rate"], line["gradient_norm"], line["tokens_per_second"], mfu)


def main(arguments: list[str] | None = None) -> int:
    """Run one training; return the exit code of `refinery.errors`."""
    parser = argparse.ArgumentParser(prog="python -m refinery.trainer", description="Train from packed shards.")
    parser.add_argument("--config", required=True, type=Path, help="train.json")
    parser.add_argument("--plan", type=Path, help="mix plan instead of the file's, made by `refinery remix --at-row`")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run = load_train_file(parsed.config, parsed.plan)
        record = train(run.config, run.source, run.out_dir, name=run.name, progress=_show)
        if run.tokenizer is not None and record.status in ("finished", "early_stop") and is_main_rank():
            _export(run, run.tokenizer)
    except RefineryError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    finally:
        leave_ranks()
    log.info("%s after %d steps, %d tokens: %s", record.status, record.steps, record.tokens, record.final_losses())
    return 0


if __name__ == "__main__":
    sys.exit(main())
