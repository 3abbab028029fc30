from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refinery import hashing

GOLDEN = [0x8f63aa67416d1718, 0x81d706c3078b07a5, 0x5b81602bc13e575c, 0xb2fa5da8a12c63d9]
KEY = "8f67ae58b79f7db272d543fb004ed152"
WORDS = st.integers(0, 2**64 - 1)


def test_splitmix64_is_the_published_generator():
    """First outputs of the reference program for seed 1234567: state i + 1 is state i plus the golden gamma."""
    golden, state = 0x9E3779B97F4A7C15, 1234567
    made = [hashing.splitmix64_int((state + i * golden) % 2**64) for i in range(3)]
    assert made == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(WORDS)
def test_three_forms_of_splitmix64_agree(x):
    wanted = hashing.splitmix64_int(x)
    assert int(hashing.splitmix64(np.uint64(x))) == wanted
    assert hashing.splitmix64_array(np.array([x, x], dtype=np.uint64)).tolist() == [wanted, wanted]


@given(st.binary(max_size=40), st.binary(max_size=9), WORDS)
def test_hash_bytes_is_its_reference_at_any_offset(data, before, seed):
    array = np.frombuffer(before + data + b"tail", dtype=np.uint8)
    found = hashing.hash_bytes(array, len(before), len(before) + len(data), np.uint64(seed))
    assert int(found) == hashing.hash_bytes_int(data, seed)


def test_hash_bytes_values_are_part_of_formats():
    """Fingerprints of shingles are made of these: a change needs a new format version."""
    assert [hashing.hash_bytes_int(data, 1) for data in (b"", b"a", b"12345678", "第一条".encode())] == GOLDEN


def test_zero_bytes_and_length_count():
    made = {hashing.hash_bytes_int(b"\0" * n, 0) for n in range(40)}
    assert len(made) == 40


def test_no_collisions_among_many_short_keys():
    made = {hashing.hash_bytes_int(str(n).encode(), 5) for n in range(50_000)}
    assert len(made) == 50_000


@given(st.lists(WORDS, max_size=20), st.integers(0, 2**63 - 1), st.sampled_from(["split", "mix", "pack"]))
def test_a_draw_depends_on_its_row_alone(keys, seed, stage):
    array = np.array(keys, dtype=np.uint64)
    whole = hashing.keyed_uniform(seed, stage, array)
    pieces = [hashing.keyed_uniform(seed, stage, array[i : i + 1]) for i in range(len(keys))]
    assert whole.tolist() == [p[0] for p in pieces]
    assert all(0 < u < 1 for u in whole.tolist())


def test_extreme_draws_are_never_0_or_1():
    assert 0 < (0 + 0.5) * 2.0**-53
    assert ((2**53 - 1) + 0.5) * 2.0**-53 <= 1
    keys = np.arange(200_000, dtype=np.uint64)
    draws = hashing.keyed_uniform(0, "split", keys)
    assert draws.min() > 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / len(keys)) ** 0.5


def test_stages_and_seeds_draw_unrelated_numbers():
    keys = np.arange(20_000, dtype=np.uint64)
    draws = [hashing.keyed_uniform(seed, stage, keys) for seed, stage in ((1, "mix"), (1, "split"), (2, "mix"))]
    for i, left in enumerate(draws):
        for right in draws[i + 1 :]:
            assert abs(np.corrcoef(left, right)[0, 1]) < 4 / len(keys) ** 0.5


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_keys_of_different_tuples_differ(left, right):
    assert (hashing.hex_key(*left) == hashing.hex_key(*right)) == (left == right)


def test_hex_keys_are_32_digits_and_stable():
    assert hashing.hex_key("a", "b") != hashing.hex_key("ab")
    assert hashing.hex_key("source", 7) == hashing.hex_key("source", "7") == hashing.hex_key("source", b"7")
    assert hashing.hex_key("web", "1") == KEY


@given(st.lists(WORDS, max_size=20))
def test_key_prefix_is_the_first_64_bits(words):
    keys = [f"{w:016x}{0xABC:016x}" for w in words]
    found = hashing.key_prefix_uint64(keys)
    assert found.dtype == np.uint64
    assert found.tolist() == words


def test_sha256():
    assert hashing.sha256_hex(b"abc").startswith("ba7816bf8f01cfea")
