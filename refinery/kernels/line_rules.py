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

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError
from refinery.kernels import line_measures, line_scan
from refinery.kernels.char_classes import class_table
from refinery.kernels.line_measures import BRACKET_PAIR, PHRASE_PAIR, Compiled
from refinery.kernels.line_scan import Lines
from refinery.kernels.line_spans import TRIPPED, UNTOUCHED, spans_of
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
MAX_LINE_RULES = 61
"""Rules that would cut a line are bits of an int64; two more bits say where it needs a closer look."""
_NO_BOUND = 2**62
_BY_FREQUENCY = b" etaoinshrdlcumwfgypbvkjxqz" + bytes(range(0xE4, 0xEA))
"""Bytes of text, the most frequent first: English letters, then what a Han character begins with."""


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
    """int64, shape (F,): CUT, EDITED or TRIPPED of `line_spans`; index into `ACTIONS`."""
    bits: np.ndarray
    """int64, shape (F,): every rule that would cut the line, as it came to each of them."""
    trips: np.ndarray
    """int64, shape (D, R): lines that trip over a rule that drops the document."""
    cut_words: np.ndarray
    """int64, shape (D, P): words that the rules of each preset took out."""
    num_words: np.ndarray
    """int64, shape (D,): words between white space, before any cut."""
    open_lines: np.ndarray
    """int64, shape (D,): lines that stay, not blank, that no sentence ends; the last line that stays is left out."""

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
    anywhere: list[tuple[int, int, int]] = []
    for index, rule in enumerate(rules):
        first = len(phrases)
        phrases += [phrase.encode().lower() for phrase in rule.phrases]
        if rule.phrases and rule.at == "anywhere" and not rule.pattern:
            anywhere += [(k, index, _rarest_pair(phrases[k])) for k in range(first, len(phrases))]
        fact = list(LINE_FACTS).index(rule.fact) if rule.fact else -1
        limits = [_NO_BOUND if limit is None else limit for limit in (rule.max_words, rule.max_chars)]
        flags = [int(rule.unfinished), int(rule.blank_lines)]
        place = [first, len(phrases), presets.index(rule.preset)]
        ints[index] = [_kind(rule), ACTIONS.index(rule.action), fact, PLACES.index(rule.at), *limits, *flags, *place]
        bounds[index] = (-np.inf if rule.min is None else rule.min, np.inf if rule.max is None else rule.max)
    joined = np.frombuffer(b"".join(phrases), dtype=np.uint8).copy()
    offsets = np.cumsum([0, *(len(raw) for raw in phrases)]).astype(np.int64)
    pairs = _pairs([phrases[k][offset : offset + 2] for k, _, offset in anywhere])
    places = np.array(anywhere, dtype=np.int64).reshape(-1, 3)
    return Compiled(ints, bounds, joined, offsets, places, _edges(rules), pairs)


def _edges(rules: Sequence[LineRule]) -> np.ndarray:
    """Return `Compiled.edges`."""
    edges = np.zeros((len(rules), 256), dtype=bool)
    for index, rule in enumerate(rules):
        ends = [phrase.encode().lower()[-1 if rule.at == "end" else 0 :][:1] for phrase in rule.phrases]
        edges[index, [byte for end in ends for byte in end + end.upper()]] = True
    return edges


def _rarest_pair(phrase: bytes) -> int:
    """Return where the two neighbouring bytes stand by which a phrase (lowered) is looked for: those seldom in text."""

    def frequency(byte: int) -> int:
        rank = _BY_FREQUENCY.find(byte)
        return 1 if rank < 0 else len(_BY_FREQUENCY) + 1 - rank

    return min(range(max(len(phrase) - 1, 1)), key=lambda k: math.prod(map(frequency, phrase[k : k + 2])))


def _pairs(wanted: Sequence[bytes]) -> np.ndarray:
    """Return `Compiled.pairs` for two bytes of each phrase, or for its one."""
    pairs = np.zeros(1 << 16, dtype=np.uint8)
    pairs[(np.arange(256) << 8) | ord("[")] |= BRACKET_PAIR
    for pair in wanted:
        seconds = {pair[1], pair[1:].upper()[0]} if len(pair) > 1 else range(256)
        pairs[[first | second << 8 for first in {pair[0], pair[:1].upper()[0]} for second in seconds]] |= PHRASE_PAIR
    return pairs


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
        ended=lines.facts[line_measures.ENDS_SENTENCE] != 0,
        docs=docs,
        trips=np.zeros((views.num_docs, len(rules)), dtype=np.int64),
        owner=np.full(len(data) if edits else 0, UNTOUCHED, dtype=np.uint8),
        edited_words=[],
    )
    _judge(lines, compiled, 0, np.arange(len(docs)), state)
    verdicts = state.cut, state.bits, state.tripped
    found = spans_of(offsets, data, (docs, starts, stops), verdicts, state.edited, state.owner)
    of_docs, begins, ends, by_rule, done, bits = (np.ascontiguousarray(found[:, k]) for k in range(6))
    cut_words, num_words = _words(lines, compiled, state, views.num_docs)
    open_lines = _open_lines(lines, state, views.num_docs)
    return LineFindings(
        of_docs, begins, ends, by_rule, done, bits, state.trips, cut_words, num_words, open_lines
    )  # fmt: skip


class _State(NamedTuple):
    """What rules have said about all lines of a batch."""

    cut: np.ndarray
    """int64: the rule that cuts each line, -1 none."""
    bits: np.ndarray
    tripped: np.ndarray
    edited: np.ndarray
    ended: np.ndarray
    """bool: whether a sentence ends each line, as edits have left it."""
    docs: np.ndarray
    trips: np.ndarray
    owner: np.ndarray
    """uint8: the rule that took each byte of the text, `UNTOUCHED` none; empty if no rule edits."""
    edited_words: list[tuple[np.ndarray, int, np.ndarray]]
    """(lines, rule, words that it took out of each)."""


def _measured(
    compiled: Compiled, data: np.ndarray, place: np.ndarray, spans: tuple[np.ndarray, np.ndarray], masks: np.ndarray
) -> Lines:
    facts = np.empty((line_measures.NUM_FACTS, len(masks)), dtype=np.int32)
    hits = np.empty(len(masks), dtype=np.int64)
    edges = np.empty((2, len(masks)), dtype=np.uint8)
    line_measures.measure_lines(data, *spans, compiled, class_table(), facts, hits, edges)
    return Lines(data, place, *spans, facts, hits, edges, masks)


def _judge(lines: Lines, compiled: Compiled, first: int, at: np.ndarray, state: _State) -> None:
    """Run the rules from `first` on over lines, all lines at once; those that a rule edits go on by themselves.

    `at` are the lines' numbers in the batch.
    """
    asked = np.arange(len(at))
    for rule in range(first, len(compiled.ints)):
        action = compiled.ints[rule, line_scan.ACTION]
        holds = line_scan.holding_lines(lines, rule, compiled, class_table(), asked, state.cut, at)
        if not len(holds):
            continue
        mine = at[holds]
        if action == line_scan.CUT_LINE:
            state.bits[mine] |= np.int64(1 << rule)
            state.cut[mine] = np.where(state.cut[mine] < 0, rule, state.cut[mine])
        elif action == line_scan.DROP_DOCUMENT:
            state.trips[:, rule] += np.bincount(state.docs[mine], minlength=len(state.trips))
            state.tripped[mine] = np.where(state.tripped[mine] < 0, rule, state.tripped[mine])
        else:
            asked = np.setdiff1d(asked, holds, assume_unique=True)
            edited = _edited(lines, compiled, rule, holds, state.owner)
            words = lines.facts[line_measures.NUM_WORDS, holds], edited.facts[line_measures.NUM_WORDS]
            state.edited[mine], state.ended[mine] = True, edited.facts[line_measures.ENDS_SENTENCE] != 0
            state.edited_words.append((mine, rule, words[0] - words[1]))
            nothing = mine[(words[0] > 0) & (words[1] == 0)]  # of the line is left: it goes
            state.cut[nothing], state.bits[nothing] = rule, state.bits[nothing] | np.int64(1 << rule)
            _judge(edited, compiled, rule + 1, mine, state)


def _edited(lines: Lines, compiled: Compiled, rule: int, holds: np.ndarray, owner: np.ndarray) -> Lines:
    """Return the lines `holds` as a rule leaves them, measured anew where the text inside them changed."""
    masks = lines.masks[holds]
    if compiled.ints[rule, line_scan.KIND] != line_scan.OUTER_SPACE:
        data, place, spans = line_scan.edit_lines(lines, holds, rule, compiled, class_table(), owner)
        return _measured(compiled, data, place, (spans[0], spans[1]), masks)
    spans, facts, hits = line_scan.strip_lines(lines, holds, rule, class_table(), owner)
    if _edges_may_be_blank(compiled):
        return _measured(compiled, lines.data, lines.place, (spans[0], spans[1]), masks)
    return Lines(lines.data, lines.place, spans[0], spans[1], facts, hits, lines.edges[:, holds], masks)


def _edges_may_be_blank(compiled: Compiled) -> bool:
    """Tell whether a phrase that is looked for anywhere may begin or end with white space."""
    firsts = compiled.phrase_offsets[compiled.anywhere[:, 0]]
    lasts = compiled.phrase_offsets[compiled.anywhere[:, 0] + 1] - 1
    edges = compiled.phrases[np.concatenate([firsts, lasts])]
    return bool(((edges <= ord(" ")) | (edges >= 0x80)).any())


def _words(lines: Lines, compiled: Compiled, state: _State, num_docs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (words that each preset's rules took out of each document, its words)."""
    presets = compiled.ints[:, line_scan.PRESET]
    num_presets = int(presets.max(initial=-1)) + 1
    words = lines.facts[line_measures.NUM_WORDS]
    gone = np.flatnonzero(state.cut >= 0)
    cells = state.docs[gone] * num_presets + presets[state.cut[gone]]
    took = np.bincount(cells, words[gone], num_docs * num_presets).astype(np.int64).reshape(num_docs, num_presets)
    for at, rule, fewer in state.edited_words:
        stays = (state.cut[at] < 0) & (fewer > 0)
        took[:, presets[rule]] += np.bincount(state.docs[at[stays]], fewer[stays], num_docs).astype(np.int64)
    return took, np.bincount(state.docs, words, num_docs).astype(np.int64)


def _open_lines(lines: Lines, state: _State, num_docs: int) -> np.ndarray:
    stays = np.flatnonzero((state.cut < 0) & (lines.facts[line_measures.NUM_WORDS] > 0))
    last = np.full(num_docs, -1, dtype=np.int64)
    last[state.docs[stays]] = stays  # ascending, so that the last one stands
    counts = np.bincount(state.docs[stays[~state.ended[stays]]], minlength=num_docs)
    return (counts - ((last >= 0) & ~state.ended[last]) if len(state.docs) else counts).astype(np.int64)
