"""What a run will need, said before it starts: text, disk, memory and time; and afterwards how far off that was.

Everything is worked out from the planned splits, the recipe and one table of measured costs. Text that rules and dedup
will drop is not known before they run and counts as kept, so disk and time lean towards too much.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from refinery.errors import ConfigError
from refinery.forecast_costs import (
    BYTES_PER_TOKEN,
    CHECKPOINT_BYTES_PER_PARAM,
    COSTS,
    DRIVER_BYTES,
    SHARD_BYTES_PER_TOKEN,
    SPARK_START_SECONDS,
    TOKENIZER_MB_PER_SECOND,
    TOKENIZER_MEMORY_PER_BYTE,
    TRAIN_FLOPS_PER_CORE_SECOND,
    TRAINER_MEASURED,
    UNMEASURED,
    WORKER_BYTES,
    WORKER_BYTES_PER_PART_BYTE,
)
from refinery.forecast_sections import EvalIndexForecast, eval_index_of, sentence_extras
from refinery.io import storage
from refinery.recipe import MixStage, Recipe
from refinery.stages import ingest
from refinery.stages.mix_plan import phase_domains
from refinery.stages.workspace import load_stage, manifest_path

FILE_NAME = "forecast.json"
_BEFORE_THE_CUT = ("ingest", "screen", "rules", "quality", "select")
_CERTAINLY_FRAC = 0.25
"""Less free disk than this share of the forecast cannot be enough, whatever is dropped."""


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """One stage."""

    stage: str
    seconds: float | None
    """On an idle machine; None where nothing measured tells (a GPU's training, a model not opened yet)."""
    disk_bytes: int
    stands: bool
    """A complete manifest is there: the stage is redone only if what it depends on changed."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will need; bytes and seconds are of the stages that do not stand yet."""

    text_bytes: int
    num_parts: int
    largest_part_bytes: int
    longest_reading_bytes: int
    """Most text that one task reads from one file."""
    num_cores: int
    load_factor: float
    """How much longer than on an idle machine everything takes while its present load lasts, at least 1."""
    tokens: int
    """Unique tokens, if nothing more is dropped."""
    train_tokens: int | None
    """Tokens that training reads; None if the recipe trains nothing."""
    stages: tuple[StageForecast, ...]
    seconds: float
    disk_bytes: int
    free_disk_bytes: int | None
    """None where the workdir is a URL."""
    task_memory_bytes: int
    """One part task."""
    driver_memory_bytes: int
    """Driver with its JVM, or the training of tokenizer or model if that is more."""
    memory_bytes: int
    free_memory_bytes: int
    eval_index: EvalIndexForecast | None = None
    """None where nothing is decontaminated."""
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


class _Text(NamedTuple):
    num_bytes: int
    num_parts: int
    largest_part_bytes: int
    longest_reading_bytes: int
    """Most text that one task reads from one file, for several parts where the file cannot be entered in the middle."""
    by_domain_role: Mapping[tuple[str, str], int]


def forecast_run(recipe: Recipe, stages: Sequence[str]) -> Forecast:
    """Forecast stages of a recipe.

    Raises:
        ConfigError: an input matches nothing, the model preset is unknown, or the disk is certainly too small.
    """
    text = _planned_text(recipe) if "ingest" in stages else _ingested_text(recipe)
    cores = cores_of(recipe)
    factor = _load_factor(recipe)
    tokens = int(_kept_bytes(recipe, text) / BYTES_PER_TOKEN)
    train_tokens = _train_tokens(recipe, text) if recipe.train is not None else None
    rows = _stage_rows(recipe, stages, text, train_tokens)
    todo = [row for row in rows if not row.stands]
    evals = eval_index_of(recipe, stages)
    held = evals.process_bytes if evals else 0
    task = int(WORKER_BYTES + WORKER_BYTES_PER_PART_BYTE * text.largest_part_bytes) + held
    driver = _driver_bytes(recipe, stages) + held
    found = Forecast(
        text_bytes=text.num_bytes,
        num_parts=text.num_parts,
        largest_part_bytes=text.largest_part_bytes,
        longest_reading_bytes=text.longest_reading_bytes,
        num_cores=cores,
        load_factor=round(factor, 2),
        tokens=tokens,
        train_tokens=train_tokens,
        stages=tuple(rows),
        seconds=round(factor * (sum(row.seconds or 0.0 for row in todo) + (SPARK_START_SECONDS if todo else 0.0)), 1),
        disk_bytes=sum(row.disk_bytes for row in todo),
        free_disk_bytes=_free_disk_bytes(recipe.workdir),
        task_memory_bytes=task,
        driver_memory_bytes=driver,
        memory_bytes=driver + task * max(1, min(cores, text.num_parts)),
        free_memory_bytes=psutil.virtual_memory().available,
        eval_index=evals,
    )
    return Forecast(**{**found.__dict__, "warnings": tuple(_warnings(recipe, found))})


def cores_of(recipe: Recipe) -> int:
    """Return the cores that part tasks will have: of a local master its own, of a cluster what the settings ask."""
    conf = recipe.spark.conf
    local = re.fullmatch(r"local\[(\*|\d+)(?:,\d+)?\]", recipe.spark.master)
    if local and local.group(1) != "*":
        return int(local.group(1))
    if local:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = int(conf.get("spark.executor.instances", 1)) * int(conf.get("spark.executor.cores", 1))
    return max(1, int(conf.get("spark.cores.max", asked)))


def _load_factor(recipe: Recipe) -> float:
    """Return how many times a run is slowed down by what else the machine does; 1 on a cluster, which is not seen."""
    if not recipe.spark.master.startswith("local") or not hasattr(os, "getloadavg"):
        return 1.0
    cores = os.cpu_count() or 1
    return max(1.0, (os.getloadavg()[0] + min(cores_of(recipe), cores)) / cores)


def _planned_text(recipe: Recipe) -> _Text:
    sizes: dict[tuple[str, str], int] = {}
    largest = total = 0
    readings: dict[tuple[int, str], int] = {}
    task = ingest.plan(recipe)
    for part, (index, _) in enumerate(task.splits):
        split, given = task.split(part), recipe.inputs[index]
        sizes[given.domain, given.role] = sizes.get((given.domain, given.role), 0) + split.estimated_bytes
        largest, total = max(largest, split.estimated_bytes), total + split.estimated_bytes
        if split.unit == "shares":
            reading = (index, split.files[0].path)
            readings[reading] = readings.get(reading, 0) + split.estimated_bytes
    return _Text(total, len(task.splits), largest, max([largest, *readings.values()]), sizes)


def _ingested_text(recipe: Recipe) -> _Text:
    manifest = load_stage(recipe.workdir, "ingest")
    if manifest is None:
        return _Text(0, 0, 0, 0, {})
    sizes: dict[tuple[str, str], int] = {}
    for row in manifest.counts:
        if row.kind == "kept":
            sizes[row.domain, row.role] = sizes.get((row.domain, row.role), 0) + row.bytes
    parts = len(manifest.part_hashes("documents"))
    total = sum(sizes.values())
    largest = min(total, max(recipe.ingest.part_bytes, total // max(1, parts)))
    return _Text(total, parts, largest, largest, sizes)


def _pool_frac(recipe: Recipe) -> float:
    """Return the share of the pool that the recipe's own numbers leave."""
    frac = 1.0
    if recipe.quality is not None and recipe.quality.keep_token_frac is not None:
        frac *= recipe.quality.keep_token_frac
    if recipe.select is not None and recipe.select.keep_frac is not None:
        frac *= recipe.select.keep_frac
    return frac


def _kept_bytes(recipe: Recipe, text: _Text) -> float:
    frac = _pool_frac(recipe)
    return sum(size * (frac if role == "pool" else 1.0) for (_, role), size in text.by_domain_role.items())


def _train_tokens(recipe: Recipe, text: _Text) -> int:
    """Return the tokens that training reads: its steps, or the plan once."""
    if recipe.train is not None and recipe.train.steps is not None:
        return recipe.train.steps * recipe.train.batch_tokens
    if recipe.mix is None:
        return 0
    if recipe.mix.budget_tokens != "auto":
        return recipe.mix.budget_tokens
    # The largest budget under the epoch caps; domains that no phase names never limit it.
    supply: dict[str, float] = {}
    frac = _pool_frac(recipe)
    for (domain, role), size in text.by_domain_role.items():
        name = "replay" if role == "replay" else domain
        supply[name] = supply.get(name, 0.0) + size * (frac if role == "pool" else 1.0) / BYTES_PER_TOKEN
    shares: dict[str, float] = {}
    for stage in recipe.mix.stages:
        domains = stage.domains or _heavy(stage, supply)
        for domain, share in {**domains, "replay": stage.replay}.items():
            shares[domain] = shares.get(domain, 0.0) + stage.share * share
    limits = [supply.get(d, 0.0) * recipe.mix.max_epochs.get(d, 4.0) / v for d, v in shares.items() if v > 0]
    return int(min(limits, default=0.0))


def _heavy(stage: MixStage, supply: Mapping[str, float]) -> dict[str, float]:
    """Return what `domain_heavy` comes to by bytes of input; mix decides by what is left of them."""
    sizes = {domain: size for domain, size in sorted(supply.items()) if domain != "replay"}
    natural = {domain: size / max(1.0, sum(sizes.values())) for domain, size in sizes.items()}
    try:
        return phase_domains(stage, natural)
    except ConfigError:  # too large a share before filtering is not too large after it
        return {str(stage.domain_heavy): 1 - stage.replay}


def _stage_rows(recipe: Recipe, stages: Sequence[str], text: _Text, train_tokens: int | None) -> list[StageForecast]:
    kept = _kept_bytes(recipe, text)
    lanes = max(1, min(cores_of(recipe), text.num_parts))
    rows = []
    for name in stages:
        stands = storage.exists(manifest_path(recipe.workdir, name))  # a damaged one is the run's to refuse
        if name == "train":
            rows.append(_train_row(recipe, train_tokens or 0, stands))
            continue
        cost = COSTS.get(name, UNMEASURED)
        size = text.num_bytes if name in _BEFORE_THE_CUT else kept
        seconds = cost.fixed_seconds + size / 1e6 / cost.mb_per_core_second / lanes
        disk = size * cost.disk_per_text_byte
        if name == "tokenize":
            seconds += _tokenizer_sample_bytes(recipe, kept) / 1e6 / TOKENIZER_MB_PER_SECOND
        if name == "pack":
            disk += kept / BYTES_PER_TOKEN * SHARD_BYTES_PER_TOKEN
        if name == "dedup_sentences":
            more_seconds, more_disk = sentence_extras(recipe, kept, lanes)
            seconds, disk = seconds + more_seconds, disk + more_disk
        rows.append(
            StageForecast(
                stage=name, seconds=round(seconds, 1), disk_bytes=int(disk), stands=stands, source=cost.source
            )
        )
    return rows


def _tokenizer_sample_bytes(recipe: Recipe, kept_bytes: float) -> float:
    if recipe.tokenizer is None or recipe.tokenizer.train is None or not Path(recipe.tokenizer.train).is_file():
        return 0.0
    from refinery.tokenization.recipe import load_recipe  # noqa: PLC0415 - only runs that train one

    return min(float(load_recipe(recipe.tokenizer.train).sample_bytes), kept_bytes)


def _num_params(recipe: Recipe) -> int | None:
    """Return the parameters of the model to train; None where they are known only once it is opened."""
    if recipe.train is None or recipe.train.init != "scratch":
        return None
    from refinery.trainer.presets import preset_model  # noqa: PLC0415 - shapes only, no torch

    vocab_size = 32768
    if recipe.tokenizer and recipe.tokenizer.train and Path(recipe.tokenizer.train).is_file():
        from refinery.tokenization.recipe import load_recipe  # noqa: PLC0415 - only runs that train one

        vocab_size = load_recipe(recipe.tokenizer.train).vocab_size
    return preset_model(recipe.train.preset, vocab_size).num_params


def _train_row(recipe: Recipe, tokens: int, stands: bool) -> StageForecast:
    params = _num_params(recipe)
    seconds = None
    if params is not None and shutil.which("nvidia-smi") is None:
        cores = os.cpu_count() or 1
        seconds = round(20.0 + 6.0 * params * tokens / TRAIN_FLOPS_PER_CORE_SECOND / cores, 1)
    # two checkpoints are kept, and the finished model's weights are exported
    disk = (2 * CHECKPOINT_BYTES_PER_PARAM + 4) * (params or 0)
    return StageForecast(stage="train", seconds=seconds, disk_bytes=disk, stands=stands, source=TRAINER_MEASURED)


def _driver_bytes(recipe: Recipe, stages: Sequence[str]) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])b?", recipe.spark.driver_memory.strip().lower())
    heap = float(match.group(1)) * 1024 ** (" kmgt".index(match.group(2))) if match else 2**30
    need: float = DRIVER_BYTES + heap
    if "tokenize" in stages:
        sample = _tokenizer_sample_bytes(recipe, math.inf)
        need += TOKENIZER_MEMORY_PER_BYTE * sample
    return int(need)


def _free_disk_bytes(workdir: str) -> int | None:
    if not storage.is_local(workdir):
        return None
    folder = storage.local_path(workdir).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _warnings(recipe: Recipe, found: Forecast) -> list[str]:
    said = []
    free = found.free_disk_bytes
    if free is not None and free < found.disk_bytes * _CERTAINLY_FRAC:
        raise ConfigError(
            f"{recipe.workdir} has {size_text(free)} free, the run needs about {size_text(found.disk_bytes)}, "
            f"and certainly {size_text(found.disk_bytes * _CERTAINLY_FRAC)}; free space or set workdir to another disk"
        )
    if free is not None and free < found.disk_bytes:
        said.append(
            f"disk may run out: about {size_text(found.disk_bytes)} needed, {size_text(free)} free in "
            f"{recipe.workdir}; free space or set workdir to another disk"
        )
    if recipe.spark.master.startswith("local") and found.memory_bytes > found.free_memory_bytes:
        said.append(
            f"memory may run out: about {size_text(found.memory_bytes)} needed, "
            f"{size_text(found.free_memory_bytes)} free; lower ingest.part_bytes (now {recipe.ingest.part_bytes:,}), "
            f"spark.master (now {found.num_cores} tasks at once) or the tokenizer's sample_bytes"
        )
    if found.longest_reading_bytes > 4 * recipe.ingest.part_bytes:
        said.append(
            f"one file holds about {size_text(found.longest_reading_bytes)} of text and cannot be cut: one task reads "
            "it from its start while others wait; store it as several files"
        )
    return said


def size_text(num_bytes: float) -> str:
    """Return bytes as people read them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.0f} kB"


def store(workdir: str, found: Forecast, actual: Mapping[str, Any] | None = None) -> None:
    """Write ``forecast.json`` into a run's folder, with what the run took once that is known."""
    body = {"format": "refinery.forecast", "version": 1, **found.to_json(), "actual": actual}
    storage.write_atomic(storage.join(workdir, FILE_NAME), (json.dumps(body, indent=1) + "\n").encode())


def actual_of(recipe: Recipe, found: Forecast, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return what a run took, beside what was forecast, for the stages that it did.

    Args:
        recipe: the recipe.
        found: the forecast made before.
        seconds: stage -> seconds, of the stages that were not up to date.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in found.stages:
        if row.stage not in seconds:
            continue
        rows[row.stage] = {
            "forecast_seconds": None if row.seconds is None else round(found.load_factor * row.seconds, 1),
            "seconds": round(seconds[row.stage], 1),
            "forecast_disk_bytes": row.disk_bytes,
            "disk_bytes": _folder_bytes(recipe.workdir, row.stage),
        }
    manifests = [m for m in (load_stage(recipe.workdir, name) for name in rows) if m is not None]
    ingested = load_stage(recipe.workdir, "ingest")
    predicted = [row.seconds for row in found.stages if row.stage in rows and row.seconds is not None]
    return {
        "stages": rows,
        "seconds": round(sum(row["seconds"] for row in rows.values()), 1),
        "forecast_seconds": round(found.load_factor * (sum(predicted) + (SPARK_START_SECONDS if rows else 0.0)), 1),
        "disk_bytes": sum(row["disk_bytes"] or 0 for row in rows.values()),
        "forecast_disk_bytes": sum(row["forecast_disk_bytes"] for row in rows.values()),
        "text_bytes": sum(c.bytes for c in ingested.counts if c.kind == "kept") if ingested else None,
        "driver_peak_rss_bytes": max((m.volatile.get("driver_peak_rss_bytes", 0) for m in manifests), default=0),
    }


def _folder_bytes(workdir: str, stage: str) -> int | None:
    if not storage.is_local(workdir):
        return None
    folder = storage.local_path(workdir) / stage
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
