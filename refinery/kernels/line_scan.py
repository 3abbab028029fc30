"""Lines of documents, compiled: what is measured of each, which rare rules hold, and what edits take out of one.

Helpers of `line_rules`, which states the semantics. Each takes a batch of lines: a call per line that takes a dozen
arrays cost 200 ns, more than the work on a short line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from refinery.kernels.char_classes import CLOSER, DIGIT, SPACE, TERMINAL, UPPER, WORD, class_of, decode
from refinery.kernels.signals_lines import last_char, strip_span
from refinery.kernels.wide import next_line_end

# Facts of a line, in the order of `line_rules.LINE_FACTS`.
NUM_CHARS, NUM_WORDS, LONGEST_WORD, UPPER_FRAC, DIGIT_FRAC, ENDS_C4, ENDS_SENTENCE = range(7)
NUM_FACTS = 7
# What a rule looks at, what it does, where its phrases stand.
BOUND, PHRASES, COUNTER, CITATION, OUTER_SPACE = range(5)
CUT_LINE, CUT_MATCH, DROP_DOCUMENT = range(3)
ANYWHERE, START, END, WHOLE = range(4)
# Columns of `Compiled.ints`.
KIND, ACTION, FACT, AT, MAX_WORDS, MAX_CHARS, UNFINISHED, BLANK, FIRST_PHRASE, LAST_PHRASE, PRESET = range(11)
# Columns of what is found: document, span, rule, what became of it, every rule that would cut the line.
DOC, SPAN_START, SPAN_END, RULE, DONE, BITS = range(6)
# Bits of `measure_lines`' hits above those of the rules (at most 61 hold phrases).
BRACKET_HIT, SPACE_HIT = 1 << 61, 1 << 62
# Flags of `Compiled.kinds`.
SPACE_BYTE, UPPER_BYTE, DIGIT_BYTE, OPENS_PHRASE, WIDE_BYTE, BRACKET = 1, 2, 4, 8, 16, 32
_EDIT, _CITATION_NEEDED = b"edit]", b"citation needed]"


class Compiled(NamedTuple):
    """R line rules as arrays."""

    ints: np.ndarray
    """int64, shape (R, 11)."""
    bounds: np.ndarray
    """float64, shape (R, 2): lowest and highest value that stays."""
    phrases: np.ndarray
    """uint8: the phrases one behind the other, ASCII letters lowered."""
    phrase_offsets: np.ndarray
    """int64, shape (P + 1,)."""
    kinds: np.ndarray
    """uint8, shape (256,): what a byte means to `measure_lines`, flags; 0 = a character of a word, no more."""
    pairs: np.ndarray
    """uint8, shape (65536,): the same of its first two bytes, lowered; of a phrase of one byte, any second."""
    anywhere: np.ndarray
    """int64, shape (A, 2): (phrase, rule) of phrases that are looked for anywhere."""


@numba.njit(cache=True, inline="always")
def _folded(byte: Any) -> Any:
    return byte | 0x20 if 0x41 <= byte <= 0x5A else byte


@numba.njit(cache=True)
def _matches(view: np.ndarray, at: int, end: int, phrases: np.ndarray, first: int, last: int) -> bool:
    """Whether ``phrases[first:last]`` stands at byte `at`, ASCII case aside."""
    if at < 0 or at + last - first > end:
        return False
    for k in range(last - first):  # noqa: SIM110 - no generators in compiled code
        if _folded(view[at + k]) != phrases[first + k]:
            return False
    return True


@numba.njit(cache=True)
def _hits_at(view: np.ndarray, i: int, end: int, rules: Compiled) -> int:
    """Return the rules, one bit each, of which a phrase stands at byte i."""
    hits = 0
    for k in range(len(rules.anywhere)):
        phrase = rules.anywhere[k, 0]
        first, last = rules.phrase_offsets[phrase], rules.phrase_offsets[phrase + 1]
        if _matches(view, i, end, rules.phrases, first, last):
            hits |= 1 << rules.anywhere[k, 1]
    return hits


@numba.njit(cache=True, nogil=True)
def measure_lines(  # noqa: PLR0915 - the inner loop of the stage
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    rules: Compiled,
    classes: np.ndarray,
    facts: np.ndarray,
    hits: np.ndarray,
) -> None:
    """Fill in the `facts` (float64, shape (NUM_FACTS, L)) of L lines, and `hits` (int64, shape (L,)).

    `hits` has a bit for every rule of which a phrase stands anywhere in the line, `BRACKET_HIT` where it holds a ``[``
    and `SPACE_HIT` where it may begin or end with white space.
    """
    code: Any
    kinds, pairs = rules.kinds, rules.pairs
    for line in range(len(starts)):
        start, end = starts[line], stops[line]
        chars, words, longest, upper, digits, length, found = 0, 0, 0, 0, 0, 0, 0
        i = start
        while i < end:
            first = i
            while i < end and kinds[data[i]] == 0:
                i += 1
            length += i - first
            chars += i - first
            if i >= end:
                break
            byte = data[i]
            kind, width = np.int64(kinds[byte]), 1
            if kind & WIDE_BYTE:
                code, width = decode(data, i, end)
                flags = class_of(classes, code)
                kind |= SPACE_BYTE if flags & SPACE else 0
                kind |= UPPER_BYTE if flags & UPPER else 0
                kind |= DIGIT_BYTE if flags & DIGIT else 0
            chars += 1
            if kind & SPACE_BYTE:
                words += length > 0
                longest = max(longest, length)
                length = 0
            else:
                length += 1
                upper += kind & UPPER_BYTE != 0
                digits += kind & DIGIT_BYTE != 0
                if kind & OPENS_PHRASE:
                    second = np.int64(_folded(data[i + 1])) if i + 1 < end else 0
                    if pairs[(np.int64(_folded(byte)) << 8) | second]:
                        found |= _hits_at(data, i, end, rules)
                if kind & BRACKET:
                    found |= BRACKET_HIT
            i += width
        words += length > 0
        facts[NUM_CHARS, line], facts[NUM_WORDS, line], facts[LONGEST_WORD, line] = chars, words, max(longest, length)
        facts[UPPER_FRAC, line], facts[DIGIT_FRAC, line] = upper / max(chars, 1), digits / max(chars, 1)
        facts[ENDS_C4, line], facts[ENDS_SENTENCE, line] = ends_c4(data, start, end), 0.0
        if end > start:
            opening, closing = data[start], data[end - 1]
            if not (0x20 < opening < 0x80 and 0x20 < closing < 0x80):
                found |= SPACE_HIT
            ends = closing == 0x2E or closing == 0x21 or closing == 0x3F  # noqa: PLR1714
            if not ends and not 0x30 <= closing <= 0x7A:  # letters and figures end nothing
                ends = _ends_sentence(data, start, end, classes)
            facts[ENDS_SENTENCE, line] = ends
        hits[line] = found


@numba.njit(cache=True)
def split_lines(offsets: np.ndarray, data: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (document, first byte, last byte + 1 without the line end) of every line; at most `room` lines."""
    docs, starts, stops = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    count = 0
    for doc in range(len(offsets) - 1):
        start, end = offsets[doc], offsets[doc + 1]
        while start < end:
            stop, _ = next_line_end(data, start, end)
            docs[count], starts[count], stops[count] = doc, start, stop
            count += 1
            start = stop + 1
    return docs[:count], starts[:count], stops[:count]


@numba.njit(cache=True)
def rare_rule_holds(
    data: np.ndarray, starts: np.ndarray, stops: np.ndarray, rule: int, rules: Compiled, classes: np.ndarray
) -> np.ndarray:
    """Return bool, shape (L,): whether a rule on a pattern, or on phrases at the edge, holds for each line."""
    holds = np.zeros(len(starts), dtype=np.bool_)
    for line in range(len(starts)):
        holds[line] = _rare_kind_holds(data, starts[line], stops[line], rule, rules, classes)
    return holds


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


@numba.njit(cache=True)
def _edge_phrase(
    view: np.ndarray, start: int, end: int, rule: int, rules: Compiled, classes: np.ndarray
) -> tuple[int, int]:
    """Return the span of a phrase of the rule at the edge of the line that the rule names; (-1, -1) if none is."""
    first, last = strip_span(view, start, end, classes)
    at = rules.ints[rule, AT]
    for phrase in range(rules.ints[rule, FIRST_PHRASE], rules.ints[rule, LAST_PHRASE]):
        low, high = rules.phrase_offsets[phrase], rules.phrase_offsets[phrase + 1]
        length = high - low
        if at == WHOLE and length != last - first:
            continue
        here = last - length if at == END else first
        if here >= first and _matches(view, here, last, rules.phrases, low, high):
            return here, here + length
    return -1, -1


@numba.njit(cache=True)
def _is_word(code: int, classes: np.ndarray) -> bool:
    return class_of(classes, code) & WORD != 0 or code == 0x5F


@numba.njit(cache=True)
def _all_marks(view: np.ndarray, start: int, end: int, classes: np.ndarray) -> bool:
    while start < end:
        code, width = decode(view, start, end)
        if _is_word(code, classes):
            return False
        start += width
    return True


@numba.njit(cache=True)
def _is_counter(view: np.ndarray, start: int, end: int, rule: int, rules: Compiled, classes: np.ndarray) -> bool:
    """Whether the line is a number, perhaps with k, m or b, then one of the rule's words, and nothing but marks."""
    i = start
    code, width = 0, 0
    while i < end:
        code, width = decode(view, i, end)
        if _is_word(code, classes):
            break
        i += width
    if i >= end or not class_of(classes, code) & DIGIT:
        return False
    while i < end:
        code, width = decode(view, i, end)
        if code != 0x2C and code != 0x2E and not class_of(classes, code) & DIGIT:  # noqa: PLR1714
            break
        i += width
    if i < end and _folded(view[i]) in (0x6B, 0x6D, 0x62):
        i += 1
    word = i
    while word < end:
        code, width = decode(view, word, end)
        if not class_of(classes, code) & SPACE:
            break
        word += width
    for phrase in range(rules.ints[rule, FIRST_PHRASE], rules.ints[rule, LAST_PHRASE]):
        low, high = rules.phrase_offsets[phrase], rules.phrase_offsets[phrase + 1]
        spaced = word > i or rules.phrases[low] >= 0x80  # no space is written before a Chinese unit
        here = spaced and _matches(view, word, end, rules.phrases, low, high)
        if here and _all_marks(view, word + high - low, end, classes):
            return True
    return False


@numba.njit(cache=True)
def _citation(view: np.ndarray, i: int, end: int, classes: np.ndarray) -> int:
    """Return where the citation mark ends that begins at byte i, a ``[``; -1 if none does."""
    if _matches_bytes(view, i + 1, end, _EDIT):
        return i + 1 + len(_EDIT)
    if _matches_bytes(view, i + 1, end, _CITATION_NEEDED):
        return i + 1 + len(_CITATION_NEEDED)
    i += 1
    while i < end:
        code, width = decode(view, i, end)
        if code == 0x5D:
            return i + 1
        if not class_of(classes, code) & DIGIT:
            return -1
        i += width
    return -1


@numba.njit(cache=True)
def _matches_bytes(view: np.ndarray, at: int, end: int, wanted: bytes) -> bool:
    if at + len(wanted) > end:
        return False
    for k in range(len(wanted)):  # noqa: SIM110 - no generators in compiled code
        if view[at + k] != wanted[k]:
            return False
    return True


@numba.njit(cache=True)
def _next_citation(view: np.ndarray, i: int, end: int, classes: np.ndarray) -> tuple[int, int]:
    while i < end:
        if view[i] == 0x5B:
            stop = _citation(view, i, end, classes)
            if stop >= 0:
                return i, stop
        i += 1
    return -1, -1


@numba.njit(cache=True)
def _rare_kind_holds(view: np.ndarray, start: int, end: int, rule: int, rules: Compiled, classes: np.ndarray) -> bool:
    kind = rules.ints[rule, KIND]
    if kind == PHRASES:
        return _edge_phrase(view, start, end, rule, rules, classes)[0] >= 0
    if kind == COUNTER:
        return _is_counter(view, start, end, rule, rules, classes)
    if kind == CITATION:
        return _next_citation(view, start, end, classes)[0] >= 0
    first, last = strip_span(view, start, end, classes)
    return first > start or last < end


@numba.njit(cache=True)
def _mark_phrases(
    view: np.ndarray, start: int, end: int, rule: int, rules: Compiled, classes: np.ndarray, gone: np.ndarray
) -> None:
    """Mark the phrases of a rule, each with one white space before it (at the start of a line: behind it)."""
    at = rules.ints[rule, AT]
    if at != ANYWHERE:
        first, last = _edge_phrase(view, start, end, rule, rules, classes)
        if at == START:
            last = _space_behind(view, last, end, classes)
        elif at == END:
            first, last = _space_before(view, start, first, classes), end
        else:
            first, last = start, end
        gone[first:last] = True
        return
    i = start
    while i < end:
        width = 1
        for phrase in range(rules.ints[rule, FIRST_PHRASE], rules.ints[rule, LAST_PHRASE]):
            low, high = rules.phrase_offsets[phrase], rules.phrase_offsets[phrase + 1]
            if _matches(view, i, end, rules.phrases, low, high):
                width = high - low
                gone[_space_before(view, start, i, classes) : i + width] = True
                break
        i += width


@numba.njit(cache=True)
def _space_before(view: np.ndarray, start: int, at: int, classes: np.ndarray) -> int:
    if at > start:
        code, first = last_char(view, start, at)
        if class_of(classes, code) & SPACE:
            return first
    return at


@numba.njit(cache=True)
def _space_behind(view: np.ndarray, at: int, end: int, classes: np.ndarray) -> int:
    if at < end:
        code, width = decode(view, at, end)
        if class_of(classes, code) & SPACE:
            return at + width
    return at


@numba.njit(cache=True, nogil=True)
def edit_lines(
    data: np.ndarray,
    place: np.ndarray,
    spans: tuple[np.ndarray, np.ndarray],
    rule: int,
    rules: Compiled,
    classes: np.ndarray,
    owner: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Take what a rule matches out of lines that it holds for.

    Args:
        data: uint8, shape (N,).
        place: int64, shape (N,): where each byte stood before any edit; empty: where it stands.
        spans: (first byte, last byte + 1) of the lines, int64, shape (L,) each.
        rule: the rule.
        rules: all of them.
        classes: of `char_classes.class_table`.
        owner: int16, by place: set to the rule where a byte goes.
    Returns: (data, place, starts, stops) of the L lines as they are now.
    """
    starts, stops = spans
    kind, total = rules.ints[rule, KIND], 0
    for line in range(len(starts)):
        total += stops[line] - starts[line]
    left, places = np.empty(total, dtype=np.uint8), np.empty(total, dtype=np.int64)
    firsts, lasts = np.empty(len(starts), dtype=np.int64), np.empty(len(starts), dtype=np.int64)
    gone = np.zeros(len(data), dtype=np.bool_)
    count = 0
    for line in range(len(starts)):
        start, end = starts[line], stops[line]
        if kind == PHRASES:
            _mark_phrases(data, start, end, rule, rules, classes, gone)
        elif kind == CITATION:
            first, last = _next_citation(data, start, end, classes)
            while first >= 0:
                gone[first:last] = True
                first, last = _next_citation(data, last, end, classes)
        else:
            first, last = strip_span(data, start, end, classes)
            gone[start:first] = True
            gone[last:end] = True
        firsts[line] = count
        for i in range(start, end):
            was = place[i] if len(place) else i
            if gone[i]:
                owner[was] = rule
            else:
                left[count], places[count] = data[i], was
                count += 1
        lasts[line] = count
    return left[:count], places[:count], firsts, lasts
