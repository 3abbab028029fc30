from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import varlen

from refinery.trainer.attention import (
    _varlen_tells_grouping,
    attend,
    document_offsets,
    document_positions,
    plan_attention,
)
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from tests.trainer.tiny_runs import LENGTH, VOCAB, tiny_model

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=150))
def test_offsets_and_positions_tile_the_batch(lengths):
    offsets = document_offsets(np.array(lengths))
    assert offsets.dtype == np.int32
    assert offsets[0] == 0
    assert np.diff(offsets).tolist() == lengths
    positions, numbers = document_positions(np.array(lengths))
    assert np.array_equal(positions, np.arange(sum(lengths)) - offsets[numbers])


def plain_varlen(q_THE, k_TKE, v_TKE, cu_q, cu_k, max_q, max_k, *, window_size, enable_gqa=None):
    """Attention of each document by itself, in loops; takes what the library's function takes."""
    assert torch.equal(cu_q, cu_k)
    assert max_q == max_k >= int(cu_q.diff().max())
    assert window_size == (-1, 0)  # causal
    group = q_THE.shape[1] // k_TKE.shape[1]
    assert enable_gqa in (None, group > 1)
    out = torch.zeros_like(q_THE)
    for start, stop in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        for at in range(start, stop):
            for head in range(q_THE.shape[1]):
                keys, values = k_TKE[start : at + 1, head // group], v_TKE[start : at + 1, head // group]
                weights = torch.softmax(keys @ q_THE[at, head] / q_THE.shape[2] ** 0.5, 0)
                out[at, head] = weights @ values
    return out


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_varlen_path_hands_over_what_equals_the_mask_path(kv_heads, tells, monkeypatch):
    """Also for a torch whose function has no word for shared keys (2.11), where an unknown name is an error."""

    def checked(*args, **kwargs):
        signature.bind(*args, **kwargs)  # the library's own parameters, by their names
        assert ("enable_gqa" in kwargs) == tells
        return plain_varlen(*args, **kwargs)

    signature = inspect.signature(varlen.varlen_attn)
    monkeypatch.setattr(varlen, "varlen_attn", checked)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 12, heads, 8, generator=generator) for heads in (4, kv_heads, kv_heads))
    lengths = np.array([5, 6, 1, 12])
    masked = plan_attention(lengths, 2, 12, CPU, doc_mask=True)
    offsets = torch.from_numpy(document_offsets(lengths))
    by_length = replace(masked, kind="varlen", mask=None, cu_docs=offsets, tells_grouping=tells)
    torch.testing.assert_close(attend(q, k, v, by_length), attend(q, k, v, masked), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_the_word_for_shared_keys_is_used_where_the_library_knows_it(known, monkeypatch):
    def new(query, *, enable_gqa=False):
        raise AssertionError

    def old(query, *, window_size=(-1, -1)):
        raise AssertionError

    monkeypatch.setattr(varlen, "varlen_attn", new if known else old)
    _varlen_tells_grouping.cache_clear()
    try:
        assert _varlen_tells_grouping() is known
    finally:
        _varlen_tells_grouping.cache_clear()


def test_the_library_has_the_function_and_infers_its_shape():
    q, k, v = (torch.empty(24, heads, 64, dtype=torch.bfloat16, device="meta") for heads in (4, 2, 2))
    cu_docs = torch.empty(7, dtype=torch.int32, device="meta")
    out = varlen.varlen_attn(q, k, v, cu_docs, cu_docs, 12, 12, window_size=(-1, 0), enable_gqa=True)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)


def test_a_block_compiles_whole_and_computes_the_same():
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    losses, gradients = [], []
    for compiled in (False, True):
        model = Decoder(tiny_model(qk_norm=True))
        fill_parameters(model, initial_values(model.config, 1))
        if compiled:
            for block in model.blocks:
                block.compile(backend="aot_eager", fullgraph=True)
        for lengths in ([64, 64], [20, 44, 64]):
            loss = model(tokens, plan_attention(np.array(lengths), 2, LENGTH, CPU, doc_mask=True), tokens).total
            loss.backward()
            losses.append(loss.item())
        gradients.append([p.grad for p in model.parameters()])
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-6)
    for eager, by_graph in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, by_graph, rtol=1e-4, atol=1e-3)
