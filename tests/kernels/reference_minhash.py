"""Plain Python forms of the near-duplicate kernels: slow, obvious, on Python strings, sets and integers."""

from __future__ import annotations

import unicodedata
from collections import defaultdict, deque

from refinery.hashing import splitmix64_int, stage_seed

MASK64 = 0xFFFFFFFFFFFFFFFF
WORD_SEED = 0x2545F4914F6CDD1D
SECOND_SEED = 0x8CB92BA72F3D8DD7
P, Q = 0x9FB21C651E98DF25, 0xD6E8FEB86659FD93
M, R = 0xA0761D6478BD642F, 0xE7037ED1A0B428DB
BAND_SEED = 0x5851F42D4C957F2D

UNSPACED_NAMES = (
    "CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "THAI ", "LAO ",
    "MYANMAR", "KHMER", "IDEOGRAPHIC", "HANGZHOU", "HENTAIGANA", "COMBINING KATAKANA-HIRAGANA",
)  # fmt: skip
SPACED_DESPITE_THEIR_NAMES = (
    "IDEOGRAPHIC LEVEL", "IDEOGRAPHIC RISING", "IDEOGRAPHIC DEPARTING", "IDEOGRAPHIC ENTERING", "IDEOGRAPHIC TALLY",
    "IDEOGRAPHIC ANNOTATION",
)  # fmt: skip


def is_unspaced(character: str) -> bool:
    """Tell whether a letter, number or mark is of a script that writes no blanks, by its Unicode name."""
    name = unicodedata.name(character, "")
    return name.startswith(UNSPACED_NAMES) and not name.startswith(SPACED_DESPITE_THEIR_NAMES)


def fold(character: str) -> str:
    for form in (character.casefold(), character.lower()):
        if len(form) == 1:
            return form
    return character


def words_of(text: str, unit: str) -> list[str]:
    words: list[str] = []
    word = ""

    def end() -> None:
        nonlocal word
        if word:
            words.append(word)
        word = ""

    for character in text:
        category = unicodedata.category(character)
        if ord(character) >= 0x40000 or (category == "Cf" and character != "\u200b"):
            continue
        if category[0] == "Z" or category in ("Cc", "Cs") or character == "\u200b":
            end()
        elif unit == "chars":
            words.append(fold(character))
        elif category[0] not in "LNM":
            end()
        elif is_unspaced(character):
            end()
            words.append(fold(character))
        elif category[0] != "M" or word:
            word += fold(character)
    end()
    return words


def word_hash(word: str, seed: int = WORD_SEED) -> int:
    h = seed
    for character in word:
        h = ((h ^ ord(character)) * P) & MASK64
    return ((h ^ (h >> 32)) * Q) & MASK64


def shingle_of(hashes: list[int]) -> int:
    total = sum(h * M ** (len(hashes) - 1 - k) for k, h in enumerate(hashes)) & MASK64
    return (((total ^ (total >> 32)) * R) & MASK64) >> 32


def shingles_of(text: str, size: int, unit: str) -> list[int]:
    hashes = [word_hash(word) for word in words_of(text, unit)]
    return [shingle_of(hashes[first : first + size]) for first in range(len(hashes) - size + 1)]


def words_hash_of(text: str, unit: str) -> tuple[int, int]:
    words = words_of(text, unit)
    halves = []
    for seed in (WORD_SEED, SECOND_SEED):
        state = seed
        for word in words:
            state = ((state ^ word_hash(word, seed)) * M) & MASK64
            state ^= state >> 32
        halves.append(splitmix64_int(state ^ len(words)))
    return halves[0], halves[1]


def family(num_hashes: int, seed: int) -> list[tuple[int, int]]:
    base = stage_seed(seed, "minhash")
    pairs = []
    for j in range(num_hashes):
        a = splitmix64_int(splitmix64_int(2 * j) ^ base) | 1
        pairs.append((a, splitmix64_int(splitmix64_int(2 * j + 1) ^ base)))
    return pairs


def signature_of(shingles: list[int], num_hashes: int, seed: int) -> list[int]:
    return [
        min((((a * x + b) & MASK64) >> 32 for x in shingles), default=0xFFFFFFFF) for a, b in family(num_hashes, seed)
    ]


def band_keys_of(signature: list[int], num_bands: int) -> list[int]:
    rows = len(signature) // num_bands
    keys = []
    for band in range(num_bands):
        h = splitmix64_int(BAND_SEED ^ band)
        for value in signature[band * rows : (band + 1) * rows]:
            h = ((h ^ value) * Q) & MASK64
            h ^= h >> 32
        keys.append(splitmix64_int(h))
    return keys


def jaccard_of(left: set[int], right: set[int]) -> float:
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def component_labels(edges: list[tuple[int, int]]) -> dict[int, int]:
    neighbours: dict[int, set[int]] = defaultdict(set)
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    labels: dict[int, int] = {}
    for start in sorted(neighbours):
        queue = deque([start] if start not in labels else [])
        while queue:
            node = queue.popleft()
            if node not in labels:
                labels[node] = start
                queue.extend(neighbours[node])
    return labels


def greedy_keep_of(rank: list[int], edges: list[tuple[int, int, float]]) -> list[int]:
    """Return the twin of every node, -1 where it is kept."""
    kept: set[int] = set()
    twins = [-1] * len(rank)
    for node in sorted(range(len(rank)), key=rank.__getitem__):
        options = []
        for a, b, jaccard in edges:
            other = b if a == node else a
            if node in (a, b) and other != node and other in kept:
                options.append((-jaccard, rank[other], other))
        if options:
            twins[node] = min(options)[2]
        else:
            kept.add(node)
    return twins
