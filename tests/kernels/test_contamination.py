from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels import contamination
from refinery.kernels.contamination import Matches, build_index, index_size, unit_table, word_positions
from refinery.kernels.contamination_hits import HitBounds, document_frequencies, find_hits
from refinery.kernels.contamination_scan import documents_to_scan, find_matches
from refinery.kernels.text import views_of
from refinery.kernels.word_scan import BLOCK_WORDS
from tests.kernels.reference_minhash import word_hash, words_of

ALPHABET = "aBßИ中の٣① \n\0.,。_-😀\ufe0f\u0301\u200d"
texts = st.lists(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=40))
few_words = st.lists(st.sampled_from(["a", "b", "中", "d"]), max_size=14).map(" ".join)
SIZE, FLOOR = 4, 2
NOTHING = np.empty(0, dtype=np.int64)


def index_of(items, unit="words", size=SIZE, floor=FLOOR):
    return build_index(views_of(items), np.arange(len(items)), unit, size, floor)


def reference_matches(docs, items, size=SIZE, floor=FLOOR):
    """Return {(document, first word, words)} by comparing lists of words."""
    grams = set()
    for item in items:
        words = words_of(item, "words")
        grams |= {tuple(words[k : k + size]) for k in range(len(words) - size + 1)}
        if floor <= len(words) < size:
            grams.add(tuple(words))
    found = set()
    for d, doc in enumerate(docs):
        words = words_of(doc, "words")
        for k, length in itertools.product(range(len(words)), range(floor, size + 1)):
            if k + length <= len(words) and tuple(words[k : k + length]) in grams:
                found.add((d, k, length))
    return found


def found_in(matches: Matches, index):
    return set(zip(matches.docs.tolist(), matches.words.tolist(), index.lengths[matches.ngrams].tolist(), strict=True))


@given(texts)
def test_words_are_those_of_the_shingles_and_stand_where_they_say(docs):
    words = word_positions(views_of(docs), "words")
    for i, doc in enumerate(docs):
        mine = slice(words.offsets[i], words.offsets[i + 1])
        plain = words_of(doc, "words")
        assert words.hashes[mine].tolist() == [word_hash(w) for w in plain]
        raw = doc.encode()
        spans = zip(words.starts[mine].tolist(), words.ends[mine].tolist(), strict=True)
        assert [words_of(raw[a:z].decode(), "words") for a, z in spans] == [[w] for w in plain]


@given(st.lists(few_words, max_size=5), st.lists(few_words, max_size=5))
def test_matches_equal_comparing_words(docs, items):
    index = index_of(items)
    assert found_in(find_matches(views_of(docs), index), index) == reference_matches(docs, items)


@given(st.lists(few_words, max_size=6), st.lists(few_words, min_size=1, max_size=5), st.integers(0, 6))
def test_a_batch_gives_what_its_slices_give(docs, items, cut):
    index = index_of(items)
    whole = find_matches(views_of(docs), index)
    first, second = find_matches(views_of(docs[:cut]), index), find_matches(views_of(docs[cut:]), index)
    moved = second._replace(docs=second.docs + len(docs[:cut]))
    for a, b, c in zip(whole, first, moved, strict=True):
        assert a.tolist() == [*b.tolist(), *c.tolist()]


@pytest.mark.parametrize("at", [0, BLOCK_WORDS - 14, BLOCK_WORDS - 5, BLOCK_WORDS, 3 * BLOCK_WORDS - 1])
@pytest.mark.parametrize("length", [9, 13, 20])
def test_blocks_of_the_scan_leave_no_seam(at, length):
    item = " ".join(f"item{k}" for k in range(length))
    doc = " ".join(f"w{k}" for k in range(at)) + f" {item} " + " ".join(f"v{k}" for k in range(BLOCK_WORDS))
    index = index_of([item], size=13, floor=8)
    assert documents_to_scan(views_of(["x", doc]), index).tolist() == [False, True]
    matches = find_matches(views_of(["x", doc]), index)
    assert len(matches.docs) == max(1, length - 12)
    assert doc.encode()[matches.starts[0] : matches.ends[-1]].decode() == item


def test_code_keeps_symbols_and_names():
    items = ["for i in range(len(my_list)): total += my_list[i]"]
    index = index_of(items, "code", 13)
    same = "x\n  for i in range( len(my_list) ) :\n\ttotal += my_list[i]\n"
    other = "for i in range len my_list total my_list i"
    matches = find_matches(views_of([same, other]), index)
    assert set(matches.docs.tolist()) == {0}
    assert unit_table("code")[ord("_")] == unit_table("words")[ord("_")] + (1 << 24)


def hits_of(docs, items, common=NOTHING, frac=0.5, run=100, size=SIZE):
    index = index_of(items, size=size)
    matches = find_matches(views_of(docs), index)
    words = np.diff(word_positions(views_of(items), "words").offsets)
    return find_hits(matches, index, words, common, HitBounds(frac, run)), index, matches


def test_a_hit_names_spans_and_shares():
    (hits, missed), _, _ = hits_of(["x y A b, c d e f. z"], ["a b c d e f g h"])
    assert missed == 0
    assert (hits.docs.tolist(), hits.items.tolist(), hits.num_ngrams.tolist()) == ([0], [0], [3])
    assert (hits.doc_starts.tolist(), hits.doc_ends.tolist()) == ([4], [16])
    assert (hits.item_first_words.tolist(), hits.item_last_words.tolist()) == ([0], [5])
    assert hits.item_covered_fracs.tolist() == [6 / 8]
    assert hits.doc_covered_fracs.tolist() == [6 / 9]
    assert hits.longest_runs.tolist() == [3]


def test_golden_chinese():
    item = "自二〇二一年一月一日起施行。"
    (hits, _), _, _ = hits_of([f"本法，{item}完"], [item], size=13)
    assert hits.item_covered_fracs.tolist() == [1.0]
    assert (hits.doc_starts[0], hits.doc_ends[0]) == (9, 9 + 13 * 3)


def test_an_edited_item_is_one_stretch_and_a_far_copy_another():
    item = " ".join(f"i{k}" for k in range(20))
    edited = item.replace("i9", "changed")
    far = " ".join(f"far{k}" for k in range(30))
    (hits, _), _, _ = hits_of([f"{edited} {far} {item}"], [item])
    assert len(hits.docs) == 2
    assert hits.doc_starts[0] == 0
    assert hits.doc_ends[0] == len(edited)
    assert set(hits.item_covered_fracs.tolist()) == {1.0}


def test_common_ngrams_do_not_count_and_pairs_below_the_bound_are_told():
    docs, items = ["a b c d x", "a b c d y"], ["a b c d", "q a b c d r s t u v w"]
    (hits, missed), index, matches = hits_of(docs, items)
    assert (hits.items.tolist(), missed) == ([0, 0], 2)
    ids, counts = document_frequencies(matches.docs, matches.ngrams)
    assert counts.tolist() == [2]
    assert len(hits_of(docs, items, common=ids)[0][0].docs) == 0
    assert len(hits_of(docs, items, run=1)[0][0].docs) == 4
    assert index.num_ngrams == 8


def test_templates_of_an_eval_are_left_out(monkeypatch):
    monkeypatch.setattr(contamination, "MAX_ITEMS_PER_NGRAM", 2)
    index = index_of([f"answer the next question {k} {k} {k} {k}" for k in range(3)])
    assert len(find_matches(views_of(["answer the next question"]), index).docs) == 0
    assert len(find_matches(views_of(["2 2 2 2"]), index).docs) == 1


@given(st.lists(few_words, max_size=4), st.lists(few_words, max_size=4))
def test_shares_equal_marking_words_one_by_one(docs, items):
    (hits, _), _, _ = hits_of(docs, items, frac=0.0)
    for doc, item, in_item, in_doc in zip(
        hits.docs.tolist(), hits.items.tolist(), hits.item_covered_fracs, hits.doc_covered_fracs, strict=True
    ):
        a, b = words_of(docs[doc], "words"), words_of(items[item], "words")
        size = min(SIZE, len(b))
        places = [(i, k) for i in range(len(a) - size + 1) for k in range(len(b) - size + 1)
                  if a[i : i + size] == b[k : k + size]]  # fmt: skip
        assert in_doc == len({i + n for i, _ in places for n in range(size)}) / len(a)
        assert in_item == len({k + n for _, k in places for n in range(size)}) / len(b)


def test_no_items_and_no_documents():
    index = index_of([])
    assert (index.num_ngrams, len(find_matches(views_of(["a b c d"]), index).docs)) == (0, 0)
    assert len(find_matches(views_of([]), index_of(["a b c d"])).docs) == 0


@given(st.lists(few_words, max_size=30))
def test_the_size_of_an_index_is_known_before_it_is_built(items):
    index = index_of(items)
    ngrams, shorts = index.first_short, index.num_ngrams - index.first_short
    known = index_size(ngrams, len(index.posting_items) - shorts, shorts)
    assert known == (index.bitmap.nbytes, index.keys.nbytes + index.ids.nbytes, index.num_bytes)


def test_memory_grows_with_the_ngrams_and_nothing_else():
    words = [f"w{k}" for k in range(4000)]
    items = [" ".join(words[k : k + 20]) for k in range(0, 3980, 5)]
    index = index_of(items, size=13, floor=8)
    places = len(items) * 8  # n-grams, each counted wherever it stands
    assert index.num_bytes <= index_size(places, places, 0).num_bytes <= 200 * places + 1000
    find_matches(views_of([" ".join(words)] * 3), index)
    assert index.num_bytes == index_of(items, size=13, floor=8).num_bytes  # documents leave nothing in it


@pytest.mark.parametrize(("unit", "size", "floor"), [("words", 4, 5), ("words", 0, 0), ("bytes", 4, 2)])
def test_wrong_settings_are_refused(unit, size, floor):
    with pytest.raises(ConfigError):
        build_index(views_of(["a"]), np.arange(1), unit, size, floor)
