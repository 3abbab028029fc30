"""The hand-written backward passes against the plain formulas that they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from refinery.trainer import eager
from refinery.trainer.attention import attend, plan_attention, rotary_tables
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from tests.trainer.tiny_runs import LENGTH, VOCAB, tiny_model

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def assert_same(ours, plain, inputs, **tolerance) -> None:
    """Compare values and the gradients of a sum that weighs every value differently."""
    results = []
    for function in (ours, plain):
        out = function(*inputs)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
        results.append((out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([1e-5, 1e-2]))
def test_norm(rows, width, eps):
    inputs = draw(2, rows, width), draw(width, seed=2)
    assert_same(lambda x, gain: eager.rms_norm(x, gain, eps),
                lambda x, gain: functional.rms_norm(x, gain.shape, gain, eps), inputs, rtol=1e-4, atol=1e-5)


def test_norm_of_zeros_is_zero_and_has_a_gradient():
    x, gain = torch.zeros(2, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    out = eager.rms_norm(x, gain, 1e-5)
    out.sum().backward()
    assert out.abs().max() == 0
    torch.testing.assert_close(x.grad, torch.full((2, 8), 1e-5**-0.5))


def test_rotation():
    config = tiny_model()
    cos, sin = rotary_tables(config, torch.arange(12).expand(2, 12), torch.float32)

    def plain(x):
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin

    assert_same(lambda x: eager.rotate(x, cos, sin), plain, (draw(2, 12, 3, config.head_dim),))


def test_gate():
    def plain(x):
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    inputs = (draw(3, 5, 14) * 30).detach().requires_grad_()  # where the sigmoid saturates, too
    assert_same(eager.gated_silu, plain, (inputs,), rtol=1e-5, atol=1e-5)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 80), st.booleans(), st.data())
def test_attention_over_short_rows(kv_heads, length, doc_mask, data):
    cuts = [data.draw(st.sets(st.integers(1, length), max_size=4), label="document ends") | {length} for _ in range(2)]
    lengths = np.array([n for ends in cuts for n in np.diff([0, *sorted(ends)])])
    plan = plan_attention(lengths, 2, length, CPU, doc_mask=doc_mask)
    inputs = draw(2, length, 4, 8), draw(2, length, kv_heads, 8, seed=2), draw(2, length, kv_heads, 8, seed=3)
    assert plan.bias is not None
    assert_same(lambda q, k, v: attend(q, k, v, plan), lambda q, k, v: attend(q, k, v, replace(plan, bias=None)),
                inputs, rtol=1e-4, atol=1e-5)


def test_long_rows_take_the_kernel_that_keeps_no_weights():
    assert plan_attention(np.array([eager.SHORT_ROW]), 1, eager.SHORT_ROW, CPU, doc_mask=True).bias is not None
    assert plan_attention(np.array([eager.SHORT_ROW + 1]), 1, eager.SHORT_ROW + 1, CPU, doc_mask=True).bias is None


@pytest.mark.parametrize("shape", [{}, {"qk_norm": True}, {"num_kv_heads": 1}, {"qkv_bias": True}])
def test_a_model_with_and_without(shape, monkeypatch):
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    plan = plan_attention(np.array([20, 44, 64]), 2, LENGTH, CPU, doc_mask=True)
    gradients = []
    for by_hand in (True, False):
        monkeypatch.setattr(eager, "is_eager_cpu", lambda _, by_hand=by_hand: by_hand)
        model = Decoder(tiny_model(**shape))
        fill_parameters(model, initial_values(model.config, 1))
        model(tokens, plan, tokens).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient - other).norm() <= 1e-5 * other.norm(), name


def test_bfloat16_and_double_keep_to_the_plain_formulas():
    assert eager.is_eager_cpu(torch.zeros(1))
    assert not eager.is_eager_cpu(torch.zeros(1, dtype=torch.bfloat16))
    assert not eager.is_eager_cpu(torch.zeros(1, dtype=torch.float64))
    assert not eager.is_eager_cpu(torch.zeros(1, device="meta"))
