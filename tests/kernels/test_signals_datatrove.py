from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refinery.kernels import datatrove_chars as dw
from refinery.kernels.datatrove_specials import special_table
from refinery.kernels.datatrove_words import split_datatrove_words
from refinery.kernels.decide import decide
from refinery.kernels.preset import load_rules
from refinery.kernels.signals import signal_batch, signal_schema, signals
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS, datatrove_signals
from refinery.kernels.text import views_of
from tests.kernels.reference_datatrove import figures_of, words_of

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "datatrove_words.json").read_text(encoding="utf-8"))
MARKS = "'\"’.,-—:;()#…=+/*<>$% \n"
TEXT = st.text(alphabet=st.sampled_from("abtheIdmsve018AZé" + MARKS), max_size=60)


def words(text: str) -> list[str]:
    data = np.frombuffer(text.encode() + b" ", dtype=np.uint8)
    room = len(data) + 1
    codes, flags = np.empty(room, np.int32), np.empty(room, np.uint16)
    chars = dw.decode_document(data, 0, len(data) - 1, dw.datatrove_classes(), codes, flags)
    starts, ends = np.empty(room, np.int32), np.empty(2 * room + 2, np.int32)
    count = split_datatrove_words(codes, flags, chars, special_table(), dw.unit_table(), starts, ends)
    return [text[a:b] for a, b in zip(starts[:count].tolist(), ends[:count].tolist(), strict=True)]


@pytest.mark.parametrize("text", GOLDEN)
def test_words_equal_those_of_datatrove(text: str) -> None:
    """Recorded from datatrove 0.10.1 with spaCy 3.8 by benchmarks/peers/datatrove_words.py."""
    assert words(text) == GOLDEN[text]


PIECES = [*"abI1A.,'’-:=()\"#+$/<…", "..", "''", "n't", "'s", " ", "\n", "km", "Mr.", "8"]


@given(st.lists(st.sampled_from(PIECES), max_size=14))
@example(["'"] * 9)
def test_splitter_equals_plain_python(pieces: list[str]) -> None:
    text = "".join(pieces)
    if "." not in text.replace("..", "") or "Mr." not in text:  # the reference knows no addresses
        assert words(text) == words_of(text)


@given(st.lists(TEXT, max_size=4))
@example(["", "\n", "\na\n", "a b a b a b a b a b a b a b", "#" * 30, "ab c ab c a bc a bc ab c"])
@example(["one two three four five six " * 4, "x" * 70_000])
@example(["\U00020000 \U0002a6df, \U00030000\U0001f600"])
def test_figures_equal_plain_python(texts: list[str]) -> None:
    got = datatrove_signals(views_of(texts))
    for i, text in enumerate(texts):
        for name, value in figures_of(text, words(text)).items():
            assert got[name][i] == pytest.approx(value, rel=1e-6), (name, text)


@given(st.lists(TEXT, max_size=5), st.integers(0, 5))
def test_batch_equals_its_slices(texts: list[str], cut: int) -> None:
    whole = datatrove_signals(views_of(texts))
    parts = [datatrove_signals(views_of(part)) for part in (texts[:cut], texts[cut:])]
    for spec in DATATROVE_SIGNALS:
        np.testing.assert_array_equal(whole[spec.name], np.concatenate([part[spec.name] for part in parts]))
        assert whole[spec.name].dtype == spec.dtype


def test_columns_are_null_unless_given() -> None:
    views = views_of(["one two", "three"])
    plain, full = signal_batch(signals(views)), signal_batch(signals(views) | datatrove_signals(views))
    assert plain.schema == full.schema == signal_schema()
    for spec in DATATROVE_SIGNALS:
        assert plain.column(spec.name).null_count == 2
        assert full.column(spec.name).null_count == 0


def test_a_novel_with_dialogue_is_cut_as_datatrove_cuts_it() -> None:
    """Every comma and quotation mark is a word there: the class that made 54 % of decisions differ."""
    speakers = enumerate(["Ann", "Tom"] * 12)
    text = "\n\n".join(f"“No,” said {who}, “not {n}; that’s, I think, all.”" for n, who in speakers)
    views = views_of([text])
    columns = signals(views) | datatrove_signals(views)
    reasons = {name: decide(columns, load_rules([name]), ["en"]).reasons(load_rules([name]))[0] for name in
               ("gopher", "gopher_datatrove")}  # fmt: skip
    assert columns["alpha_word_frac"][0] > 0.85
    assert columns["datatrove_alpha_word_frac"][0] < 0.6
    assert reasons["gopher_datatrove"] is not None
