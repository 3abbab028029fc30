"""What line rules ask about a line, compiled: facts, and which phrases stand anywhere in it.

Helper of `line_rules`, which states the semantics. Runs of plain ASCII are taken eight bytes at a time without a jump
that the text decides: a loop over bytes that stopped at every blank, capital and first letter of a phrase took twice to
three times as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from refinery.hashing import load_uint64
from refinery.kernels.char_classes import CLOSER, DIGIT, SPACE, TERMINAL, UPPER, class_of, decode
from refinery.kernels.signals_lines import last_char, strip_span
from refinery.kernels.wide import BEHIND_9, BLANKS, FROM_0, HIGH_BITS, SEVEN_BITS, bytes_below, count_marked

# What is counted of a line, in the order of `line_rules.LINE_FACTS`; fractions of characters are kept as counts.
NUM_CHARS, NUM_WORDS, LONGEST_WORD, CAPITALS, DIGITS, ENDS_C4, ENDS_SENTENCE = range(7)
NUM_FACTS = 7
# Bits of `measure_lines`' hits above those of the rules (at most 61 hold phrases).
BRACKET_HIT, SPACE_HIT = 1 << 61, 1 << 62
# Flags of `Compiled.pairs`.
PHRASE_PAIR, BRACKET_PAIR = 1, 2
_BLANK, _LONGEST_INSIDE = 0x20, 6
_PAIR, _S8, _S16, _S32, _S48 = (np.uint64(n) for n in (0xFFFF, 8, 16, 32, 48))
# added to a byte below 0x80, these set its high bit from the blank, from "A" and from behind "Z" on
_FROM_BLANK, _FROM_A, _BEHIND_Z = (np.uint64(add * 0x0101010101010101) for add in (0x60, 0x3F, 0x25))
_NONE, _WORD_BEFORE = np.uint64(0), np.uint64(0x80)


class Compiled(NamedTuple):
    """R line rules as arrays."""

    ints: np.ndarray
    """int64, shape (R, 11): columns as `line_scan` names them."""
    bounds: np.ndarray
    """float64, shape (R, 2): lowest and highest value that stays."""
    phrases: np.ndarray
    """uint8: the phrases one behind the other, ASCII letters lowered."""
    phrase_offsets: np.ndarray
    """int64, shape (P + 1,)."""
    anywhere: np.ndarray
    """int64, shape (A, 3): (phrase, rule, offset of the two bytes it is looked for by) of phrases at any place."""
    edges: np.ndarray
    """bool, shape (R, 256): bytes at which phrases of a rule, looked for at one edge of lines, may begin or end."""
    pairs: np.ndarray
    """uint8, shape (65536,): flags of two bytes, the first one low: they are of a phrase, the first is a ``[``."""


@numba.njit(cache=True, inline="always")
def folded(byte: Any) -> Any:
    """Return an ASCII capital as its small letter, any other byte as it is."""
    return byte | 0x20 if 0x41 <= byte <= 0x5A else byte


@numba.njit(cache=True, inline="always")
def matches(view: np.ndarray, at: int, end: int, phrases: np.ndarray, first: int, last: int) -> bool:
    """Whether ``phrases[first:last]`` stands at byte `at`, ASCII case aside."""
    if at < 0 or at + last - first > end:
        return False
    for k in range(last - first):  # noqa: SIM110 - no generators in compiled code
        if folded(view[at + k]) != phrases[first + k]:
            return False
    return True


@numba.njit(cache=True)
def _hits_of(data: np.ndarray, first: int, last: int, start: int, end: int, rules: Compiled) -> int:
    """Return the rules, one bit each, of which a phrase has its two bytes at one of the bytes from `first` to `last`.

    With `BRACKET_HIT` if one of those is a ``[``.
    """
    hits = 0
    for i in range(first, last):
        second = data[i + 1] if i + 1 < end else np.uint8(0)
        flags = rules.pairs[np.int64(data[i]) | (np.int64(second) << 8)]
        if flags & BRACKET_PAIR:
            hits |= BRACKET_HIT
        if not flags & PHRASE_PAIR:
            continue
        for k in range(len(rules.anywhere)):
            phrase, rule, offset = rules.anywhere[k]
            low, high = rules.phrase_offsets[phrase], rules.phrase_offsets[phrase + 1]
            if i - offset >= start and matches(data, i - offset, end, rules.phrases, low, high):
                hits |= 1 << rule
    return hits


@numba.njit(cache=True, inline="always")
def _any_pair(eight: np.uint64, behind: np.uint64, pairs: np.ndarray) -> int:
    """Return the flags of the pairs that begin at eight bytes; `behind` are the eight from the second on."""
    flags = pairs[eight & _PAIR] | pairs[(eight >> _S16) & _PAIR] | pairs[(eight >> _S32) & _PAIR]
    flags |= pairs[eight >> _S48] | pairs[behind & _PAIR] | pairs[(behind >> _S16) & _PAIR]
    result: Any = flags | pairs[(behind >> _S32) & _PAIR] | pairs[behind >> _S48]
    return result


@numba.njit(cache=True, inline="always")
def _plain_bytes(eight: np.uint64) -> int:
    """Return how many of eight bytes come before one that is a control character or none of ASCII."""
    return bytes_below((eight | ~((eight & SEVEN_BITS) + _FROM_BLANK)) & HIGH_BITS)


@numba.njit(cache=True, inline="always")
def _between(low7: np.uint64, start_from: np.uint64, behind: np.uint64, mask: np.uint64) -> int:
    """Count the bytes inside `mask` that lie between two bounds, each given as what reaches 0x80 from there on."""
    return count_marked((low7 + start_from) & ~(low7 + behind) & mask)


@numba.njit(cache=True, inline="always")
def _words_in(eight: np.uint64, count: int, length: int, mask: np.uint64) -> tuple[int, int, int]:
    """Look for words in the first `count` of eight plain bytes, those of `mask`; `length`: characters of the open one.

    Returns: words that begin; characters of the word that was open, as far as it goes; of the word open at the end.
    """
    spaces = ~(((eight & SEVEN_BITS) ^ BLANKS) + SEVEN_BITS) & mask
    filled = ~spaces & mask
    begun = count_marked(filled & ~((filled << _S8) | (_WORD_BEFORE if length > 0 else _NONE)))
    before: Any = length + bytes_below(spaces | (~mask & HIGH_BITS))
    last = spaces | (spaces >> _S8)
    last |= last >> _S16
    last |= last >> _S32  # every byte up to the last space
    behind = count - count_marked(last)
    return begun, before, before if spaces == _NONE else behind


@numba.njit(cache=True)
def _longest_word(data: np.ndarray, start: int, end: int, classes: np.ndarray) -> int:
    longest, length = 0, 0
    while start < end:
        code, width = decode(data, start, end)
        length = 0 if class_of(classes, code) & SPACE else length + 1
        longest = max(longest, length)
        start += width
    return longest


@numba.njit(cache=True, inline="always")
def _hits_in(data: np.ndarray, start: int, end: int, rules: Compiled) -> int:
    """Return the rules of which a phrase stands in the line, as `_hits_of`."""
    hits = 0
    for i in range(start, end, 8):
        if i + 9 > len(data) or _any_pair(load_uint64(data, i), load_uint64(data, i + 1), rules.pairs):
            hits |= _hits_of(data, i, min(i + 8, end), start, end, rules)
    return hits


@numba.njit(cache=True, inline="always")
def _measure_line(data: np.ndarray, start: int, end: int, classes: np.ndarray) -> tuple[int, int, int, int, int]:
    """Return (characters, words, characters of the longest, capitals, digits) of one line."""
    chars, words, longest, upper, digits, length = 0, 0, 0, 0, 0, 0
    i = start
    while i < end:
        count, eight = 0, _NONE
        if i + 8 <= len(data):
            eight = load_uint64(data, i)
            count = min(_plain_bytes(eight), end - i)
        if count > 0:
            mask = HIGH_BITS >> np.uint64(64 - 8 * count)
            begun, before, length = _words_in(eight, count, length, mask)
            words += begun
            longest = max(longest, before)
            upper += _between(eight & SEVEN_BITS, _FROM_A, _BEHIND_Z, mask)
            digits += _between(eight & SEVEN_BITS, FROM_0, BEHIND_9, mask)
            chars += count
            i += count
            continue
        is_wide = True
        while is_wide:
            code, width = decode(data, i, end)
            flags = class_of(classes, code)
            is_space = flags & SPACE != 0
            words += length == 0 and not is_space
            length = 0 if is_space else length + 1
            upper += flags & UPPER != 0
            digits += flags & DIGIT != 0
            longest = max(longest, length)
            chars += 1
            i += width
            is_wide = i < end and data[i] >= 0x80
    if longest < _LONGEST_INSIDE:  # a word with both ends among eight bytes may be longer
        longest = _longest_word(data, start, end, classes)
    return chars, words, longest, upper, digits


@numba.njit(cache=True, nogil=True)
def measure_lines(  # noqa: PLR0913, PLR0917 - compiled inner kernel
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    rules: Compiled,
    classes: np.ndarray,
    facts: np.ndarray,
    hits: np.ndarray,
    edges: np.ndarray,
) -> None:
    """Fill in the `facts` (int32, shape (NUM_FACTS, L)) of L lines, their `hits` and their `edges`.

    `hits` (int64, shape (L,)) has a bit for every rule of which a phrase stands anywhere in the line, `BRACKET_HIT`
    where it holds a ``[`` and `SPACE_HIT` where it may begin or end with white space. `edges` (uint8, shape (2, L)) are
    the first and the last byte that are not of white space, 0 in a blank line.
    """
    for line in range(len(starts)):
        start, end = starts[line], stops[line]
        chars, words, longest, upper, digits = _measure_line(data, start, end, classes)
        found = _hits_in(data, start, end, rules)
        facts[NUM_CHARS, line], facts[NUM_WORDS, line], facts[LONGEST_WORD, line] = chars, words, longest
        facts[CAPITALS, line], facts[DIGITS, line] = upper, digits
        facts[ENDS_C4, line], facts[ENDS_SENTENCE, line] = ends_c4(data, start, end), 0
        edges[0, line], edges[1, line] = 0, 0
        if end > start:
            opening, closing = data[start], data[end - 1]
            if not (_BLANK < opening < 0x80 and _BLANK < closing < 0x80):
                found |= SPACE_HIT
                start, end = strip_span(data, start, end, classes)
            if end > start:
                edges[0, line], edges[1, line] = data[start], data[end - 1]
            ends = closing == 0x2E or closing == 0x21 or closing == 0x3F  # noqa: PLR1714
            if not ends and not 0x30 <= closing <= 0x7A:  # letters and figures end nothing
                ends = _ends_sentence(data, start, end, classes)
            facts[ENDS_SENTENCE, line] = ends
        hits[line] = found


@numba.njit(cache=True)
def ends_c4(view: np.ndarray, start: int, end: int) -> bool:
    """Whether the last character is one of . ? ! " ' and the last three are not three dots."""
    ends = False
    if end > start:
        byte = view[end - 1]
        ends = byte == 0x2E or byte == 0x3F or byte == 0x21 or byte == 0x22 or byte == 0x27  # noqa: PLR1714
        if ends and byte == 0x2E and end - start >= 3 and view[end - 2] == 0x2E and view[end - 3] == 0x2E:
            ends = False
    return ends


@numba.njit(cache=True)
def _ends_sentence(view: np.ndarray, start: int, end: int, classes: np.ndarray) -> bool:
    """Whether a sentence ends the line, in any script: a terminal, or an ellipsis, then closing marks and space."""
    while end > start:
        code, first = last_char(view, start, end)
        flags = class_of(classes, code)
        if flags & TERMINAL or code == 0x2026:
            return True
        if not flags & (CLOSER | SPACE):
            return False
        end = first
    return False
