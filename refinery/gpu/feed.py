"""Sentences to vectors from Parquet to Parquet: several processes tokenise and feed one device.

One process cannot keep a fast GPU busy: tokenising takes it longer than the model takes. So each worker process opens
the model on the same device and embeds its own row groups; the device runs what comes. Every row group is embedded by
itself, so the bytes do not depend on how many processes there were. A worker keeps to its own core: twelve tokenizers
and twelve torch pools with a thread for every core would spend the machine on switching.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from refinery.errors import ConfigError, DataError, SchemaError, TransientError
from refinery.gpu.embed import Embedder, resolve_device, worker_embedder

VECTOR = "vector"
MODEL_KEY = b"refinery.model"


class EmbedJob(NamedTuple):
    """What every worker process is told."""

    column: str
    out: str
    model: str
    device: str
    revision: str | None


class FeedCounts(NamedTuple):
    """What was embedded."""

    sentences: int
    tokens: int
    empty: int
    """Null or empty sentences: left out, counted."""


def embed_parquet(inputs: Sequence[str], job: EmbedJob, processes: int = 1) -> FeedCounts:
    """Embed a text column of Parquet files into ``OUT/part-%08d.parquet``, one file per row group.

    Args:
        inputs: Parquet files.
        job: column, output folder, model and device.
        processes: worker processes that share the device; 1 works in this process.
    Returns: counts. The files hold ``source`` (file number << 32 | row) and ``vector``, little-endian float16 bytes.

    Raises:
        ConfigError: no input, no such column, no CUDA, no model, files of another run in the folder.
        DataError: a vector is not finite. TransientError: a worker process died, or the device has no memory.
    """
    if processes < 1:
        raise ConfigError(f"--processes {processes} is out of bounds, 1 is the least; 8 feed a large GPU")
    resolve_device(job.device)
    tasks = list(_row_groups(inputs, job.column))
    Path(job.out).mkdir(parents=True, exist_ok=True)
    strangers = sorted({p.name for p in Path(job.out).glob("part-*.parquet")} - {_part_name(t[0]) for t in tasks})
    if strangers:
        raise ConfigError(
            f"{job.out} holds {len(strangers)} files of another run ({strangers[0]}), {len(tasks)} row groups do not "
            "replace them; empty it or name another folder"
        )
    if processes == 1:
        counted = [embed_group(job, *task) for task in tasks]
    else:
        threads = max(1, (os.cpu_count() or 1) // processes)
        spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        try:
            with ProcessPoolExecutor(processes, spawn, start_worker, (threads,)) as pool:
                counted = list(pool.map(functools.partial(_embed_task, job), tasks))
        except BrokenProcessPool as error:
            raise TransientError(
                f"one of {processes} worker processes died, most likely for lack of memory; run again with fewer "
                "--processes"
            ) from error
    return FeedCounts(*(int(sum(values)) for values in zip(*counted, strict=True))) if counted else FeedCounts(0, 0, 0)


def start_worker(threads: int) -> None:
    """Bound the threads of a worker process: one for its tokenizer, some for what torch does on the CPU."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)


def _row_groups(inputs: Sequence[str], column: str) -> Iterator[tuple[int, int, str, int, int]]:
    """Yield (number of the output, number of the input, path, row group, first row)."""
    if not inputs:
        raise ConfigError("no Parquet file is given; name at least one")
    number = 0
    for source, path in enumerate(inputs):
        if not Path(path).is_file():
            raise ConfigError(f"{path} does not exist; give Parquet files")
        try:
            with pq.ParquetFile(path) as file:
                names, groups = file.schema_arrow.names, [file.metadata.row_group(g).num_rows for g in
                                                          range(file.metadata.num_row_groups)]  # fmt: skip
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is no readable Parquet ({error}); write it again") from error
        if column not in names:
            raise SchemaError(f"{path} has no column {column}; it has {names}")
        first = 0
        for group, rows in enumerate(groups):
            yield number, source, path, group, first
            number, first = number + 1, first + rows


def _part_name(number: int) -> str:
    return f"part-{number:08d}.parquet"


def _embed_task(job: EmbedJob, task: tuple[int, int, str, int, int]) -> FeedCounts:
    return embed_group(job, *task)


def embed_group(job: EmbedJob, number: int, source: int, path: str, group: int, first: int) -> FeedCounts:
    """Embed one row group and write one output file; the model stays open for the next."""
    embedder = worker_embedder(job.model, job.device, job.revision)
    with pq.ParquetFile(path) as file:
        texts = file.read_row_group(group, columns=[job.column]).column(0).to_pylist()
    rows = np.array([i for i, text in enumerate(texts) if text and text.strip()], dtype=np.int64)
    ids = embedder.token_ids([texts[i] for i in rows.tolist()])
    vectors = embedder.encode_ids(ids)
    write_vectors(Path(job.out, _part_name(number)), (np.int64(source) << 32) | (first + rows), vectors,
                  embedder)  # fmt: skip
    return FeedCounts(len(rows), sum(map(len, ids)), len(texts) - len(rows))


def write_vectors(path: Path, ids: np.ndarray, vectors: np.ndarray, embedder: Embedder) -> None:
    """Write float16 vectors, whole or not at all; they do not compress, so they are written as they are."""
    table = pa.table({"source": ids, VECTOR: vector_column(vectors)})
    told = {MODEL_KEY: f"{embedder.name} {embedder.num_features}".encode()}
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table.replace_schema_metadata(told), unfinished, compression={"source": "zstd", VECTOR: "none"},
                   use_dictionary=False)  # fmt: skip
    unfinished.replace(path)


def vector_column(vectors: np.ndarray) -> pa.Array:
    """Return rows as float16 bytes of one size: of a list Parquet takes each number by itself, 25 times slower."""
    narrow = np.ascontiguousarray(vectors, dtype="<f2")
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * narrow.shape[1]), len(narrow), [None, pa.py_buffer(narrow.tobytes())]
    )


def read_vectors(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read vectors that `embed_parquet` wrote.

    Args:
        paths: Parquet files.
    Returns: sources, int64, shape (S,), and float32 vectors of unit length, shape (S, F).

    Raises:
        SchemaError: a column is missing. DataError: files differ in their features or model, or a vector is not finite.
    """
    if not paths:
        raise ConfigError("no Parquet file is given; name at least one")
    sources, rows, models = [], [], set()
    for path in paths:
        table: Any = pq.read_table(path)
        missing = [name for name in ("source", VECTOR) if name not in table.column_names]
        if missing:
            raise SchemaError(f"{path} lacks columns {missing}; give files that `embed` wrote")
        sources.append(table.column("source").to_numpy())
        rows.append(_unpacked(table.column(VECTOR), path))
        models.add((table.schema.metadata or {}).get(MODEL_KEY, b"").decode())
    widths = {block.shape[1] for block in rows}
    if len(widths) > 1 or len(models) > 1:
        raise DataError(
            f"vectors of {sorted(widths)} features by models {sorted(models)} make no index; embed all with one model"
        )
    vectors = np.concatenate(rows)
    norms = np.sqrt(np.einsum("sf,sf->s", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-3))
    if len(bad):
        raise DataError(f"{len(bad)} vectors are not finite or zero, the first is row {bad[0]}; embed them again")
    return np.concatenate(sources), (vectors / norms[:, None]).astype(np.float32)


def _unpacked(column: pa.ChunkedArray, path: str) -> np.ndarray:
    """Return float16 bytes, or lists of numbers of one length, as float32 rows."""
    kind: Any = column.type
    joined: Any = column.combine_chunks()
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width % 2 == 0 and not joined.null_count:
        width = kind.byte_width // 2
        flat = np.frombuffer(joined.buffers()[1] or b"", dtype="<f2")
        first = joined.offset * width
        return flat[first : first + len(joined) * width].astype(np.float32).reshape(len(joined), width)
    if pa.types.is_fixed_size_list(kind) and not joined.null_count:
        return np.asarray(joined.flatten(), dtype=np.float32).reshape(len(joined), kind.list_size)
    raise SchemaError(
        f"{path} has a column {VECTOR} of type {kind} with {joined.null_count} nulls; it must hold float16 bytes of "
        "one size, as `embed` writes them, or lists of numbers of one length"
    )
