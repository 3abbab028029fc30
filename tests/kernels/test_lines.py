from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels.lines import line_spans
from refinery.kernels.text import views_of

GOLDEN = [10627124852417692052, 419498516732378264]
ALPHABET = "aBß1٣中，.-_ \t\n\u3000é\u0301€😀\u200d"
texts = st.lists(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=40))
paragraphs_of = st.lists(
    st.text(alphabet=st.sampled_from("aB1中. \n\t"), max_size=30).map(lambda t: t.replace(" \n", "\n\n")), max_size=6
)


def fold(char):
    for form in (char.casefold(), char.lower()):
        if len(form) == 1:
            return form
    return char


def normalised(text):
    """Return a text as the hash sees it, character by character."""
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if char.isspace() or category[0] == "Z":
            kept.append(" ")
        elif category[0] in "PSC" or ord(char) >= 1 << 18:
            continue
        else:
            kept.append("0" if category == "Nd" else fold(char))
    return " ".join("".join(kept).split(" ")).strip() if not kept else " ".join("".join(kept).split())


def pieces(text, unit):
    lines = text.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    if unit == "line":
        return lines
    out = []
    for line in lines:
        blank = all(c.isspace() or unicodedata.category(c)[0] == "Z" for c in line)
        ended = out and out[-1][1] and out[-1][2]
        if not out or (ended and not blank):
            out.append(["", False, False])
        out[-1] = [out[-1][0] + line, out[-1][1] or not blank, blank]
    return [text for text, _, _ in out]


def spans_of(docs, unit):
    """Return per document its pieces, hashes and letters."""
    found = line_spans(views_of(docs), unit)
    out = []
    for i, doc in enumerate(docs):
        mine = slice(found.doc_offsets[i], found.doc_offsets[i + 1])
        raw = doc.encode()
        cut = [raw[a:z].decode() for a, z in zip(found.starts[mine].tolist(), found.ends[mine].tolist(), strict=True)]
        out.append((cut, found.hashes[mine].tolist(), found.num_letters[mine].tolist()))
    return out


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@given(st.one_of(texts, paragraphs_of))
def test_pieces_tile_and_equal_the_reference(unit, docs):
    known = {}
    for doc, (cut, hashes, letters) in zip(docs, spans_of(docs, unit), strict=True):
        assert cut == pieces(doc, unit)
        assert "".join(cut) == doc
        for piece, hash_, count in zip(cut, hashes, letters, strict=True):
            plain = normalised(piece)
            assert count == sum(unicodedata.category(c)[0] == "L" for c in plain)
            assert known.setdefault(plain, hash_) == hash_
    assert len(set(known.values())) == len(known)


@given(texts, st.integers(0, 5))
def test_a_batch_gives_what_its_slices_give(docs, cut):
    whole = spans_of(docs, "line")
    assert whole == [*spans_of(docs[:cut], "line"), *spans_of(docs[cut:], "line")]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Page 3 of 12.", "  page 5 of 17", True),
        ("All rights reserved!", "ALL  RIGHTS\tRESERVED", True),
        ("版权所有：二〇二四年，甲公司。", "版权所有 二〇二四年甲公司", False),  # a blank is text
        ("版权所有，2024年", "版权所有2025年。", True),
        ("café", "cafe", False),  # accents stay, as CCNet keeps them when it deduplicates
        ("a b", "ab", False),
        ("第12条", "第13条", True),
    ],
)
def test_what_counts_as_the_same_line(one, other, same):
    a, b = line_spans(views_of([one, other])).hashes
    assert (a == b) == same


def test_golden_hashes():
    """The hashes are stored in tables: another value is another format version."""
    found = line_spans(views_of(["Page 3 of 12.\n版权所有，2024年\n"]))
    assert found.hashes.tolist() == GOLDEN
    assert found.num_letters.tolist() == [6, 5]


def test_paragraphs_keep_their_blank_lines():
    [(cut, _, letters)] = spans_of(["\n one\ntwo\n\n \n  three\n\n"], "paragraph")
    assert cut == ["\n one\ntwo\n\n \n", "  three\n\n"]
    assert letters == [6, 5]


def test_nothing_and_wrong_units():
    assert len(line_spans(views_of([])).ends) == 0
    assert line_spans(views_of(["", "x"])).doc_offsets.tolist() == [0, 0, 1]
    assert line_spans(views_of(["", "x"])).ends.dtype == np.int64
    with pytest.raises(ConfigError, match="one of line, paragraph"):
        line_spans(views_of(["x"]), "page")
