"""Text without end for measurements of size: clauses of real documents, recombined and varied, a function of the seed.

Real text brings new words as it grows; a repeated sample does not. So clauses are drawn by hash and edited: in Chinese
a character is left out or put in now and then, which moves the bounds of every later four-character pretoken of the
run; an ASCII word at times starts as another word does. How often is set so that distinct pretokens grow as they do in
the text itself (`growth` measures both; benchmarks/tokenizer_scale.py prints them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from refinery.hashing import splitmix64_int
from refinery.kernels.pretokens import PretokenCounter
from refinery.kernels.text import views_of

_ENDS = (0xE38082, 0xEFBC8C, 0xEFBC9B, 0xEFBC9A, 0xE38081)  # 。，；：、
_ONE, _S30, _S27, _S31 = (np.uint64(n) for n in (1, 30, 27, 31))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Clauses(NamedTuple):
    """Pieces of text to draw from."""

    offsets: np.ndarray
    """int64, shape (C + 1,): clause i is ``data[offsets[i]:offsets[i + 1]]``."""
    data: np.ndarray
    """uint8: UTF-8."""


@njit(cache=True)
def _next(state: np.ndarray) -> Any:
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> _S30)) * _MIX[0]
    z = (z ^ (z >> _S27)) * _MIX[1]
    return z ^ (z >> _S31)


@njit(cache=True)
def _below(state: np.ndarray, bound: int) -> int:
    return np.int64(_next(state) % np.uint64(bound))


@njit(cache=True)
def _is_han(data: np.ndarray, at: int) -> bool:
    return 0xE4 <= data[at] <= 0xE9


@njit(cache=True)
def _is_letter(byte: int) -> bool:
    return 97 <= (byte | 32) <= 122


@njit(cache=True)
def _clause_ends(data: np.ndarray) -> np.ndarray:
    ends = np.empty(len(data) // 2 + 1, dtype=np.int64)
    count, last = 0, 0
    for at in range(len(data)):
        cut = data[at] == 10 or (data[at] == 32 and at > 0 and data[at - 1] in (44, 46, 59, 58))
        if at >= 2 and data[at] >= 0x80 and data[at] < 0xC0:
            three = (np.int64(data[at - 2]) << 16) | (np.int64(data[at - 1]) << 8) | data[at]
            cut = cut or three in _ENDS
        if cut and at - last >= 8:
            ends[count] = at + 1
            last = at + 1
            count += 1
    if last < len(data):
        ends[count] = len(data)
        count += 1
    return ends[:count].copy()


def clauses(texts: list[str]) -> Clauses:
    """Cut documents after line ends and the marks that end clauses."""
    data = np.frombuffer("".join(f"{text}\n" for text in texts).encode("utf-8", "replace"), dtype=np.uint8)
    return Clauses(np.concatenate([[0], _clause_ends(data)]).astype(np.int64), data)


@njit(cache=True)
def _edited(
    data: np.ndarray, at: int, stop: int, state: np.ndarray, gaps: np.ndarray, out: np.ndarray, size: int
) -> int:
    """Copy a clause to ``out[size:]`` with edits; return the end.

    `gaps`: twice the mean number of Han characters, and of words, between edits, then how many are left to the next.
    """
    in_word = False
    while at < stop:
        byte = data[at]
        if _is_han(data, at) and at + 3 <= stop:
            gaps[2] -= 1
            if gaps[2] < 0:
                gaps[2] = _below(state, gaps[0])
                if _next(state) >> np.uint64(63):
                    at += 3
                    continue
                for _ in range(8):
                    place = _below(state, len(data) - 3)
                    if _is_han(data, place):
                        out[size : size + 3] = data[place : place + 3]
                        size += 3
                        break
            out[size : size + 3] = data[at : at + 3]
            size += 3
            at += 3
            in_word = False
            continue
        letter = _is_letter(byte)
        gaps[3] -= letter and not in_word
        if gaps[3] < 0:
            gaps[3] = _below(state, gaps[1])
            place = _below(state, len(data) - 8)
            while place < len(data) - 8 and not (_is_letter(data[place]) and not _is_letter(data[place - 1])):
                place += 1
            taken = 1 + _below(state, 4)
            for step in range(taken):
                if not _is_letter(data[place + step]):
                    break
                out[size] = data[place + step]
                size += 1
        in_word = letter
        out[size] = byte
        size += 1
        at += 1
    return size


@njit(cache=True)
def _document(
    offsets: np.ndarray, data: np.ndarray, seed: np.uint64, num_bytes: int, gaps: np.ndarray, out: np.ndarray
) -> int:
    """Write one document of at least `num_bytes`; return its bytes."""
    state = np.array([seed], dtype=np.uint64)
    size = 0
    while size < num_bytes:
        # A few clauses in their own order: text is not a bag of clauses.
        first = _below(state, len(offsets) - 1)
        for clause in range(first, min(first + 4, len(offsets) - 1)):
            if offsets[clause + 1] - offsets[clause] < num_bytes:
                size = _edited(data, offsets[clause], offsets[clause + 1], state, gaps, out, size)
    return size


def documents(pool: Clauses, seed: int, num_bytes: int, odds: tuple[float, float]) -> Iterator[bytes]:
    """Yield documents of about 20 kB without end of the seed's sequence, `num_bytes` in all.

    Args:
        pool: what to recombine.
        seed: of the sequence.
        num_bytes: to stop at.
        odds: of an edit, per Han character and per ASCII word.
    """
    out = np.empty(1 << 18, dtype=np.uint8)
    means = [max(1, round(2 / share)) for share in odds]
    number = 0
    while num_bytes > 0:
        key = splitmix64_int(seed * 1_000_003 + number)
        gaps = np.array([*means, *means], dtype=np.int64)
        size = int(_document(*pool, np.uint64(key), 2_000 + key % 36_000, gaps, out))
        num_bytes -= size
        number += 1
        yield out[:size].tobytes()


def growth(texts: Iterator[str], counter: PretokenCounter, marks: list[int]) -> list[int]:
    """Return the distinct pretokens after so many bytes of text, for rising `marks`."""
    found: list[int] = []
    total = 0
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        total += len(text.encode())
        if len(batch) >= 100 or total >= marks[len(found)]:
            counter.add(views_of(batch))
            batch = []
            while len(found) < len(marks) and total >= marks[len(found)]:
                found.append(len(counter.counts().counts))
            if len(found) == len(marks):
                break
    return found


def exponent(sizes: list[int], distinct: list[int]) -> float:
    """Return the slope of log(distinct) over log(size): Heaps' exponent."""
    return float(np.polyfit([math.log(size) for size in sizes], [math.log(count) for count in distinct], 1)[0])
