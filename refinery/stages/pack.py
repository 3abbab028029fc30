"""pack: token ids to rows of exactly L tokens, one shard part per (stream, bucket), and the shard manifest last.

The only shuffle that carries ids: a part task turns its selected documents into (shard, doc_key, ids) rows, Spark
brings the rows of a shard together, and one task lays them into rows and writes the four files. Bucket = hash(seed,
doc_key) mod n with n from the stream's tokens, so shards do not depend on partitions.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from refinery import __version__
from refinery.contracts.manifest import StageManifest, fingerprint_of
from refinery.errors import ConfigError, DataError, IntegrityError
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.recipe import Recipe
from refinery.shards.card import CARD_NAME, card_text, card_values, facts_of
from refinery.shards.manifest import (
    CHECKSUM_NAME,
    MANIFEST_NAME,
    FileHash,
    LineageStage,
    PackingInfo,
    PartEntry,
    ShardManifest,
    StreamKey,
    TokenizerInfo,
    build_manifest,
)
from refinery.shards.plan import MixPlan, plan_bytes
from refinery.shards.verify import verify_dataset
from refinery.shards.writer import ShardSpec, lock_folder, sweep_temporary, write_manifest
from refinery.stages.origin import card_facts
from refinery.stages.pack_part import pack_part
from refinery.stages.part_tasks import apply_groups, map_parts
from refinery.stages.row_plan import new_plan, realised_facts
from refinery.stages.workspace import Run, commit_stage, git_commit, need_stage, stage_fingerprint, up_to_date
from refinery.tokenization.encode import open_encoder

NAME = "pack"
ALGORITHM_VERSION = 2
PLAN_NAME = "main"
_ROWS = pa.schema([("shard", pa.string()), ("doc_key", pa.string()), ("ids", pa.binary())])


@dataclass(frozen=True)
class PackTask:
    """Everything a task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upstream: str
    tokenizer: str
    tokenizer_sha256: str
    num_shards: dict[str, int]
    """Stream -> number of shard parts."""
    done: frozenset[str]
    """Shards that stand already; their rows are not shuffled again."""

    @property
    def folder(self) -> Path:
        """Root of the shards."""
        return shards_folder(self.workdir)


def shards_folder(workdir: str) -> Path:
    """Return the folder of a run's shards.

    Raises:
        ConfigError: the workdir is not on a file system; shards are written in place and read by offset.
    """
    if not storage.is_local(workdir):
        raise ConfigError(
            f"pack writes shards to a mounted folder, not to {workdir}; mount it or copy shards afterwards"
        )
    return storage.local_path(workdir) / NAME / "shards"


def run(run_: Run, *, force: bool = False) -> StageManifest:
    """Pack the selected documents, then write manifest and mix plan."""
    started = time.monotonic()
    recipe = run_.recipe
    if recipe.pack is None:
        raise ConfigError("the recipe has no pack section; `pack: {sequence_length: 2048}` is enough")
    mix, tokens = need_stage(recipe.workdir, "mix"), need_stage(recipe.workdir, "tokenize")
    recipe_slice = {**recipe.pack.model_dump(mode="json"), "seed": recipe.seed}
    inputs = {"mix": mix.content_hash, "tokenize": tokens.content_hash}
    fingerprint = stage_fingerprint(NAME, ALGORITHM_VERSION, recipe_slice, inputs)
    done = None if force else up_to_date(recipe.workdir, NAME, fingerprint)
    if done is not None and _stands(recipe.workdir, done):
        return done
    with lock_folder(shards_folder(recipe.workdir)):
        task = _task(recipe, mix, tokens, fingerprint)
        if force:
            task = replace(task, done=frozenset())
        facts = _write_dataset(run_, task, mix)
    stage = StageManifest(
        stage=NAME,
        fingerprint=fingerprint,
        algorithm_version=ALGORITHM_VERSION,
        recipe_slice=recipe_slice,
        inputs=inputs,
        parts=[],
        counts=mix.counts,
        facts=facts,
    )
    return commit_stage(run_, stage, started)


def _write_dataset(run_: Run, task: PackTask, mix: StageManifest) -> dict[str, Any]:
    """Write parts, manifest, plan and card; return the stage's facts.

    The manifest that stands is taken away before any part changes: a run that dies in between leaves a data set that
    says it is unfinished, never one whose manifest names other bytes. Parts that no manifest lists any more go last.
    """
    sweep_temporary(task.folder)
    if set(_shard_names(task)) - task.done:
        for name in (MANIFEST_NAME, CHECKSUM_NAME):
            (task.folder / name).unlink(missing_ok=True)
        parts = sorted(mix.part_hashes("selection"))
        rows = map_parts(run_.spark, parts, functools.partial(selected_rows, task), _ROWS)
        apply_groups(rows, ["shard"], functools.partial(pack_shard, task))
    entries = _entries(task)
    manifest = _shard_manifest(run_.recipe, mix, task, entries)
    write_manifest(task.folder, manifest)
    plan = _mix_plan(run_.recipe, mix, manifest)
    storage.write_atomic(str(task.folder / "plan" / f"{PLAN_NAME}.json"), plan_bytes(plan))
    facts = {**_facts(manifest, plan), "concat_rows": sum(body["concat_rows"] for body in entries.values())}
    card = replace(facts_of(manifest), plan=facts["domains"])
    storage.write_atomic(str(task.folder / CARD_NAME), card_text(manifest, card).encode())
    _remove_unlisted(task.folder, manifest)
    verify_dataset(task.folder, "sample")
    return facts


def _remove_unlisted(folder: Path, manifest: ShardManifest) -> None:
    """Remove parts of an earlier data set that this one does not list."""
    listed = {part.path + suffix for stream in manifest.streams for part in stream.parts for suffix in part.files}
    listed |= {_entry_path(part.path) for stream in manifest.streams for part in stream.parts}
    for pattern in ("*/*/*/*/*/part-*", "*/*/*/*/*/.part-*.entry.json"):
        for path in sorted(folder.glob(pattern)):
            if str(path.relative_to(folder)) not in listed:
                path.unlink()


def _entry_path(shard: str) -> str:
    stream, _, name = shard.rpartition("/")
    return f"{stream}/.{name}.entry.json"


def _stands(workdir: str, done: StageManifest) -> bool:
    """Say whether the shards of a finished stage are all there, in the right sizes."""
    root = shards_folder(workdir)
    if not (root / "manifest.json").is_file() or not (root / "plan" / f"{PLAN_NAME}.json").is_file():
        return False
    try:
        return verify_dataset(root, "start").content_hash == done.facts["shard_content_hash"]
    except IntegrityError:
        return False


def _task(recipe: Recipe, mix: StageManifest, tokens: StageManifest, fingerprint: str) -> PackTask:
    settings = recipe.pack.model_dump(mode="json") if recipe.pack else {}
    sizes = mix.facts["packed_tokens"]
    num_shards = {s: max(1, -(-size // settings["shard_tokens"])) for s, size in sorted(sizes.items()) if size}
    if not num_shards:
        raise DataError("mix kept no document; nothing can be packed: look at the report's funnel")
    folder = storage.join(recipe.workdir, "tokenize", "tokenizer")
    task = PackTask(
        recipe.workdir, recipe.seed, settings, fingerprint, folder, tokens.facts["sha256"], num_shards, frozenset()
    )
    standing = frozenset(name for name in _shard_names(task) if read_entry(task, name) is not None)
    return PackTask(**{**task.__dict__, "done": standing})


def _shard_names(task: PackTask) -> list[str]:
    return [f"{stream}/part-{n:05d}" for stream, count in task.num_shards.items() for n in range(count)]


def selected_rows(task: PackTask, part: int) -> Iterator[pa.RecordBatch]:
    """Yield (shard, doc_key, ids) of one part's selected documents."""
    streams = part_files.read_part(task.workdir, "mix", "selection", part, ["stream"]).column("stream")
    chosen = np.flatnonzero(streams.is_valid().to_numpy(zero_copy_only=False))
    if not len(chosen):
        return
    rows = pa.array(chosen)
    names = streams.take(rows).to_pylist()
    keys = part_files.read_part(task.workdir, "ingest", "documents", part, ["doc_key"]).column("doc_key").take(rows)
    draws = keyed_uint64(task.seed, NAME, key_prefix_uint64(keys.to_pylist()))
    counts = np.array([task.num_shards[name] for name in names], dtype=np.uint64)
    shards = [f"{name}/part-{int(n):05d}" for name, n in zip(names, draws % counts, strict=True)]
    wanted = np.array([shard not in task.done for shard in shards])
    if not wanted.any():
        return
    ids = part_files.read_part(task.workdir, "tokenize", "tokens", part, ["ids"]).column("ids").take(rows)
    table = pa.table({"shard": shards, "doc_key": keys, "ids": ids}).filter(pa.array(wanted))
    for batch in table.to_batches(max_chunksize=4096):
        yield batch.cast(_ROWS)


def pack_shard(task: PackTask, table: pa.Table) -> dict[str, Any]:
    """Lay the documents of one shard into rows and write its files; the entry file comes last."""
    shard = table.column("shard")[0].as_py()
    stream, _, name = shard.rpartition("/")
    encoder = open_encoder(task.tokenizer, task.tokenizer_sha256)
    doc_hash = key_prefix_uint64(table.column("doc_key").to_pylist())
    eos, pad = _special_ids(encoder.info)
    spec = ShardSpec(
        sequence_length=task.settings["sequence_length"],
        vocab_size=encoder.info.vocab_size,
        eos_id=eos,
        pad_id=pad,
    )
    target, policy = (task.folder / stream, name), task.settings["policy"]
    part = pack_part(target, table.column("ids"), doc_hash, token_bytes(task.tokenizer), spec, policy)
    body = {
        "fingerprint": fingerprint_of(task.upstream, shard),
        "entry": asdict(part.entry),
        "documents_cut": part.documents_cut,
        "dropped_tokens": part.dropped_tokens,
        "concat_rows": part.concat_rows,
    }
    storage.write_atomic(str(task.folder / _entry_path(shard)), json.dumps(body).encode())
    return {"shard": shard}


@functools.cache
def token_bytes(tokenizer: str) -> np.ndarray:
    """Return the UTF-8 bytes that each id stands for, int64, shape (vocab_size,); 0 for special tokens."""
    return open_encoder(tokenizer).token_bytes()


def _special_ids(info: Any) -> tuple[int, int]:
    eos = -1 if info.eos_id is None else info.eos_id
    pad = info.pad_id if info.pad_id is not None else max(eos, 0)
    return eos, pad


def read_entry(task: PackTask, shard: str) -> dict[str, Any] | None:
    """Return what `pack_shard` recorded of a shard; None if it was made of something else or a file is not whole."""
    stream, _, name = shard.rpartition("/")
    path = task.folder / _entry_path(shard)
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_bytes())
    except ValueError:
        return None
    sizes = {suffix: file["num_bytes"] for suffix, file in body["entry"]["files"].items()}
    whole = all(
        (file := task.folder / stream / f"{name}{suffix}").is_file() and file.stat().st_size == size
        for suffix, size in sizes.items()
    )
    return body if whole and body["fingerprint"] == fingerprint_of(task.upstream, shard) else None


def _entries(task: PackTask) -> dict[str, dict[str, Any]]:
    """Return the entries of all shards; a bucket that no document fell into has none."""
    return {name: body for name in _shard_names(task) if (body := read_entry(task, name)) is not None}


def _shard_manifest(
    recipe: Recipe, mix: StageManifest, task: PackTask, entries: dict[str, dict[str, Any]]
) -> ShardManifest:
    by_stream: dict[StreamKey, list[PartEntry]] = {}
    for shard, body in entries.items():
        stream = shard.rpartition("/")[0]
        domain, role, lang, bucket, split = stream.rsplit("/", 4)
        key = StreamKey(domain=domain, role=role, lang=lang, weight_bucket=int(bucket[1:]), split=split)
        files = {suffix: FileHash(**f) for suffix, f in body["entry"]["files"].items()}
        by_stream.setdefault(key, []).append(PartEntry(**{**body["entry"], "files": files}))
    info = open_encoder(task.tokenizer, task.tokenizer_sha256).info
    eos, pad = _special_ids(info)
    packing = PackingInfo(
        policy=task.settings["policy"],
        sequence_length=task.settings["sequence_length"],
        seed=recipe.seed,
        documents_cut=sum(b["documents_cut"] for b in entries.values()),
        dropped_tokens=sum(b["dropped_tokens"] for b in entries.values()),
    )
    tokenizer = TokenizerInfo(
        sha256=info.sha256, vocab_size=info.vocab_size, eos_id=eos, bos_id=-1, pad_id=pad, probe=info.probes
    )
    unhashed = {
        "created_by": f"refinery {__version__}",
        "git_commit": git_commit(),
        "recipe_sha256": recipe.sha256(),
        # what `refinery remix` may plan with: tokens that came to the mix, and those that it had packed
        "available_tokens": mix.facts["available_tokens"],
        "packed_tokens": mix.facts["packed_tokens"],
        "card": card_values(card_facts(recipe)),
    }
    return build_manifest(tokenizer, packing, by_stream, _lineage(recipe), unhashed)


def _lineage(recipe: Recipe) -> list[LineageStage]:
    stages = recipe.stages()
    lineage = []
    for name in stages[: stages.index(NAME)]:
        manifest = need_stage(recipe.workdir, name)
        kept = [c for c in manifest.counts if c.kind == "kept"]
        tokens = sum(c.tokens for c in kept)
        lineage.append(
            LineageStage(
                stage=name,
                content_hash=manifest.content_hash,
                documents=sum(c.docs for c in kept),
                utf8_bytes=sum(c.bytes for c in kept),
                tokens=tokens or -1,
            )
        )
    return lineage


def _mix_plan(recipe: Recipe, mix: StageManifest, manifest: ShardManifest) -> MixPlan:
    """Turn token shares into integer row weights over what was packed, phase after phase."""
    phases = [(phase["share"], phase["streams"]) for phase in mix.facts["phases"]]
    caps = recipe.mix.max_epochs if recipe.mix else {}
    return new_plan(manifest, recipe.seed, phases, mix.facts["budget_tokens"], caps)


def _facts(manifest: ShardManifest, plan: MixPlan) -> dict[str, Any]:
    columns = ("rows", "tokens", "loss_tokens", "padding_tokens", "documents", "utf8_bytes")
    return {
        "shard_content_hash": manifest.content_hash,
        "plan_hash": plan.plan_hash,
        "plan_rows": plan.total_rows,
        "documents_cut": manifest.packing.documents_cut,
        "dropped_tokens": manifest.packing.dropped_tokens,
        "streams": [{"stream": s.name, **{c: s.total(c) for c in columns}} for s in manifest.streams],
        **realised_facts(plan, manifest),
    }
