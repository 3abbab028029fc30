"""Lines of documents, compiled: for which of them a rule holds, and what edits take out of one.

Helpers of `line_rules`, which states the semantics. Each takes a batch of lines: a call per line that takes a dozen
arrays cost 200 ns, more than the work on a short line.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from refinery.kernels.char_classes import DIGIT, SPACE, WORD, class_of, decode
from refinery.kernels.line_measures import (
    BRACKET_HIT,
    CAPITALS,
    DIGITS,
    ENDS_C4,
    ENDS_SENTENCE,
    NUM_CHARS,
    NUM_WORDS,
    SPACE_HIT,
    Compiled,
    ends_c4,
    folded,
    matches,
)
from refinery.kernels.signals_lines import last_char, strip_span
from refinery.kernels.wide import next_line_end

# What a rule looks at, what it does, where its phrases stand.
BOUND, PHRASES, COUNTER, CITATION, OUTER_SPACE = range(5)
CUT_LINE, CUT_MATCH, DROP_DOCUMENT = range(3)
ANYWHERE, START, END, WHOLE = range(4)
# Columns of `Compiled.ints`.
KIND, ACTION, FACT, AT, MAX_WORDS, MAX_CHARS, UNFINISHED, BLANK, FIRST_PHRASE, LAST_PHRASE, PRESET = range(11)
_EDIT, _CITATION_NEEDED = b"edit]", b"citation needed]"


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


class Lines(NamedTuple):
    """L lines, as edits have left them, and what is measured of them."""

    data: np.ndarray
    """uint8, shape (N,)."""
    place: np.ndarray
    """int64, shape (N,): where each byte of `data` stood before any edit; empty: where it stands."""
    starts: np.ndarray
    """int64, shape (L,)."""
    stops: np.ndarray
    """int64, shape (L,)."""
    facts: np.ndarray
    """int32, shape (NUM_FACTS, L)."""
    hits: np.ndarray
    """int64, shape (L,)."""
    edges: np.ndarray
    """uint8, shape (2, L)."""
    masks: np.ndarray
    """int64, shape (L,): rules that hold for the line's document."""


@numba.njit(cache=True, nogil=True)
def holding_lines(
    lines: Lines, rule: int, rules: Compiled, classes: np.ndarray, asked: np.ndarray, cut: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Return the lines (int64, ascending) that are asked whether a rule holds, and for which it does.

    Args:
        lines: L lines.
        rule: the rule.
        rules: all of them.
        classes: of `char_classes.class_table`.
        asked: int64, ascending: lines that may be asked at all.
        cut: int64: the rule that cuts each line of the batch, -1 none; only rules that cut lines are asked of those.
        at: int64, shape (L,): numbers of the lines in the batch.
    """
    ints, hits, masks = rules.ints[rule], lines.hits, lines.masks
    words, chars, ended = lines.facts[NUM_WORDS], lines.facts[NUM_CHARS], lines.facts[ENDS_SENTENCE]
    digits = lines.facts[DIGITS]
    values, low, high = lines.facts[max(ints[FACT], 0)], rules.bounds[rule, 0], rules.bounds[rule, 1]
    kind, anywhere = ints[KIND], ints[KIND] == PHRASES and ints[AT] == ANYWHERE
    is_frac = ints[FACT] == CAPITALS or ints[FACT] == DIGITS
    edits, least_words = ints[ACTION] != CUT_LINE, 0 if ints[BLANK] else 1
    needs_hit = BRACKET_HIT if kind == CITATION else SPACE_HIT if kind == OUTER_SPACE else 0
    edge, may_begin = lines.edges[1 if ints[AT] == END else 0], rules.edges[rule]
    holds, count = np.empty(len(asked), dtype=np.int64), 0
    for line in asked:
        if not (masks[line] >> rule) & 1 or not least_words <= words[line] <= ints[MAX_WORDS]:
            continue
        if chars[line] > ints[MAX_CHARS] or (ints[UNFINISHED] and ended[line] != 0) or (edits and cut[at[line]] >= 0):
            continue
        if kind == BOUND:
            value = values[line] / max(chars[line], 1) if is_frac else np.float64(values[line])
            found = value < low or value > high
        elif anywhere:
            found = (hits[line] >> rule) & 1 == 1
        elif kind == PHRASES:
            found = may_begin[edge[line]]
        elif kind == COUNTER:
            found = digits[line] > 0
        else:
            found = hits[line] & needs_hit != 0
        if found:
            holds[count] = line
            count += 1
    if kind != BOUND and not anywhere:
        count = _found_among(lines.data, lines.starts, lines.stops, holds[:count], rule, rules, classes)
    return holds[:count]


@numba.njit(cache=True)
def _found_among(
    data: np.ndarray, starts: np.ndarray, stops: np.ndarray, holds: np.ndarray, rule: int, rules: Compiled,
    classes: np.ndarray,
) -> int:  # fmt: skip
    """Keep, at the start of `holds`, the lines that have what a rule looks for, on a pattern or phrases at an edge."""
    kind, count = rules.ints[rule, KIND], 0
    for line in holds:
        start, end = starts[line], stops[line]
        if kind == PHRASES:
            found = _edge_phrase(data, start, end, rule, rules, classes)[0] >= 0
        elif kind == COUNTER:
            found = _is_counter(data, start, end, rule, rules, classes)
        elif kind == CITATION:
            found = _next_citation(data, start, end, classes)[0] >= 0
        else:
            first, last = strip_span(data, start, end, classes)
            found = first > start or last < end
        if found:
            holds[count] = line
            count += 1
    return count


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
        if here >= first and matches(view, here, last, rules.phrases, low, high):
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
    if i < end and folded(view[i]) in (0x6B, 0x6D, 0x62):
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
        here = spaced and matches(view, word, end, rules.phrases, low, high)
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
            if matches(view, i, end, rules.phrases, low, high):
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


@numba.njit(cache=True)
def _give_away(lines: Lines, first: int, last: int, rule: int, owner: np.ndarray) -> int:
    """Say in `owner` that a rule takes bytes; return how many characters they are."""
    chars = 0
    for i in range(first, last):
        owner[lines.place[i] if len(lines.place) else i] = rule
        chars += lines.data[i] & 0xC0 != 0x80
    return chars


@numba.njit(cache=True, nogil=True)
def strip_lines(
    lines: Lines, holds: np.ndarray, rule: int, classes: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the white space at the ends off the lines `holds`; nothing is copied, and little is measured again.

    `owner` (uint8, by place) is set to the rule where a byte goes.
    Returns: (spans, facts, hits) of the H lines; spans int64, shape (2, H): starts, stops. Phrases that begin or end
        with white space are to be looked for again.
    """
    spans, facts = np.empty((2, len(holds)), dtype=np.int64), lines.facts[:, holds]
    hits = lines.hits[holds] & ~SPACE_HIT
    for k in range(len(holds)):
        start, end = lines.starts[holds[k]], lines.stops[holds[k]]
        first, last = strip_span(lines.data, start, end, classes)
        gone = _give_away(lines, start, first, rule, owner) + _give_away(lines, last, end, rule, owner)
        spans[0, k], spans[1, k] = first, last
        facts[NUM_CHARS, k] -= gone
        facts[ENDS_C4, k] = ends_c4(lines.data, first, last)
    return spans, facts, hits


@numba.njit(cache=True, nogil=True)
def edit_lines(
    lines: Lines, holds: np.ndarray, rule: int, rules: Compiled, classes: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take what a rule matches inside lines out of those that it holds for.

    Args:
        lines: L lines.
        holds: int64, shape (H,): those for which the rule holds.
        rule: the rule, on phrases or citations.
        rules: all of them.
        classes: of `char_classes.class_table`.
        owner: uint8, by place: set to the rule where a byte goes.
    Returns: (data, place, spans) of the H lines as they are now; spans as of `strip_lines`.
    """
    total = 0
    for line in holds:
        total += lines.stops[line] - lines.starts[line]
    left, places = np.empty(total, dtype=np.uint8), np.empty(total, dtype=np.int64)
    spans = np.empty((2, len(holds)), dtype=np.int64)
    gone = np.zeros(len(lines.data), dtype=np.bool_)
    count = 0
    for k in range(len(holds)):
        start, end = lines.starts[holds[k]], lines.stops[holds[k]]
        if rules.ints[rule, KIND] == PHRASES:
            _mark_phrases(lines.data, start, end, rule, rules, classes, gone)
        else:
            first, last = _next_citation(lines.data, start, end, classes)
            while first >= 0:
                gone[first:last] = True
                first, last = _next_citation(lines.data, last, end, classes)
        spans[0, k] = count
        for i in range(start, end):
            was = lines.place[i] if len(lines.place) else i
            if gone[i]:
                owner[was] = rule
            else:
                left[count], places[count] = lines.data[i], was
                count += 1
        spans[1, k] = count
    return left[:count], places[:count], spans
