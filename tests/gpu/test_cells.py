from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from refinery.errors import ConfigError, DataError
from refinery.gpu.kmeans import assign_cells, spherical_kmeans, torch_kmeans
from refinery.gpu.neighbours import MARGIN_BFLOAT16, pairs_in_cells, torch_pairs
from refinery.kernels.similarity import similar_pairs

_FAISS = pytest.param(
    "faiss", marks=pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
)
_NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
_CUDA = pytest.param("torch", marks=[pytest.mark.gpu, _NO_CUDA])


def _clusters(count: int = 400, num_clusters: int = 8, features: int = 32, spread: float = 0.05):
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(num_clusters, features))
    labels = rng.integers(0, num_clusters, count)
    rows = centres[labels] / np.linalg.norm(centres[labels], axis=1, keepdims=True)
    rows = rows + spread * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def _loss(vectors: np.ndarray, centroids: np.ndarray) -> float:
    return float(1 - (vectors @ centroids.T).max(axis=1).mean())


@pytest.mark.parametrize("backend", ["numpy", _FAISS, _CUDA])
def test_cells_hold_clusters_together_and_repeat_by_seed(backend: str) -> None:
    vectors, labels = _clusters()
    centroids = spherical_kmeans(vectors, 24, iterations=15, seed=3, backend=backend)
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(centroids, spherical_kmeans(vectors, 24, iterations=15, seed=3, backend=backend))
    cells = assign_cells(vectors, centroids, device="cpu")[:, 0]
    purity = sum(np.bincount(labels[cells == cell]).max() for cell in np.unique(cells)) / len(labels)
    assert purity > 0.9
    assert _loss(vectors, centroids) < 1.2 * _loss(vectors, spherical_kmeans(vectors, 24, backend="numpy", seed=3))


def test_faiss_and_numpy_assign_alike() -> None:
    faiss = pytest.importorskip("faiss")
    vectors, _ = _clusters()
    centroids = spherical_kmeans(vectors, 10, backend="numpy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(centroids)
    ours = assign_cells(vectors, centroids, num_probe=3, device="cpu")
    np.testing.assert_array_equal(ours, index.search(vectors, 3)[1])


def test_every_cell_is_used_when_vectors_repeat() -> None:
    vectors = np.repeat(np.eye(6, dtype=np.float32), 5, axis=0)
    centroids = spherical_kmeans(vectors, 6, iterations=10, seed=1, backend="numpy")
    assert len(np.unique(assign_cells(vectors, centroids, device="cpu")[:, 0])) == 6


def test_pairs_on_this_device_are_those_of_the_reference() -> None:
    vectors, _ = _clusters(200)
    cells = assign_cells(vectors, spherical_kmeans(vectors, 6, backend="numpy"), num_probe=2, device="cpu")
    expected = similar_pairs(vectors, cells, 0.93)
    found = pairs_in_cells(vectors, cells, 0.93, device="cpu", block_rows=37)
    assert len(expected.left) > 100
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@_NO_CUDA
def test_pairs_on_cuda_are_those_of_the_reference() -> None:
    vectors, _ = _clusters(2000)
    cells = np.arange(2000) % 3
    expected = similar_pairs(vectors, cells, 0.93)
    found = pairs_in_cells(vectors, cells, 0.93, device="cuda", block_rows=300)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_proposals_lie_within_the_margin() -> None:
    vectors, _ = _clusters(300, features=384)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    half = torch.from_numpy(vectors).bfloat16()
    rounded = (half @ half.T).float().numpy()
    assert np.abs(exact - rounded).max() < MARGIN_BFLOAT16


def test_bad_input_is_refused() -> None:
    vectors, _ = _clusters(20)
    with pytest.raises(ConfigError, match="num_cells 21"):
        spherical_kmeans(vectors, 21)
    with pytest.raises(ConfigError, match="iterations"):
        spherical_kmeans(vectors, 2, iterations=0)
    with pytest.raises(ConfigError, match="backend"):
        spherical_kmeans(vectors, 2, backend="cuml")
    with pytest.raises(ConfigError, match="features"):
        assign_cells(vectors, np.eye(5, dtype=np.float32))
    with pytest.raises(ConfigError, match="num_probe"):
        assign_cells(vectors, vectors[:2], num_probe=3)
    vectors[3] = np.nan
    with pytest.raises(DataError, match="vector 3"):
        spherical_kmeans(vectors, 2)


def test_two_builds_of_faiss_are_refused(monkeypatch) -> None:
    import refinery.gpu.kmeans as kmeans

    vectors, _ = _clusters(20)
    monkeypatch.setattr(kmeans.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(kmeans, "_is_installed", lambda name: name in ("faiss-cpu", "faiss-gpu"))
    with pytest.raises(ConfigError, match="faiss-cpu and faiss-gpu are both installed"):
        spherical_kmeans(vectors, 2, backend="faiss")


@pytest.mark.parametrize("block_rows", [3, 17, 64, 16_384])
@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_path_of_the_gpu_gives_the_pairs_of_the_reference(block_rows: int, probes: int, dtype) -> None:
    """On this device: tiles of padded cells, proposals in low precision, verification."""
    vectors, _ = _clusters(120)
    cells = assign_cells(vectors, spherical_kmeans(vectors, 7, backend="numpy"), num_probe=probes, device="cpu")
    expected = similar_pairs(vectors, cells, 0.93)
    assert len(expected.left) > 50
    for a, b in zip(torch_pairs(vectors, cells, 0.93, "cpu", dtype, block_rows), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pairs_of_the_path_of_the_gpu_below_zero_and_alone() -> None:
    vectors = np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    for cells in (np.zeros(3, int), np.arange(3)):
        expected = similar_pairs(vectors, cells, -0.5)
        found = torch_pairs(vectors, cells, -0.5, "cpu", torch.float32, 2)
        assert found.left.tolist() == expected.left.tolist()
        assert found.right.tolist() == expected.right.tolist()
    assert torch_pairs(np.empty((0, 2), np.float32), np.empty(0, int), 0.5, "cpu", torch.float32, 2).left.size == 0


def test_kmeans_in_torch_finds_clusters_as_the_reference_does() -> None:
    vectors, _ = _clusters()
    found = torch_kmeans(torch.from_numpy(vectors), 24, iterations=15, seed=3).numpy()
    reference = spherical_kmeans(vectors, 24, iterations=15, seed=3, backend="numpy")
    np.testing.assert_allclose(found, reference, atol=1e-4)
    again = torch_kmeans(torch.from_numpy(vectors), 24, iterations=15, seed=3).numpy()
    np.testing.assert_array_equal(found, again)
    repeated = torch.eye(6).repeat_interleave(5, dim=0)
    assert len(torch.unique((repeated @ torch_kmeans(repeated, 6, seed=1).T).argmax(dim=1))) == 6
