r"""Line rules: what a preset cuts out of a document line by line, and lines that drop the document.

A line ends before ``\n`` (ingest makes every other line end one). Every line is judged by itself, by the rules in
order. A rule looks at

- a *fact* of the line (`LINE_FACTS`) that lies outside [`min`, `max`], or
- *phrases*, ASCII case aside: anywhere, at the start, at the end, or as the whole of the line without its outer white
  space, or
- a *pattern*: ``counter`` (a number, perhaps with k, m or b, then one of the phrases, and only marks: "3 likes");
  ``citation`` (``[12]``, ``[]``, ``[edit]``, ``[citation needed]``) or ``outer_space`` (white space at either end).

What it does then:

- ``cut_line``: the line goes, its line end with it. The first such rule gives the reason; the others are still asked,
  so that overlap between rules is known.
- ``cut_match``: only what matched goes, of phrases with one white space beside it; later rules see the line without
  it. A line of which nothing is left goes whole.
- ``drop_document``: the document goes, if no earlier rule cut the line.

Where the lines at a document's end go, so does the line end before them. Shape legend: D documents, R rules, P presets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.kernels import line_scan
from refinery.kernels.char_classes import class_table
from refinery.kernels.line_scan import Compiled
from refinery.kernels.text import TextViews

ALGORITHM_VERSION = 1
"""Raised whenever a fact, a pattern or what a rule takes changes."""

LINE_FACTS: dict[str, str] = {
    "num_chars": "characters, white space included",
    "num_words": "words between white space",
    "longest_word_chars": "characters of the longest such word",
    "upper_frac": "upper-case letters, of all characters",
    "digit_frac": "decimal digits, of all characters",
    "ends_in_c4_mark": "1 if the last character is one of . ? ! \" ' and the line does not end in ..., else 0",
    "ends_in_sentence_mark": "1 if a terminal of any script ends the line, closing marks and white space aside, else 0",
}
PATTERNS = ("counter", "citation", "outer_space")
ACTIONS = ("cut_line", "cut_match", "drop_document")
PLACES = ("anywhere", "start", "end", "whole")
CUT, EDITED, TRIPPED = range(3)
"""What became of a span: its line was cut, it was taken out of its line, or it drops the document and stays."""

MAX_LINE_RULES = 61
"""Rules that would cut a line are bits of an int64; two more bits say where it needs a closer look."""
_NO_BOUND = 2**62


class LineRule(NamedTuple):
    """One line rule; `name` is unique among the rules that are applied together."""

    name: str
    """``preset.rule``: the reason of the cut."""
    action: str
    source: str
    fact: str = ""
    min: float | None = None
    max: float | None = None
    phrases: tuple[str, ...] = ()
    pattern: str = ""
    at: str = "anywhere"
    max_words: int | None = None
    """Only lines of at most so many words between white space."""
    max_chars: int | None = None
    unfinished: bool = False
    """Only lines that no sentence ends."""
    blank_lines: bool = False
    """Lines of white space alone are judged too."""
    scripts: str = "any"
    langs: tuple[str, ...] = ()

    @property
    def preset(self) -> str:
        """Name of the preset that the rule stands in."""
        return self.name.partition(".")[0]


class LineFindings(NamedTuple):
    """What line rules found in D documents; F findings, by document and then by place."""

    docs: np.ndarray
    """int64, shape (F,)."""
    starts: np.ndarray
    """int64, shape (F,): first byte, relative to the document."""
    ends: np.ndarray
    """int64, shape (F,): one past the last byte; spans that are cut are disjoint."""
    rules: np.ndarray
    """int64, shape (F,): index of the rule."""
    done: np.ndarray
    """int64, shape (F,): CUT, EDITED or TRIPPED."""
    bits: np.ndarray
    """int64, shape (F,): every rule that would cut the line, as it came to each of them."""
    trips: np.ndarray
    """int64, shape (D, R): lines that trip over a rule that drops the document."""
    cut_words: np.ndarray
    """int64, shape (D, P): words that the rules of each preset took out."""
    num_words: np.ndarray
    """int64, shape (D,): words between white space, before any cut."""

    @property
    def is_cut(self) -> np.ndarray:
        """bool, shape (F,): spans that are taken out."""
        return self.done != TRIPPED


def line_presets(rules: Sequence[LineRule]) -> list[str]:
    """Return the presets of line rules, in order."""
    return list(dict.fromkeys(rule.preset for rule in rules))


def compile_line_rules(rules: Sequence[LineRule]) -> Compiled:
    """Lay rules out as arrays.

    Raises:
        ConfigError: more than `MAX_LINE_RULES` rules.
    """
    if len(rules) > MAX_LINE_RULES:
        raise ConfigError(f"{len(rules)} line rules are applied together; the bound is {MAX_LINE_RULES}; use fewer")
    presets = line_presets(rules)
    ints = np.zeros((len(rules), 11), dtype=np.int64)
    bounds = np.full((len(rules), 2), (-np.inf, np.inf))
    phrases: list[bytes] = []
    anywhere: list[tuple[int, int]] = []
    for index, rule in enumerate(rules):
        first = len(phrases)
        phrases += [phrase.encode().lower() for phrase in rule.phrases]
        if rule.phrases and rule.at == "anywhere" and not rule.pattern:
            anywhere += [(phrase, index) for phrase in range(first, len(phrases))]
        fact = list(LINE_FACTS).index(rule.fact) if rule.fact else -1
        limits = [_NO_BOUND if limit is None else limit for limit in (rule.max_words, rule.max_chars)]
        flags = [int(rule.unfinished), int(rule.blank_lines)]
        place = [first, len(phrases), presets.index(rule.preset)]
        ints[index] = [_kind(rule), ACTIONS.index(rule.action), fact, PLACES.index(rule.at), *limits, *flags, *place]
        bounds[index] = (-np.inf if rule.min is None else rule.min, np.inf if rule.max is None else rule.max)
    kinds, pairs = _byte_kinds(), np.zeros(1 << 16, dtype=np.uint8)
    for phrase, _ in anywhere:
        raw = phrases[phrase]
        kinds[list({raw[0], raw[:1].upper()[0]})] |= line_scan.OPENS_PHRASE
        pairs[[raw[0] << 8 | second for second in ([raw[1]] if len(raw) > 1 else range(256))]] = 1
    joined = np.frombuffer(b"".join(phrases), dtype=np.uint8).copy()
    offsets = np.cumsum([0, *(len(raw) for raw in phrases)]).astype(np.int64)
    return Compiled(
        ints, bounds, joined, offsets, kinds, pairs, np.array(anywhere, dtype=np.int64).reshape(-1, 2)
    )  # fmt: skip


def _byte_kinds() -> np.ndarray:
    kinds = np.zeros(256, dtype=np.uint8)
    for code in range(128):
        char = chr(code)
        kinds[code] = (
            line_scan.SPACE_BYTE * char.isspace() | line_scan.UPPER_BYTE * char.isupper()
            | line_scan.DIGIT_BYTE * char.isdigit() | line_scan.BRACKET * (char == "[")
        )  # fmt: skip
    kinds[128:] = line_scan.WIDE_BYTE
    return kinds


def _kind(rule: LineRule) -> int:
    if rule.fact:
        return line_scan.BOUND
    kinds = {"": line_scan.PHRASES, "counter": line_scan.COUNTER, "citation": line_scan.CITATION}
    return kinds.get(rule.pattern, line_scan.OUTER_SPACE)


def find_lines(views: TextViews, rules: Sequence[LineRule], masks: np.ndarray) -> LineFindings:
    """Judge every line of every document.

    Args:
        views: D documents.
        rules: R rules in order.
        masks: int64, shape (D,): the rules that hold for each document, one bit a rule.

    Raises:
        ConfigError: as `compile_line_rules`.
    """
    compiled = compile_line_rules(rules)
    base = int(views.offsets[0])
    offsets, data = views.offsets - base, np.array(views.data[base : views.offsets[-1]])
    room = int(np.count_nonzero(data == 0x0A)) + views.num_docs
    docs, starts, stops = line_scan.split_lines(offsets, data, room)
    lines = _measured(compiled, data, np.empty(0, np.int64), (starts, stops), masks.astype(np.int64)[docs])
    edits = bool((compiled.ints[:, line_scan.ACTION] == line_scan.CUT_MATCH).any())
    state = _State(
        cut=np.full(len(docs), -1, dtype=np.int64),
        bits=np.zeros(len(docs), dtype=np.int64),
        tripped=np.full(len(docs), -1, dtype=np.int64),
        edited=np.zeros(len(docs), dtype=bool),
        docs=docs,
        trips=np.zeros((views.num_docs, len(rules)), dtype=np.int64),
        owner=np.full(len(data) if edits else 0, -1, dtype=np.int16),
        edited_words=[],
    )
    _judge(lines, compiled, 0, np.arange(len(docs)), state)
    verdicts = state.cut, state.bits, state.tripped
    found = _assemble(offsets, data, (docs, starts, stops), verdicts, state.edited, state.owner)
    of_docs, begins, ends, by_rule, done, bits = (np.ascontiguousarray(found[:, k]) for k in range(6))
    cut_words, num_words = _words(lines, compiled, state, views.num_docs)
    return LineFindings(of_docs, begins, ends, by_rule, done, bits, state.trips, cut_words, num_words)


class _Lines(NamedTuple):
    """L lines, as edits have left them, and what is measured of them."""

    data: np.ndarray
    place: np.ndarray
    """int64: where each byte of `data` stood before any edit; empty: where it stands."""
    starts: np.ndarray
    stops: np.ndarray
    facts: np.ndarray
    hits: np.ndarray
    masks: np.ndarray
    """int64, shape (L,): rules that hold for the line's document."""


class _State(NamedTuple):
    """What rules have said about all lines of a batch."""

    cut: np.ndarray
    """int64: the rule that cuts each line, -1 none."""
    bits: np.ndarray
    tripped: np.ndarray
    edited: np.ndarray
    docs: np.ndarray
    trips: np.ndarray
    owner: np.ndarray
    """int16: the rule that took each byte of the text, -1 none."""
    edited_words: list[tuple[np.ndarray, int, np.ndarray]]
    """(lines, rule, words that it took out of each)."""


def _measured(
    compiled: Compiled, data: np.ndarray, place: np.ndarray, spans: tuple[np.ndarray, np.ndarray], masks: np.ndarray
) -> _Lines:
    facts, hits = np.zeros((line_scan.NUM_FACTS, len(masks))), np.zeros(len(masks), dtype=np.int64)
    line_scan.measure_lines(data, *spans, compiled, class_table(), facts, hits)
    return _Lines(data, place, *spans, facts, hits, masks)


def _judge(lines: _Lines, compiled: Compiled, first: int, at: np.ndarray, state: _State) -> None:
    """Run the rules from `first` on over lines, all lines at once; those that a rule edits go on by themselves.

    `at` are the lines' numbers in the batch.
    """
    active = np.ones(len(at), dtype=bool)
    for rule in range(first, len(compiled.ints)):
        action = compiled.ints[rule, line_scan.ACTION]
        asked = active & ((lines.masks >> rule) & 1 == 1)
        if action != line_scan.CUT_LINE:
            asked &= state.cut[at] < 0
        holds = np.flatnonzero(_holding(lines, compiled, rule, asked))
        if not len(holds):
            continue
        mine = at[holds]
        if action == line_scan.CUT_LINE:
            state.bits[mine] |= np.int64(1 << rule)
            state.cut[mine] = np.where(state.cut[mine] < 0, rule, state.cut[mine])
        elif action == line_scan.DROP_DOCUMENT:
            np.add.at(state.trips[:, rule], state.docs[mine], 1)
            state.tripped[mine] = np.where(state.tripped[mine] < 0, rule, state.tripped[mine])
        else:
            active[holds] = False
            spans = lines.starts[holds], lines.stops[holds]
            left = line_scan.edit_lines(lines.data, lines.place, spans, rule, compiled, class_table(), state.owner)
            edited = _measured(compiled, left[0], left[1], (left[2], left[3]), lines.masks[holds])
            words = lines.facts[line_scan.NUM_WORDS, holds], edited.facts[line_scan.NUM_WORDS]
            state.edited[mine] = True
            state.edited_words.append((mine, rule, words[0] - words[1]))
            nothing = mine[(words[0] > 0) & (words[1] == 0)]  # of the line is left: it goes
            state.cut[nothing], state.bits[nothing] = rule, state.bits[nothing] | np.int64(1 << rule)
            _judge(edited, compiled, rule + 1, mine, state)


def _words(lines: _Lines, compiled: Compiled, state: _State, num_docs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (words that each preset's rules took out of each document, its words)."""
    presets = compiled.ints[:, line_scan.PRESET]
    words = lines.facts[line_scan.NUM_WORDS]
    took = np.zeros((num_docs, int(presets.max(initial=-1)) + 1), dtype=np.int64)
    gone = np.flatnonzero(state.cut >= 0)
    np.add.at(took, (state.docs[gone], presets[state.cut[gone]]), words[gone].astype(np.int64))
    for at, rule, fewer in state.edited_words:
        stays = state.cut[at] < 0
        np.add.at(took[:, presets[rule]], state.docs[at[stays]], fewer[stays].astype(np.int64))
    return took, np.bincount(state.docs, words, num_docs).astype(np.int64)


def _holding(lines: _Lines, compiled: Compiled, rule: int, asked: np.ndarray) -> np.ndarray:
    """Return bool, shape (L,): the asked lines for which a rule holds."""
    ints, facts = compiled.ints[rule], lines.facts
    if not ints[line_scan.BLANK]:
        asked = asked & (facts[line_scan.NUM_WORDS] > 0)
    for limit, fact in ((line_scan.MAX_WORDS, line_scan.NUM_WORDS), (line_scan.MAX_CHARS, line_scan.NUM_CHARS)):
        if ints[limit] < _NO_BOUND:
            asked = asked & (facts[fact] <= ints[limit])
    if ints[line_scan.UNFINISHED]:
        asked = asked & (facts[line_scan.ENDS_SENTENCE] == 0)
    kind = ints[line_scan.KIND]
    if kind == line_scan.BOUND:
        values, (low, high) = facts[ints[line_scan.FACT]], compiled.bounds[rule]
        return np.asarray(asked & ((values < low) | (values > high)))
    if kind == line_scan.PHRASES and ints[line_scan.AT] == line_scan.ANYWHERE:
        return np.asarray(asked & ((lines.hits >> rule) & 1 == 1))
    if kind == line_scan.COUNTER:
        asked = asked & (facts[line_scan.DIGIT_FRAC] > 0)
    elif kind != line_scan.PHRASES:
        hit = line_scan.BRACKET_HIT if kind == line_scan.CITATION else line_scan.SPACE_HIT
        asked = asked & (lines.hits & hit != 0)
    at = np.flatnonzero(asked)
    holds = np.zeros(len(asked), dtype=bool)
    holds[at] = line_scan.rare_rule_holds(
        lines.data, lines.starts[at], lines.stops[at], rule, compiled, class_table()
    )
    return holds


@numba.njit(cache=True)
def _room(found: np.ndarray, count: int, more: int) -> np.ndarray:
    if count + more <= len(found):
        return found
    larger = np.empty((2 * (count + more), 6), dtype=np.int64)
    larger[:count] = found[:count]
    return larger


@numba.njit(cache=True)
def _put(found: np.ndarray, at: int, doc: int, span: tuple[int, int], rule: int, done: int, bits: int) -> None:
    row = found[at]
    row[0], row[1], row[2], row[3], row[4], row[5] = doc, span[0], span[1], rule, done, bits


@numba.njit(cache=True)
def _add_edits(
    owner: np.ndarray, span: tuple[int, int], doc: int, begin: int, found: np.ndarray, count: int
) -> tuple[np.ndarray, int]:
    """Add what edits took out of a line that stays, one span per run of bytes of one rule."""
    i = span[0]
    while i < span[1]:
        rule = int(owner[i])
        first = i
        while i < span[1] and owner[i] == rule:
            i += 1
        if rule >= 0:
            found = _room(found, count, 1)
            _put(found, count, doc, (first - begin, i - begin), rule, EDITED, int(np.int64(1) << rule))
            count += 1
    return found, count


@numba.njit(cache=True, nogil=True)
def _assemble(
    offsets: np.ndarray,
    data: np.ndarray,
    lines: tuple[np.ndarray, np.ndarray, np.ndarray],
    verdicts: tuple[np.ndarray, np.ndarray, np.ndarray],
    edited: np.ndarray,
    owner: np.ndarray,
) -> np.ndarray:
    """Return findings (int64, shape (F, 6)): `lines` are (document, start, stop), `verdicts` those of `_State`.

    Neighbouring lines that the same rules cut are one span, and blank lines behind a cut line are of its span.
    """
    docs, starts, stops = lines
    found, count = np.empty((1024, 6), dtype=np.int64), 0
    run, last_cut, cut_to = -1, -1, -1
    for line in range(len(docs)):
        doc, start, stop = docs[line], starts[line], stops[line]
        cut, bits, tripped = verdicts[0][line], verdicts[1][line], verdicts[2][line]
        begin, end = offsets[doc], offsets[doc + 1]
        following = min(stop + 1, end)
        if start == begin:
            run, cut_to = -1, -1
        found = _room(found, count, 2)
        if tripped >= 0:
            _put(found, count, doc, (start - begin, following - begin), tripped, TRIPPED, bits)
            count += 1
        if cut >= 0:
            joins = cut_to == start and (
                stop == start or (found[last_cut, 3] == cut and found[last_cut, 5] == bits)
            )  # fmt: skip
            if joins:
                found[last_cut, 2] = following - begin
            else:
                run, last_cut = run if cut_to == start else count, count
                _put(found, count, doc, (start - begin, following - begin), cut, CUT, bits)
                count += 1
            cut_to = following
        elif edited[line]:
            found, count = _add_edits(owner, (start, stop), doc, begin, found, count)
        if following == end and cut_to == end and found[run, 1] > 0 and data[end - 1] != 0x0A:
            found[run, 1] -= 1  # the line end that the last line which stays would keep
    return found[:count].copy()
