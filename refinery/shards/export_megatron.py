"""Export for Megatron-LM and its forks: one ``.bin/.idx`` prefix per stream, and the blend.

Rows stay rows: every row is one sequence of L tokens, so `GPTDataset` with ``sequence_length = L`` returns our rows
intact. Parts of a stream are merged, because Megatron pays about a second of start-up per prefix
(Megatron-DeepSpeed#18). Its last label of a row is the first token of the next row in its own shuffle, where ours is
not predicted: run it with ``--eod-mask-loss``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.format import UINT16_VOCAB_BOUND, encode_idx, token_dtype
from refinery.shards.manifest import ShardManifest, Stream, canonical_json
from refinery.shards.plan import MixPlan, check_plan
from refinery.shards.writer import lock_folder, sync_folder, write_together

_CHUNK_BYTES = 8 << 20
_MEGATRON_UINT16_MAX_VOCAB = 65_536
EXPORT_NAME = "export.json"


@dataclass(frozen=True, slots=True)
class MegatronExport:
    """What was written."""

    prefixes: dict[str, Path]
    """Stream name to the path of its .bin and .idx without suffix."""
    blends: tuple[Path, ...]
    """One file per stage of the plan: ``weight prefix`` pairs for ``--data-path``; empty without a plan."""


def export_megatron(root: Path, manifest: ShardManifest, out: Path, plan: MixPlan | None = None) -> MegatronExport:
    """Write prefixes, blend files and ``export.json``.

    Args:
        root: folder of the manifest.
        manifest: a verified data set.
        out: folder for the export; another writer there is refused.
        plan: its stages become blends; Megatron's weights are shares of samples, as ours are of rows.
    Raises: ConfigError: a vocabulary of 65,500 to 65,536 (Megatron's writer and fast path disagree about it), or a
        plan that does not fit. IntegrityError: a part is missing or has another size.
    """
    vocab_size = manifest.tokenizer.vocab_size
    if UINT16_VOCAB_BOUND <= vocab_size <= _MEGATRON_UINT16_MAX_VOCAB:
        raise ConfigError(
            f"vocab_size {vocab_size} lies in {UINT16_VOCAB_BOUND}..{_MEGATRON_UINT16_MAX_VOCAB}: Megatron writes "
            "int32 there, but its fast path reads uint16; pad the vocabulary beyond, or pack with a smaller one"
        )
    if plan is not None:
        check_plan(plan, manifest)
    with lock_folder(out):
        prefixes = {stream.name: _merge_stream(root, manifest, stream, out) for stream in manifest.streams}
        blends, stages = [], []
        for number, stage in enumerate(plan.stages if plan else ()):
            name = f"blend-stage-{number:02d}"
            line = " ".join(f"{weight} {prefixes[stream]}" for stream, weight in stage.weights) + "\n"
            write_together(out, name, {".txt": memoryview(line.encode())})
            blends.append(out / f"{name}.txt")
            stages.append({"blend": f"{name}.txt", "samples": stage.num_rows})
        facts = {
            "content_hash": manifest.content_hash,
            "plan_hash": plan.plan_hash if plan else "",
            "sequence_length": manifest.sequence_length,
            "dtype": manifest.dtype_name,
            "streams": {stream.name: stream.rows for stream in manifest.streams},
            "stages": stages,
        }
        write_together(out, "export", {".json": memoryview(canonical_json(facts))})
    return MegatronExport(prefixes, tuple(blends))


def _merge_stream(root: Path, manifest: ShardManifest, stream: Stream, out: Path) -> Path:
    """Concatenate the ``.bin`` files of a stream; the index is arithmetic, because every row has L tokens."""
    prefix = out / stream.name.replace("/", "-")
    out.mkdir(parents=True, exist_ok=True)
    temporary = prefix.with_name(f".{prefix.name}.bin.tmp-{os.getpid()}")
    try:
        with temporary.open("wb", buffering=0) as sink:
            for part in stream.parts:
                _append(root / (part.path + ".bin"), part.files[".bin"].num_bytes, sink.fileno())
            os.fsync(sink.fileno())
        index = encode_idx(stream.rows, manifest.sequence_length, token_dtype(manifest.tokenizer.vocab_size))
        write_together(out, prefix.name, {".idx": memoryview(index)})
        temporary.replace(prefix.with_name(prefix.name + ".bin"))
        sync_folder(out)
    finally:
        temporary.unlink(missing_ok=True)
    return prefix


def _append(source: Path, num_bytes: int, sink: int) -> None:
    try:
        handle = os.open(source, os.O_RDONLY)
    except FileNotFoundError as error:
        raise IntegrityError(f"{source}: missing, but listed in the manifest: restore it or pack again") from error
    try:
        done = 0
        while done < num_bytes:
            count = os.sendfile(sink, handle, done, min(_CHUNK_BYTES, num_bytes - done))
            if count == 0:
                raise IntegrityError(f"{source}: {done} bytes, the manifest says {num_bytes}: truncated; restore it")
            done += count
    finally:
        os.close(handle)
