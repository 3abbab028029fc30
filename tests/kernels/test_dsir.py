from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, DataError, SchemaError
from refinery.kernels import dsir
from refinery.kernels.ngrams import bucket_counts, bucket_words, weight_sums
from refinery.kernels.text import views_of

LAW = [f"The court shall decide under article {k} of the civil code whether the contract is void." for k in range(40)]
WEB = [f"My cat number {k} likes pizza and we watched a funny film together last night lol." for k in range(400)]
ZH_LAW = [f"第{k}条 人民法院应当依照民法典的规定审理合同纠纷案件。" for k in range(40)]
ZH_WEB = [f"今天天气很好，我们第{k}次去公园玩，吃了好吃的火锅。" for k in range(400)]


def library_counts(text: str, num_buckets: int) -> np.ndarray:
    """Counts as data-selection 1.0.3 makes them: wordpunct tokens, word pairs joined by a blank, sha256."""
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    ngrams = tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    counts = np.zeros(num_buckets, dtype=np.int64)
    for ngram in ngrams:
        counts[int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % num_buckets] += 1
    return counts


@pytest.mark.parametrize("pseudo_count", [0.0, 1.0])
def test_the_weight_arithmetic_equals_the_librarys(pseudo_count):
    size = 1000
    target = np.sum([library_counts(text, size) for text in LAW], axis=0)
    raw = np.sum([library_counts(text, size) for text in WEB + LAW], axis=0)
    # the library: probabilities, then 1e-8 inside the logarithm, then a dot product with the document's counts
    p_target = (target + pseudo_count) / (target + pseudo_count).sum()
    p_raw = raw / raw.sum()
    log_diff = np.log(p_target + 1e-8) - np.log(p_raw + 1e-8)
    table = dsir.fit_log_ratio(target, raw, pseudo_count)
    for text in (LAW[3], WEB[5], "article pizza"):
        counts = library_counts(text, size)
        np.testing.assert_allclose(counts @ table, counts @ log_diff, rtol=1e-6)


@pytest.mark.parametrize(("target", "pool"), [(LAW, WEB), (ZH_LAW, ZH_WEB)])
def test_hidden_target_documents_come_first(target, pool):
    shown, hidden = target[:30], target[30:]
    everything = views_of(pool + hidden)
    target_counts, raw_counts = bucket_counts(views_of(shown)), bucket_counts(everything)
    weights = dsir.log_importance(everything, dsir.fit_log_ratio(target_counts, raw_counts, 1.0))
    hashes = np.arange(everything.num_docs, dtype=np.uint64)
    order = dsir.pick_order(dsir.gumbel_keys(weights, 1, hashes), hashes)
    assert set(order[: len(hidden)].tolist()) == set(range(len(pool), len(pool) + len(hidden)))
    picked = views_of([everything.doc(int(index)) for index in order[: len(hidden)]])
    assert dsir.kl_reduction(target_counts, raw_counts, bucket_counts(picked)) > 1.0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.integers(0, 2**63), st.integers(0, 40))
def test_keys_depend_on_their_row_alone_so_picks_are_nested(weights, seed, cut):
    log_weights = np.array(weights)
    hashes = np.arange(len(weights), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = dsir.gumbel_keys(log_weights, seed, hashes)
    parts = [dsir.gumbel_keys(log_weights[s], seed, hashes[s]) for s in (slice(0, cut), slice(cut, None))]
    assert keys.tolist() == np.concatenate(parts).tolist()
    order = dsir.pick_order(keys, hashes)
    assert sorted(order.tolist()) == list(range(len(weights)))
    assert (np.diff(keys[order]) <= 0).all()


def test_equal_keys_go_by_document_key():
    assert dsir.pick_order(np.zeros(4), np.array([7, 3, 9, 1], dtype=np.uint64)).tolist() == [3, 1, 0, 2]


def test_chunk_weights_scale_long_documents_only():
    table = np.linspace(-1, 1, 100)
    text = "the court of law decides "
    sums = weight_sums(views_of([text * 2, text * 4, text * 400, ""]), table)
    scaled = dsir.chunk_weights(sums, 20)
    assert scaled[:2].tolist() == sums.sums[:2].tolist()
    assert scaled[2] == pytest.approx(sums.sums[2] / 100)
    assert scaled[2] == pytest.approx(sums.sums[1], rel=0.1)
    assert scaled[3] == 0.0
    with pytest.raises(ConfigError, match="chunk_words"):
        dsir.chunk_weights(sums, 0)


@given(st.lists(st.text("aé law中文.", max_size=60), max_size=8), st.integers(1, 500))
def test_mean_weights_are_the_mean_of_each_n_gram_times_a_stretch(texts, words):
    table = np.sin(np.arange(50.0))
    views = views_of(texts)
    means = dsir.mean_weights(weight_sums(views, table), words)
    for index in range(views.num_docs):
        counts = bucket_counts(views_of([views.doc(index)]), len(table))
        wanted = counts @ table / counts.sum() * (2 * words - 1) if counts.sum() else 0.0
        assert means[index] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_mean_weights_know_no_length_and_order_by_the_mean_for_any_stretch():
    table = np.linspace(-1, 1, 100)
    text = "the court of law decides "
    sums = weight_sums(views_of([text * 40, text * 4000, "my cat likes pizza", ""]), table)
    means = dsir.mean_weights(sums, 20)
    assert means[0] == pytest.approx(means[1], rel=0.02)
    assert abs(sums.sums[1] / sums.sums[0]) > 90
    assert means[3] == 0.0
    np.testing.assert_allclose(dsir.mean_weights(sums, 128), means * 255 / 39)
    with pytest.raises(ConfigError, match="chunk_words"):
        dsir.mean_weights(sums, 0)


def test_noise_below_the_rounding_step_changes_nothing():
    weights = np.array([1.23456, -7.0, 0.0])
    hashes = np.array([1, 2, 3], dtype=np.uint64)
    assert dsir.round_weights(weights).tolist() == pytest.approx([1.2346, -7.0, 0.0])
    assert (dsir.gumbel_keys(weights, 1, hashes) == dsir.gumbel_keys(weights + 1e-9, 1, hashes)).all()


def test_the_noise_is_gumbel():
    noise = dsir.gumbel_keys(np.zeros(200_000), 3, np.arange(200_000, dtype=np.uint64))
    assert abs(noise.mean() - np.euler_gamma) < 4 * np.pi / np.sqrt(6 * 200_000)
    assert abs(noise.var() - np.pi**2 / 6) < 0.05


def test_top_one_is_picked_in_proportion_to_its_weight():
    weights = np.log([0.5, 0.3, 0.2])
    wins = np.zeros(3)
    for seed in range(3000):
        wins[np.argmax(dsir.gumbel_keys(weights, seed, np.array([1, 2, 3], dtype=np.uint64)))] += 1
    assert np.abs(wins / 3000 - [0.5, 0.3, 0.2]).max() < 4 * np.sqrt(0.25 / 3000)


def test_temperature_zero_ranks_by_weight():
    assert dsir.gumbel_keys(np.array([1.0, 2.0]), 1, np.array([1, 2], dtype=np.uint64), 0.0).tolist() == [1.0, 2.0]


def test_diagnostics_of_even_and_extreme_weights():
    even = dsir.diagnose(np.full(200, 3.0))
    assert even.effective_sample_size == pytest.approx(200)
    assert even.top_percent_weight_frac == pytest.approx(0.01)
    assert "uniform sample" in even.warnings[0]
    extreme = dsir.diagnose(np.concatenate([np.linspace(-5000, -4000, 199), [9000.0]]))
    assert extreme.effective_sample_size == pytest.approx(1.0)
    assert extreme.top_percent_weight_frac == pytest.approx(1.0)
    assert extreme.log_weight_quantiles[1.0] == 9000.0
    assert "collapse" in extreme.warnings[0]


def test_a_small_target_is_called_out():
    assert "fewer than 10" in dsir.diagnose(np.array([0.0, 1.0]), num_target_ngrams=50, num_buckets=10_000).warnings[0]
    assert dsir.diagnose(np.array([0.0, 1.0]), num_target_ngrams=10**6, num_buckets=10_000).warnings == []


def test_strong_buckets_have_names_from_the_target():
    target, raw = views_of(LAW), views_of(WEB)
    counts = bucket_counts(target), bucket_counts(raw)
    strong = dsir.strongest_buckets(*counts, num=15)
    assert (np.diff(strong.pulls) <= 0).all()
    names = {
        ngram for rows in bucket_words(target, strong.buckets[strong.log_ratios > 0]).values() for ngram, _ in rows
    }
    assert {"court", "civil code"} & names
    every = dsir.strongest_buckets(*counts, num=10_000)
    assert every.pulls.sum() >= 0


def test_kl_reduction_is_zero_for_the_pool_itself_and_positive_for_the_target():
    target, raw = bucket_counts(views_of(LAW)), bucket_counts(views_of(WEB + LAW))
    assert dsir.kl_reduction(target, raw, raw) == 0.0
    assert dsir.kl_reduction(target, raw, target) > 1.0


def test_bad_input_has_a_clear_error():
    some, none = bucket_counts(views_of(["a b"])), bucket_counts(views_of([""]))
    with pytest.raises(DataError, match="target holds 0 words"):
        dsir.fit_log_ratio(none, some)
    with pytest.raises(DataError, match="raw pool holds 0 words"):
        dsir.fit_log_ratio(some, none)
    with pytest.raises(SchemaError, match="num_buckets"):
        dsir.fit_log_ratio(some, some[:10])
    with pytest.raises(ConfigError, match="pseudo"):
        dsir.fit_log_ratio(some, some, -1.0)
    with pytest.raises(DataError, match="not finite"):
        dsir.gumbel_keys(np.array([np.nan]), 1, np.array([1], dtype=np.uint64))
    with pytest.raises(SchemaError, match="text hashes"):
        dsir.gumbel_keys(np.array([1.0]), 1, np.array([1, 2], dtype=np.uint64))
    with pytest.raises(ConfigError, match="temperature"):
        dsir.gumbel_keys(np.array([1.0]), 1, np.array([1], dtype=np.uint64), -1.0)
    with pytest.raises(DataError, match="pool is empty"):
        dsir.diagnose(np.array([]))
    with pytest.raises(DataError, match="selected"):
        dsir.kl_reduction(some, some, none)
