r"""Signals over datatrove's own words, for presets that have to decide as its filters do.

Gopher's figures of `signals_catalog` count words; datatrove's count the tokens of spaCy, punctuation among them
(`datatrove_words`). These columns are its figures, rule for rule, as its filters of version 0.10 compute them:

- words are all tokens; "words of the length rules" are tokens with a character outside its punctuation set;
- repeated n-grams compare the concatenation of their tokens (``"".join``), one greedy walk per order;
- lines are split at runs of line feeds in the unstripped text, so a leading or trailing one makes an empty line.

They cost more than all other signals together and are computed only for presets that name them; else they are null.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from refinery.hashing import splitmix64
from refinery.kernels.datatrove_chars import LETTER, MARK, datatrove_classes, decode_document, unit_table
from refinery.kernels.datatrove_specials import special_table
from refinery.kernels.datatrove_words import split_datatrove_words
from refinery.kernels.repetition import (
    first_positions,
    next_order,
    repeated_words,
    table_capacity,
    table_mask,
    top_ngram_chars,
)
from refinery.kernels.text import TextViews


class DatatroveSpec(NamedTuple):
    """One signal: its name, dtype, unit and meaning."""

    name: str
    dtype: type
    unit: str
    doc: str


ALGORITHM_VERSION = 2
"""Raised whenever one of these signals changes: stored ones of another version are computed anew."""

_TOKENS = "datatrove's tokens"
DATATROVE_SIGNALS: tuple[DatatroveSpec, ...] = (
    DatatroveSpec("datatrove_num_words", np.int32, "words", f"{_TOKENS} that are not of punctuation alone"),
    DatatroveSpec("datatrove_mean_word_length_chars", np.float32, "chars", "characters per such token"),
    DatatroveSpec("datatrove_hash_frac", np.float32, "fraction", f"'#' per token of {_TOKENS}"),
    DatatroveSpec("datatrove_ellipsis_frac", np.float32, "fraction", f"'...' and '…' per token of {_TOKENS}"),
    DatatroveSpec("datatrove_alpha_word_frac", np.float32, "fraction", f"tokens with a letter, of {_TOKENS}"),
    DatatroveSpec("datatrove_num_stop_words", np.int32, "words", "distinct of Gopher's eight among them"),
    DatatroveSpec("datatrove_newline_frac", np.float32, "fraction", f"line feeds per token of {_TOKENS}"),
    DatatroveSpec("datatrove_dup_line_frac", np.float32, "fraction", "copies after the first, of its lines"),
    *(
        DatatroveSpec(f"datatrove_top_{n}gram_char_frac", np.float32, "fraction",
                      f"characters of the most frequent {n}-gram of {_TOKENS}, of all") for n in (2, 3, 4)
    ),
    *(
        DatatroveSpec(f"datatrove_dup_{n}gram_char_frac", np.float32, "fraction",
                      f"characters of repeated {n}-grams of {_TOKENS}, of all") for n in (5, 6, 7, 8, 9, 10)
    ),
)  # fmt: skip
NUM_COLUMNS = len(DATATROVE_SIGNALS)
_TOP, _DUP = 8, 11
_STOP_WORDS = tuple(int.from_bytes(word, "big") for word in b"the be to of and that have with".split())
_BASE = np.uint64(0x9E3779B97F4A7C15)


def datatrove_signals(views: TextViews) -> dict[str, np.ndarray]:
    """Return every signal of `DATATROVE_SIGNALS`, each an array of shape (docs,)."""
    values = np.zeros((views.num_docs, NUM_COLUMNS), dtype=np.float64)
    longest = int(np.diff(views.offsets).max(initial=0))
    _fill(views.offsets, views.data, datatrove_classes(), special_table(), unit_table(), longest, values)
    return {spec.name: values[:, place].astype(spec.dtype) for place, spec in enumerate(DATATROVE_SIGNALS)}


@numba.njit(cache=True, nogil=True)
def _fill(
    offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, specials: np.ndarray, units: np.ndarray, longest: int,
    values: np.ndarray,
) -> None:  # fmt: skip
    room = longest + 2
    codes, flags = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.uint16)
    starts, ends = np.empty(room, dtype=np.int32), np.empty(2 * room + 2, dtype=np.int32)
    keys, char_ends = np.empty(room, dtype=np.uint64), np.empty(room, dtype=np.int32)
    integers = np.empty((6, room), dtype=np.int32)
    table = np.empty(table_capacity(room), dtype=np.int32)
    seen = np.empty(table_capacity(room), dtype=np.uint64)
    prefix, powers = np.empty(room, dtype=np.uint64), np.empty(room, dtype=np.uint64)
    powers[0] = 1
    for i in range(1, room):
        powers[i] = powers[i - 1] * _BASE
    for doc in range(len(offsets) - 1):
        row = values[doc]
        chars = decode_document(data, offsets[doc], offsets[doc + 1], classes, codes, flags)
        if chars == 0:
            continue
        tokens = split_datatrove_words(codes, flags, chars, specials, units, starts, ends)
        _word_figures(codes, flags, chars, tokens, starts, ends, row)
        row[7] = _dup_line_frac(codes, chars, keys, integers, table)
        _hash_tokens(codes, tokens, starts, ends, keys, char_ends, prefix)
        _top_ngrams(keys, tokens, char_ends, integers, table, row[_TOP:_DUP])
        for order in range(5, 11):
            repeated = _dup_chars(order, tokens, char_ends, prefix, powers, seen)
            row[_DUP + order - 5] = repeated
        row[_TOP:] /= chars


@numba.njit(cache=True)
def _word_figures(
    codes: np.ndarray, flags: np.ndarray, chars: int, tokens: int, starts: np.ndarray, ends: np.ndarray, row: np.ndarray
) -> None:
    """Fill the columns that need no n-grams."""
    words, word_chars, alpha, bits = 0, 0, 0, 0
    for token in range(tokens):
        first, last = starts[token], ends[token]
        has_letter, is_word = False, False
        for i in range(first, last):
            has_letter = has_letter or flags[i] & LETTER != 0
            is_word = is_word or flags[i] & MARK == 0
        alpha += has_letter
        if is_word:
            words += 1
            word_chars += last - first
        if last - first <= 4:
            packed = np.int64(0)
            for i in range(first, last):
                packed = (packed << 8) | (codes[i] if codes[i] < 0x80 else 0xFF)
            for bit in range(len(_STOP_WORDS)):
                if packed == _STOP_WORDS[bit]:
                    bits |= 1 << bit
    hashes, ellipses, dots, newlines = 0, 0, 0, 0
    for i in range(chars):
        code = codes[i]
        hashes += code == 0x23
        newlines += code == 0x0A
        ellipses += code == 0x2026
        dots = dots + 1 if code == 0x2E else 0
        if dots == 3:
            ellipses += 1
            dots = 0
    row[0] = words
    row[1] = word_chars / words if words else 0.0
    if tokens:
        row[2], row[3], row[4], row[6] = hashes / tokens, ellipses / tokens, alpha / tokens, newlines / tokens
    for bit in range(8):
        row[5] += (bits >> bit) & 1


@numba.njit(cache=True)
def _dup_line_frac(codes: np.ndarray, chars: int, keys: np.ndarray, integers: np.ndarray, table: np.ndarray) -> float:
    """Return the share of copies among the pieces between runs of line feeds."""
    lines, i = 0, 0
    while i <= chars:
        value = np.uint64(0xCBF29CE484222325)
        while i < chars and codes[i] != 0x0A:
            value = (value ^ np.uint64(codes[i])) * np.uint64(0x100000001B3)
            i += 1
        keys[lines] = splitmix64(value)
        lines += 1
        if i == chars:
            break
        while i < chars and codes[i] == 0x0A:
            i += 1
    first: np.ndarray = integers[0]
    first_positions(keys, lines, table, first, integers[1])
    copies = 0
    for line in range(lines):
        copies += first[line] != line
    return copies / lines


@numba.njit(cache=True)
def _hash_tokens(
    codes: np.ndarray, tokens: int, starts: np.ndarray, ends: np.ndarray, keys: np.ndarray, char_ends: np.ndarray,
    prefix: np.ndarray,
) -> None:  # fmt: skip
    """Hash each token into `keys`, and every beginning of the text without white space into `prefix`."""
    at: Any
    value: Any
    at, value = 0, np.uint64(0)
    prefix[0], char_ends[0] = value, 0
    for token in range(tokens):
        own = np.uint64(0)
        for i in range(starts[token], ends[token]):
            code = np.uint64(codes[i] + 1)
            own = own * _BASE + code
            value = value * _BASE + code
            at += 1
            prefix[at] = value
        keys[token] = splitmix64(own ^ np.uint64(ends[token] - starts[token]))
        char_ends[token + 1] = at


@numba.njit(cache=True)
def _top_ngrams(
    keys: np.ndarray, tokens: int, char_ends: np.ndarray, integers: np.ndarray, table: np.ndarray, row: np.ndarray
) -> None:
    """Write the characters of the most frequent 2-, 3- and 4-gram."""
    ids, repeated, positions = integers[0], integers[1], integers[2]
    candidates, first, occurrences = integers[3], integers[4], integers[5]
    count = repeated_words(keys, tokens, table, ids, occurrences, repeated, positions)
    for n in range(2, 5):
        count = next_order(n, tokens, ids, repeated, positions, count, candidates, first, occurrences, table)
        row[n - 2] = top_ngram_chars(n, tokens, repeated, positions, count, occurrences, char_ends)


@numba.njit(cache=True)
def _dup_chars(
    order: int, tokens: int, char_ends: np.ndarray, prefix: np.ndarray, powers: np.ndarray, seen: np.ndarray
) -> int:
    """Return the characters of repeated n-grams: a walk that passes over an n-gram whose concatenation was met."""
    mask = table_mask(max(tokens, 1))
    seen[: mask + 1] = 0
    chars, i = 0, 0
    while i + order <= tokens:
        begin, end = char_ends[i], char_ends[i + order]
        value = splitmix64((prefix[end] - prefix[begin] * powers[end - begin]) ^ np.uint64(end - begin)) | np.uint64(1)
        slot = np.int64((value >> np.uint64(20)) & np.uint64(mask))
        while seen[slot] != 0 and seen[slot] != value:
            slot = (slot + 1) & mask
        if seen[slot] == value:
            chars += end - begin
            i += order
        else:
            seen[slot] = value
            i += 1
    return chars
