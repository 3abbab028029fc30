from __future__ import annotations

import pytest

from refinery.report.samples import RuleBound
from refinery.report.telling_line import MAX_LINES, telling_lines

TEXT = "\n".join([
    "A plain sentence stands at the beginning of this page.", "", "- a bullet of the list",
    "# ## # heading ## with hashes", "A plain sentence stands at the beginning of this page.", "1 2 3 4 5 6 7",
    "x" * 300, "short", "short", "short", "A thought that never ends...",
])  # fmt: skip


def _line(signal, low=None, high=None, text=TEXT):
    [found] = telling_lines(text, [RuleBound("mine.rule", signal, low, high)])
    return found


@pytest.mark.parametrize(
    ("signal", "low", "high", "number"),
    [
        ("bullet_line_frac", None, 0.9, 3),
        ("hash_to_word_frac", None, 0.1, 4),
        ("dup_line_char_frac", None, 0.2, 1),
        ("alpha_word_frac", 0.8, None, 6),
        ("mean_word_length_chars", None, 10, 7),
        ("ellipsis_line_frac", None, 0.3, 11),
        ("num_words", 50, None, None),
        ("num_paragraphs", None, 5, None),
        ("no_such_signal", None, 1, None),
    ],
)
def test_lines_that_tell(signal, low, high, number):
    found = _line(signal, low, high)
    assert (found and found[0]) == number
    if number:
        assert found[1] == TEXT.split("\n")[number - 1]


def test_text_without_lines_tells_nothing():
    assert _line("bullet_line_frac", None, 0.9, "") is None
    assert _line("bullet_line_frac", None, 0.9, "\n \n") is None
    assert _line("dup_line_frac", None, 0.3, "one\ntwo") is None
    assert telling_lines(TEXT, []) == []


def test_only_the_first_lines_of_a_huge_document_are_looked_at():
    text = "\n".join(["a word or two"] * MAX_LINES + ["- bullet"])
    assert _line("bullet_line_frac", None, 0.9, text) is None
