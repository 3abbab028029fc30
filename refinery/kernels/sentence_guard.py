"""Guard over similar sentences: pairs whose numbers, negations, duties or names differ are not duplicates.

Embeddings put "Article 12 applies" beside "Article 13 applies" and a duty beside its opposite at cosines above 0.95;
removing one of them harms law and medicine text most. A veto only keeps text, so every rule errs towards it. The guard
sees the few pairs over the threshold, as strings; English, Chinese, German, French and Russian are covered.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np

NUMBERS, NEGATION, DUTY, NAMES = 1, 2, 4, 8
"""Bits of a veto."""


def _words_of(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*%?|[零〇一二三四五六七八九十百千万亿两壹贰叁肆伍陆柒捌玖拾]+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[^\W_]+")
_TITLE = re.compile(r"《[^》]*》|「[^」]*」|“[^”]*”")
_NUMBER_WORDS = _words_of(
    "zero one two three four five six seven eight nine ten eleven twelve hundred thousand million billion half twice "
    "first second third fourth fifth sixth seventh eighth ninth tenth last "
    "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf hundert tausend million milliarde erste zweite dritte "
    "deux trois quatre cinq sept huit neuf dix onze douze cent mille premier première deuxième troisième "
    "один два три четыре пять шесть семь восемь девять десять сто тысяча первый второй третий"
)
_NEGATIONS = _words_of(
    "not no never none nor neither without cannot nothing nobody nowhere unless except hardly un non "
    "nicht kein keine keinen keinem keiner keines nie niemals ohne weder nein nichts niemand außer "
    "ne pas jamais aucun aucune sans ni rien sauf "
    "не ни нет без никогда нельзя никто ничего кроме"
)
_NEGATION_ENDINGS = ("n't", "n’t")
_NEGATION_STARTS = ("n'", "n’")
_NEGATIONS_ZH = re.compile("不|没|無|无|未|非|否|勿|毋|除")
# Words of which one replaced by another turns a rule around.
_DUTIES = _words_of(
    "must shall may might should can required forbidden prohibited allowed permitted optional mandatory "
    "before after above below more less fewer greater smaller increase decrease increases decreases minimum maximum "
    "true false enabled disabled valid invalid legal illegal all some any only left right "
    "muss müssen darf dürfen soll sollen kann können verboten erlaubt vor nach mehr weniger "
    "doit doivent peut peuvent interdit autorisé avant après plus moins "
    "должен должна должны может могут запрещено разрешено до после больше меньше"
)
_DUTIES_ZH = re.compile("应当|必须|可以|禁止|允许|以上|以下|以前|以后|之前|之后|增加|减少|提高|降低|有效|全部|部分")


_Words = tuple[tuple[str, ...], tuple[str, ...]]
_CODE = re.compile(r"(?=.*[^\W\d_])(?=.*\d).+")  # letters and digits in one word: B12, Covid19


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


@functools.lru_cache(maxsize=4096)
def _features(text: str) -> tuple[Counter[str], Counter[str], Counter[str], frozenset[str], _Words]:
    """Return numbers, negations, duties, names behind the first word, and all words folded."""
    clean = unicodedata.normalize("NFKC", text)
    words = _words(clean)
    folded = tuple(word.casefold() for word in words)
    numbers = Counter(_NUMBER.findall(clean)) + Counter(word for word in folded if word in _NUMBER_WORDS)
    negations = Counter(_NEGATIONS_ZH.findall(clean))
    for word in folded:
        if word in _NEGATIONS or word.endswith(_NEGATION_ENDINGS) or word.startswith(_NEGATION_STARTS):
            negations["negation"] += 1
    duties = Counter(_DUTIES_ZH.findall(clean)) + Counter(word for word in folded if word in _DUTIES)
    names = frozenset(word.casefold() for word in words[1:] if word[0].isupper() or _CODE.fullmatch(word))
    return numbers, negations, duties, names | frozenset(_TITLE.findall(text)), (tuple(words[:1]), folded)


def veto(left: str, right: str) -> int:
    """Return the bits (`NUMBERS` ...) by which two sentences differ in meaning; 0 allows removal.

    The first word counts as a name only if the sentences are otherwise equal but for one more word: its capital says
    nothing, its replacement does ("Paris is ..." / "London is ...").
    """
    ours, theirs = _features(left), _features(right)
    bits = NUMBERS * (ours[0] != theirs[0]) | NEGATION * (ours[1] != theirs[1]) | DUTY * (ours[2] != theirs[2])
    (first_a, a), (first_b, b) = ours[4], theirs[4]
    # A name that the other side writes in small letters is there all the same.
    if ours[3].difference(b, theirs[3]) or theirs[3].difference(a, ours[3]):
        return bits | NAMES
    if first_a and first_b and first_a[0][0].isupper() and first_b[0][0].isupper() and a[0] != b[0]:
        replaced = len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) <= 2
        bits |= NAMES * replaced
    return bits


def veto_pairs(left: Iterable[str], right: Iterable[str]) -> np.ndarray:
    """Return `veto` of paired sentences: uint8, shape (E,); nonzero forbids the removal."""
    return np.fromiter((veto(a, b) for a, b in zip(left, right, strict=True)), dtype=np.uint8)
