"""Spherical k-means: the coarse cells inside which sentences are compared (SemDeDup, 2303.09540).

Three backends, one contract: faiss where it is installed, torch on CUDA, and a NumPy reference. They differ in how they
sum and in what they do with an empty cell, so centroids are an artefact to be stored and hashed, never recomputed;
assignment to given centroids is the same on all of them up to ties within float tolerance.

Shape legend: S vectors, F features, K cells, P probed cells.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import numpy as np
import torch

from refinery.errors import ConfigError
from refinery.gpu.device_memory import rows_that_fit, uploaded
from refinery.gpu.embed import resolve_device
from refinery.kernels.similarity import check_vectors

BACKENDS = ("auto", "faiss", "torch", "numpy")
_FAISS_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")
_CHUNK_ROWS = 65_536
_TRAIN_ROWS = 1 << 18  # bounds the widened copies of a chunk where cells are few
_PRODUCT_CELLS = {"cuda": 1 << 30, "cpu": 1 << 24}
_FIXED_POINT = float(1 << 24)


def spherical_kmeans(
    vectors: np.ndarray, num_cells: int, *, iterations: int = 20, seed: int = 0, backend: str = "auto"
) -> np.ndarray:
    """Train centroids on a sample.

    Args:
        vectors: float32, shape (S, F), unit length; the sample.
        num_cells: K; at most S.
        iterations: Lloyd steps; 20 settles cells enough for neighbours.
        seed: seed of the first centroids.
        backend: ``auto`` takes torch if CUDA is there, else faiss if installed, else numpy.
    Returns: float32, shape (K, F), unit length. Deterministic per backend, build and device.

    Raises:
        ConfigError: number of cells or iterations out of bounds, or an unknown or missing backend.
        DataError: a vector is not of unit length.
    """
    if not 1 <= num_cells <= len(vectors):
        raise ConfigError(f"num_cells {num_cells} is out of bounds 1..{len(vectors)} (the vectors); lower it")
    if iterations < 1:
        raise ConfigError(f"iterations {iterations} is out of bounds, 1 is the least; 20 is the default")
    check_vectors(vectors)
    chosen = _resolve_backend(backend)
    if chosen == "faiss":
        return _train_faiss(vectors, num_cells, iterations, seed)
    if chosen == "torch":
        sample = uploaded(vectors, torch.float16, "cuda")
        return torch_kmeans(sample, num_cells, iterations=iterations, seed=seed).cpu().numpy()
    return _train_lloyd(vectors, num_cells, iterations, seed)


def assign_cells(vectors: np.ndarray, centroids: np.ndarray, *, num_probe: int = 1, device: str = "auto") -> np.ndarray:
    """Return the nearest cells of every vector, nearest first.

    Args:
        vectors: float32, shape (S, F), unit length.
        centroids: float32, shape (K, F).
        num_probe: P, at most K.
        device: auto, cpu or cuda.
    Returns: int32, shape (S, P); ties go to the smaller cell on CPU.

    Raises:
        ConfigError: features differ, `num_probe` is out of bounds, or CUDA is asked for and not there.
    """
    if vectors.shape[1] != centroids.shape[1]:
        raise ConfigError(
            f"vectors have {vectors.shape[1]} features, centroids {centroids.shape[1]}: another model made them; "
            "train the cells again"
        )
    if not 1 <= num_probe <= len(centroids):
        raise ConfigError(f"num_probe {num_probe} is out of bounds 1..{len(centroids)}; 1 or 2 is usual")
    where = "cuda" if resolve_device(device) == "cuda" else "numpy"
    return _nearest(vectors, centroids, num_probe, where)


def _resolve_backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise ConfigError(f"k-means backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    has_faiss = importlib.util.find_spec("faiss") is not None
    if has_faiss and backend in ("auto", "faiss"):
        _refuse_two_builds()
    if backend == "faiss" and not has_faiss:
        raise ConfigError("k-means backend 'faiss' is not installed; pip install faiss-cpu, or take backend 'numpy'")
    if backend == "torch":
        resolve_device("cuda")
    if backend != "auto":
        return backend
    if torch.cuda.is_available():
        return "torch"
    return "faiss" if has_faiss else "numpy"


def _refuse_two_builds() -> None:
    """Refuse two packages that write the same module: which half of which is imported is then a matter of chance."""
    there = [name for name in _FAISS_BUILDS if _is_installed(name)]
    if len(there) > 1:
        raise ConfigError(
            f"{' and '.join(there)} are both installed and share the module faiss; uninstall both, then install the "
            "extra `cpu` or the extra `gpu`"
        )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _train_faiss(vectors: np.ndarray, num_cells: int, iterations: int, seed: int) -> np.ndarray:
    import faiss  # noqa: PLC0415 - optional

    # All points are used: faiss would draw 256 per centroid by itself, and warn below 39.
    trainer = faiss.Kmeans(
        vectors.shape[1], num_cells, niter=iterations, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=max(1, len(vectors)),
    )  # fmt: skip
    trainer.train(np.ascontiguousarray(vectors))
    return _unit(np.asarray(trainer.centroids, dtype=np.float32))


def _train_lloyd(vectors: np.ndarray, num_cells: int, iterations: int, seed: int) -> np.ndarray:
    """Lloyd's steps on the sphere; an empty cell restarts at the vector that is farthest from its centroid."""
    picks = np.sort(np.random.default_rng(seed).choice(len(vectors), num_cells, replace=False))
    centroids = vectors[picks].copy()
    for _ in range(iterations):
        cells = _nearest(vectors, centroids, 1, "numpy")[:, 0]
        order = np.argsort(cells, kind="stable")
        present, starts = np.unique(cells[order], return_index=True)
        fresh = np.zeros(centroids.shape, dtype=np.float64)
        fresh[present] = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
        empty = np.setdiff1d(np.arange(num_cells), present)
        if len(empty):
            closeness = np.einsum("sf,sf->s", vectors, centroids[cells])
            fresh[empty] = vectors[np.argsort(closeness, kind="stable")[: len(empty)]]
        centroids = _unit(fresh.astype(np.float32))
    return centroids


@torch.inference_mode()
def torch_kmeans(vectors: torch.Tensor, num_cells: int, *, iterations: int = 20, seed: int = 0) -> torch.Tensor:
    """Train centroids on the device that holds the vectors, as `spherical_kmeans`.

    Products run in float16 on CUDA: as fast as bfloat16 with eight times its resolution, which matters where many
    centroids are nearly as close. Sums are of fixed-point integers: adding them in any order gives the same centroids.

    Args:
        vectors: shape (S, F), unit length.
        num_cells: K; at most S.
        iterations: Lloyd steps.
        seed: seed of the first centroids.
    Returns: float32, shape (K, F), unit length, on the same device.
    """
    count, features = vectors.shape
    picks = np.sort(np.random.default_rng(seed).choice(count, num_cells, replace=False))
    narrow = torch.float16 if vectors.device.type == "cuda" else torch.float32
    centroids = vectors[torch.from_numpy(picks).to(vectors.device)].float()
    rows = max(1, min(count, _TRAIN_ROWS, _PRODUCT_CELLS[vectors.device.type] // num_cells))
    row_bytes = num_cells * narrow.itemsize + 24 * features  # products; float32, rounded and int64 copies
    rows = rows_that_fit(row_bytes, rows, str(vectors.device))
    for _ in range(iterations):
        sums = torch.zeros(num_cells, features, dtype=torch.int64, device=vectors.device)
        columns = centroids.to(narrow).T.contiguous()
        closeness, cells = [], []
        for first in range(0, count, rows):
            part = vectors[first : first + rows]
            best = (part.to(narrow) @ columns).max(dim=1)
            sums.index_add_(0, best.indices, (part.float() * _FIXED_POINT).round().long())
            closeness.append(best.values)
            cells.append(best.indices)
        empty = torch.bincount(torch.cat(cells), minlength=num_cells) == 0
        fresh = sums.double() / _FIXED_POINT
        if bool(empty.any()):
            far = torch.sort(torch.cat(closeness).float(), stable=True).indices[: int(empty.sum())]
            fresh[empty] = vectors[far].double()
        centroids = torch.nn.functional.normalize(fresh, dim=1).float()
    return centroids


def _nearest(vectors: np.ndarray, centroids: np.ndarray, num_probe: int, where: str) -> np.ndarray:
    out = np.empty((len(vectors), num_probe), dtype=np.int32)
    columns = None
    if where == "cuda":
        columns = torch.from_numpy(np.ascontiguousarray(centroids)).to("cuda")
    rows = max(1, min(_CHUNK_ROWS, _PRODUCT_CELLS["cpu" if columns is None else "cuda"] // len(centroids)))
    if columns is not None:
        rows = rows_that_fit(12 * len(centroids) + 4 * vectors.shape[1], rows, where)  # products, and topk's copy
    for first in range(0, len(vectors), rows):
        part = vectors[first : first + rows]
        if columns is not None:
            products = torch.from_numpy(np.ascontiguousarray(part)).to("cuda") @ columns.T
            out[first : first + rows] = products.topk(num_probe, dim=1).indices.int().cpu().numpy()
        elif num_probe == 1:
            out[first : first + rows, 0] = (part @ centroids.T).argmax(axis=1)
        else:
            out[first : first + rows] = np.argsort(-(part @ centroids.T), axis=1, kind="stable")[:, :num_probe]
    return out


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(norms > 0, norms, 1.0), dtype=np.float32)
