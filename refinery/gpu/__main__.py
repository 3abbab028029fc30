"""``python -m refinery.gpu``: embeddings, cells and neighbours over Parquet on a box without Java or Spark.

    python -m refinery.gpu embed --out VECTORS [--column text] [--model M] [--device auto] [--processes 8] FILES…
    python -m refinery.gpu cells --out centroids.npy [--num-cells K] [--seed 0] VECTORS…
    python -m refinery.gpu neighbours --out pairs.parquet [--centroids centroids.npy] [--similarity 0.95] VECTORS…

The kernels are those of the stage `dedup_sentences`. Each command prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinery.errors import ConfigError, RefineryError
from refinery.gpu.feed import EmbedJob, embed_parquet, read_vectors
from refinery.gpu.kmeans import assign_cells, spherical_kmeans
from refinery.gpu.model_files import PACKAGED_MODEL
from refinery.gpu.neighbours import pairs_in_cells

_CELL_ROWS = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors that are meant become one line."""
    options = _parser().parse_args(arguments)
    try:
        told = {"embed": _embed, "cells": _cells, "neighbours": _neighbours}[options.command](options)
    except RefineryError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refinery.gpu", description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("files", nargs="+", help="Parquet files")
    shared.add_argument("--out", required=True)
    shared.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    embed = commands.add_parser("embed", parents=[shared], help="text column to vectors, a folder of Parquet")
    embed.add_argument("--column", default="text")
    embed.add_argument("--model", default=PACKAGED_MODEL)
    embed.add_argument("--revision")
    embed.add_argument("--processes", type=int, default=1, help="worker processes that feed one device")
    cells = commands.add_parser("cells", parents=[shared], help="train centroids and store them")
    cells.add_argument("--num-cells", type=int, help="default: one per 2000 vectors")
    cells.add_argument("--seed", type=int, default=0)
    cells.add_argument("--iterations", type=int, default=20)
    near = commands.add_parser("neighbours", parents=[shared], help="pairs of similar vectors")
    near.add_argument("--centroids", help="file of `cells`; without it all vectors are one cell")
    near.add_argument("--similarity", type=float, default=0.95)
    near.add_argument("--border-cells", type=int, default=1)
    return parser


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    job = EmbedJob(options.column, options.out, options.model, options.device, options.revision)
    counts = embed_parquet(options.files, job, options.processes)
    return {"out": options.out, **counts._asdict()}


def _cells(options: argparse.Namespace) -> dict[str, Any]:
    _, vectors = read_vectors(options.files)
    number = options.num_cells or max(1, len(vectors) // _CELL_ROWS)
    backend = "auto" if options.device == "auto" else {"cuda": "torch", "cpu": "numpy"}[options.device]
    centroids = spherical_kmeans(vectors, number, iterations=options.iterations, seed=options.seed, backend=backend)
    with Path(options.out).open("wb") as file:
        np.save(file, centroids, allow_pickle=False)
    return {"out": options.out, "cells": number, "vectors": len(vectors)}


def _neighbours(options: argparse.Namespace) -> dict[str, Any]:
    sources, vectors = read_vectors(options.files)
    cells = np.zeros((len(vectors), 1), dtype=np.int32)
    if options.centroids:
        centroids = _read_centroids(options.centroids)
        probes = min(1 + options.border_cells, len(centroids))
        cells = assign_cells(vectors, centroids, num_probe=probes, device=options.device)
    pairs = pairs_in_cells(vectors, cells, options.similarity, device=options.device)
    a, b = sources[pairs.left], sources[pairs.right]
    table = {"a": np.minimum(a, b), "b": np.maximum(a, b), "similarity": pairs.similarity}
    pq.write_table(pa.table(table).sort_by([("a", "ascending"), ("b", "ascending")]), options.out)
    return {"out": options.out, "pairs": len(a), "vectors": len(vectors)}


def _read_centroids(path: str) -> np.ndarray:
    try:
        centroids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"centroids {path} cannot be read ({error}); train them with `cells`") from error
    if centroids.ndim != 2 or centroids.dtype != np.float32:
        raise ConfigError(f"{path} holds {centroids.dtype} of {centroids.ndim} axes, no centroids; train with `cells`")
    return np.asarray(centroids)


if __name__ == "__main__":
    raise SystemExit(main())
