from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import DataError
from refinery.kernels.planted_sentences import DIFFERENT, SAME, planted_pairs
from refinery.kernels.sentence_guard import NEGATION, NUMBERS, ROLES, features_veto, guard_features, veto
from refinery.kernels.sentence_guard_words import is_number_word

_PAIRS = planted_pairs()


@pytest.mark.parametrize("pair", [p for p in _PAIRS if p.kind in DIFFERENT], ids=lambda p: f"{p.language} {p.left}")
def test_every_planted_difference_is_vetoed(pair) -> None:
    assert veto(pair.left, pair.right)
    assert veto(pair.left, pair.right) == veto(pair.right, pair.left)
    if pair.kind == "roles":
        assert veto(pair.left, pair.right) & ROLES


@pytest.mark.parametrize("pair", [p for p in _PAIRS if p.kind == "edit"], ids=lambda p: f"{p.language} {p.left}")
def test_no_planted_edit_is_vetoed(pair) -> None:
    assert veto(pair.left, pair.right) == 0


def test_planted_pairs_cover_languages_and_kinds() -> None:
    for language in ("en", "zh", "de", "fr"):
        kinds = {pair.kind for pair in planted_pairs((language,))}
        assert kinds == {*SAME, *DIFFERENT}
    assert planted_pairs(("xx",)) == []


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("The court heard Smith before it heard Jones.", "The court heard Jones before it heard Smith."),
        ("Anderson sued Miller.", "Anderson was sued by Miller."),
        ("甲公司收购了乙公司的全部股份。", "乙公司收购了甲公司的全部股份。"),
        ("他借给她一万元。", "她借给他一万元。"),
        ("Иван продал дом Петру.", "Петру продал дом Иван."),
    ],
)
def test_swapped_roles(left: str, right: str) -> None:
    assert veto(left, right) & ROLES


@given(st.text(max_size=60), st.text(max_size=60))
def test_features_are_enough_and_symmetric(left: str, right: str) -> None:
    a, b = guard_features(left), guard_features(right)
    assert a.dtype == np.uint64
    assert features_veto(a, b) == features_veto(b, a) == veto(left, right)
    assert features_veto(a, guard_features(left)) == 0
    copied = np.frombuffer(a.astype("<u8").tobytes(), dtype="<u8")
    assert features_veto(copied, b) == veto(left, right)


@pytest.mark.parametrize("bad", [np.empty(0, np.uint64), np.arange(12, dtype=np.uint64)])
def test_what_is_no_features_is_refused(bad) -> None:
    with pytest.raises(DataError, match="guard features"):
        features_veto(bad, guard_features("A sentence."))


@pytest.mark.parametrize(
    ("left", "right", "bit"),
    [
        ("The order of the court was lawful.", "The order of the court was unlawful.", NEGATION),
        ("No direct and no indirect damage is paid.", "No direct and no direct damage is paid.", NEGATION),
        ("Such a treatment is harmful to children.", "Such a treatment is harmless to children.", NEGATION),
        ("Der Antrag ist zulässig und wird geprüft.", "Der Antrag ist unzulässig und wird geprüft.", NEGATION),
        ("Une telle mesure est possible en hiver.", "Une telle mesure est impossible en hiver.", NEGATION),
        ("Это было возможно и в другом городе.", "Это было невозможно и в другом городе.", NEGATION),
        ("The supplier delivers the goods.", "The supplier fails to deliver the goods.", NEGATION),
        ("See paragraph (a) of the annex.", "See paragraph (b) of the annex.", NUMBERS),
        ("See paragraph (ii) of the annex.", "See paragraph (iii) of the annex.", NUMBERS),
        ("Le texte fut signé le mois de mars.", "Le texte fut signé le mois de mai.", NUMBERS),
        ("Он пришёл с тремя друзьями.", "Он пришёл с двумя друзьями.", NUMBERS),
        ("Es waren zweiundzwanzig Tage.", "Es waren dreiundzwanzig Tage.", NUMBERS),
        ("Er kam am zweiten Tag.", "Er kam am dritten Tag.", NUMBERS),
    ],
)
def test_negated_words_and_inflected_numbers(left: str, right: str, bit: int) -> None:
    assert veto(left, right) & bit
    assert veto(left, left) == 0


def test_a_french_article_is_no_negation() -> None:
    assert veto("Il y avait un titre de rente sur le livre.", "Il y avait titre de rente sur le livre.") == 0


@pytest.mark.parametrize("word", ["ein", "eine", "und", "der", "form", "stadt", "son", "le", "не", "он", "dixie"])
def test_plain_words_are_no_numbers(word: str) -> None:
    assert not is_number_word(word)


@pytest.mark.parametrize(
    "word",
    ["eins", "zwei", "elf", "siebzehnten", "einundzwanzig", "zweihundertdreißig", "tausend", "vierte", "twentieth",
     "fifteen", "seventeenth", "quatrième",
     "soixante", "пятнадцати", "двадцатого", "пятьсот", "третьего", "twelfth", "dezember"],
)  # fmt: skip
def test_number_words(word: str) -> None:
    assert is_number_word(word)
