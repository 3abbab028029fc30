from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, DataError
from refinery.kernels.sentence_guard import DUTY, NAMES, NEGATION, NUMBERS, veto, veto_pairs
from refinery.kernels.similarity import keep_sentences, pair_similarity, similar_pairs


def _vectors(count: int, seed: int = 0, features: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(max(1, count // 3), features))
    rows = base[rng.integers(0, len(base), count)] + 0.15 * rng.normal(size=(count, features))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _brute(vectors: np.ndarray, cells: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    cells = cells[:, None] if cells.ndim == 1 else cells
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return [
        (i, j)
        for i in range(len(vectors))
        for j in range(i + 1, len(vectors))
        if exact[i, j] >= threshold and (cells[i, 0] in cells[j] or cells[j, 0] in cells[i])
    ]


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 2), st.integers(1, 70), st.floats(0.3, 0.99))
def test_pairs_are_those_of_brute_force(count: int, num_cells: int, probe: int, block: int, threshold: float) -> None:
    vectors = _vectors(count, seed=count)
    rng = np.random.default_rng(count)
    cells = rng.integers(0, num_cells, (count, probe)).astype(np.int32)
    found = similar_pairs(vectors, cells, threshold, block_rows=block)
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == _brute(vectors, cells, threshold)
    np.testing.assert_array_equal(found.similarity, pair_similarity(vectors, found.left, found.right))


def test_the_order_of_vectors_does_not_matter() -> None:
    vectors = _vectors(80)
    cells = np.arange(80) % 3
    order = np.random.default_rng(1).permutation(80)
    expected = similar_pairs(vectors, cells, 0.8)
    found = similar_pairs(vectors[order], cells[order], 0.8)
    pairs = {tuple(sorted((int(order[a]), int(order[b])))) for a, b in zip(found.left, found.right, strict=True)}
    assert pairs == set(zip(expected.left.tolist(), expected.right.tolist(), strict=True))
    assert len(pairs) > 10


def test_keep_rule_cuts_only_over_a_pair_with_a_kept_sentence() -> None:
    vectors = _vectors(60)
    pairs = similar_pairs(vectors, np.zeros(60, dtype=np.int32), 0.85)
    rank = np.random.default_rng(2).permutation(60)
    kept = keep_sentences(rank, pairs)
    cut = np.flatnonzero(~kept.keep)
    assert len(cut) > 5
    assert kept.keep[kept.because_of[cut]].all()
    assert (pair_similarity(vectors, cut, kept.because_of[cut]) >= 0.85).all()
    assert keep_sentences(rank, pairs, np.ones(len(pairs.left), dtype=bool)).keep.all()


def test_bad_input_is_refused() -> None:
    vectors = _vectors(4)
    with pytest.raises(ConfigError, match="threshold"):
        similar_pairs(vectors, np.zeros(4), 1.5)
    with pytest.raises(ConfigError, match="cells for"):
        similar_pairs(vectors, np.zeros(3), 0.9)
    with pytest.raises(ConfigError, match="float32"):
        similar_pairs(vectors.astype(np.float64), np.zeros(4), 0.9)
    with pytest.raises(ConfigError, match="block_rows"):
        similar_pairs(vectors, np.zeros(4), 0.9, block_rows=0)
    for bad in (np.nan, 0.0, 3.0):
        broken = vectors.copy()
        broken[2] = bad
        with pytest.raises(DataError, match="vector 2"):
            similar_pairs(broken, np.zeros(4), 0.9)


@pytest.mark.parametrize(
    ("left", "right", "bits"),
    [
        ("Article 12 applies to banks.", "Article 13 applies to banks.", NUMBERS),
        ("The rate is 3.5% per year.", "The rate is 3.6% per year.", NUMBERS),
        ("They met twice.", "They met two times.", NUMBERS),
        ("第十二条 银行适用。", "第十三条 银行适用。", NUMBERS),
        ("The drug is safe in children.", "The drug is not safe in children.", NEGATION),
        ("It doesn't apply here.", "It does apply here.", NEGATION),
        ("他可以参加。", "他不可以参加。", NEGATION),
        ("Das ist erlaubt worden.", "Das ist nicht erlaubt worden.", NEGATION),
        ("Il est interdit de fumer.", "Il n'est pas interdit de fumer.", NEGATION),
        ("Это разрешено законом.", "Это не разрешено законом.", NEGATION),
        ("The seller must pay.", "The seller may pay.", DUTY),
        ("经营者应当报告。", "经营者可以报告。", DUTY),
        ("He lives in Paris now.", "He lives in London now.", NAMES),
        ("Paris is a large city.", "London is a large city.", NAMES),
        ("根据《公司法》处理。", "根据《合同法》处理。", NAMES),
    ],
)
def test_guard_vetoes_pairs_that_mean_something_else(left: str, right: str, bits: int) -> None:
    assert veto(left, right) & bits
    assert veto(left, right) == veto(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("The cat sat on the mat.", "the cat sat on a mat"),
        ("Click here to read more about cookies.", "Click here to read more about our cookies!"),
        ("Researchers found the cause of the disease.", "Scientists have discovered what caused the disease."),
        ("点击这里查看更多内容。", "请点击这里查看更多内容！"),
        ("", ""),
    ],
)
def test_guard_lets_small_edits_pass(left: str, right: str) -> None:
    assert veto(left, right) == 0


def test_guard_of_many_pairs() -> None:
    found = veto_pairs(["a 1", "a"], ["a 2", "a"])
    assert found.dtype == np.uint8
    assert found.tolist() == [NUMBERS, 0]
