from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.minhash import MinHashConfig, signatures, signatures_of_text
from refinery.kernels.shingles import shingle_hashes, shingle_sets, words_hash
from refinery.kernels.text import TextViews, text_views, views_of
from refinery.kernels.word_scan import _SINGLE, BLOCK_WORDS, WORD_SEED, scan_table, scan_words, table_digest
from tests.kernels.reference_minhash import is_unspaced, shingle_of, shingles_of, word_hash, words_hash_of, words_of

ALPHABET = "aBzÉßİΣςЖя12٣①中文法〇々かナｱー한국ไทย😀❤\ufe0f\u0301\u200b\u200d\u00ad \t\r\n\0.,，。'_-𠀀ǅﬀ\U000e0101"
documents = st.lists(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=80))
sizes = st.integers(1, 6)
units = st.sampled_from(["words", "chars"])


def per_document(shingles) -> list[list[int]]:
    bounds = shingles.offsets.tolist()
    return [shingles.hashes[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@given(documents, sizes, units)
def test_shingles_equal_the_plain_python_form(texts, size, unit):
    assert per_document(shingle_hashes(views_of(texts), size, unit)) == [shingles_of(t, size, unit) for t in texts]


@given(documents, sizes, units)
def test_sets_are_the_sorted_distinct_shingles(texts, size, unit):
    expected = [sorted(set(shingles_of(t, size, unit))) for t in texts]
    assert per_document(shingle_sets(views_of(texts), size, unit)) == expected


@given(documents, st.integers(0, 10))
def test_a_batch_gives_what_its_slices_give(texts, cut):
    parts = [per_document(shingle_hashes(views_of(part))) for part in (texts[:cut], texts[cut:])]
    assert per_document(shingle_hashes(views_of(texts))) == parts[0] + parts[1]


@given(documents, units)
def test_words_hash_equals_the_plain_python_form(texts, unit):
    result = words_hash(views_of(texts), unit)
    assert result.hashes.tolist() == [list(words_hash_of(t, unit)) for t in texts]
    assert result.num_words.tolist() == [len(words_of(t, unit)) for t in texts]


@pytest.mark.parametrize("num_words", [BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 4, BLOCK_WORDS + 5, 3 * BLOCK_WORDS])
@pytest.mark.parametrize("pattern", ["w{} ", "{}é,", "中", "x中{}"])
@pytest.mark.parametrize("size", [1, 5])
def test_blocks_of_the_scan_leave_no_seam(num_words, pattern, size):
    text = "".join(pattern.format(i % 97) for i in range(num_words))
    assert per_document(shingle_hashes(views_of(["a", text, "b"]), size))[1] == shingles_of(text, size, "words")
    assert words_hash(views_of([text])).hashes[0].tolist() == list(words_hash_of(text, "words"))


@given(st.text(alphabet=st.sampled_from(ALPHABET), max_size=60), st.integers(1, 7), units)
def test_a_scan_in_steps_of_any_room_gives_all_words_and_writes_no_further(text, room, unit):
    views = views_of([text])
    memory = np.full(room + 4, 7, dtype=np.uint64)
    found, position, end = [], 0, len(views.data)
    while position < end:
        filled, position = scan_words(views.data, position, end, scan_table(unit), WORD_SEED, memory[:room], 0)
        assert filled == room or position == end
        found += memory[:filled].tolist()
    assert found == [word_hash(w) for w in words_of(text, unit)]
    assert (memory[room:] == 7).all()


def test_case_space_and_punctuation_do_not_matter():
    texts = ["Hello, World of many words!", "hello world\r\nOF  many—words", "hello world of many word"]
    result = words_hash(views_of(texts))
    assert result.hashes[0].tolist() == result.hashes[1].tolist() != result.hashes[2].tolist()
    first, second, third = per_document(shingle_hashes(views_of(texts)))
    assert first == second != third


def test_a_chinese_clause_is_as_many_words_as_characters():
    clause = "中华人民共和国民法典，自二〇二一年一月一日起施行。"
    assert words_hash(views_of([clause])).num_words[0] == len(clause) - 2


def test_order_of_words_matters():
    first, second = per_document(shingle_hashes(views_of(["a b c d e", "b a c d e"])))
    assert first != second


def test_fewer_words_than_a_shingle_give_none():
    assert per_document(shingle_hashes(views_of(["one two three four", "", "一二三四", "a b c d e"])))[:3] == [
        [],
        [],
        [],
    ]


def test_invisible_characters_change_nothing():
    result = words_hash(views_of(["soft\u00adhyphen x\u200dy", "softhyphen xy", "soft hyphen xy"]))
    assert result.hashes[0].tolist() == result.hashes[1].tolist() != result.hashes[2].tolist()


@given(st.binary(max_size=60))
def test_bytes_that_are_not_utf8_stay_inside_the_document(raw):
    guard = b"\xb8\xad one two three four five six"  # would complete a cut-off character
    data = np.frombuffer(raw + guard, dtype=np.uint8)
    alone = np.frombuffer(raw, dtype=np.uint8)
    both = shingle_hashes(TextViews(np.array([0, len(raw), len(data)]), data), 2)
    single = shingle_hashes(TextViews(np.array([0, len(raw)]), alone), 2)
    assert both.hashes[: both.offsets[1]].tolist() == single.hashes.tolist()


def test_shingles_rarely_collide():
    text = " ".join(str(i) for i in range(100_004))
    shingles = shingle_hashes(views_of([text])).hashes
    expected = len(shingles) ** 2 / 2**33
    assert len(shingles) == 100_000
    assert len(shingles) - len(np.unique(shingles)) < expected + 5 * expected**0.5 + 3


def test_shared_words_are_hashed_alike_wherever_they_stand():
    first, second = per_document(shingle_hashes(views_of(["x y a b c d e", "a b c d e"])))
    assert first[2] == second[0]


def test_table_digest_names_the_unit():
    assert table_digest("words") != table_digest("chars")
    assert not scan_table("words").flags.writeable


@pytest.mark.parametrize(("size", "unit"), [(0, "words"), (1001, "words"), (5, "bytes")])
def test_wrong_settings_are_refused(size, unit):
    with pytest.raises(ConfigError):
        shingle_hashes(views_of(["a"]), size, unit)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_slices_of_arrow_columns_and_nulls(kind):
    texts = ["before it all", "a b c", None, "中文 d", "after it all"]
    column = pa.array(texts, type=kind).slice(1, 3)
    expected = [shingles_of(text or "", 2, "words") for text in texts[1:4]]
    assert per_document(shingle_hashes(text_views(column), 2)) == expected


def _segmented_words(text: str, starts: list[bool]) -> list[str]:
    """Join the characters of unspaced scripts that begin no segmented word to the word before them."""
    words: list[str] = []
    joined = False
    for character, begins in zip(text, starts, strict=True):
        own = words_of(character, "words") if unicodedata.category(character)[0] != "M" else []
        single = own and words_of("a" + character + "a", "words") == ["a", *own, "a"]
        if single and joined and not begins:
            words[-1] += own[0]
        elif single:
            words.append(own[0])
        else:
            words.append(character)  # letters, marks, separators: one run, split below
        joined = bool(single) if unicodedata.category(character) != "Cf" else joined
    return words


@given(st.text(alphabet="中文法〇国人aB1 ，。", max_size=60), st.data(), sizes)
def test_segmented_characters_make_words(text, data, size):
    starts = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    words, run = [], ""
    for piece in _segmented_words(text, starts):
        if piece.isascii() and piece.isalnum():
            run += piece.lower()
            continue
        words += [run] if run else []
        words += [piece] if piece.isalnum() else []
        run = ""
    words += [run] if run else []
    hashes = [word_hash(word) for word in words]
    flags = np.array([flag for c, s in zip(text, starts, strict=True) for flag in [s] * len(c.encode())], np.uint8)
    views = views_of([text])
    found = shingle_hashes(views, size, boundaries=flags)
    assert found.hashes.tolist() == [shingle_of(hashes[k : k + size]) for k in range(len(hashes) - size + 1)]
    signed = signatures_of_text(views, MinHashConfig(num_hashes=8, shingle_size=size), flags)
    assert np.array_equal(signed.values, signatures(found.offsets, found.hashes, 8, 1))


@given(documents)
def test_a_flag_on_every_byte_is_no_segmentation(texts):
    views = views_of(texts)
    every = shingle_hashes(views, 2, boundaries=np.ones(len(views.data), np.uint8))
    assert per_document(every) == per_document(shingle_hashes(views, 2))


def test_segmented_words_cross_blocks():
    text = "中文法国人" * 3000
    views = views_of([text])
    flags = np.zeros(len(views.data), np.uint8)
    flags[::15] = 1
    word = word_hash("中文法国人")
    assert set(shingle_hashes(views, 3, boundaries=flags).hashes.tolist()) == {shingle_of([word] * 3)}
    assert len(shingle_hashes(views, 3, boundaries=flags).hashes) == 2998
    with pytest.raises(SchemaError, match="boundaries"):
        shingle_hashes(views, 3, boundaries=flags[1:])


def test_scripts_without_blanks_are_those_that_their_names_say() -> None:
    """All code points: chance would meet the rare blocks of Myanmar once in a thousand runs."""
    single = scan_table("words") >> 24 == _SINGLE
    differ = [
        hex(code)
        for code in range(len(single))
        if unicodedata.category(chr(code))[0] in "LNM" and bool(single[code]) != is_unspaced(chr(code))
    ]
    assert differ == []
