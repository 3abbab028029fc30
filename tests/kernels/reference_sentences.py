"""Plain Python over characters, the same rules as `refinery.kernels.sentences`, written for reading, not for speed."""

from __future__ import annotations

import re
import unicodedata

from refinery.kernels.sentence_words import BEFORE_LOWER, NEVER, ORDINAL_AFTER, ORDINAL_BEFORE, STARTER, word_classes

SPACES = set(" \t\n\v\f\r\x85\xa0\u3000\u2028\u2029\u202f") | {chr(c) for c in range(0x2000, 0x200B)}
CLOSERS = set("\"')]}*_`»«’”›‹〉》」』】〕〗）］｝｣")
TERMINALS = {"…": 3, ".": 1} | dict.fromkeys("!?؟۔⁇⁈⁉", 2) | dict.fromkeys("。！？；｡।॥", 4)
ITEM_START = re.compile(r"[-*+>][ \t]|<|--|\d{1,4}[.)][ \t]", re.ASCII)
HEADING_START = re.compile(r"(#{1,6}|={1,6})[ \t]")
RULE_LINE = re.compile(r"([#=\-~^*+_\"])\1{2,}(?=[\r\n]|\Z)")
WORD_BREAKS = {chr(c) for c in range(0x2E)} - {"&"} | set("/[_`{|")


def category(char: str) -> str:
    return unicodedata.category(char) if char and ord(char) < 0x600 else ""


def is_cjk(char: str, before: bool = False) -> bool:
    code = ord(char) if char else 0
    return 0x3000 <= code < 0xA000 or 0xF000 <= code < 0x10000 or (not before and 0x10000 <= code < 0x40000)


def fold(word: str) -> str:
    return "".join(c.lower() if ord(c) < 0x600 and len(c.lower()) == 1 and ord(c.lower()) < 0x600 else c for c in word)


def classes(word: str) -> int:
    return word_classes().get(fold(word), 0)


def skip_spaces(text: str, i: int) -> int:
    while i < len(text) and text[i] in SPACES:
        i += 1
    return i


def line_kind(text: str, start: int) -> str:
    body = text[start:].lstrip(" \t\r\v\f")
    indent = sum(4 if c == "\t" else 1 for c in text[start : len(text) - len(body)])
    if not body or body[0] == "\n":
        return "blank"
    if ord(body[0]) >= 0x80:
        if body[0] in "–—―•" and len(body) > 1:
            return "item"
        if body[0] in SPACES:
            i = skip_spaces(body, 0)
            return "blank" if "\n" in body[:i] or i == len(body) else "prose"
        return "prose"
    if body.startswith(("```", "~~~")):
        return "fence"
    if body[0] == "|":
        return "table"
    if HEADING_START.match(body):
        return "heading"
    if RULE_LINE.match(body):
        return "rule"
    if indent >= 4:
        return "indented"
    return "item" if ITEM_START.match(body) else "prose"


def what_follows(text: str, i: int) -> tuple[str, int, bool]:
    dash = False
    while i < len(text):
        c = text[i]
        if c in SPACES:
            if not dash or c == "\n":
                break
        elif c == "-" or "\u2010" <= c <= "\u2015":
            dash = True
        elif c not in "\"'([*_`«»¿¡" and not "\u2016" <= c <= "\u201f":
            break
        i += 1
    if i >= len(text):
        return "end", i, dash
    if text[i] in "0123456789":
        return "digit", i, dash
    return {"Ll": "lower", "Lu": "upper"}.get(category(text[i]), "other"), i, dash


def word_before(text: str, begin: int, end: int) -> int:
    i = end
    while i > begin:
        c = text[i - 1]
        if c in WORD_BREAKS or 0x80 <= ord(c) < 0xC0 or ord(c) >= 0x800:
            break
        i -= 1
    return i


def full_stop_ends(text: str, begin: int, stop: int, following: str, after_at: int) -> bool:
    first = word_before(text, begin, stop)
    word = text[first:stop]
    if len(word.encode()) > 40:
        return True
    if not word:
        return following != "lower"
    end = after_at
    while end < len(text) and category(text[end])[:1] == "L":
        end += 1
    after = classes(text[after_at:end])
    if re.fullmatch("[0-9]+", word):
        before = first
        while before > begin and text[before - 1] <= " ":
            before -= 1
        if before == begin:
            return False
        article = classes(text[word_before(text, begin, before) : before])
        ordinal = len(word) <= 2 and (after & ORDINAL_AFTER or article & ORDINAL_BEFORE)
        return following != "lower" and not ordinal
    listed = classes(word)
    if listed & NEVER:
        return False
    if listed & BEFORE_LOWER:
        return following in ("upper", "other", "end")
    num_letters = sum(category(c)[:1] == "L" for c in word)
    if len(word) == 1 and num_letters == 1:
        if first > begin and text[first - 1] in "-'":
            return True
        return word == "I" and bool(after & STARTER)
    num_dots = word.count(".")
    if num_dots and 0 < num_letters <= 2 * num_dots + 1 and not re.search("[0-9]", word):
        return following == "end" or bool(after & STARTER)
    return True


def behind_terminal(text: str, begin: int, i: int) -> tuple[bool, int]:
    stop = i
    while i < len(text) and text[i] in TERMINALS:
        i += 1
    kinds = [TERMINALS[c] for c in text[stop:i]]
    wide, hard, ellipsis = 4 in kinds, 2 in kinds, set(kinds) == {3}
    closers = CLOSERS if wide else CLOSERS | {"“", "‘"}
    quoted = False
    while i < len(text):
        if text[i] in closers:
            i += 1
        elif not wide and not quoted and text[i] in SPACES and text[i + 1 : i + 2] == "»":
            i += 2
        else:
            break
        quoted = True
    if wide or i >= len(text):
        return True, i
    if text[i] not in SPACES:
        between = is_cjk(text[i]) and stop > begin and is_cjk(text[stop - 1], before=True)
        return between and (hard or (ellipsis and quoted)), i
    k = skip_spaces(text, i)
    if text[i:k].count("\n") >= 2 or k >= len(text):
        return True, i
    following, after_at, dash = what_follows(text, k)
    if following == "end" or (following == "lower" and (quoted or dash)):
        return following == "end", i
    exclaims = set(text[stop : stop + len(kinds)]) == {"!"}
    hard = hard and not (exclaims and following == "lower")
    if len(kinds) > 1 or ellipsis:
        return hard or following != "lower", i
    if exclaims:
        return hard, i
    return hard or full_stop_ends(text, begin, stop, following, after_at), i


def scan_prose(text: str, i: int, begin: int, ends: list[int]) -> tuple[int, int, bool]:
    ended = False
    while i < len(text):
        if text[i] == "\n":
            return i + 1, begin, ended
        if text[i] not in TERMINALS:
            i += 1
            continue
        boundary, i = behind_terminal(text, begin, i)
        if boundary:
            while i < len(text) and text[i] in SPACES and text[i] != "\n":
                i += 1
            ended = i >= len(text) or text[i] == "\n"
            if not ended:
                ends.append(i)
                begin = i
    return i, begin, ended


def sentence_ends(text: str) -> list[int]:
    """Return the end of every sentence in characters."""
    ends: list[int] = []
    begin = i = previous_line = 0
    previous, ended, content, in_fence = "blank", False, False, False
    while i < len(text):
        line, kind = i, line_kind(text, i)
        next_line = text.find("\n", i) + 1 or len(text)
        if in_fence:
            in_fence, previous, i = kind != "fence", "fence", next_line
            continue
        if kind == "blank":
            previous, i = "blank", next_line
            continue
        if kind == "indented" and previous not in ("blank", "indented"):
            kind = "prose"
        if kind == "prose":
            reads_on = previous in ("prose", "item") and not ended
            if reads_on:
                lower = what_follows(text, skip_spaces(text, line))[0] == "lower"
                reads_on = lower or 40 <= line - 1 - previous_line <= 120
            cut = not reads_on
        elif kind == "rule":
            cut = previous not in ("prose", "item")
        else:
            cut = kind in ("item", "heading", "fence") or previous != kind
        if cut and content:
            ends.append(line)
            begin = line
        content, ended, in_fence = True, False, kind == "fence"
        if kind in ("prose", "item"):
            first = line
            if kind == "item":
                marker = re.compile("[\x00-\x20]*[^\x00-\x20]*").match(text, line)
                first = marker.end() if marker else line
            i, begin, ended = scan_prose(text, first, begin, ends)
        else:
            i = next_line
        previous, previous_line = kind, line
    return [*ends, len(text)] if begin < len(text) else ends
