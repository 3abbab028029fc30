from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinery.kernels.bpe_encode import encode_documents, new_state
from refinery.kernels.bpe_join import (
    FROM_BYTES,
    SHORT,
    JoinTables,
    inner_bytes,
    join_long,
    join_pretoken,
    join_short,
    pair_table,
    token_table,
)
from refinery.kernels.char_starts import char_starts
from refinery.kernels.text import TextViews, views_of
from refinery.tokenization.char_classes import char_classes

Merge = tuple[int, int, int]
_CHARS = "的一是不了人我在有他αβéž한ㄱ。，"


def reference(symbols: list[int], merges: list[Merge]) -> list[int]:
    """Join the pair of lowest rank, leftmost first, until none is left: the definition, with no cleverness."""
    rank = {(left, right): (place, new) for place, (left, right, new) in enumerate(merges)}
    symbols = list(symbols)
    while True:
        found = [(rank[pair][0], at) for at, pair in enumerate(pairwise(symbols)) if pair in rank]
        if not found:
            return symbols
        _, at = min(found)
        symbols[at : at + 2] = [rank[symbols[at], symbols[at + 1]][1]]


def random_merges(seed: int, text: bytes, count: int, shuffled: bool) -> tuple[list[Merge], list[bytes]]:
    """Return merges of pairs that meet in `text` at random, crossing characters or not, and every token's bytes."""
    draw = random.Random(seed)
    spelt = [bytes([byte]) for byte in range(256)]
    known = {name: index for index, name in enumerate(spelt)}
    merges: list[Merge] = []
    pairs: set[tuple[int, int]] = set()
    for _ in range(count):
        at = draw.randrange(len(text) - 1)
        pieces = sorted((name for name in known if text.startswith(name, at)), key=len)
        left = draw.choice(pieces[-3:])
        followers = [name for name in known if text.startswith(name, at + len(left))]
        right = draw.choice(followers) if followers else b""
        if not right or len(left) + len(right) > 14 or (known[left], known[right]) in pairs:
            continue
        new = known.setdefault(left + right, len(spelt))
        if new == len(spelt):
            spelt.append(left + right)
        pairs.add((known[left], known[right]))
        merges.append((known[left], known[right], new))
    if shuffled:
        draw.shuffle(merges)
    return merges, spelt


def tables_of(merges: list[Merge], spelt: list[bytes], *, whole: bool = False) -> JoinTables:
    found = np.array(merges, dtype=np.int32).reshape(-1, 3)
    left, right, ids = (np.ascontiguousarray(found[:, column]) for column in range(3))
    starts = np.concatenate([[0], np.cumsum([len(name) for name in spelt])]).astype(np.int64)
    token_bytes = np.frombuffer(b"".join(spelt), dtype=np.uint8)
    pairs, byte_ids = pair_table(left, right, ids), np.arange(256, dtype=np.int32)
    chars = char_starts(left, right, ids, pairs, byte_ids, starts, token_bytes)
    slots = token_table(starts, token_bytes)
    inner = inner_bytes(starts, token_bytes)
    return JoinTables(char_classes(), 3, byte_ids, pairs, chars, whole, starts, token_bytes, slots, inner)


def joined(text: bytes, tables: JoinTables) -> list[int]:
    data = np.frombuffer(text, dtype=np.uint8)
    symbols, values = np.empty(len(data) + 1, np.int32), np.empty(SHORT + 1, np.uint64)
    return symbols[: join_pretoken(data, 0, len(data), tables, symbols, values)].tolist()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    text=st.text(_CHARS + "ab ", min_size=8, max_size=60),
    count=st.integers(1, 120),
    shuffled=st.booleans(),
    asked=st.text(_CHARS + "ab ", min_size=1, max_size=12),
)
def test_a_pretoken_is_joined_as_by_definition(seed: int, text: str, count: int, shuffled: bool, asked: str) -> None:
    merges, spelt = random_merges(seed, text.encode(), count, shuffled)
    tables = tables_of(merges, spelt)
    for piece in (asked, text[:12], text[3:15], text + asked * 9 + text):  # the last is cut where no token spans
        assert joined(piece.encode(), tables) == reference(list(piece.encode()), merges)


def test_characters_start_whole_only_where_nothing_crosses_them() -> None:
    # 中 = e4 b8 ad: first two bytes, then the third; 国 = e5 9b bd likewise. Ids from 256.
    inside = [(0xE4, 0xB8, 256), (256, 0xAD, 257), (0xE5, 0x9B, 258), (258, 0xBD, 259)]
    spelt = [bytes([byte]) for byte in range(256)]
    spelt += [b"\xe4\xb8", "中".encode(), b"\xe5\x9b", "国".encode()]
    safe = tables_of([*inside, (257, 259, 260)], [*spelt, "中国".encode()]).char_ids
    assert (safe[ord("中")], safe[ord("国")]) == (257, 259)
    # A crossing merge of higher rank than the last byte's own is harmless, one of lower rank is not.
    crossing = [*spelt, b"\xad\xe5\x9b"]
    late = tables_of([*inside, (0xAD, 258, 260)], crossing).char_ids
    assert (late[ord("中")], late[ord("国")]) == (257, 259)
    early = tables_of([inside[0], inside[2], (0xAD, 258, 260), inside[1], inside[3]], crossing).char_ids
    assert (early[ord("中")], early[ord("国")]) == (FROM_BYTES, FROM_BYTES)
    # Whole characters that join before one of them could be complete: possible only in a file made by hand.
    odd = tables_of([(257, 259, 260), *inside], [*spelt, "中国".encode()]).char_ids
    assert (odd[ord("中")], odd[ord("国")]) == (FROM_BYTES, FROM_BYTES)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), symbols=st.lists(st.sampled_from(b"aab"), min_size=1, max_size=400))
def test_the_heap_joins_as_the_scans_and_the_definition_do(seed: int, symbols: list[int]) -> None:
    merges, _ = random_merges(seed, b"aabab" * 40, 60, shuffled=bool(seed % 2))
    found = np.array(merges, dtype=np.int32).reshape(-1, 3)
    pairs = pair_table(*(np.ascontiguousarray(found[:, column]) for column in range(3)))
    expected = reference(symbols, merges)
    by_heap = np.array(symbols, dtype=np.int32)
    assert by_heap[: join_long(by_heap, 0, len(symbols), pairs)].tolist() == expected
    by_scan = np.array(symbols[:SHORT], dtype=np.int32)
    count = join_short(by_scan, 0, len(by_scan), np.empty(SHORT + 1, np.uint64), pairs)
    assert by_scan[:count].tolist() == reference(symbols[:SHORT], merges)


def test_the_later_rank_of_a_pair_listed_twice_counts_and_tokens_can_be_taken_whole() -> None:
    merges = [(97, 98, 256), (98, 99, 257), (97, 98, 256)]
    spelt = [*(bytes([byte]) for byte in range(256)), b"ab", b"bc", b"abc"]
    assert joined(b"abc", tables_of(merges, spelt)) == [97, 257]
    assert joined(b"abc", tables_of(merges, spelt, whole=True)) == [258]
    assert joined(b"abca", tables_of(merges, spelt, whole=True)) == [97, 257, 97]


_TEXTS = st.lists(
    st.text(st.one_of(st.sampled_from(_CHARS + "abcz '1\n\t-=\x00"), st.characters(codec="utf-8")), max_size=80),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(texts=_TEXTS, vocab_size=st.sampled_from([400, 70_000]), eos_id=st.sampled_from([-1, 7]))
def test_the_cache_changes_no_id(texts: list[str], vocab_size: int, eos_id: int) -> None:
    merges, spelt = random_merges(5, ("".join(texts) + _CHARS * 3 + "abc cab'abc  ").encode(), 150, shuffled=False)
    tables = tables_of(merges, spelt)
    views = views_of(texts)
    found = []
    for num_sets in (2, 4, 256):  # four lines for everything: each pretoken throws another out
        state = new_state(num_sets, vocab_size)
        for dtype in (np.uint16, np.int32, np.uint16):
            out = np.empty(len(views.data) + len(views.offsets) + 1, dtype=dtype)
            bounds = encode_documents(views.offsets, views.data, tables, state, eos_id, out)
            found.append((bounds.tolist(), out[: bounds[-1]].tolist()))
    assert all(other == found[0] for other in found)
    assert found[0][0][0] == 0
    assert sum(eos_id == index for index in found[0][1]) >= (len(texts) if eos_id >= 0 else 0)


def test_nothing_after_the_text_is_read() -> None:
    # The same document at the end of its buffer and followed by what would change it.
    merges, spelt = random_merges(1, b"abcabc cab" * 5, 40, shuffled=False)
    tables = tables_of(merges, spelt)
    for size in range(1, 40):
        text = (b"abc cabab" * 9)[:size]
        alone, followed = (np.frombuffer(text + more, dtype=np.uint8) for more in (b"", b"abcabcabcabcabc"))
        ids = []
        for data in (alone, followed):
            views = TextViews(np.array([0, size]), data)
            out = np.empty(size + 2, dtype=np.uint16)
            bounds = encode_documents(views.offsets, views.data, tables, new_state(4, 400), -1, out)
            ids.append(out[: bounds[-1]].tolist())
        assert ids[0] == ids[1]


def test_a_bounded_cache_stays_what_it_is() -> None:
    state = new_state(2, 400)
    size = state.lines.nbytes
    merges, spelt = random_merges(3, b"the quick brown fox" * 9, 60, shuffled=False)
    tables = tables_of(merges, spelt)
    text = " ".join(str(number) + chr(97 + number % 26) * (number % 40) for number in range(500))
    views = views_of([text] * 3)
    out = np.empty(len(views.data) * 2, dtype=np.uint16)
    bounds = encode_documents(views.offsets, views.data, tables, state, -1, out)
    parts = [out[a:b].tolist() for a, b in pairwise(bounds)]
    assert parts[0] == parts[1] == parts[2]
    assert state.lines.nbytes == size
    assert state.lines.ctypes.data % 64 == 0
    with pytest.raises(IndexError):
        state.lines[size]
    assert state.totals[0] > state.totals[1] > state.totals[2] > 0
