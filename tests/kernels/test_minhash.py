from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels import lsh, minhash, shingles
from refinery.kernels.lsh import band_keys
from refinery.kernels.minhash import MinHashConfig, estimate_jaccard, hash_family, signatures, signatures_of_text
from refinery.kernels.shingles import shingle_hashes, words_hash
from refinery.kernels.text import views_of
from tests.kernels.reference_minhash import family, shingles_of, signature_of

GOLDEN = Path(__file__).parent.parent / "golden" / "minhash_signatures.json"
texts_of = st.lists(
    st.text(alphabet=st.sampled_from("ab cde fg中文法律я😀\r\n\0,."), max_size=120), min_size=0, max_size=6
)
configs = st.builds(
    MinHashConfig,
    num_hashes=st.sampled_from([1, 8, 24]),
    shingle_size=st.integers(1, 5),
    unit=st.sampled_from(["words", "chars"]),
    seed=st.integers(0, 3),
)


@given(texts_of, configs)
def test_signatures_equal_the_plain_python_form(texts, config):
    result = signatures_of_text(views_of(texts), config)
    expected = [shingles_of(text, config.shingle_size, config.unit) for text in texts]
    assert result.num_shingles.tolist() == [len(s) for s in expected]
    assert result.values.tolist() == [signature_of(s, config.num_hashes, config.seed) for s in expected]


@given(texts_of, configs)
def test_text_path_equals_shingle_path(texts, config):
    views = views_of(texts)
    offsets, hashes = shingle_hashes(views, config.shingle_size, config.unit)
    from_shingles = signatures(offsets, hashes, config.num_hashes, config.seed)
    assert np.array_equal(signatures_of_text(views, config).values, from_shingles)


def test_long_documents_equal_the_plain_python_form():
    text = " ".join(f"word{i * i % 5003}" for i in range(9000)) + "法律" * 1500
    views = views_of(["", text, "tail of a few more words"])
    config = MinHashConfig(num_hashes=6)
    result = signatures_of_text(views, config)
    assert result.values[1].tolist() == signature_of(shingles_of(text, 5, "words"), 6, 1)
    offsets, hashes = shingle_hashes(views)
    assert np.array_equal(result.values, signatures(offsets, hashes, 6, 1))


@given(st.permutations(range(5)))
def test_a_row_depends_on_its_document_alone(order):
    texts = ["a b c d e f", "", "民法典第一条为了保护", "x y z", "long " * 50]
    whole = signatures_of_text(views_of(texts), MinHashConfig(num_hashes=16)).values
    permuted = signatures_of_text(views_of([texts[i] for i in order]), MinHashConfig(num_hashes=16)).values
    assert np.array_equal(permuted, whole[list(order)])


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70), st.randoms(use_true_random=False))
def test_order_and_repeats_of_shingles_do_not_matter(values, random):
    mixed = values + random.choices(values, k=10)
    random.shuffle(mixed)
    both = np.array(values + mixed, dtype=np.uint32)
    result = signatures(np.array([0, len(values), len(both)]), both, 12, 7)
    assert np.array_equal(result[0], result[1])


def test_documents_without_shingles_are_marked():
    result = signatures_of_text(views_of(["", "two words", "...", "a b c d e"]), MinHashConfig(num_hashes=4))
    assert result.num_shingles.tolist() == [0, 0, 0, 1]
    assert (result.values[:3] == minhash.EMPTY).all()
    assert (result.values[3] != minhash.EMPTY).all()


def test_shorter_signatures_are_prefixes_of_longer_ones():
    views = views_of(["one two three four five six seven"])
    longer = signatures_of_text(views, MinHashConfig(num_hashes=256)).values
    assert np.array_equal(signatures_of_text(views, MinHashConfig(num_hashes=112)).values, longer[:, :112])


def test_family_is_odd_multipliers_from_the_seed():
    rows = hash_family(64, 5)
    assert list(zip(rows[0].tolist(), rows[1].tolist(), strict=True)) == family(64, 5)
    assert (rows[0] % 2 == 1).all()
    assert not np.array_equal(rows, hash_family(64, 6))


@pytest.mark.parametrize("jaccard", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["random", "consecutive"])
def test_estimate_is_within_four_sigma_of_the_exact_jaccard(jaccard, kind):
    num_pairs, num_hashes, union = 200, 256, 1000
    common = round(jaccard * union)
    rng = np.random.default_rng(20261121)
    blocks, bounds = [], [0]
    for pair in range(num_pairs):
        if kind == "random":
            values = np.unique(rng.integers(0, 2**32, union + 10, dtype=np.uint64))
            values = rng.permutation(values)[:union].astype(np.uint32)
        else:  # the hard case of a linear family: an arithmetic progression
            values = rng.permutation(np.arange(pair * 5000, pair * 5000 + union, dtype=np.uint32))
        half = common + (union - common) // 2
        for block in (values[:half], np.concatenate([values[:common], values[half:]])):
            blocks.append(block)
            bounds.append(bounds[-1] + len(block))
    result = signatures(np.array(bounds), np.concatenate(blocks), num_hashes, 11)
    exact = common / union
    estimates = estimate_jaccard(result[0::2], result[1::2])
    sigma = np.sqrt(exact * (1 - exact) / num_hashes)
    assert np.abs(estimates - exact).max() < 4 * sigma + 1 / num_hashes  # the worst of 200 pairs; one step for skew
    assert abs(estimates.mean() - exact) < 4 * sigma / np.sqrt(num_pairs)
    assert 0.7 < estimates.std() / sigma < 1.3  # the hashes of one signature are as good as independent
    per_hash = (result[0::2] == result[1::2]).mean(axis=0)
    assert np.abs(per_hash - exact).max() < 4 * np.sqrt(exact * (1 - exact) / num_pairs)


def test_estimate_on_text_follows_the_exact_jaccard():
    rng = np.random.default_rng(3)
    vocabulary = [f"w{i}" for i in range(3000)]
    texts = []
    for _ in range(60):
        words = rng.choice(vocabulary, 400).tolist()
        edited = list(words)
        for place in rng.choice(400, int(rng.integers(1, 20)), replace=False):
            edited[place] = "edited"
        texts += [" ".join(words), " ".join(edited)]
    result = signatures_of_text(views_of(texts), MinHashConfig(num_hashes=256)).values
    for pair in range(60):
        left, right = (set(shingles_of(texts[2 * pair + side], 5, "words")) for side in (0, 1))
        exact = len(left & right) / len(left | right)
        estimate = float(np.mean(result[2 * pair] == result[2 * pair + 1]))
        assert abs(estimate - exact) < 4 * np.sqrt(exact * (1 - exact) / 256)


def golden_of(texts: list[str]) -> dict:
    views = views_of(texts)
    result = signatures_of_text(views, MinHashConfig(num_hashes=16))
    chars = signatures_of_text(views, MinHashConfig(num_hashes=4, shingle_size=13, unit="chars", seed=2))
    return {
        "format_versions": {
            "shingles": shingles.FORMAT_VERSION,
            "minhash": minhash.FORMAT_VERSION,
            "lsh": lsh.FORMAT_VERSION,
        },
        "texts": texts,
        "num_shingles": result.num_shingles.tolist(),
        "signatures_words_5": result.values.tolist(),
        "signatures_chars_13": chars.values.tolist(),
        "band_keys_4": [[f"{key:016x}" for key in row] for row in band_keys(result.values, 4).tolist()],
        "words_hash": [[f"{half:016x}" for half in row] for row in words_hash(views).hashes.tolist()],
    }


def test_stored_signatures_have_not_changed():
    """A difference here makes every stored index useless: raise FORMAT_VERSION, then rewrite the file."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden_of(golden["texts"]) == golden


@pytest.mark.parametrize("num_hashes", [0, 65537])
def test_wrong_numbers_of_hashes_are_refused(num_hashes):
    with pytest.raises(ConfigError):
        MinHashConfig(num_hashes=num_hashes)
    with pytest.raises(ConfigError):
        signatures(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint32), num_hashes, 1)
