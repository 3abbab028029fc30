"""What a device computes is what the CPU computes: a small model with random weights, no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from refinery.gpu.__main__ import main
from refinery.gpu.embed import open_embedder
from refinery.gpu.feed import EmbedJob, embed_parquet, read_vectors
from refinery.gpu.kmeans import assign_cells, spherical_kmeans
from refinery.gpu.neighbours import pairs_in_cells
from refinery.kernels.similarity import similar_pairs

_MISSING = [name for name in ("sentence_transformers", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]
WORDS = [f"w{n:03d}" for n in range(400)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A BERT of two narrow layers."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=405, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n", encoding="ascii")
    BertTokenizerFast(vocab_file=str(vocabulary), vocab=str(vocabulary)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    rng = np.random.default_rng(2)
    found = [" ".join(rng.choice(WORDS, rng.integers(3, 40))) for _ in range(3000)]
    return [*found, *(text + " w001" for text in found[:300])]


def _unit(count: int, features: int = 96) -> np.ndarray:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(40, features))[rng.integers(0, 40, count)] + 0.35 * rng.normal(size=(count, features))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_vectors_of_the_device_are_those_of_the_cpu(model: str, sentences: list[str]) -> None:
    there, here = open_embedder(model, "cuda", batch_tokens=3000), open_embedder(model, "cpu", dtype="float32")
    assert there.dtype == "bfloat16"
    vectors = there.encode(sentences)
    assert (vectors * here.encode(sentences)).sum(axis=1).min() > 0.998
    assert vectors.tobytes() == there.encode(sentences).tobytes()


def test_processes_that_share_the_device_write_the_bytes_of_one(
    model: str, sentences: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": sentences}), path, row_group_size=700)
    counts = [
        embed_parquet([str(path)], EmbedJob("text", str(tmp_path / str(processes)), model, "cuda", None), processes)
        for processes in (1, 3)
    ]
    assert counts[0] == counts[1]
    assert counts[0].sentences == len(sentences)
    names = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_commands_on_the_device_find_the_pairs_of_the_cpu(model: str, sentences: list[str], tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": sentences}), path)
    assert main(["embed", "--model", model, "--device", "cuda", "--out", str(tmp_path / "v"), str(path)]) == 0
    files = [str(file) for file in (tmp_path / "v").iterdir()]
    cells, pairs = tmp_path / "cells.npy", tmp_path / "pairs.parquet"
    assert main(["cells", "--num-cells", "6", "--device", "cuda", "--out", str(cells), *files]) == 0
    search = ["neighbours", "--centroids", str(cells), "--similarity", "0.999", "--out", str(pairs)]
    assert main([*search, "--device", "cuda", *files]) == 0
    found = pq.read_table(pairs)
    assert main([*search, "--device", "cpu", *files]) == 0
    assert found.equals(pq.read_table(pairs))
    assert found.num_rows > 100
    assert read_vectors(files)[1].shape == (len(sentences), 64)


def test_cells_of_the_device_are_those_of_the_cpu() -> None:
    vectors = _unit(5000)
    centroids = spherical_kmeans(vectors, 40, backend="torch", seed=4)
    np.testing.assert_array_equal(centroids, spherical_kmeans(vectors, 40, backend="torch", seed=4))
    there, here = (assign_cells(vectors, centroids, num_probe=2, device=device) for device in ("cuda", "cpu"))
    products = vectors @ centroids.T
    # a tie within rounding may fall either way
    taken = [np.take_along_axis(products, cells.astype(np.int64), axis=1) for cells in (there, here)]
    np.testing.assert_allclose(taken[0], taken[1], atol=1e-5)
    assert (there == here).mean() > 0.999


@pytest.mark.parametrize("block_rows", [64, 4096])
def test_pairs_of_large_and_small_cells_are_those_of_the_reference(block_rows: int) -> None:
    vectors = _unit(6000)
    cells = np.stack([np.arange(6000) % 7 // 3, 3 + np.arange(6000) % 50], axis=1)
    expected = similar_pairs(vectors, cells, 0.92)
    assert len(expected.left) > 100
    for a, b in zip(
        pairs_in_cells(vectors, cells, 0.92, device="cuda", block_rows=block_rows), expected, strict=True
    ):
        np.testing.assert_array_equal(a, b)
