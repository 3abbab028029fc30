from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from refinery.errors import ConfigError
from refinery.shards.format import PADDING, Segments
from refinery.trainer.attention import plan_attention
from refinery.trainer.config import OptimConfig
from refinery.trainer.data import RowBatch, model_rows, prefetch_steps, rows_in_batch
from refinery.trainer.loss import IGNORE, chunked_cross_entropy
from refinery.trainer.metrics import effective_flops, palm_flops_per_token
from refinery.trainer.model import Decoder, fill_parameters, initial_values
from refinery.trainer.optim import MOMENTS, build_optimizer, set_learning_rate
from refinery.trainer.sample import continue_tokens
from tests.trainer.tiny_runs import LENGTH, VOCAB, memory_source, tiny_model

CPU = torch.device("cpu")


def built(**changes) -> Decoder:
    chunk = changes.pop("chunk_tokens", 50)
    recompute = changes.pop("activation_checkpointing", "none")
    model = Decoder(tiny_model(**changes), chunk_tokens=chunk, activation_checkpointing=recompute)
    fill_parameters(model, initial_values(model.config, 1))
    return model


def plan_of(lengths, rows=1, length=LENGTH, doc_mask=True):
    return plan_attention(np.array(lengths), rows, length, CPU, doc_mask=doc_mask)


def row_of(tokens, lengths, padding=0) -> RowBatch:
    """One row of documents and padding."""
    sizes = np.array([*lengths, padding] if padding else lengths, dtype=np.int32)
    flags = np.array([0] * len(lengths) + [PADDING] * (padding > 0), dtype=np.uint8)
    hashes = np.where(flags == PADDING, 0, np.arange(1, len(sizes) + 1)).astype(np.uint64)
    segments = Segments(np.array([0, len(sizes)]), hashes, sizes, flags)
    return RowBatch(np.zeros(1, np.int64), tokens, segments, np.zeros(1, np.int64), np.zeros(1, np.int64))


def random_tokens(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def test_a_document_does_not_see_the_others():
    model = built()
    tokens = random_tokens(1)
    changed = tokens.clone()
    changed[0, :20] = (changed[0, :20] + 1) % VOCAB
    plan = plan_of([20, 30, 14])
    before, after = model(tokens, plan), model(changed, plan)
    assert torch.equal(before[0, 20:], after[0, 20:])
    assert not torch.equal(before[0, :20], after[0, :20])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_loss_is_the_sum_of_separate_losses(kv_heads):
    model = built(num_kv_heads=kv_heads, qk_norm=True)
    tokens = random_tokens(1)
    lengths = [20, 30, 14]
    labels = torch.from_numpy(model_rows(row_of(tokens.numpy(), lengths), doc_mask=True).labels)
    packed = model(tokens, plan_of(lengths), labels).total
    separate = torch.zeros(())
    for start, length in zip((0, 20, 50), lengths, strict=True):
        part = tokens[:, start : start + length]
        target = torch.cat((part[:, 1:], torch.tensor([[IGNORE]])), dim=1)
        plan = plan_of([length], length=length, doc_mask=False)
        separate = separate + model(part, plan, target).total
    assert packed.item() == pytest.approx(separate.item(), rel=1e-6)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 5), st.booleans())
def test_labels_follow_segments(lengths, padding, doc_mask):
    total = sum(lengths) + padding
    rows = model_rows(row_of(np.arange(total)[None], lengths, padding), doc_mask=doc_mask)
    ends = set((np.cumsum(lengths) - 1).tolist()) if doc_mask else {sum(lengths) - 1}
    for position in range(total):
        ignored = position in ends or position >= sum(lengths) or position == total - 1
        assert rows.labels[0, position] == (IGNORE if ignored else position + 1)
    assert rows.attended_pairs == sum(n * (n + 1) // 2 for n in [*lengths, padding])


@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
@pytest.mark.parametrize(("chunk", "compiled"), [(7, False), (64, False), (1000, False), (64, True)])
def test_chunked_loss_equals_the_plain_one(z_weight, chunk, compiled):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(100, 16, generator=generator, dtype=torch.float32)
    head = torch.randn(50, 16, generator=generator)
    labels = torch.randint(0, 50, (100,), generator=generator)
    labels[::7] = IGNORE
    values = []
    for chunked in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if chunked:
            out = chunked_cross_entropy(h, w, labels, chunk_tokens=chunk, z_weight=z_weight, compiled=compiled)
            total = out.total
        else:
            logits = h @ w.T
            z = torch.logsumexp(logits, -1).square()[labels != IGNORE].sum()
            total = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
            total = total + z_weight * z
        (total / 10).backward()
        values.append((total.detach(), h.grad, w.grad))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_loss_in_bfloat16_is_close_to_float32():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(512, 32, generator=generator).bfloat16()
    head = torch.randn(2000, 32, generator=generator)
    labels = torch.randint(0, 2000, (512,), generator=generator)
    low = chunked_cross_entropy(hidden, head, labels, chunk_tokens=100).total
    full = torch.nn.functional.cross_entropy(hidden.float() @ head.T, labels, reduction="sum")
    assert low.item() == pytest.approx(full.item(), rel=2e-3)


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recomputing_blocks_changes_nothing(kind):
    tokens = random_tokens(2)
    plan = plan_of([40, 24, 64], rows=2)
    gradients = []
    for recompute in ("none", kind):
        model = built(activation_checkpointing=recompute)
        model(tokens, plan, tokens).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_initial_weights_depend_on_seed_and_name_only():
    first, again, other = (initial_values(tiny_model(), seed) for seed in (1, 1, 2))
    shape = torch.Size((8, 8))
    assert torch.equal(first("embed.weight", shape), again("embed.weight", shape))
    assert not torch.equal(first("embed.weight", shape), other("embed.weight", shape))
    assert not torch.equal(first("embed.weight", shape), first("blocks.0.ffn.down.weight", shape))
    deep = initial_values(tiny_model(num_layers=8), 1)("blocks.0.ffn.down.weight", torch.Size((400, 400)))
    assert deep.std().item() == pytest.approx(0.02 / 4, rel=0.02)


def test_only_matrices_decay():
    model = built(qkv_bias=True, qk_norm=True)
    decayed, free = build_optimizer(model, OptimConfig()).param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])


def updates(config: OptimConfig, seeds: range) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    model = torch.nn.Linear(16, 8)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 128).view(8, 16))
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 1e-2)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model.weight.detach(), optimizer


def test_moments_in_bfloat16_follow_the_full_ones():
    full, _ = updates(OptimConfig(), range(30))
    rounded, optimizer = updates(OptimConfig(moments="bfloat16"), range(30))
    assert {state[moment].dtype for state in optimizer.state.values() for moment in MOMENTS} == {torch.bfloat16}
    moved = full - torch.linspace(-1, 1, 128).view(8, 16)
    # nothing is rounded in the first step; after thirty, each of them by 2^-9 at most
    assert torch.allclose(*(updates(OptimConfig(moments=kind), range(1))[0] for kind in ("float32", "bfloat16")),
                          atol=1e-7)
    assert 0 < (rounded - full).norm() < 0.01 * moved.norm()
    with pytest.raises(ConfigError, match="beta2"):
        OptimConfig(moments="bfloat16", beta2=0.999)


def test_flop_formula_equals_the_counter():
    model = built(vocab_size=VOCAB, chunk_tokens=1000)
    tokens = random_tokens(2)
    plan = replace(plan_of([LENGTH] * 2, rows=2), bias=None)  # without blocks, whose products leave out what is hidden
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, plan, tokens).total.backward()
    expected = palm_flops_per_token(model.config, LENGTH) * tokens.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    pairs = 2 * LENGTH * (LENGTH + 1) // 2
    matmul = expected - 12 * 2 * 32 * LENGTH * tokens.numel()
    assert effective_flops(model.config, tokens.numel(), pairs) == matmul + 12 * 2 * 32 * pairs


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_read_the_batch(world_size):
    source = memory_source()
    steps = [(0, 0, 8), (1, 8, 8), (2, 16, 16)]
    per_rank = []
    for rank in range(world_size):
        with prefetch_steps(source, steps, rank=rank, world_size=world_size, doc_mask=True) as batches:
            per_rank.append(list(batches))
    for number, (_, first, count) in enumerate(steps):
        joined = sorted(row.tobytes() for ranks in per_rank for row in ranks[number].local.tokens)
        assert joined == sorted(row.astype(np.int64).tobytes() for row in source.batch(first, count).tokens)


def test_a_failing_source_fails_the_consumer():
    class Broken:
        def batch(self, first_row, num_rows, slots):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(prefetch_steps(Broken(), [(0, 0, 1)], rank=0, world_size=1, doc_mask=True))


def test_batch_must_be_whole_rows_for_all_ranks():
    assert rows_in_batch(512, 64, 4) == 8
    with pytest.raises(ConfigError, match="multiple of the row length"):
        rows_in_batch(500, 64, 1)
    with pytest.raises(ConfigError, match="does not divide among 3"):
        rows_in_batch(512, 64, 3)


def test_sampling_is_seeded_and_stops():
    model = built()
    greedy = continue_tokens(model, [1, 2, 3], 8)
    assert greedy == continue_tokens(model, [1, 2, 3], 8)
    assert len(greedy) == 8
    warm = continue_tokens(model, [1, 2, 3], 8, temperature=1.0, seed=4)
    assert warm == continue_tokens(model, [1, 2, 3], 8, temperature=1.0, seed=4)
    assert continue_tokens(model, [1, 2, 3], 8, stop_id=greedy[0]) == []
    with pytest.raises(ConfigError, match="prompt"):
        continue_tokens(model, [], 8)
