"""Plain-Python words and signals: what the kernels must equal. Written for clarity, from the definitions."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

from refinery.kernels import char_classes as cc
from refinery.kernels.char_classes import class_table

_TABLE = class_table()


def category_of(char: str) -> str:
    """`unicodedata.category`, and the ideographic planes whole: what came there after the running Python's tables."""
    ideograph = 0x20000 <= ord(char) < 0x2FA1E or 0x30000 <= ord(char) < 0x323B0
    return "Lo" if ideograph else unicodedata.category(char)


def flags_of(char: str) -> int:
    code = ord(char)
    return int(_TABLE[code]) if code < cc.TABLE_SIZE else 0


def has(char: str, flag: int) -> bool:
    return bool(flags_of(char) & flag)


def is_word(char: str) -> bool:
    return has(char, cc.WORD)


def is_letter_like(char: str) -> bool:
    return is_word(char) and not has(char, cc.IDEOGRAPHIC)


def tokens(text: str) -> tuple[list[str], int]:
    """Return (words, number of symbol tokens)."""
    words: list[str] = []
    symbols = 0
    previous = ""
    kind = "gap"
    for i, char in enumerate(text):
        after = text[i + 1 : i + 2]
        mark = is_letter_like(char) and flags_of(char) & cc.WORD == cc.MARK
        if has(char, cc.IDEOGRAPHIC):
            words.append(char)
            kind = "ideograph"
        elif (kind == "run" and (is_letter_like(char) or (char in "'’" and after and is_letter_like(after)))) or (kind == "ideograph" and mark):  # noqa: E501
            words[-1] += char
        elif is_letter_like(char):
            words.append(char)
            kind = "run"
        else:
            if not char.isspace() and not (kind == "symbol" and char == previous):
                symbols += 1
            kind = "gap" if char.isspace() else "symbol"
        previous = char
    return words, symbols


def copies(segments: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    count = chars = 0
    for segment in segments:
        if segment in seen:
            count += 1
            chars += len(segment)
        seen.add(segment)
    return count, chars


def top_ngram_chars(words: list[str], n: int) -> int:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    return len(" ".join(gram)) * count


def dup_ngram_chars(words: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    i = chars = 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars


def num_sentences(text: str) -> int:
    kinds = "".join(
        ("F" if has(c, cc.FULLWIDTH) else "T") if has(c, cc.TERMINAL)
        else "C" if has(c, cc.CLOSER) else "s" if c.isspace() else "x"
        for c in text
    )  # fmt: skip
    pieces = _ended(kinds).split("|")
    return len(pieces) - 1 + (1 if pieces[-1].strip("s") else 0)


def _ended(kinds: str) -> str:
    def end(match: re.Match[str]) -> str:
        run, after = match[0], kinds[match.end() : match.end() + 1]
        return "|" if after and ("F" in run or after == "s") else "x"

    return re.sub(r"[TF][TFC]*", end, kinds)


def ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def comment_lines(nonblank: list[str]) -> list[str]:
    found, closer = [], ""
    for line in nonblank:
        text = line.strip()
        opener = re.match(r"/\*|<!--|\"{3}|'{3}", text)
        if closer:
            closer = "" if closer in text else closer
        elif opener:
            closer = {"/*": "*/", "<!--": "-->"}.get(opener[0], opener[0])
            closer = "" if closer in text[opener.end() :] else closer
        elif not re.match(r"//|#(?![a-zA-Z])|--([ \t]|$)", text):
            continue
        found.append(line)
    return found


def opens_turn(text: str) -> bool:
    speaker = re.match(r"([^:：]{1,24})[:：](?!/)", text)
    if not speaker or not has(text[0], cc.ALPHA):
        return False
    return all(is_word(c) or c in " ._-" for c in speaker[1])


def signals_of(text: str) -> dict[str, float]:
    out: dict[str, float] = {}
    words, symbols = tokens(text)
    num_tokens = len(words) + symbols
    lines = re.split(r"\r?\n", text)
    if not lines[-1] and (len(lines) > 1 or not text):
        lines.pop()
    nonempty = [line for line in lines if line]
    nonblank = [line for line in lines if line.strip()]
    stripped = text.strip()
    paragraphs = re.split(r"(?:\r?\n){2,}", stripped) if stripped else []
    visible = [c for c in text if not c.isspace()]
    lower = "".join(c.lower() if c.isascii() else c for c in text)
    policy = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

    out["num_bytes"], out["num_chars"], out["num_words"] = len(text.encode()), len(text), len(words)
    out["num_symbols"], out["num_lines"], out["num_nonblank_lines"] = symbols, len(lines), len(nonblank)
    out["num_paragraphs"], out["num_sentences"] = len(paragraphs), num_sentences(text)
    out["mean_word_length_chars"] = ratio(sum(map(len, words)), len(words))
    out["hash_to_word_frac"] = ratio(text.count("#"), num_tokens)
    out["ellipsis_to_word_frac"] = ratio(text.count("...") + text.count("…"), num_tokens)
    out["bullet_line_frac"] = ratio(sum(x.strip().startswith(("•", "-")) for x in lines), len(lines))
    out["ellipsis_line_frac"] = ratio(sum(x.strip().endswith(("...", "…")) for x in lines), len(lines))
    out["alpha_word_frac"] = ratio(sum(any(category_of(c)[0] == "L" for c in w) for w in words), len(words))
    out["num_stop_words_en"] = len(set(words) & {"the", "be", "to", "of", "and", "that", "have", "with"})
    out["num_stop_words_zh"] = len((set(words) | ({"·"} & set(text))) & set(cc.STOP_WORDS_ZH))
    for name, segments in (("line", nonempty), ("paragraph", paragraphs)):
        count, chars = copies(segments)
        out[f"dup_{name}_frac"] = ratio(count, len(segments))
        out[f"dup_{name}_char_frac"] = ratio(chars, len(text))
    for n in (2, 3, 4):
        out[f"top_{n}gram_char_frac"] = ratio(top_ngram_chars(words, n), len(text))
    for n in range(5, 11):
        out[f"dup_{n}gram_char_frac"] = ratio(dup_ngram_chars(words, n), len(text))
    out["line_punct_frac"] = ratio(sum(has(x[-1], cc.TERMINAL) for x in nonblank), len(nonblank))
    out["short_line_frac"] = ratio(sum(len(x) <= 30 for x in nonblank), len(nonblank))
    out["dup_nonblank_line_char_frac"] = ratio(copies(nonblank)[1], len(text.replace("\n", "")))
    out["newline_to_word_frac"] = ratio(text.count("\n"), num_tokens)
    out["num_braces"], out["num_lorem_ipsum"] = text.count("{"), lower.count("lorem ipsum")
    out["num_javascript_lines"] = sum("javascript" in x for x in lower.split("\n"))
    out["num_policy_lines"] = sum(any(p in x for p in policy) for x in lower.split("\n"))
    ends = [x.strip() for x in nonblank]
    out["c4_end_line_frac"] = ratio(sum(x[-1] in ".?!\"'" and not x.endswith("...") for x in ends), len(nonblank))
    for name, flag in (("han_kana", cc.IDEOGRAPHIC), ("han", cc.HAN), ("kana", cc.KANA), ("latin", cc.LATIN),
                       ("fullwidth_punct", cc.FULLWIDTH)):  # fmt: skip
        out[f"{name}_frac"] = ratio(sum(has(c, flag) for c in visible), len(visible))
    categories = [category_of(c) for c in visible]
    out["digit_frac"] = ratio(categories.count("Nd"), len(visible))
    out["upper_frac"] = ratio(categories.count("Lu"), len(visible))
    out["punct_frac"] = ratio(sum(c[0] in "PS" for c in categories), len(visible))
    out["alnum_frac"] = ratio(sum(category_of(c)[0] in "LN" for c in text), len(text))
    out["unique_char_frac"] = ratio(len(set(text)), len(text))
    out["char_entropy_nats"] = -sum(k / len(text) * math.log(k / len(text)) for k in Counter(text).values())
    out["mean_line_length_chars"] = ratio(sum(map(len, lines)), len(lines))
    out["max_line_length_chars"] = max(map(len, lines), default=0)
    out["comment_char_frac"] = ratio(sum(len(x) for x in comment_lines(nonblank)), sum(map(len, lines)))
    opening = [opens_turn(x.strip()) for x in nonblank]
    out["num_turns"] = sum(opening)
    spoken = nonblank[opening.index(True) :] if any(opening) else []
    out["mean_turn_length_chars"] = ratio(sum(map(len, spoken)), sum(opening))
    return out
