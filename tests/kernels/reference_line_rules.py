"""Line rules in plain Python, on strings: the oracle of `refinery.kernels.line_rules`.

Works line by line and keeps (character, byte position) pairs, so that every span comes out without arithmetic on bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from refinery.kernels.char_classes import CLOSER, DIGIT, SPACE, TERMINAL, UPPER, WORD, class_table
from refinery.kernels.line_rules import LineRule

Char = tuple[str, int]
"""A character and the byte at which it stands in the document."""
_CLASSES = class_table()


def _is(char: str, flags: int) -> bool:
    return ord(char) < len(_CLASSES) and bool(int(_CLASSES[ord(char)]) & flags)


def lower(text: str) -> str:
    """Lower ASCII letters alone."""
    return "".join(c.lower() if c.isascii() else c for c in text)


def words_of(text: str) -> list[str]:
    words, word = [], ""
    for char in text:
        if _is(char, SPACE):
            words, word = ([*words, word] if word else words), ""
        else:
            word += char
    return [*words, word] if word else words


def stripped(text: str) -> tuple[int, int]:
    first, last = 0, len(text)
    while first < last and _is(text[first], SPACE):
        first += 1
    while last > first and _is(text[last - 1], SPACE):
        last -= 1
    return first, last


def facts_of(text: str) -> dict[str, float]:
    words, count = words_of(text), max(len(text), 1)
    rest = text
    while rest and not (_is(rest[-1], TERMINAL) or rest[-1] == "…") and _is(rest[-1], CLOSER | SPACE):
        rest = rest[:-1]
    return {
        "num_chars": len(text),
        "num_words": len(words),
        "longest_word_chars": max(map(len, words), default=0),
        "upper_frac": sum(_is(c, UPPER) for c in text) / count,
        "digit_frac": sum(_is(c, DIGIT) for c in text) / count,
        "ends_in_c4_mark": float(text.endswith((".", "?", "!", '"', "'")) and not text.endswith("...")),
        "ends_in_sentence_mark": float(bool(rest) and (_is(rest[-1], TERMINAL) or rest[-1] == "…")),
    }


def _is_counter(text: str, phrases: Sequence[str]) -> bool:
    def marks(piece: str) -> bool:
        return not any(_is(c, WORD) or c == "_" for c in piece)

    i = 0
    while i < len(text) and marks(text[i]):
        i += 1
    if i == len(text) or not _is(text[i], DIGIT):
        return False
    while i < len(text) and (text[i] in ",." or _is(text[i], DIGIT)):
        i += 1
    if i < len(text) and text[i] in "kmbKMB":
        i += 1
    j = i
    while j < len(text) and _is(text[j], SPACE):
        j += 1
    for phrase in phrases:
        here = (j > i or not phrase[0].isascii()) and lower(text).startswith(lower(phrase), j)
        if here and marks(text[j + len(phrase) :]):
            return True
    return False


def _citations(text: str) -> list[tuple[int, int]]:
    found, i = [], 0
    while i < len(text):
        end = -1
        if text[i] == "[":
            j = i + 1
            while j < len(text) and _is(text[j], DIGIT):
                j += 1
            ends = [i + len(mark) for mark in ("[edit]", "[citation needed]") if text.startswith(mark, i)]
            end = j + 1 if j < len(text) and text[j] == "]" else (ends[0] if ends else -1)
        if end > 0:
            found.append((i, end))
            i = end
        else:
            i += 1
    return found


def _matches(rule: LineRule, text: str) -> list[tuple[int, int]]:
    """Return the character spans that a rule on phrases or a pattern takes out."""
    first, last = stripped(text)
    if rule.pattern == "citation":
        return _citations(text)
    if rule.pattern == "outer_space":
        return [span for span in ((0, first), (last, len(text))) if span[0] < span[1]]
    low = lower(text)
    if rule.at != "anywhere":
        for phrase in map(lower, rule.phrases):
            start = last - len(phrase) if rule.at == "end" else first
            whole = rule.at != "whole" or len(phrase) == last - first
            if start >= first and low[start:last].startswith(phrase) and whole:
                stop = start + len(phrase)
                if rule.at == "whole":
                    return [(0, len(text))]
                if rule.at == "end":
                    return [(start - (start > 0 and _is(text[start - 1], SPACE)), len(text))]
                return [(start, stop + (stop < len(text) and _is(text[stop], SPACE)))]
        return []
    found, i = [], 0
    while i < len(text):
        hit = next((p for p in map(lower, rule.phrases) if low.startswith(p, i)), None)
        if hit is not None:
            found.append((i - (i > 0 and _is(text[i - 1], SPACE)), i + len(hit)))
        i += len(hit) if hit is not None else 1
    return found


def _holds(rule: LineRule, text: str) -> bool:
    facts = facts_of(text)
    if not facts["num_words"] and not rule.blank_lines:
        return False
    if rule.max_words is not None and facts["num_words"] > rule.max_words:
        return False
    if rule.max_chars is not None and facts["num_chars"] > rule.max_chars:
        return False
    if rule.unfinished and facts["ends_in_sentence_mark"]:
        return False
    if rule.fact:
        value = facts[rule.fact]
        return (rule.min is not None and value < rule.min) or (rule.max is not None and value > rule.max)
    if rule.pattern == "counter":
        return _is_counter(text, rule.phrases)
    return bool(_matches(rule, text))


Finding = tuple[int, int, int, int]
"""Start, end, rule, and 0 cut, 1 edited, 2 tripped; bits are compared apart."""


def find_lines(text: str, rules: Sequence[LineRule], mask: int) -> dict[str, object]:
    """Return what rules do to one document.

    Returns: ``cut`` (byte -> rule for every byte of a cut line), ``edited`` (likewise), ``tripped`` (start of line ->
    first rule), ``bits`` (start of a cut line -> rules that would cut it), ``trips`` and ``cut_words`` by rule,
    ``left`` (the text that stays).
    """
    owner: dict[int, int] = {}
    told: dict[str, dict[int, int]] = {"cut": {}, "edited": {}, "tripped": {}, "bits": {}}
    trips, cut_words = [0] * len(rules), [0] * len(rules)
    place = 0
    for line in text.split("\n"):
        size = len(line.encode())
        if place >= len(text.encode()):
            break
        at = [place + len(line[:k].encode()) for k in range(len(line))]
        chars: list[Char] = list(zip(line, at, strict=True))
        cut, bits, tripped, edited = -1, 0, -1, {}
        took = [0] * len(rules)
        for index, rule in enumerate(rules):
            now = "".join(c for c, _ in chars)
            if not mask >> index & 1 or (rule.action != "cut_line" and cut >= 0) or not _holds(rule, now):
                continue
            if rule.action == "cut_line":
                bits |= 1 << index
                cut = index if cut < 0 else cut
            elif rule.action == "drop_document":
                trips[index] += 1
                tripped = index if tripped < 0 else tripped
            else:
                gone = {k for a, b in _matches(rule, now) for k in range(a, b)}
                for k in gone:
                    char, where = chars[k]
                    edited |= {where + j: index for j in range(len(char.encode()))}
                chars = [c for k, c in enumerate(chars) if k not in gone]
                left = len(words_of("".join(c for c, _ in chars)))
                took[index] += len(words_of(now)) - left
                if words_of(now) and not left:
                    bits |= 1 << index
                    cut = index
        if tripped >= 0:
            told["tripped"][place] = tripped
        if cut >= 0:
            told["bits"][place] = bits
            told["cut"] |= {place + k: cut for k in range(size + 1)}
            cut_words[cut] += len(words_of(line))
        else:
            told["edited"] |= edited
            cut_words = [a + b for a, b in zip(cut_words, took, strict=True)]
        place += size + 1
    raw = text.encode()
    last = text.rpartition("\n")[2].encode()
    if raw and not raw.endswith(b"\n") and len(raw) - len(last) in told["bits"]:  # the tail goes: its line end too
        tail = len(raw)
        while tail > 0 and tail - 1 in told["cut"]:
            tail -= 1
        if tail > 0:
            told["cut"][tail - 1] = told["cut"][tail]
    owner = {**told["edited"], **told["cut"]}
    left = bytes(b for k, b in enumerate(raw) if k not in owner).decode()
    told["cut"] = {k: rule for k, rule in told["cut"].items() if k < len(raw)}
    return {**told, "trips": trips, "cut_words": cut_words, "left": left}
