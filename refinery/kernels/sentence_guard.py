"""Guard over similar sentences: pairs whose numbers, negations, duties or names differ are not duplicates.

Embeddings put "Article 12 applies" beside "Article 13 applies", a duty beside its opposite and "A sued B" beside "B
sued A" at cosines above 0.95; removing one of them harms law and medicine text most. A veto only keeps text, so every
rule errs towards it. The guard sees the sentences of the few pairs over the threshold; English, Chinese, German, French
and Russian are covered. A sentence is read once into hashed features, so that pairs are judged wherever they meet
without their text.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from refinery.errors import DataError
from refinery.kernels.sentence_guard_words import enumerators, is_number_word, negated_words

NUMBERS, NEGATION, DUTY, NAMES, ROLES = 1, 2, 4, 8, 16
"""Bits of a veto."""


def _words_of(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*%?|[零〇一二三四五六七八九十百千万亿两壹贰叁肆伍陆柒捌玖拾]+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[^\W_]+")
_TITLE = re.compile(r"《[^》]*》|「[^」]*」|“[^”]*”")
_NEGATIONS = _words_of(
    "not no never none nor neither without cannot nothing nobody nowhere unless except hardly non "
    "rarely seldom barely scarcely fail fails failed failing refuse refuses refused lack lacks lacked lacking "
    "prevent prevents prevented deny denies denied exclude excludes excluded excluding instead "
    "nicht kein keine keinen keinem keiner keines nie niemals ohne weder nein nichts niemand außer "
    "keinerlei keinesfalls keineswegs nirgends kaum fehlt fehlen verweigert ausgenommen ausgeschlossen statt anstatt "
    "ne pas jamais aucun aucune sans ni rien sauf guère nul nulle nullement aucunement hormis excepté faute refuse "
    "не ни нет без никогда нельзя никто ничего кроме ничто нигде никак никакой никакого едва отсутствует вместо"
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


# Parties of contracts, suits, treatments and families: one in the place of another is another rule.
_PARTIES = _words_of(
    "buyer seller purchaser vendor lessor lessee landlord tenant employer employee creditor debtor plaintiff defendant "
    "claimant appellant respondent licensor licensee lender borrower insurer insured principal agent guarantor trustee "
    "beneficiary husband wife mother father son daughter man woman men women boy girl patient doctor nurse victim "
    "acheteur vendeur bailleur locataire employeur employé salarié créancier débiteur demandeur défendeur prêteur "
    "emprunteur assureur assuré mari femme mère père fils fille homme médecin "
    "покупатель продавец арендодатель арендатор работодатель работник кредитор должник истец ответчик заемщик заёмщик"
)
_PARTIES_ZH = re.compile(
    "[甲乙丙丁]方?|原告|被告|上诉人|被上诉人|申请人|被申请人|买受人|出卖人|买方|卖方|出租人|承租人|债权人|债务人|"
    "用人单位|劳动者|雇主|雇员|保险人|被保险人|贷款人|借款人|委托人|受托人|发包人|承包人|丈夫|妻子|父亲|母亲|患者|医生"
)
_PLACES_ZH = re.compile(r"[\u4e00-\u9fff]{2}(?:省|市|县|区|州|镇|国|公司|法院|银行|大学|医院)")
# Words that say who does what to whom; German and Russian cases are seen by the order of articles and names.
_RELATIONS = _words_of(
    "i me my we us our you your he him his she her they them their from to for against into onto "
    "ich mich mir mein wir uns unser er ihn ihm sein sie ihr ihnen gegen für zu an aus "
    "je me moi mon nous notre tu te il lui elle ils elles leur eux contre pour de à "
    "я меня мне мы нас он его ему она её ее ей они их им от к против"
)
_RELATIONS_ZH = re.compile("[我你您他她它向给对从]")
_AGENTS = _words_of("by von durch par кем")
_AGENTS_ZH = re.compile("[被由把将]")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_CODE = re.compile(r"(?=.*[^\W\d_])(?=.*\d).+")  # letters and digits in one word: B12, Covid19
_HEADER = 11  # five digests, whether the first word has a capital, and five lengths


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _digest(counted: Counter[str]) -> int:
    return _hash("\x1f".join(f"{word}\x1e{count}" for word, count in sorted(counted.items())))


def guard_features(text: str) -> np.ndarray:
    """Return what the guard knows of a sentence, as hashes: uint64; not the text, and not to be turned back into it.

    Layout: digests of numbers, negations, duties, parties and agents ("by"); 1 if the first word has a capital; then
    five lengths and the hashes of names behind the first word, of all words folded, of the words in their order (a Han
    character is a word there), of pronouns and directions, and of words whose opposite is there ("unlawful": lawful).
    """
    clean = unicodedata.normalize("NFKC", text)
    words = _words(clean)
    folded = [word.casefold() for word in words]
    numbers = Counter(_NUMBER.findall(clean)) + Counter(filter(is_number_word, folded))
    numbers += Counter(enumerators(clean))
    negations = Counter(_NEGATIONS_ZH.findall(clean))
    for word in folded:
        if word in _NEGATIONS or word.endswith(_NEGATION_ENDINGS) or word.startswith(_NEGATION_STARTS):
            negations["negation"] += 1
    duties = Counter(_DUTIES_ZH.findall(clean)) + Counter(word for word in folded if word in _DUTIES)
    parties = Counter(_PARTIES_ZH.findall(clean)) + Counter(word for word in folded if word in _PARTIES)
    parties += Counter(_PLACES_ZH.findall(clean))
    relations = Counter(_RELATIONS_ZH.findall(clean)) + Counter(word for word in folded if word in _RELATIONS)
    names = {_hash(word.casefold()) for word in words[1:] if word[0].isupper() or _CODE.fullmatch(word)}
    names |= {_hash(title) for title in _TITLE.findall(text)}
    order = [piece for word in folded for piece in (_HAN.findall(word) if _HAN.search(word) else [word])]
    capital = bool(words) and words[0][0].isupper()
    agents = Counter(_AGENTS_ZH.findall(clean)) + Counter(word for word in folded if word in _AGENTS)
    digests = [_digest(counted) for counted in (numbers, negations, duties, parties, agents)]
    related = sorted(_hash(f"{word} {k}") for word, count in relations.items() for k in range(count))
    negated = sorted({_hash(other) for word in folded for other in negated_words(word)})
    lengths = [len(names), len(folded), len(order), len(related), len(negated)]
    hashes = [*sorted(names), *map(_hash, folded), *map(_hash, order), *related, *negated]
    return np.array([*digests, int(capital), *lengths, *hashes], dtype=np.uint64)


def features_veto(left: np.ndarray, right: np.ndarray) -> int:
    """Return the bits by which two sentences differ in meaning, from their `guard_features`; 0 allows removal.

    The first word counts as a name only if the sentences are otherwise equal but for one more word: its capital says
    nothing, its replacement does ("Paris is ..." / "London is ..."). Roles are swapped where words that both sentences
    have equally often stand in another order ("A sued B" / "B sued A"), one has an agent ("by") more, or pronouns or
    directions of one are replaced by others; a pronoun more on one side alone is a small edit.

    Raises:
        DataError: the features are not such an array.
    """
    ours, theirs = _unpacked(left), _unpacked(right)
    numbers, negations, duties, parties, agents = (a != b for a, b in zip(ours[0][:5], theirs[0][:5], strict=True))
    bits = NUMBERS * numbers | NEGATION * negations | DUTY * duties | NAMES * parties | ROLES * agents
    (_, names_a, a, order_a, related_a, against_a), (_, names_b, b, order_b, related_b, against_b) = ours, theirs
    counts_a, counts_b = Counter(a), Counter(b)
    if any(counts_b[w] > counts_a[w] for w in against_a) or any(counts_a[w] > counts_b[w] for w in against_b):
        bits |= NEGATION  # lawful / unlawful
    # A name that the other side writes in small letters is there all the same.
    if set(names_a).difference(b, names_b) or set(names_b).difference(a, names_a):
        bits |= NAMES
    elif a and b and ours[0][5] and theirs[0][5] and a[0] != b[0]:
        bits |= NAMES * (len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) <= 2)
    replaced = bool(set(related_a).difference(related_b)) and bool(set(related_b).difference(related_a))
    return bits | ROLES * (replaced or _reordered(order_a, order_b))


def _unpacked(features: np.ndarray) -> tuple[list[int], ...]:
    """Return the head, then the hashes of names, words, order, relations and negated words."""
    values = features.tolist()
    bounds = np.cumsum([_HEADER, *values[6:_HEADER]]).tolist() if len(values) >= _HEADER else [-1]
    if bounds[-1] != len(values):
        raise DataError(f"{len(values)} numbers are no guard features; pass what guard_features returned")
    pieces = (values[first:last] for first, last in itertools.pairwise(bounds))
    return values[:6], *pieces


def _reordered(left: Sequence[int], right: Sequence[int]) -> bool:
    """Tell whether words that stand equally often in both come in another order."""
    if left == right:
        return False
    ours, theirs = Counter(left), Counter(right)
    shared = {word for word, count in ours.items() if theirs.get(word) == count}
    return [w for w in left if w in shared] != [w for w in right if w in shared]


@functools.lru_cache(maxsize=4096)
def _features(text: str) -> np.ndarray:
    found = guard_features(text)
    found.flags.writeable = False
    return found


def veto(left: str, right: str) -> int:
    """Return the bits (`NUMBERS` ...) by which two sentences differ in meaning; see `features_veto`."""
    return features_veto(_features(left), _features(right))


def veto_pairs(left: Iterable[str], right: Iterable[str]) -> np.ndarray:
    """Return `veto` of paired sentences: uint8, shape (E,); nonzero forbids the removal."""
    return np.fromiter((veto(a, b) for a, b in zip(left, right, strict=True)), dtype=np.uint8)
