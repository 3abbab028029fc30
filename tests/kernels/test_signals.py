from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from reference_signals import signals_of

from refinery.errors import SchemaError
from refinery.kernels.signals import SIGNALS, signal_batch, signal_schema, signals
from refinery.kernels.text import TextViews, views_of

PIECES = [
    "the", "of ", "With", " that's", "l’eau", "的", "中文", "かな", "カー", "が", "\u3099", "слово ", "Größe", "é",
    "12", "٣", "#", "...", "…", ".", "。", "！", "”", '"', ")", "- ", "• ", "{", "\n", "\n\n", "\r\n", "\r", " ", "\t",
    "\u3000", "\x00", "\u2028", "😀", "𠀀", "\U000e0100", "lorem ipsum", "JavaScript", "terms of use", "use cookies",
    "the cat sat on the mat and the dog", "·", "'", "_", "--", ":", "：", "USER: ", "/*", "*/", "//", "<!--", "-->",
    "'''", '"""',
    "\n# ", "\n#in", "\n-- ", "\n/* x", "\nUSR:", "\n甲 2：",
]  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))

SAMPLES = {
    "en": "The ferry leaves at nine. It carries cars, post and people to the islands!\n\n- bring a coat\n- bring bread\n",  # noqa: E501
    "zh": "县里的图书馆周一不开门。其他日子，孩子们放学后都会来这里看书……\n管理员说：“请安静。”\n",
    "fr": "L’eau monte dans le port ; les pêcheurs attendent. Aujourd'hui, personne ne sort en mer...\n",
    "de": "Der Zug fährt um 7.30 Uhr ab. Größere Koffer stehen im Gang, die Türen schließen von selbst.\n",
    "ru": "Поезд опаздывает. На платформе холодно, но никто не уходит: все ждут письма.\n",
    "code": "def area(r):\n    # circle\n    return 3.14 * r ** 2\n\n\ndef area_of(d):\n    return {'d': area(d / 2)}\n",  # noqa: E501
    "loop": "buy now and save big today only " * 12,
}


def assert_equal_to_reference(texts: list[str]) -> None:
    got = signals(views_of(texts))
    for i, text in enumerate(texts):
        want = signals_of(text)
        assert set(want) == {spec.name for spec in SIGNALS}
        for spec in SIGNALS:
            value = got[spec.name][i]
            assert value == pytest.approx(want[spec.name], rel=1e-6, abs=1e-6), (spec.name, text)


@given(st.lists(TEXT.filter(lambda t: t.isprintable() or not any(0xD800 <= ord(c) < 0xE000 for c in t)), max_size=4))
@example(["\U0003134b"])  # a letter of Unicode 15
@example(["", "\n", "\r\n", " \n \n", "a\n\n\r\n\r\na", "x\n \n \nx"])
@example(["...", "。”A. b", "e.g. x.", "a'", "'a", "a'中", "中\u3099\u3099a", "\u3099a"])
@example(["lorem ipsumJavaScript", "use cookiesjavascript", "privacy policyJavaScript", "terms of usejavascript"])
@example(list(SAMPLES.values()))
def test_kernel_equals_plain_python(texts: list[str]) -> None:
    assert_equal_to_reference(texts)


@given(st.lists(st.sampled_from(["ab", "c", "的", "ab ", "的中"]), max_size=300))
def test_ngrams_of_small_alphabets_equal_plain_python(pieces: list[str]) -> None:
    assert_equal_to_reference([" ".join(pieces)])


@given(st.lists(TEXT, max_size=6), st.integers(0, 6))
def test_batch_equals_its_slices(texts: list[str], cut: int) -> None:
    whole = signals(views_of(texts))
    parts = [signals(views_of(part)) for part in (texts[:cut], texts[cut:])]
    for spec in SIGNALS:
        np.testing.assert_array_equal(whole[spec.name], np.concatenate([part[spec.name] for part in parts]))
        assert whole[spec.name].dtype == spec.dtype


def test_invalid_utf8_is_counted_and_read_inside_the_document_only() -> None:
    raw = np.frombuffer(b"ab\xe4\xb8" + b"\xf0\x9f" + b"\xff\xc3", dtype=np.uint8)
    offsets = np.array([0, 4, 6, 8], dtype=np.int64)
    offsets.flags.writeable = False
    got = signals(TextViews(offsets, raw))
    assert got["num_chars"].tolist() == [4, 2, 2]
    assert got["num_words"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("letter", ["a", "é", "中", " ", "."])
def test_a_speaker_is_seen_up_to_its_last_letter_and_at_the_end_of_the_batch(letter: str) -> None:
    names = [f"A{letter * n}" for n in range(30)]
    texts = [f"{name}{colon}{rest}" for name in names for colon in (":", "：", "") for rest in ("", "/x", " said")]
    turns = signals(views_of(texts))["num_turns"].tolist()
    assert turns == [signals_of(text)["num_turns"] for text in texts]
    assert 0 < sum(turns) < len(turns)


def test_each_stop_word_and_each_end_of_a_phrase_alone() -> None:
    words = ["the", "be", "to", "of", "and", "that", "have", "with", "ips", "use", "pol", "coo"]
    words += ["ipsum", "policy", "cookies", "ipsu", "polic", "cookie"]
    near = [f"{word}{more}" for word in words for more in ("", "s", "body", "ofitsown")]
    near += [word.title() for word in words] + [word[:-1] for word in words]
    phrases = ("lorem ipsum", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies")
    near += [phrase[:stop] for phrase in phrases for stop in range(len(phrase) - 2, len(phrase) + 1)]
    near += ["javascript", "xxJavaScriptxx", "javascrip", "lorem Ipsumx", "Use Cookiesx"]
    assert_equal_to_reference(near)
    assert signals(views_of([" ".join(words)]))["num_stop_words_en"][0] == 8


def test_segmentation_joins_han_words() -> None:
    views = views_of(["中文的书"])
    flags = np.zeros(len(views.data), dtype=np.uint8)
    flags[[0, 6, 9]] = 1
    got = signals(views, flags)
    assert got["num_words"][0] == 3
    assert got["num_stop_words_zh"][0] == 1
    assert signals(views)["num_stop_words_zh"][0] == 2
    with pytest.raises(SchemaError, match="one flag per byte"):
        signals(views, flags[1:])


def test_batch_and_schema_agree() -> None:
    columns = signals(views_of(["one", "two"]))
    batch = signal_batch(columns)
    assert batch.schema == signal_schema()
    assert batch.num_rows == 2
    assert len({spec.name for spec in SIGNALS}) == len(SIGNALS)
