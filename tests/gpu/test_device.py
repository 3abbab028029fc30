"""What CUDA would do, with its functions replaced: memory that runs out, batches in flight, chunks by free memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import refinery.gpu.device_memory as device_memory
import refinery.gpu.embed as embed
import refinery.gpu.neighbours as neighbours
from refinery.errors import ConfigError, TransientError
from refinery.gpu.embed import Embedder, has_bfloat16, padded_ids
from refinery.gpu.feed import start_worker
from refinery.gpu.kmeans import torch_kmeans
from refinery.gpu.neighbours import Tiles, propose_tiles, tiles_of, torch_pairs
from refinery.kernels.similarity import similar_pairs

GIB = 1 << 30


def _unit(count: int, features: int = 16, copies: int = 1) -> np.ndarray:
    rows = np.random.default_rng(3).normal(size=(count, features)).repeat(copies, axis=0)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _free(monkeypatch, num_bytes: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (num_bytes, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)


class OneHot:
    """A model whose vector of a text is its first token, and whose device holds `most` rows at a time."""

    prompts: dict[str, str] = {}  # noqa: RUF012
    tokenizer = SimpleNamespace(pad_token_id=0)

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, []

    def __call__(self, features):
        ids, mask = features["input_ids"], features["attention_mask"]
        assert ids.dtype == mask.dtype == torch.int64
        assert (ids[mask == 0] == 0).all()
        self.sizes.append(len(ids))
        if len(ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"sentence_embedding": torch.nn.functional.one_hot(ids[:, 0], 64).bfloat16()}


def _embedder(model: OneHot, device: str = "cpu", batch_tokens: int = 64) -> Embedder:
    return Embedder(
        name="fake", device=device, num_features=64, max_tokens=16, batch_tokens=batch_tokens, dtype="bfloat16",
        model=model,
    )  # fmt: skip


IDS = [[k % 64] * (1 + k % 9) for k in range(60)]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(monkeypatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    model = OneHot(most=3)
    vectors = _embedder(model).encode_ids(IDS)
    assert vectors.argmax(axis=1).tolist() == [row[0] for row in IDS]
    assert vectors.dtype == np.float32
    assert max(model.sizes) > 3
    assert len(emptied) == sum(size > 3 for size in model.sizes)


def test_one_text_that_does_not_fit_is_an_error_with_a_remedy() -> None:
    with pytest.raises(TransientError, match=r"no memory for one text of 9 tokens.*fewer worker processes"):
        _embedder(OneHot(most=0)).encode_ids(IDS)


def test_batches_come_back_in_order_while_others_are_on_their_way(monkeypatch) -> None:
    """As on CUDA: the copy down is only there once its event has passed; more than a few are never under way."""
    under_way, most, pinned = [], [], []

    class Event:
        def record(self) -> None:
            under_way.append(self)
            most.append(len(under_way))

        def synchronize(self) -> None:
            under_way.remove(self)

    real_empty, real_to = torch.empty, torch.Tensor.to

    def empty(*size, **options):
        pinned.append(options.pop("pin_memory", False))
        return real_empty(*size, **options)

    def to(tensor, *where, **options):
        if where == ("cuda",):
            assert options["non_blocking"], "a copy that blocks would make the host wait"
            return tensor
        return real_to(tensor, *where, **options)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    vectors = _embedder(OneHot(most=99), "cuda", batch_tokens=12).encode_ids(IDS)
    assert vectors.argmax(axis=1).tolist() == [row[0] for row in IDS]
    assert pinned
    assert all(pinned)
    assert not under_way
    assert max(most) == embed._IN_FLIGHT + 1


def test_padding() -> None:
    tokens, mask = padded_ids([[5, 6, 7], [8], [9, 9]], 1)
    assert tokens.tolist() == [[5, 6, 7], [8, 1, 1], [9, 9, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_cards_that_emulate_bfloat16_take_float32(monkeypatch) -> None:
    asked = []

    def supported(*, including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bfloat16("cuda") is False
    assert asked == [False]


def test_rows_follow_the_free_memory_in_powers_of_two(monkeypatch) -> None:
    assert device_memory.free_bytes("cpu") is None
    assert device_memory.rows_that_fit(1 << 40, 77, "cpu") == 77
    _free(monkeypatch, 8 * GIB)
    assert device_memory.free_bytes("cuda") == 8 * GIB
    assert device_memory.rows_that_fit(1 << 20, 1000, "cuda") == 1000, "what fits is not rounded"
    assert device_memory.rows_that_fit(1 << 20, 65_536, "cuda") == 4096
    assert device_memory.rows_that_fit(1 << 40, 65_536, "cuda") == 1
    _free(monkeypatch, 8 * GIB + 300_000_000)
    assert device_memory.rows_that_fit(1 << 20, 65_536, "cuda") == 4096, "a little more memory changes nothing"
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 1 * GIB)
    assert device_memory.free_bytes("cuda") == 10 * GIB + 300_000_000, "what the allocator holds unused counts"


def test_uploaded_rounds_and_pads(monkeypatch) -> None:
    monkeypatch.setattr(device_memory, "_UPLOAD_ROWS", 3)
    vectors = _unit(8)
    table = device_memory.uploaded(vectors, torch.bfloat16, "cpu", zero_rows=1)
    assert torch.equal(table[:8], torch.from_numpy(vectors).bfloat16())
    assert not table[8].any()
    assert device_memory.uploaded(vectors[:0], torch.float16, "meta", zero_rows=1).shape == (1, 16)


@pytest.mark.parametrize("stays_here", [False, True])
def test_pairs_shrink_their_products_where_memory_runs_out(monkeypatch, stays_here: bool) -> None:
    """Without room for products of the asked size, or for the table: the pairs are the same."""
    vectors = _unit(40, copies=20)
    expected = similar_pairs(vectors, np.zeros(800, dtype=np.int64), 0.9)
    assert len(expected.left) >= 40 * 190
    asked = []
    real = neighbours.propose_tiles

    def propose(table, tiles, bound, device):
        asked.append(max(tiles.rows.shape[1], tiles.columns.shape[1]))
        if asked[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(table, tiles, bound, device)

    monkeypatch.setattr(neighbours, "propose_tiles", propose)
    monkeypatch.setattr(neighbours, "fits", lambda *_: not stays_here)
    found = torch_pairs(vectors, np.zeros(800, dtype=np.int64), 0.9, "cpu", torch.bfloat16, 700)
    assert asked[0] > 300 >= asked[-1]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setattr(neighbours, "_LEAST_BLOCK_ROWS", 1000)
    with pytest.raises(TransientError, match="no memory for products"):
        torch_pairs(vectors, np.zeros(800, dtype=np.int64), 0.9, "cpu", torch.bfloat16, 700)


def test_products_are_sized_by_the_free_memory(monkeypatch) -> None:
    _free(monkeypatch, 64 * GIB)
    assert neighbours._block_rows(16_384, 384, torch.bfloat16, "cuda") == 16_384
    _free(monkeypatch, GIB)
    small = neighbours._block_rows(16_384, 384, torch.bfloat16, "cuda")
    assert small == 8192
    assert 3 * 2 * small**2 <= GIB // 2
    _free(monkeypatch, 0)
    assert neighbours._block_rows(16_384, 384, torch.bfloat16, "cuda") == 256


def test_near_copies_are_looked_at_in_slices(monkeypatch) -> None:
    """A cell of copies: every row is hot, and the places of all pairs at once would be eight times the products."""
    vectors = _unit(1, copies=50)
    [tiles] = list(tiles_of(np.zeros(50, dtype=np.int64), 64))
    table = device_memory.uploaded(vectors, torch.float32, "cpu", zero_rows=1)
    whole = propose_tiles(table, tiles, 0.9)
    monkeypatch.setattr(neighbours, "_HOT_CELLS", 130)
    np.testing.assert_array_equal(np.sort(propose_tiles(table, tiles, 0.9), axis=0), np.sort(whole, axis=0))
    assert len(whole) == 50 * 49


def test_a_tile_on_another_device_than_the_table_has_its_shapes() -> None:
    """On the meta device only shapes and devices are computed: a table that stays here is gathered here."""
    vectors = _unit(6)
    table = device_memory.uploaded(vectors, torch.bfloat16, "cpu", zero_rows=1)
    tiles = Tiles(np.array([[0, 1, -1]]), np.array([[0, 1, 2]]), True)
    seen = []
    real = torch.bmm

    def bmm(left, right):
        seen.append((left.device.type, left.dtype, tuple(left.shape), tuple(right.shape)))
        return real(left, right)

    torch.bmm = bmm
    try:
        with pytest.raises((NotImplementedError, RuntimeError)):  # nonzero needs values
            propose_tiles(table, tiles, 0.9, "meta")
    finally:
        torch.bmm = real
    assert seen == [("meta", torch.bfloat16, (1, 3, 16), (1, 16, 3))]


def test_kmeans_chunks_bound_what_is_widened(monkeypatch) -> None:
    """Few cells made chunks of the whole sample: its float32 and int64 copies were 24 bytes a feature."""
    import refinery.gpu.kmeans as kmeans

    vectors = torch.from_numpy(_unit(300))
    expected = torch_kmeans(vectors, 3, iterations=5, seed=1)
    monkeypatch.setattr(kmeans, "_TRAIN_ROWS", 64)
    torch.testing.assert_close(torch_kmeans(vectors, 3, iterations=5, seed=1), expected, rtol=0, atol=1e-6)


def test_a_worker_process_keeps_to_its_threads(monkeypatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    before = torch.get_num_threads()
    try:
        start_worker(1)
        assert torch.get_num_threads() == 1
        import os

        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    finally:
        torch.set_num_threads(before)


def test_a_gpu_that_is_not_there_is_named(monkeypatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    embed.use_gpu("1")
    assert chosen == [1]
    for address in ("2", "GPU-8c1f"):
        with pytest.raises(ConfigError, match=address):
            embed.use_gpu(address)
