"""Plain-Python segmentation by maximum probability, for any word list; jieba itself is the other oracle."""

from __future__ import annotations

import math
import re

BLOCK = re.compile("([\u4e00-\u9fd5a-zA-Z0-9+#&._%-]+)")


def parse(content: str) -> tuple[dict[str, int], int]:
    counts: dict[str, int] = {}
    total = 0
    for line in content.splitlines():
        word, count = line.split(" ")[:2]
        counts[word] = int(count)
        total += int(count)
    return counts, total


def cut(text: str, counts: dict[str, int], total: int) -> list[str]:
    prefixes = {word[:n] for word in counts for n in range(1, len(word) + 1)}
    words: list[str] = []
    for piece in BLOCK.split(text):
        if BLOCK.match(piece):
            words += _cut_block(piece, counts, prefixes, math.log(total))
        else:
            words += re.findall(r"\r\n|[\s\S]", piece)
    return words


def _cut_block(block: str, counts: dict[str, int], prefixes: set[str], log_total: float) -> list[str]:
    best: dict[int, tuple[float, int]] = {len(block): (0.0, 0)}
    for start in reversed(range(len(block))):
        ends = []
        end = start + 1
        while end <= len(block) and block[start:end] in prefixes:
            if counts.get(block[start:end]):
                ends.append(end)
            end += 1
        best[start] = max(
            (math.log(counts.get(block[start:end]) or 1) - log_total + best[end][0], end) for end in ends or [start + 1]
        )
    words: list[str] = []
    start, joins = 0, False
    while start < len(block):
        word = block[start : best[start][1]]
        letter = len(word) == 1 and word.isascii() and word.isalnum()
        if letter and joins:
            words[-1] += word
        else:
            words.append(word)
        joins = letter
        start += len(word)
    return words
