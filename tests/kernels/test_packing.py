from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels import packing
from tests.kernels import reference_packing as reference

# D documents, L tokens in a row
ROWS = st.one_of(st.integers(2, 16), st.sampled_from([63, 64, 65, 130, 4096, 5000]))
CASES = ROWS.flatmap(
    lambda L: st.tuples(st.lists(st.integers(0, 5 * L // 2), max_size=40), st.just(L), st.integers(0, 2**32))
)


def _ties(count, seed):
    return np.random.default_rng(seed).permutation(np.arange(1, count + 1, dtype=np.uint64) << np.uint64(40))


def _plan(lengths, L, seed, policy="best_fit"):
    return packing.plan_rows(np.array(lengths, dtype=np.int64), _ties(len(lengths), seed), L, policy)


def _rows(plan):
    out = []
    for r in range(plan.num_rows):
        segments = range(plan.row_ptr[r], plan.row_ptr[r + 1])
        out.append([(int(plan.doc[s]), int(plan.start[s]), int(plan.length[s])) for s in segments if plan.doc[s] >= 0])
    return out


@pytest.mark.parametrize("policy", packing.POLICIES)
@given(case=CASES)
def test_rows_equal_the_plain_python_reference(policy, case):
    lengths, L, seed = case
    plan = _plan(lengths, L, seed, policy)
    expected = getattr(reference, policy)(lengths, _ties(len(lengths), seed).tolist(), L)
    rows = _rows(plan)
    assert sorted(rows) == sorted(expected)
    if policy == "concat":
        assert rows == expected


def test_rows_longer_than_three_levels_of_the_tree_are_filled_best():
    L = 300_000
    lengths = [170_000, 160_001, 150_000, 139_999, 130_000, 1, 4096, 64]
    plan = _plan(lengths, L, 5)
    assert sorted(_rows(plan)) == sorted(reference.best_fit(lengths, _ties(8, 5).tolist(), L))


@pytest.mark.parametrize("policy", packing.POLICIES)
@given(case=CASES)
def test_segments_tile_each_row_and_padding_is_last(policy, case):
    lengths, L, seed = case
    plan = _plan(lengths, L, seed, policy)
    for r in range(plan.num_rows):
        part = slice(plan.row_ptr[r], plan.row_ptr[r + 1])
        assert plan.length[part].sum() == L
        assert (plan.length[part] > 0).all()
        assert plan.position[part].tolist() == np.concatenate(([0], np.cumsum(plan.length[part])))[:-1].tolist()
        assert not (plan.flags[part][:-1] == packing.PADDING).any()
        assert plan.doc[part][0] >= 0
    real = plan.doc >= 0
    assert ((plan.flags == packing.PADDING) == ~real).all()
    assert (plan.doc[real].size == 0) == (sum(lengths) == 0)


@pytest.mark.parametrize("policy", packing.POLICIES)
@given(case=CASES)
def test_unpack_gives_back_every_document_and_conserves_tokens(policy, case):
    lengths, L, seed = case
    plan = _plan(lengths, L, seed, policy)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    rows = packing.write_rows(plan, offsets, tokens, 0)
    assert rows.size == sum(lengths) - plan.dropped_tokens + plan.padding_tokens
    back_offsets, back = packing.unpack_rows(plan, rows, np.array(lengths, dtype=np.int64))
    assert back_offsets.tolist() == offsets.tolist()
    kept = back > 0
    assert back[kept].tolist() == tokens[kept].tolist()
    assert np.count_nonzero(~kept) == plan.dropped_tokens
    if policy != "best_fit_crop":
        assert plan.dropped_tokens == 0
    assert np.count_nonzero(plan.flags & 1) == plan.num_docs == np.count_nonzero(lengths)


@pytest.mark.parametrize("policy", packing.POLICIES)
@given(case=CASES)
def test_rows_do_not_depend_on_the_order_of_documents(policy, case):
    lengths, L, seed = case
    lengths, ties = np.array(lengths, dtype=np.int64), _ties(len(lengths), seed)
    shuffle = np.random.default_rng(7).permutation(len(lengths))
    one = packing.plan_rows(lengths, ties, L, policy)
    two = packing.plan_rows(lengths[shuffle], ties[shuffle], L, policy)
    assert one.segment_hashes(ties).tolist() == two.segment_hashes(ties[shuffle]).tolist()
    for name in ("row_ptr", "start", "length", "position", "flags"):
        assert getattr(one, name).tolist() == getattr(two, name).tolist()


@given(case=CASES)
def test_best_fit_breaks_only_documents_longer_than_a_row(case):
    lengths, L, seed = case
    plan = _plan(lengths, L, seed)
    pieces = np.bincount(plan.doc[plan.doc >= 0], minlength=len(lengths))
    assert pieces.tolist() == [-(-n // L) for n in lengths]
    assert plan.num_docs_cut == sum(n > L for n in lengths)


def test_best_fit_needs_hardly_more_rows_than_concat_at_web_lengths():
    rng = np.random.default_rng(11)
    lengths = np.clip(rng.lognormal(6.3, 1.2, 60_000), 8, 200_000).astype(np.int64)
    ties = rng.permutation(np.arange(60_000, dtype=np.uint64))
    fit = packing.plan_rows(lengths, ties, 2048)
    concat = packing.plan_rows(lengths, ties, 2048, "concat")
    assert fit.num_rows <= concat.num_rows + max(1, concat.num_rows // 10_000)
    assert fit.num_docs_cut == np.count_nonzero(lengths > 2048)
    assert fit.num_docs_cut < concat.num_docs_cut / 2


def test_rows_of_a_part_are_not_sorted_by_document_length():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 64, 4000)
    plan = packing.plan_rows(lengths, rng.permutation(np.arange(4000, dtype=np.uint64)), 64)
    longest = np.maximum.reduceat(np.where(plan.doc >= 0, plan.length, 0), plan.row_ptr[:-1])
    rank = np.corrcoef(np.arange(plan.num_rows), longest)[0, 1]
    assert abs(rank) < 4 / np.sqrt(plan.num_rows)


def test_row_bytes_counts_text_and_predicted_bytes():
    plan = _plan([3, 2], 4, 1)
    rows = packing.write_rows(plan, np.array([0, 3, 5]), np.array([1, 2, 0, 3, 0]), 0)
    token_bytes = np.array([0, 1, 10, 100])
    utf8_bytes, loss_bytes = packing.row_bytes(plan, rows, token_bytes)
    assert sorted(utf8_bytes.tolist()) == [11, 100]
    assert sorted(loss_bytes.tolist()) == [0, 10]


def test_write_rows_takes_uint16_and_narrows():
    plan = _plan([3], 4, 1)
    rows = packing.write_rows(plan, np.array([0, 3]), np.array([5, 6, 7], dtype=np.int32), 9, np.uint16)
    assert rows.dtype == np.uint16
    assert rows.tolist() == [[5, 6, 7, 9]]
    assert plan.fill_frac == 0.75
    assert plan.row_of_segment.tolist() == [0, 0]


def test_wrong_input_is_refused():
    with pytest.raises(ConfigError, match="worst_fit"):
        _plan([1], 4, 1, "worst_fit")
    with pytest.raises(ConfigError, match="sequence_length 1"):
        _plan([1], 1, 1)
    with pytest.raises(SchemaError, match="-3"):
        _plan([-3], 4, 1)
    with pytest.raises(SchemaError):
        packing.plan_rows(np.array([1, 2]), np.array([1], dtype=np.uint64), 4)
    plan = _plan([3, 3], 4, 1)
    with pytest.raises(SchemaError):
        packing.write_rows(plan, np.array([0, 3]), np.array([1, 2, 3]), 0)
    with pytest.raises(SchemaError):
        packing.write_rows(plan, np.array([0, 3, 6]), np.array([1, 2, 3]), 0)
