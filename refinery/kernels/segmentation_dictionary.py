"""The word list of Chinese segmentation as a trie in arrays: `dict.txt` of the PyPI package jieba.

The list holds one ``word count tag`` a line, 349,046 words. A word's weight is ln(count) - ln(sum of all counts), taken
with the interpreter's `math.log` and in the order in which jieba takes it, so that sums of weights, and with them
ties, are equal bit for bit. The trie is a double array (Aoe, "An efficient digital search algorithm by using a
double-array structure", IEEE TSE 15, 1989): one probe per character, one cache line per probe.

Only the text file of the package is read: neither its code nor its cache files.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import xxhash

from refinery.errors import ConfigError, DataError
from refinery.hashing import splitmix64

FIRST_HAN, LAST_HAN = 0x4E00, 0x9FD5
"""Ideographs that jieba looks up; newer ones and the extension blocks are words of one character each."""
OUTSIDE = 0xFFFF
"""Entry of `Dictionary.ids` for a character that no word may hold."""

_ASCII_IN_BLOCKS = "+#&._%-"
_NO_WORD = 1.0
_ONE = np.uint64(1)
_LOOK_BACK = 32768
_HAN_SHIFT = FIRST_HAN - 0x80


class Dictionary(NamedTuple):
    """Words as a double array; slot = trie node; all arrays are read-only."""

    ids: np.ndarray
    """uint16: character numbers; entry c < 0x80 is ASCII c, entry c - 0x4D80 is the ideograph c. 0 = in no word."""
    links: np.ndarray
    """int32, shape (4 x slots,): entry 4s is the parent of slot s (-1 = free), entry 4s + 1 its base (-1 = leaf).
    The child of s by character number d is slot base + d if its parent is s. Slots up to `ids.max()` are the words'
    first characters. The other two entries are the weight."""
    weights: np.ndarray
    """float64, shape (2 x slots,), the same memory: entry 2s + 1 is the weight of the word that ends at s, negative;
    positive where none ends."""
    unknown: float
    """Weight of a single character that is no word: -ln(sum of all counts)."""


@functools.cache
def dictionary_identity() -> str:
    """Return the hash of the word list: segmentations by different lists must not be mixed.

    Raises:
        ConfigError: the package jieba is not installed.
    """
    return xxhash.xxh3_128_hexdigest(_read())


@functools.cache
def load_dictionary() -> Dictionary:
    """Return the dictionary, the same arrays on every call of a process; building takes about a second, once.

    Raises:
        ConfigError: the package jieba is not installed. DataError: its list is damaged.
    """
    return build_dictionary(_read())


def _read() -> bytes:
    spec = importlib.util.find_spec("jieba")  # finds the package without running it
    path = Path(spec.origin).with_name("dict.txt") if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise ConfigError("Chinese segmentation needs the word list of the package jieba: pip install jieba, or set "
                          "rules.segment_chinese to false")  # fmt: skip
    return path.read_bytes()


def build_dictionary(content: bytes) -> Dictionary:
    """Build the trie of a word list.

    Args:
        content: UTF-8, one ``word count [tag]`` a line; of a word that stands twice the last count holds, while both
            are part of the total (jieba).
    Raises:
        DataError: a line has no count.
    """
    codes = np.frombuffer(content.decode().rstrip("\n").encode("utf-32-le"), dtype=np.uint32)
    spans, counts, broken = _lines(codes)
    if broken >= 0:
        raise DataError(f"line {broken + 1} of the word list does not read 'word count [tag]'")
    log_total = math.log(int(counts.sum()))
    values, which = np.unique(counts, return_inverse=True)
    weights = np.array([math.log(n) - log_total if n else _NO_WORD for n in values.tolist()])[which]
    ids = _character_numbers(codes, spans)
    parents, label, weight = _nodes(codes, spans, weights, ids)
    num_chars = int(ids[ids != OUTSIDE].max(initial=0))
    links, packed = _packed(parents, label, weight, num_chars, -log_total)
    for array in (ids, links, packed):
        array.flags.writeable = False
    return Dictionary(ids, links, packed, -log_total)


@numba.njit(cache=True)
def _lines(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the spans of the words (int64, shape (words, 2)), their counts, and the first broken line or -1."""
    num_lines = 1 + np.sum(codes == 0x0A)
    spans = np.zeros((num_lines, 2), dtype=np.int64)
    counts = np.zeros(num_lines, dtype=np.int64)
    i = 0
    for line in range(num_lines):
        spans[line, 0] = i
        while i < len(codes) and codes[i] != 0x20 and codes[i] != 0x0A:
            i += 1
        spans[line, 1] = i
        digits = 0
        spaced = i > spans[line, 0] and i < len(codes) and codes[i] == 0x20
        i += 1
        while i < len(codes) and 0x30 <= codes[i] <= 0x39 and digits < 18:
            counts[line] = counts[line] * 10 + np.int64(codes[i] - 0x30)
            digits += 1
            i += 1
        if digits == 0 or not spaced or (i < len(codes) and codes[i] != 0x20 and codes[i] != 0x0D and codes[i] != 0x0A):
            return spans, counts, line
        while i < len(codes) and codes[i] != 0x0A:
            i += 1
        i += 1
    return spans, counts, -1


def _character_numbers(codes: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return `Dictionary.ids`: from 1, those that follow others most often first, since low numbers pack well."""
    ids = np.zeros(LAST_HAN - _HAN_SHIFT + 1, dtype=np.uint16)
    ids[[c for c in range(0x80) if not (chr(c).isalnum() or chr(c) in _ASCII_IN_BLOCKS)]] = OUTSIDE
    starts, follows = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
    _count_places(codes, spans, starts, follows)
    order = np.lexsort((np.arange(len(ids)), -follows))
    order = order[(starts[order] + follows[order] > 0) & (ids[order] != OUTSIDE)]
    ids[order] = np.arange(1, len(order) + 1)
    return ids


@numba.njit(cache=True)
def _entry(code: Any) -> Any:
    """Return the entry of a character in `Dictionary.ids`, -1 for one that blocks do not hold."""
    if code < 0x80:
        return np.int64(code)
    return np.int64(code) - _HAN_SHIFT if FIRST_HAN <= code <= LAST_HAN else np.int64(-1)


@numba.njit(cache=True)
def _count_places(codes: np.ndarray, spans: np.ndarray, starts: np.ndarray, follows: np.ndarray) -> None:
    for word in range(len(spans)):
        for place in range(spans[word, 0], spans[word, 1]):
            entry = _entry(codes[place])
            if entry >= 0 and place == spans[word, 0]:
                starts[entry] += 1
            elif entry >= 0:
                follows[entry] += 1


@numba.njit(cache=True)
def _nodes(
    codes: np.ndarray, spans: np.ndarray, weights: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return parent, label and weight of the trie's nodes (0 = root); words that no block holds are left out."""
    room = np.int64(np.sum(spans[:, 1] - spans[:, 0])) + 1
    parents, label = np.zeros(room, dtype=np.int32), np.zeros(room, dtype=np.int32)
    weight = np.full(room, _NO_WORD)
    mask = 1
    while mask < 2 * room:
        mask *= 2
    mask -= 1
    table = np.zeros(mask + 1, dtype=np.int32)
    node: Any
    count = 1
    for word in range(len(spans)):
        node = 0
        for place in range(spans[word, 0], spans[word, 1]):
            entry = _entry(codes[place])
            if entry < 0 or ids[entry] == OUTSIDE:
                node = 0
                break
            number = np.int32(ids[entry])
            slot = np.int64(splitmix64((np.uint64(node) << np.uint64(32)) | np.uint64(number)) & np.uint64(mask))
            while table[slot] and (parents[table[slot]] != node or label[table[slot]] != number):
                slot = (slot + 1) & mask
            if not table[slot]:
                table[slot], parents[count], label[count] = count, node, number
                count += 1
            node = np.int64(table[slot])
        if node:
            weight[node] = weights[word]
    return parents[:count].copy(), label[:count].copy(), weight[:count].copy()


def _packed(
    parents: np.ndarray, label: np.ndarray, weight: np.ndarray, num_chars: int, unknown: float
) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((label[1:], parents[1:])) + 1  # children side by side, in the order of their characters
    num_children = np.bincount(parents[1:], minlength=len(parents))
    first = np.concatenate([[0], np.cumsum(num_children)]).astype(np.int64)
    by_size = np.argsort(-num_children, kind="stable")
    slots, bases, used = _place(first, label[order], order, by_size[by_size != 0], num_chars)
    packed = np.zeros(2 * (used + num_chars + 1))
    links = packed.view(np.int32)
    links[0::4] = -1
    links[1::4] = -1
    packed[1::2] = _NO_WORD
    packed[1 : 2 * (num_chars + 1) : 2] = unknown  # characters that start no word
    nodes = np.arange(1, len(parents))
    links[4 * slots[nodes]] = np.where(parents[nodes] == 0, -1, slots[parents[nodes]])
    links[4 * slots[nodes] + 1] = bases[nodes]
    packed[2 * slots[nodes] + 1] = weight[nodes]
    return links, packed


@numba.njit(cache=True)
def _place(
    first: np.ndarray, label: np.ndarray, children: np.ndarray, by_size: np.ndarray, num_chars: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Give every node a slot and a base, the nodes with most children first, each at the first place that is free.

    First fit, 64 bases at a time. Nodes with one child come last and fill what is left; the others look back
    `_LOOK_BACK` places at most, which builds ten times as fast and leaves about a third of the slots free.

    Args:
        first: int64: the children of node n are entries first[n] : first[n + 1] of `label` and `children`.
        label: int32, character number of each child, ascending within a parent.
        children: int64, node number of each child.
        by_size: int64, the nodes but for the root, those with most children first.
        num_chars: highest character number; slots up to it belong to the children of the root.
    Returns: (slot of each node, base of each node or -1, one past the highest slot in use).
    """
    slots = np.zeros(len(first) - 1, dtype=np.int64)
    bases = np.full(len(first) - 1, -1, dtype=np.int64)
    free = np.full((len(first) + num_chars) // 64 + 4, ~np.uint64(0), dtype=np.uint64)  # one bit a slot
    used, lowest = num_chars + 1, np.int64(num_chars + 1)
    latest = lowest
    for slot in range(used):
        free[slot >> 6] &= ~(_ONE << np.uint64(slot & 63))
    for j in range(first[0], first[1]):
        slots[children[j]] = label[j]
    for node in by_size:
        begin, end = first[node], first[node + 1]
        if begin == end:
            break
        while not (free[lowest >> 6] >> np.uint64(lowest & 63)) & _ONE:
            lowest += 1
        earliest = lowest if end - begin == 1 else max(lowest, latest - _LOOK_BACK)
        base, fits = max(np.int64(0), earliest - label[begin]), np.uint64(0)
        while True:  # bit b of `fits`: with base + b every child falls on a free slot
            fits = ~np.uint64(0)
            if base + num_chars + 128 > 64 * len(free):
                free = np.concatenate((free, np.full(len(free), ~np.uint64(0), dtype=np.uint64)))
            for j in range(begin, end):
                slot = base + label[j]
                shift = np.uint64(slot & 63)
                fits &= (free[slot >> 6] >> shift) | ((free[(slot >> 6) + 1] << _ONE) << (np.uint64(63) - shift))
                if fits == 0:
                    break
            if fits != 0:
                break
            base += 64
        while not fits & _ONE:
            fits >>= _ONE
            base += 1
        bases[node] = base
        latest = base + label[begin]
        for j in range(begin, end):
            slot = base + label[j]
            slots[children[j]] = slot
            free[slot >> 6] &= ~(_ONE << np.uint64(slot & 63))
            used = max(used, slot + 1)
    return slots, bases, used
