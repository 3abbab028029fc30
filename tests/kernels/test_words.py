from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from reference_signals import tokens

from refinery.errors import SchemaError
from refinery.kernels.text import views_of
from refinery.kernels.words import word_spans


def words_of(texts: list[str], boundaries: np.ndarray | None = None) -> list[list[str]]:
    views = views_of(texts)
    spans = word_spans(views, boundaries)
    data = views.data.tobytes()
    found = [data[a:b].decode() for a, b in zip(spans.starts, spans.ends, strict=True)]
    assert [len(word) for word in found] == spans.num_chars.tolist()
    return [found[a:b] for a, b in zip(spans.word_offsets, spans.word_offsets[1:], strict=False)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop", ["Don't", "stop"]),
        ("'quoted' words'", ["quoted", "words"]),
        ("l’eau—vive", ["l’eau", "vive"]),
        ("snake_case v1.2", ["snake", "case", "v1", "2"]),
        ("我有iPhone和iPad", ["我", "有", "iPhone", "和", "iPad"]),
        ("カメラ。が", ["カ", "メ", "ラ", "が"]),
        ("か\u3099き", ["か\u3099", "き"]),
        ("Größe ёлка", ["Größe", "ёлка"]),
        ("", []),
        ("… -- \x00", []),
    ],
)
def test_definition(text: str, words: list[str]) -> None:
    assert words_of([text]) == [words]


@given(st.lists(st.one_of(st.text(max_size=30), st.text("a'’中の\u3099é1 .\n", max_size=30)), max_size=5))
def test_kernel_equals_plain_python(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    want = [tokens(text) for text in texts]
    assert words_of(texts) == [words for words, _ in want]
    assert word_spans(views_of(texts)).num_symbols.tolist() == [symbols for _, symbols in want]


def test_boundaries_join_ideographs_only() -> None:
    text = "中文ab字"
    flags = np.zeros(len(text.encode()), dtype=np.uint8)
    assert words_of([text], flags) == [["中文", "ab", "字"]]
    with pytest.raises(SchemaError, match="one flag per byte"):
        word_spans(views_of([text]), flags[:-1])
