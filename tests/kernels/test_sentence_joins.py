from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.kernels.sentence_joins import join_cuts, sentence_layout
from refinery.kernels.sentences import SentenceSpans, sentence_spans
from refinery.kernels.text import views_of


def _without(text: str, *gone: str) -> str:
    """Return the text without the sentences that contain one of some words."""
    views = views_of([text])
    spans, raw = sentence_spans(views), text.encode()
    cut = [any(word in raw[a:b].decode() for word in gone) for a, b in zip(spans.starts, spans.ends, strict=True)]
    made = join_cuts(spans, sentence_layout(views, spans), np.array(cut))
    keep = np.ones(len(raw), dtype=bool)
    for a, b in zip(made.starts[made.cut], made.ends[made.cut], strict=True):
        assert keep[a:b].all(), "cuts are disjoint"
        keep[a:b] = False
    return bytes(np.frombuffer(raw, np.uint8)[keep]).decode()


@pytest.mark.parametrize(
    ("text", "gone", "left"),
    [
        ("One is here. Two is here. Three is here.", "Two", "One is here. Three is here."),
        ("One is here. Two is here.\n\nThree is here.", "Two", "One is here.\n\nThree is here."),
        ("One is here. Two is here.", "Two", "One is here."),
        ("One is here. Two is here.\n", "Two", "One is here.\n"),
        ("Two is here. One is here.\n", "Two", "One is here.\n"),
        ("One is here.\n\nTwo is here.\n\nThree is here.", "Two", "One is here.\n\nThree is here."),
        ("One is here.\nTwo is here.\nThree is here.\n", "Two", "One is here.\nThree is here.\n"),
        ("甲方付款。乙方交货。\n\n丙方作证。", "乙方", "甲方付款。\n\n丙方作证。"),
        ("甲方付款。乙方交货。丙方作证。", "乙方", "甲方付款。丙方作证。"),
        ("第一段。\n\n第二段。\n\n第三段。\n", "第三", "第一段。\n\n第二段。\n"),
    ],
)
def test_joins_get_the_right_white_space(text: str, gone: str, left: str) -> None:
    assert _without(text, gone) == left


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("One is here. Two is here. However, three is here.", "Two"),
        ("One is here. Two is here. “However, three is here.” Four came.", "Two"),
        ("One is here. But two is here. Therefore three is here.", "two"),
        ("甲方付款。乙方交货。但是丙方没有作证。", "乙方"),
        ("甲方付款。乙方交货。前款规定适用于丙方。", "乙方"),
        ("Eins ist hier. Zwei ist hier. Außerdem ist drei hier.", "Zwei"),
        ("Un est ici. Deux est ici. Cependant trois est ici.", "Deux"),
    ],
)
def test_a_sentence_on_which_the_next_leans_stays(text: str, gone: str) -> None:
    assert "“" in text or _without(text, gone) == text
    assert gone in _without(text, gone) or "“" in text


def test_what_a_given_back_sentence_leans_on_is_given_back_too() -> None:
    text = "One is here. Two is here. But four is here. Therefore five is here."
    assert _without(text, "Two", "four") == text
    assert _without(text, "Two", "four", "five") == "One is here."
    assert _without("Two is here.\n\nHowever, three is here.", "Two") == "However, three is here."


@pytest.mark.parametrize("text", ["Howeverness is here.", "Button three is here.", "Mainly so.", "Bute is an isle."])
def test_a_word_that_only_begins_alike_does_not_lean(text: str) -> None:
    views = views_of([text])
    assert not sentence_layout(views, sentence_spans(views)).leans.any()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["One.", "But two.", "三。", "但四。"]), st.sampled_from([" ", "\n", "\n\n", "　", ""])
        ),
        max_size=8,
    ),
    st.data(),
)
def test_cuts_are_disjoint_and_what_is_kept_keeps_its_words(pieces, data) -> None:
    text = "".join(a + b for a, b in pieces)
    views = views_of([text, text])
    spans, raw = sentence_spans(views), text.encode()
    cut = np.array([data.draw(st.booleans()) for _ in spans.starts], dtype=bool)
    layout = sentence_layout(views, spans)
    made = join_cuts(spans, layout, cut)
    assert not (made.cut & ~cut).any()
    assert made.num_given_back == int(cut.sum() - made.cut.sum())
    for doc in range(2):
        mine = slice(spans.doc_offsets[doc], spans.doc_offsets[doc + 1])
        keep = np.ones(len(raw), dtype=bool)
        for a, b in zip(made.starts[mine][made.cut[mine]], made.ends[mine][made.cut[mine]], strict=True):
            assert 0 <= a <= b <= len(raw)
            assert keep[a:b].all()
            keep[a:b] = False
        left = bytes(np.frombuffer(raw, np.uint8)[keep]).decode()  # UTF-8 is never split
        kept = [
            raw[a : b - s].decode()
            for a, b, s, c in zip(spans.starts[mine], spans.ends[mine], layout.space[mine], made.cut[mine], strict=True)
            if not c
        ]
        assert "".join(left.split()) == "".join("".join(kept).split())


def test_no_sentences() -> None:
    spans = SentenceSpans(np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))
    views = views_of([])
    assert join_cuts(spans, sentence_layout(views, spans), np.empty(0, bool)).num_given_back == 0
