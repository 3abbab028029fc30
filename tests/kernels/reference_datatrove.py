"""Plain Python of datatrove's figures over given words, and of the search for prefixes, suffixes and infixes."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from refinery.kernels import datatrove_chars as dw
from refinery.kernels.datatrove_specials import special_parts

_CLASSES = dw.datatrove_classes()
_SPECIALS = special_parts()


def has(char: str, flag: int) -> bool:
    code = ord(char)
    return code < len(_CLASSES) and bool(int(_CLASSES[code]) & flag)


def chars_of(flag: int) -> str:
    return "".join(re.escape(chr(code)) for code in range(0x3000) if int(_CLASSES[code]) & flag)


_PREFIX = re.compile(rf"\.\.+|\+(?![0-9])|US\$|C\$|A\$|[{chars_of(dw.PREFIX)}]")
_UNITS = "|".join(re.escape(unit) for unit in dw.UNITS.split())
_LOWER, _UPPER, _QUOTE, _ALPHA = (chars_of(flag) for flag in (dw.LOWER, dw.UPPER, dw.QUOTE, dw.ALPHA))
_SUFFIX = re.compile(
    rf"(?:……|\.\.+|['’][sS]|[{chars_of(dw.SUFFIX)}]|(?<=[0-9])\+|(?<=[0-9])[{chars_of(dw.CURRENCY)}]|(?<=[0-9])(?:{_UNITS})"
    rf"|(?<=[0-9{_LOWER}{chars_of(dw.BEFORE_STOP)}])\.|(?<=[{_UPPER}][{_UPPER}])\.|(?<=°[FfCcKk])\.)\Z"
)
_INFIX = re.compile(
    rf"\.\.+|[…{chars_of(dw.ICON)}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{_LOWER}{_QUOTE}])\.(?=[{_UPPER}{_QUOTE}])"
    rf"|(?<=[{_ALPHA}]),(?=[{_ALPHA}])|(?<=[{_ALPHA}0-9])(?:---|--|-|——|—|–|~)(?=[{_ALPHA}])|(?<=[{_ALPHA}0-9])[:<>=/](?=[{_ALPHA}])"
)


def words_of(text: str) -> list[str]:
    """Split a text that holds no address, below U+3000, into words."""
    found: list[str] = []
    for match in re.finditer(r"\S+", text):
        blank = match.start() > 1 and text[match.start() - 1] == " " and not text[match.start() - 2].isspace()
        found += _joined(_split(match.group()), found[-1] if found and blank else "")
    return found


def _split(piece: str) -> list[str]:
    front: list[str] = []
    back: list[str] = []
    size = -1
    while piece and len(piece) != size and piece not in _SPECIALS:
        size = len(piece)
        prefix = match.group() if (match := _PREFIX.match(piece)) else ""
        if prefix and piece[len(prefix) :] in _SPECIALS:
            front.append(prefix)
            piece = piece[len(prefix) :]
            break
        match = _SUFFIX.search(piece[len(prefix) :])
        suffix = match.group() if match else ""
        if suffix and piece[: -len(suffix)] in _SPECIALS:
            back.append(suffix)
            piece = piece[: -len(suffix)]
            break
        if prefix:
            front.append(prefix)
        if suffix:
            back.append(suffix)
        piece = piece[len(prefix) : len(piece) - len(suffix)]
    middle = list(_SPECIALS.get(piece) or _at_infixes(piece)) if piece else []
    return [*front, *middle, *reversed(back)]


def _at_infixes(piece: str) -> list[str]:
    edges = [0]
    for match in _INFIX.finditer(piece):
        if match.start():
            edges += [match.start(), match.end()]
    edges.append(len(piece))
    return [piece[a:b] for a, b in pairwise(edges) if b > a]


def _joined(words: list[str], before: str) -> list[str]:
    """Join neighbours that make up a listed string, the longest of at most five; of a run of quotes the first two."""
    found: list[str] = []
    i = 0
    in_run = before[-1:] in ("'", "’") and words[0][:1] == before[-1:]
    while i < len(words):
        size = 1
        for count in range(min(5, len(words) - i), 1, -1):
            text = "".join(words[i : i + count])
            if len(text) <= 5 and _SPECIALS.get(text) == (text,) and not (in_run and text[0] == text[-1]):
                size = count
                break
        text = "".join(words[i : i + size])
        in_run = text[0] in "'’" and len(text) <= 2 and (size > 1 or len(text) == 1)
        found.append(text)
        i += size
    return found


def figures_of(text: str, words: list[str]) -> dict[str, float]:
    """Compute what the filters compute, as they do."""
    if not text:
        return {}
    real = [w for w in words if any(not has(c, dw.MARK) for c in w)]
    lines = re.split("\n+", text)
    figures = {
        "num_words": len(real),
        "mean_word_length_chars": sum(map(len, real)) / len(real) if real else 0.0,
        "hash_frac": text.count("#") / len(words) if words else 0.0,
        "ellipsis_frac": (text.count("...") + text.count("…")) / len(words) if words else 0.0,
        "alpha_word_frac": sum(any(c.isalpha() for c in w) for w in words) / len(words) if words else 0.0,
        "num_stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)),
        "newline_frac": text.count("\n") / len(words) if words else 0.0,
        "dup_line_frac": (len(lines) - len(set(lines))) / len(lines),
    }
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        top = grams.most_common(1)
        figures[f"top_{n}gram_char_frac"] = len(top[0][0]) * top[0][1] / len(text) if top else 0.0
    for n in range(5, 11):
        seen: set[str] = set()
        chars = i = 0
        while i + n <= len(words):
            gram = "".join(words[i : i + n])
            if gram in seen:
                chars += len(gram)
                i += n
            else:
                seen.add(gram)
                i += 1
        figures[f"dup_{n}gram_char_frac"] = chars / len(text)
    return {f"datatrove_{name}": value for name, value in figures.items()}
