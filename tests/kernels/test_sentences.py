from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.sentences import is_block, normalised_hash, sentence_spans, sentence_views, window_hashes
from refinery.kernels.text import TextViews, views_of
from tests.kernels.reference_sentences import SPACES, sentence_ends

_PIECES = [
    *("Hello", " ", "\n", "\n\n", "\r\n", ".", "!", "?", "…", "...", "。", "！", "；", "”", "“", "»", "«", '"', "'"),
    *(")", "(", "Mr", "e.g", "z. B", "т.е", "г", "3", "12", "I", "a", "Zürich", "Привет", "— ", "- ", "# ", "* "),
    *("1. ", "```\n", "| a |\n", "    code", "\t", "你好", "世界", "😀", "\x00", "\u00a0", "\u3000", "=====\n"),
    *("<p>", "é", "かな", "؟", "।", "\f", "\v", "\u2003"),
]
_TEXTS = st.one_of(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join), st.text(max_size=60))


def _sentences(text: str) -> list[str]:
    spans = sentence_spans(views_of([text]))
    raw = text.encode()
    return [raw[a:b].decode() for a, b in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)]


@given(st.lists(_TEXTS, max_size=5))
def test_spans_tile_documents_and_never_split_a_character(texts: list[str]) -> None:
    views = views_of(texts)
    spans = sentence_spans(views)
    assert len(spans.doc_offsets) == len(texts) + 1
    for k in range(len(texts)):
        raw = views.data[views.offsets[k] : views.offsets[k + 1]].tobytes()
        first, last = spans.doc_offsets[k], spans.doc_offsets[k + 1]
        pieces = [raw[a:b] for a, b in zip(spans.starts[first:last], spans.ends[first:last], strict=True)]
        assert b"".join(pieces) == raw
        assert all(pieces)
        for piece in pieces:
            piece.decode()


@given(st.lists(_TEXTS, min_size=1, max_size=5))
def test_a_document_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    views = views_of(texts)
    whole = sentence_spans(views)
    hashed = normalised_hash(views, whole)
    parts = []
    for k in range(len(texts)):
        one = TextViews(views.offsets[k : k + 2], views.data)
        spans = sentence_spans(one)
        parts.append((spans.starts, spans.ends, normalised_hash(one, spans).hashes))
    for column, expected in enumerate((whole.starts, whole.ends, hashed.hashes)):
        np.testing.assert_array_equal(np.concatenate([part[column] for part in parts]), expected)


@settings(max_examples=300)
@given(_TEXTS)
def test_spans_are_those_of_plain_python(text: str) -> None:
    spans = sentence_spans(views_of([text]))
    assert spans.ends.tolist() == [len(text[:end].encode()) for end in sentence_ends(text)]


@given(_TEXTS)
@example("Hello\n\u00a0")
@example("Hello.\n\f\nNext page.")
def test_a_sentence_starts_with_text(text: str) -> None:
    pieces = _sentences(text)
    assert all(piece.strip("".join(SPACES)) for piece in pieces[1:])


@pytest.mark.parametrize(
    "sentences",
    [
        [
            "Hello world. ",
            "This is Mr. Smith, e.g. from the U.S. ",
            "He paid 3.5 dollars. ",
            '"Really?" he said. ',
            "Yes!",
        ],
        ["J. R. Tolkien wrote it, cf. vol. 3 and p. 7. ", "So did I. ", "The end."],
        ["Wait... what? ", "No! ", "(It ended.) ", "Next."],
        ["see Fig. 3 and no. 4. ", "He left at 5 p.m. ", "Nobody saw."],
        ["Am 3. Oktober war es z. B. kalt. ", "Im Jahr 1998. ", "Nach § 3 Abs. 2 Nr. 4 gilt das. ", "„Nein.“ ", "Gut."],
        ["« Hé ! ", "Mandine », criait-elle. ", "« Bonjour ! » dit-il. ", "M. Dupont est là."],
        [
            "— Привет! — сказал он. ",
            "В 1998 г. он уехал, т. е. ушел. ",
            "А. С. Пушкин родился в 1799 г. ",
            "Не помню-с. ",
            "Да.",
        ],
        ["“你好。”", "他说。", "我们走吧！", "好的；", "再见……真的？", "是的！！", "数值为3.14。"],
        ["「行こう。」", "彼は言った。", "はい"],
        ["Oh! my dear, come in!! ", "He did? ", "it is late."],
        ["What is ver. 2.0? ", "Use rustc. ", "It works\u2026 ", "Good."],
    ],
)
def test_terminals(sentences: list[str]) -> None:
    assert _sentences("".join(sentences)) == sentences


@pytest.mark.parametrize(
    ("sentence", "block"),
    [("```rust\nlet x = 42;\n```", True), ("| a | b |\n", True), ("    return x\n", True), ("\tmake all\n", True),
     ("Plain text.", False), ("  indented by two.", False), ("- an item", False), ("", False)],
)  # fmt: skip
def test_blocks_are_told_by_how_they_begin(sentence: str, block: bool) -> None:
    assert is_block(sentence) is block


@pytest.mark.parametrize(
    "spans",
    [
        ["Title\n", "A line of text.\r\n", "Another one.\n\n\n", "New paragraph"],
        [
            "# Head. Two\n",
            "Text goes on\nin lower case. ",
            "Yes.\n",
            "- item one. ",
            "Two.\n",
            "- item two\n",
            "1. third. ",
            "Yes.",
        ],
        ["Text:\n\n", "    code. One\n    code. Two\n\n", "Text."],
        ["```py\nprint('a. B')\n\nx. Y\n```\n", "After. ", "End"],
        ["Intro\n", "| a. B | c |\n| d. E | f |\n", "After."],
        ["Heading\n=======\n\n", "Body."],
        ["This line of wrapped prose is longer than forty characters and Then\nGoes on with a capital. ", "Done."],
        ["— Да.\n", "— Нет.\n"],
        ["　　第一段没有句号\n", "　　第二段。\n", "第三段"],
        ["   \n\n "],
    ],
)
def test_lines_and_blocks(spans: list[str]) -> None:
    assert _sentences("".join(spans)) == spans


def test_empty_documents_have_no_sentence() -> None:
    spans = sentence_spans(views_of(["", "a", "", ""]))
    assert spans.doc_offsets.tolist() == [0, 0, 1, 1, 1]
    assert len(sentence_spans(views_of([])).ends) == 0


def test_one_long_sentence_is_one_span() -> None:
    assert len(sentence_spans(views_of(["word " * 200_000])).ends) == 1


def test_hash_folds_case_space_and_punctuation_but_not_numbers() -> None:
    views = views_of(
        ["Hello, World! ", "hello   world", "Article 12 applies.", "Article 13 applies.", "***\n", "你好。", "你 好"]
    )
    found = normalised_hash(views, sentence_spans(views))
    assert found.hashes[0] == found.hashes[1]
    assert found.hashes[2] != found.hashes[3]
    assert found.hashes[5] == found.hashes[6]
    assert found.num_words.tolist() == [2, 2, 3, 3, 0, 2, 2]


def test_spans_of_other_documents_are_refused() -> None:
    views = views_of(["One. Two."])
    with pytest.raises(SchemaError, match="do not tile"):
        sentence_views(views_of(["One.", "Two."]), sentence_spans(views))


def test_windows_stay_inside_documents() -> None:
    hashes = np.array([1, 2, 3, 1, 2, 3, 4], dtype=np.uint64)
    value, starts = window_hashes(hashes, np.array([0, 3, 3, 7]), 3)
    assert starts.tolist() == [0, 3, 4]
    assert value[0] == value[1] != value[2]
    with pytest.raises(ConfigError, match="is empty"):
        window_hashes(hashes, np.array([0, 7]), 0)


def test_real_text(shared_data) -> None:
    with gzip.open(shared_data / "law" / "zh-laws.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(20)]
    views = views_of(texts)
    spans = sentence_spans(views)
    lengths = spans.ends - spans.starts
    assert lengths.sum() == len(views.data)
    assert 30 < lengths.mean() < 300
