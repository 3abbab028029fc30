"""English strings that spaCy's tokenizer splits, or keeps whole, by a list instead of by its rules.

datatrove's English words are those of ``spacy.blank("en")``. What is written here follows the behaviour of spaCy 3.8
(`benchmarks/rules_agreement.py` measures how well): contractions with either apostrophe and with none (*dont*), clock
times (*8am*), abbreviations with a full stop, and the smileys that stay whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

MAX_SPECIAL_CHARS = 12
"""Longer strings are in no list; the longest is *shouldn't've*."""
_FNV_PRIME, _FNV_START, _MASK = 0x100000001B3, 0xCBF29CE484222325, (1 << 64) - 1

_NOT_SPLIT = frozenset(("ill", "hell", "shell", "well", "shed", "were", "its", "whore"))
"""Words of their own that look like a contraction without its apostrophe."""
_ALL_ENDINGS = ("'ll", "'ll've", "'d", "'d've")
_ENDINGS = {
    "i": (*_ALL_ENDINGS, "'ve", "'m"),
    **dict.fromkeys(("you", "we", "they", "these", "those"), (*_ALL_ENDINGS, "'ve", "'re")),
    **dict.fromkeys(("he", "she", "it", "that", "this"), (*_ALL_ENDINGS, "'s")),
    **dict.fromkeys(("who", "what", "when", "where", "why", "how", "there"), (*_ALL_ENDINGS, "'s", "'ve", "'re")),
}
_NEGATED = "ai are could dare did does do had has have is may might must need ought should was were would ca sha wo"
_NEGATED_HAVE = "could did does do had may might must need ought should would ca sha wo"
_HAVE = "could might must not should would"
_PARTS = ("can|not", "gon|na", "got|ta", "let|'s", "c'm|on", "i|'m|a", "i|m|a", "how|'d|'y")
_PARTS_LOWER = ("y'|all", "y|all")
_WHOLE_EITHER = "doin goin havin lovin nothin nuthin somethin ol"
_WHOLE = (
    "Adm. Ak. Ala. Apr. Ariz. Ark. Aug. Bros. Calif. Co. Colo. Conn. Corp. D.C. Dec. Del. Dr. E.G. E.g. Feb. Fla. "
    "Ga. Gen. Gov. I.E. I.e. Ia. Id. Ill. Inc. Ind. Jan. Jr. Jul. Jun. Kan. Kans. Ky. La. Ltd. Mar. Mass. Md. "
    "Messrs. Mich. Minn. Miss. Mo. Mont. Mr. Mrs. Ms. Mt. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. "
    "Okla. Ore. Pa. Ph.D. Prof. Rep. Rev. S.C. Sen. Sep. Sept. St. Tenn. Va. Wash. Wis. a.m. p.m. co. e.g. i.e. "
    "v.s. vs. and/or w/o C++ 'S 's 'd 'll 're '' ’ ‘S ‘s ’’ ’S ’s ’d ’ll ’re ä. ö. ü. ll em nuff \\n \\t ma'am "
    "Ma'am o'clock O'clock ma’am Ma’am o’clock O’clock"
)
_CUT_FRONT = "'em 'nuff 'bout 'cause 'cos 'coz 'cuz 'Cause 'Cos 'Coz 'Cuz"
_SMILEYS = (
    "(-8 (-: (-; (: (; (= (o: )-: ): -_- -__- ._. 0.0 0.o 0_0 0_o 8) 8-) 8-D 8D :'( :') :'-( :'-) :( :(( :((( :() "
    ":) :)) :))) :* :-( :-(( :-((( :-) :-)) :-))) :-* :-/ :-0 :-3 :-> :-D :-O :-P :-X :-] :-o :-p :-x :-| :-} :/ "
    ":0 :1 :3 :> :D :O :P :X :] :o :o) :p :x :| :} ;) ;-) ;-D ;D ;_; <.< </3 <3 <33 <333 =( =) =/ =3 =D =[ =] =| "
    ">.< >.> >:( >:o @_@ O.O O.o O_O O_o V.V V_V XD XDD [-: [: [= ]= ^_^ ^__^ ^___^ o.0 o.O o.o o_0 o_O o_o v.v "
    'v_v xD xDD \\") (*_*) (-_-) (._.) (>_<) (^_^) <space>'
)


def special_parts() -> dict[str, tuple[str, ...]]:
    """Return every listed string with the tokens that it becomes."""
    found: dict[str, tuple[str, ...]] = {}
    for parts in _contractions():
        for cased in (parts, (parts[0][0].upper() + parts[0][1:], *parts[1:])):
            for variant in (cased, tuple(part.replace("'", "\u2019") for part in cased)):
                found["".join(variant)] = variant
    for hour in range(1, 13):
        for half in ("am", "pm", "a.m.", "p.m."):
            found[f"{hour}{half}"] = (str(hour), half)
    for scale in "CFKcfk":
        found[f"°{scale}."] = ("°", scale, ".")
    cut_front = _CUT_FRONT.split()
    whole = [*_WHOLE.split(), *_SMILEYS.split(), *cut_front, *(text.replace("'", "\u2019") for text in cut_front)]
    whole += [f"{chr(letter)}." for letter in range(ord("a"), ord("z") + 1)]
    for word in _WHOLE_EITHER.split():
        for cased_word in (word, word.title()):
            whole += [cased_word, f"{cased_word}'", f"{cased_word}\u2019"]
    return found | {text: (text,) for text in whole}


def _contractions() -> Iterator[tuple[str, ...]]:
    """Yield lower-case contractions as their tokens."""
    for word, endings in _ENDINGS.items():
        for ending in endings:
            pieces = tuple(f"'{piece}" for piece in ending.split("'")[1:])
            yield (word, *pieces)
            bare = tuple(piece[1:] for piece in pieces)
            if word + "".join(bare) not in _NOT_SPLIT:
                yield (word, *bare)
    have = set(_NEGATED_HAVE.split())
    for verb in _NEGATED.split():
        for ending in ("n't", "nt"):
            yield verb, ending
            if verb in have:
                yield verb, ending, "'ve" if "'" in ending else "ve"
    for verb in _HAVE.split():
        yield verb, "'ve"
        yield verb, "ve"
    for text in _PARTS:
        yield tuple(text.split("|"))
    for text in _PARTS_LOWER:
        yield tuple(text.split("|"))


def hash_chars(text: str) -> int:
    """Hash the code points of a string as the kernel does (FNV-1a, 64 bits)."""
    value = _FNV_START
    for char in text:
        value = ((value ^ ord(char)) * _FNV_PRIME) & _MASK
    return value or 1


@functools.cache
def special_table() -> np.ndarray:
    """Return an open-addressing table of the listed strings: uint64, shape (slots, 2), read-only.

    Column 0 is the hash (0 = free), column 1 the ends of the tokens but the last, in characters, one per byte from the
    lowest. A slot is ``hash & (slots - 1)`` or the next free one.
    """
    specials = special_parts()
    size = 1 << (4 * len(specials)).bit_length()
    table = np.zeros((size, 2), dtype=np.uint64)
    for text, parts in sorted(specials.items()):
        value = hash_chars(text)
        slot = value & (size - 1)
        while table[slot, 0] != 0:
            slot = (slot + 1) & (size - 1)
        ends, packed = 0, 0
        for place, part in enumerate(parts[:-1]):
            ends += len(part)
            packed |= ends << (8 * place)
        table[slot] = value, packed
    table.flags.writeable = False
    return table
