"""train: hand the shards to the bundled trainer, in a process of its own.

The trainer never imports Spark and Spark never imports torch; they meet at ``train.json`` and the shards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from refinery.contracts.manifest import StageManifest
from refinery.contracts.runs import read_run_record
from refinery.errors import ConfigError, DataError, IntegrityError, RefineryError, SchemaError, TransientError
from refinery.hashing import sha256_hex
from refinery.io import storage
from refinery.recipe import Recipe, Train
from refinery.stages.anomalies import name_documents
from refinery.stages.pack import PLAN_NAME, shards_folder
from refinery.stages.workspace import Run, commit_stage, need_stage, stage_fingerprint, up_to_date

NAME = "train"
ALGORITHM_VERSION = 1
STEP_LINE = "step "
"""How the trainer's line about a training step begins."""
_DONE = ("finished", "early_stop")
_ERRORS: dict[int, type[RefineryError]] = {
    e.exit_code: e for e in (ConfigError, SchemaError, IntegrityError, DataError, TransientError)
}


def train_file(recipe: Recipe, section: Train) -> dict[str, Any]:
    """Return the content of ``train.json`` for a recipe."""
    options: dict[str, Any] = {
        "seed": recipe.seed % 2**31,
        "batch_tokens": section.batch_tokens,
        **section.options,
        "schedule": {"kind": section.schedule, "max_lr": section.learning_rate, **section.options.get("schedule", {})},
        "evaluate": {
            "every_steps": section.eval_every,
            "max_rows": section.eval_rows,
            **section.options.get("evaluate", {}),
        },
        "checkpoint": {"every_steps": section.checkpoint_every, **section.options.get("checkpoint", {})},
    }
    if section.steps is not None:
        options["steps"] = section.steps
    model: str | None = section.preset
    if section.init != "scratch":
        options["init_from"], model = str(first_weights(section.init)), None
        options |= _vocabulary_extension(recipe)
    shards = shards_folder(recipe.workdir).absolute()
    return {
        "name": recipe.name,
        "manifest": str(shards / "manifest.json"),
        "plan": str(shards / "plan" / f"{PLAN_NAME}.json"),
        "out_dir": str((storage.local_path(recipe.workdir) / NAME).absolute()),
        "model": model,
        "tokenizer": str((storage.local_path(recipe.workdir) / "tokenize" / "tokenizer").absolute()),
        "options": options,
    }


def _vocabulary_extension(recipe: Recipe) -> dict[str, str]:
    """Return the option that starts the rows of added tokens as the mean of their old pieces, if any were added."""
    vocabulary = storage.local_path(recipe.workdir) / "tokenize" / "tokenizer"
    source = vocabulary / "new_token_pieces.json"
    if not source.is_file():
        return {}
    added = json.loads(source.read_text(encoding="utf-8"))
    rows = {str(added["first_new_id"] + i): pieces for i, pieces in enumerate(added["pieces"])}
    target = storage.local_path(recipe.workdir) / NAME / "vocab_extension.json"
    storage.write_atomic(str(target), json.dumps(rows).encode())
    return {"vocab_extension": str(target.absolute())}


def first_weights(init: str) -> Path:
    """Return the folder of the checkpoint that a continued training starts from.

    Args:
        init: a Hugging Face checkpoint, or the workdir of a finished run.
    Raises:
        ConfigError: neither of the two is there.
    """
    given = Path(init).absolute()
    for folder in (given, given / NAME / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(
        f"train.init: {init} holds neither config.json nor a finished run's {NAME}/model; train that first"
    )


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Train a model on the packed shards; an interrupted training goes on from its last checkpoint.

    A training that torchrun has finished in the meantime (`prepare`) is taken as it stands.

    Raises:
        ConfigError, IntegrityError, DataError: as the trainer ended.
    """
    started = time.monotonic()
    recipe = run_.recipe
    recipe_slice, inputs, fingerprint = _identity(recipe)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None:
        return done
    path = prepare(recipe, force=force)
    folder = path.parent
    if not _is_finished(folder):
        try:
            _spawn(str(path))
        finally:
            name_documents(recipe.workdir, str(folder / "anomalies.jsonl"))
    record = read_run_record(folder / "run.json")
    if record.status not in _DONE:
        raise TransientError(
            f"training stopped ({record.status}) at step {record.steps}; run again to go on from there"
        )
    facts = {
        "status": record.status,
        "steps": record.steps,
        "tokens": record.tokens,
        "num_params": record.num_params,
        "final_losses": record.final_losses(),
        "data": dict(record.data),
    }
    stage = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[],
        counts=[],
        facts=facts,
        volatile={"train_seconds": record.seconds},
    )
    return commit_stage(run_, stage, started)


def prepare(recipe: Recipe, *, force: bool = False) -> Path:
    """Write ``train.json`` for the trainer and return its path; what another configuration left is set aside.

    Raises:
        ConfigError: the recipe trains nothing, its shards are not packed, or its first weights are missing.
    """
    _, _, fingerprint = _identity(recipe)
    section = recipe.train or Train()
    folder = storage.local_path(recipe.workdir) / NAME
    _clear_other_run(recipe, fingerprint, force=force)
    path = folder / "train.json"
    storage.write_atomic(str(path), json.dumps(train_file(recipe, section), indent=1).encode())
    storage.write_atomic(str(folder / "_fingerprint"), fingerprint.encode())
    return path.absolute()


def _identity(recipe: Recipe) -> tuple[dict[str, Any], dict[str, str], str]:
    """Return the recipe's part, the inputs' hashes and the fingerprint of this stage."""
    if recipe.train is None:
        raise ConfigError("the recipe has no train section; `train: {preset: tiny}` is enough")
    pack = need_stage(recipe.workdir, "pack")
    recipe_slice = {**recipe.train.model_dump(mode="json"), "seed": recipe.seed}
    inputs = {"shards": pack.facts["shard_content_hash"], "plan": pack.facts["plan_hash"]}
    if recipe.train.init != "scratch":
        weights = first_weights(recipe.train.init) / "model.safetensors"
        inputs["init"] = sha256_hex(weights.read_bytes()) if weights.is_file() else recipe.train.init
    return recipe_slice, inputs, stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)


def _is_finished(folder: Path) -> bool:
    """Say whether the trainer has ended here and exported its model."""
    if not (folder / "run.json").is_file() or not (folder / "model" / "config.json").is_file():
        return False
    return read_run_record(folder / "run.json").status in _DONE


def _clear_other_run(recipe: Recipe, fingerprint: str, *, force: bool) -> None:
    """Set aside what another configuration or data set left, so that its checkpoints are not continued."""
    folder = storage.local_path(recipe.workdir) / NAME
    marker = folder / "_fingerprint"
    if not folder.is_dir() or (marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint and not force):
        return
    number = 1
    while (aside := folder.with_name(f"{NAME}.old-{number}")).exists():
        number += 1
    folder.rename(aside)


def _spawn(path: str) -> None:
    """Run the trainer; its lines go on to stderr as they come, the last one names what went wrong.

    On a terminal the lines of steps replace each other.
    """
    command = [sys.executable, "-m", "refinery.trainer", "--config", path]
    last, live = "", False
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as trainer:  # noqa: S603
        for line in trainer.stderr or ():
            last = line.strip() or last
            is_step = sys.stderr.isatty() and line.startswith(STEP_LINE)
            sys.stderr.write(("\r\x1b[K" if live else "") + (line.rstrip("\n") if is_step else line))
            sys.stderr.flush()
            live = is_step
    if live:
        sys.stderr.write("\n")
    if trainer.returncode:
        raise _ERRORS.get(trainer.returncode, RefineryError)(f"the trainer ended with {trainer.returncode}: {last}")
