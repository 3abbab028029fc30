"""Words that decide whether a full stop ends a sentence: abbreviations, ordinals and sentence starters.

Short lists for English, German, French and Russian, chosen by what the four languages' prose, law and documentation
use most. A word of two languages takes the class that is safe in both. Words are lower case; matching folds case.
"""

from __future__ import annotations

import functools

NEVER, BEFORE_LOWER, ORDINAL_BEFORE, ORDINAL_AFTER, STARTER = 1, 2, 4, 8, 16

# A full stop behind these never ends a sentence: something must follow (titles, references).
_NEVER = (
    "mr mrs ms messrs dr prof rev hon gen col capt cmdr lt sgt maj gov sen rep pres st vs viz cf e.g i.e eg ie "
    "fig figs eq eqs ch nos pp eds arts para ref refs approx resp incl est al.cit "
    "z.b d.h u.a i.d.r i.v.m v.a s.o s.u bzw vgl ggf evtl sog nr abs abschn bd ca hr fr frl hrsg kap lit inkl zzgl "
    "gem entspr str tel bspw rn ziff ing dipl i.s.d i.s.v o.g u.u m.e "
    "mm mme mmes mlle mlles mgr c.-à-d p.ex env chap tom éd cie av boul tél réf "
    "т.е т.к т.н т.ч см ср напр ул пл пер просп обл гл рис табл стр св проф акад доц гр тов ред изд гг вв "
)
# A full stop behind these ends a sentence only before a capital.
_BEFORE_LOWER = (
    "no ver art fig sec app ed me ft mt vol etc inc ltd co corp jr sr bros dept univ assn ave blvd rd jan feb mar apr "
    "jun jul aug sep sept oct nov dec "
    "mon tue wed thu fri sat sun a.m p.m al op cit et.al usw u.s.w u.ä etc.p.p o.ä dgl abt verf geb gest mio mrd "
    "janv févr avr juil déc "
    "т.д т.п др пр г в руб коп тыс млн млрд н.э чел мин сек р.х им "
)
_ORDINAL_BEFORE = "am vom zum der dem des den die das im bis und seit ab beim dieser diesem"
_ORDINAL_AFTER = (
    "januar jänner februar märz april mai juni juli august september oktober november dezember jahrhundert "
    "jahrhunderts jahrtausend kapitel auflage band geburtstag lebensjahr lebensjahres januars abschnitt teil klasse"
)
_STARTER = (
    "the this that these those it he she we they you in on at an and but as for if when while there however after "
    "before to his her its our what why how who where so then yet nor such since because although "
    "der die das ein eine es er sie wir ich und aber in im am wenn dies diese dieser "
    "le la les un une il elle ils elles on nous vous et mais ce cette ces "
    "он она они это в на и но мы я не как что "
)


@functools.cache
def word_classes() -> dict[str, int]:
    """Return word -> union of the flags above; read it, never write to it."""
    classes: dict[str, int] = {}
    pairs = (
        (NEVER, _NEVER),
        (BEFORE_LOWER, _BEFORE_LOWER),
        (ORDINAL_BEFORE, _ORDINAL_BEFORE),
        (ORDINAL_AFTER, _ORDINAL_AFTER),
        (STARTER, _STARTER),
    )
    for flag, words in pairs:
        for word in words.split():
            classes[word] = classes.get(word, 0) | flag
    return classes


def hash_code_points(codes: list[int]) -> int:
    """Return the 64-bit FNV-1a hash over code points by which the kernel finds a listed word."""
    value = 0xCBF29CE484222325
    for code in codes:
        value = ((value ^ code) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
