"""Words by which the guard over similar sentences sees numbers, dates, enumerators and negated words.

Patterns rather than lists where a language inflects or compounds: German "zweiundzwanzigsten", Russian "тремя". A word
too many only keeps text: a pair is spared when the counts of its two sentences differ.
"""

from __future__ import annotations

import functools
import re

_EN = (
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|"
    r"half|halves|quarters?|once|twice|thrice|double|triple|single|both|pair|"
    r"first|second|third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|million)th|\w+teenth|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)tieth|last|monday|tuesday|wednesday|thursday|friday|saturday|sunday|"
    r"january|february|april|june|july|august|september|october|november|december"
)
_DE_UNIT = r"(?:ein|zwei|zwo|drei|vier|fünf|sechs|sieben|acht|neun)"
_DE_TEN = r"(?:zwan|drei|vier|fünf|sech|sieb|acht|neun)(?:zig|ßig)"
_DE_TEEN = r"zehn|elf|zwölf|(?:drei|vier|fünf|sech|sieb|acht|neun)zehn"
_DE_CARDINAL = (
    rf"(?:eins|(?:{_DE_UNIT}?tausend)?(?:{_DE_UNIT}?hundert)?(?:und)?"
    rf"(?:{_DE_TEEN}|(?:{_DE_UNIT}und)?{_DE_TEN}|{_DE_UNIT[3:-1].removeprefix('ein|')})|"
    rf"{_DE_UNIT}?(?:hundert|tausend)(?:hundert)?)"
)
_DE = (
    rf"{_DE_CARDINAL}(?:s?te[nmrs]?)?|(?:erst|dritt|siebt)e[nmrs]?|letzte[nmrs]?|(?:million|milliarde)(?:en|n)?|"
    r"halb(?:e[nmrs]?)?|hälfte|viertel|drittel|einmal|zweimal|dreimal|doppelt\w*|beide[nmrs]?|"
    r"jänner|januar|februar|märz|juni|juli|oktober|dezember|montags?|dienstags?|mittwochs?|donnerstags?|freitags?|"
    r"samstags?|sonnabends?|sonntags?"
)
_FR = (
    r"deux|trois|quatre|cinq|sept|huit|neuf|dix|onze|douze|treize|quatorze|quinze|seize|vingts?|trente|quarante|"
    r"cinquante|soixante|septante|huitante|nonante|cents?|mille|milliers?|milliards?|premi(?:er|ère)s?|seconde?s?|\w+ième"
    r"s?|derni(?:er|ère)s?|demie?|moitié|tiers|quarts?|double|triple|"
    r"janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre|"
    r"lundis?|mardis?|mercredis?|jeudis?|vendredis?|samedis?|dimanches?"
)
_RU = (
    r"од(?:ин|на|но|ного|ной|ному|ним|ном|ну)|дв(?:а|е|ух|ум|умя)|об(?:а|е)|тр(?:и|ех|ём|ем|ёх|емя)|двое|трое|четверо|"
    r"четыр(?:е|ех|ём|ем|ёх|ьмя)|(?:пят|шест|сем|восем|девят|десят)(?:ь|и|ью)|восьми|\w+надцат\w+|"
    r"(?:два|три)дцат\w+|сорок\w?|\w+десят\w*|девяност\w|ст(?:о|а)|двест\w+|тр[её]хсот|триста|четыреста|\w+сот|тысяч\w*|"
    r"миллион\w*|миллиард\w*|перв(?:ый|ая|ое|ые|ого|ой|ую|ому|ым|ом|ых)|втор(?:ой|ая|ое|ые|ого|ую|ому|ым|ом|ых)|"
    r"трет(?:ий|ья|ье|ьи|ьего|ьей|ью|ьему|ьим|ьем|ьих)|четв[её]рт\w+|(?:пят|шест|седьм|восьм|девят|десят)(?:ый|ой|ая|ое|"
    r"ые|ого|ую|ому|ым|ом|ых)|последн\w+|половин\w|полтор\w|дважды|трижды|"
    r"(?:январ|феврал|апрел|июн|июл|сентябр|октябр|ноябр|декабр)(?:ь|я|ю|ем|е|ём)|март(?:а|у|ом|е)?|ма[йяюе]|"
    r"август(?:а|у|ом|е)?|понедельник\w*|вторник\w*|сред[аыуе]|четверг\w*|пятниц\w+|суббот\w+|воскресень\w+"
)
_ENUMERATOR = re.compile(r"(?<!\w)([a-z]|[ivxl]{2,6})(?=\))")
_PREFIXES = (
    "un", "in", "im", "il", "ir", "dis", "non", "mis", "mal", "ab", "nicht", "miss", "dés", "dé", "mé",
    "не", "без", "бес",
)  # fmt: skip
_SUFFIXES = (("less", "ful"), ("los", "voll"), ("lose", "volle"), ("losen", "vollen"))
_LEAST_STEM = 3


@functools.cache
def _number_word() -> re.Pattern[str]:
    return re.compile("|".join((_EN, _DE, _FR, _RU)))


def is_number_word(word: str) -> bool:
    """Tell whether a case-folded word names a number, an ordinal, a month or a day of the week (en de fr ru)."""
    return _number_word().fullmatch(word) is not None


def enumerators(text: str) -> list[str]:
    """Return letters and small Roman numerals before a closing bracket: the (a), b) and (iv) of lists."""
    return _ENUMERATOR.findall(text)


def negated_words(word: str) -> list[str]:
    """Return what a case-folded word says the opposite of, by its prefix or suffix: lawful for unlawful, and guesses.

    A guess ("form" for "inform") does harm only where the other sentence has that very word and this one has not.
    """
    found = [word[len(p) :] for p in _PREFIXES if word.startswith(p) and len(word) - len(p) >= _LEAST_STEM]
    return found + [
        word[: -len(lacks)] + has for lacks, has in _SUFFIXES if word.endswith(lacks) and len(word) > len(lacks) + 2
    ]
