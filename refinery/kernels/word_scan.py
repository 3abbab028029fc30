"""Words of a text as hashes, in one pass over its UTF-8 bytes: what shingles, n-grams and word identities are made of.

How text is normalised, and the formula of a word's hash, stand in `shingles`; both are part of its format. English runs
at 500 MB/s of a Zen 3 core at 3.2 GHz (6.4 cycles a byte, five of which are the chain of one multiplication per
character), Chinese at 420.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from typing import Any

import numba
import numpy as np

from refinery.errors import ConfigError

UNITS = ("words", "chars")
BLOCK_WORDS = 2048
"""Words scanned per step: their hashes (16 KB) stay in the first-level cache, and no document needs more memory."""

WORD_SEED = np.uint64(0x2545F4914F6CDD1D)
"""First value of every word hash of a shingle."""
_P = np.uint64(0x9FB21C651E98DF25)
_Q = np.uint64(0xD6E8FEB86659FD93)
_S32 = np.uint64(32)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)

# Kinds of code points, in the top byte of the scan table; the low 24 bits hold the folded code point.
_BREAK, _WORD, _SINGLE, _MARK, _SKIP = range(5)
_TABLE_SIZE = 0x40000  # planes 0-3 hold every letter; above lie tags, variation selectors and private use: skipped
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303A),
    (0x3040, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip


def _fold(character: str) -> int:
    """Return the simple case folding of one character: the first single-code-point form of casefold, lower, itself."""
    for form in (character.casefold(), character.lower()):
        if len(form) == 1:
            return ord(form)
    return ord(character)


def _kind_of(code_point: int, category: str, unit: str) -> int:
    if category[0] == "Z" or category in ("Cc", "Cs") or code_point == 0x200B:
        return _BREAK
    if category == "Cf":  # soft hyphen, joiners, byte order mark, direction marks: invisible, so they change nothing
        return _SKIP
    if unit == "chars":
        return _SINGLE
    if category[0] not in "LNM":
        return _BREAK
    if any(first <= code_point <= last for first, last in _UNSPACED):
        return _SINGLE
    # A mark continues a word but begins none: the variation selector behind an emoji is not a word.
    return _MARK if category[0] == "M" else _WORD


@functools.cache
def scan_table(unit: str) -> np.ndarray:
    """Return the table that the scanner reads: kind << 24 | folded code point, for code points below 2^18.

    It follows the Unicode version of the running Python (`table_digest` names it): text of characters that were
    assigned before Unicode 14 hashes the same everywhere.

    Returns: uint32, shape (262144,), read-only. Cost: 0.1-0.3 s, once per process and unit.

    Raises:
        ConfigError: the unit is unknown.
    """
    if unit not in UNITS:
        raise ConfigError(f"shingle unit {unit!r} is unknown; choose one of {', '.join(UNITS)}")
    table = np.empty(_TABLE_SIZE, dtype=np.uint32)
    for code_point in range(_TABLE_SIZE):
        character = chr(code_point)
        kind = _kind_of(code_point, unicodedata.category(character), unit)
        table[code_point] = (kind << 24) | _fold(character)
    table.flags.writeable = False
    return table


def table_digest(unit: str) -> str:
    """Return 16 hex digits that change when the scan table does: part of the fingerprint of stored signatures."""
    return hashlib.sha256(scan_table(unit).tobytes()).hexdigest()[:16]


@numba.njit(cache=True, inline="always")
def _ascii_run(
    data: np.ndarray, span: tuple[int, int], table: np.ndarray, seed: np.uint64, words: np.ndarray, filled: int,
    state: tuple[np.uint64, bool],
) -> tuple[Any, Any, np.uint64, bool]:  # fmt: skip
    """Scan ASCII letters, digits and separators of a span; return (position, filled, hash, whether inside a word).

    Without branches on what a byte is: at word ends the processor guesses wrong, which costs more than hashing. A
    word's value is written at every byte and counted at its end. Unsigned places need no test for negative ones, and
    the span is short enough for the room in `words`: with both, 327 -> 499 MB/s of English.
    """
    position, last, place = np.uint64(span[0]), np.uint64(span[1]), np.uint64(filled)
    h, in_word = state
    while position < last:
        code_point = np.uint32(data[position])
        if code_point >= 0x80:
            break
        entry = table[code_point]
        if entry >= np.uint32(_SINGLE << 24):
            break
        is_word = entry >= np.uint32(_WORD << 24)
        words[place] = h
        place += np.uint64(in_word and not is_word)
        h = (h ^ np.uint64(entry & np.uint32(0xFFFFFF))) * _P if is_word else seed
        in_word = is_word
        position += _ONE
    return np.int64(position), np.int64(place), h, in_word


@numba.njit(cache=True, inline="always")
def _singles_run(
    data: np.ndarray, span: tuple[int, int], table: np.ndarray, seed: np.uint64, words: np.ndarray, filled: int
) -> tuple[Any, Any]:
    """Scan characters of three bytes that are words of their own or separators; return (position, filled)."""
    position, last, place = np.uint64(span[0]), np.uint64(span[1]), np.uint64(filled)
    six, room = np.uint32(0x3F), np.uint64(len(words))
    while position + _TWO < last and place < room:
        lead = np.uint32(data[position])
        if lead & np.uint32(0xF0) != np.uint32(0xE0):
            break
        middle = np.uint32(data[position + _ONE]) & six
        low = np.uint32(data[position + _TWO]) & six
        entry = table[np.uint32(((lead & np.uint32(0x0F)) << np.uint32(12)) | (middle << np.uint32(6)) | low)]
        kind = entry >> np.uint32(24)
        if kind != np.uint32(_SINGLE) and kind != np.uint32(_BREAK):
            break
        words[place] = (seed ^ np.uint64(entry & np.uint32(0xFFFFFF))) * _P
        place += np.uint64(kind == np.uint32(_SINGLE))
        position += _THREE
    return np.int64(position), np.int64(place)


@numba.njit(cache=True, nogil=True)
def scan_words(
    data: np.ndarray, start: int, end: int, table: np.ndarray, seed: np.uint64, words: np.ndarray, filled: int
) -> tuple[int, int]:
    """Append the word hashes of ``data[start:end]`` to ``words[filled:]`` until the text or the room ends.

    Args:
        data: uint8 UTF-8. Broken sequences separate words and never read past `end`.
        start: first byte; a word boundary.
        end: one past the last byte.
        table: see `scan_table`.
        seed: first value of each word hash.
        words: uint64, written.
        filled: how many entries of `words` hold something.
    Returns: the new `filled` and the byte at which to go on (`end` when the text is finished).
    """
    capacity, first, position = len(words), filled, start
    h, in_word = seed, False
    while position < end and (filled < capacity or in_word):
        if data[position] < 0x80:
            # a word that ends needs a separator: of 2 n - 1 bytes at most n words end
            span = (position, min(end, position + 2 * (capacity - filled) - 1))
            position, filled, h, in_word = _ascii_run(data, span, table, seed, words, filled, (h, in_word))
        elif not in_word:
            position, filled = _singles_run(data, (position, end), table, seed, words, filled)
        if position == end or (filled == capacity and not in_word):
            break
        code_point, width = np.uint32(data[position]), 1
        if code_point >= 0x80:
            code_point, width = decode(data, position, end)
        entry = table[code_point] if code_point < _TABLE_SIZE else np.uint32(_SKIP << 24)
        kind = entry >> np.uint32(24)
        if kind == _WORD or (kind == _MARK and in_word):
            h = (h ^ np.uint64(entry & np.uint32(0xFFFFFF))) * _P
            in_word = True
        elif in_word and kind <= _SINGLE:  # _BREAK or _SINGLE: the word ends, and the character is looked at again
            words[filled] = h
            filled += 1
            h, in_word = seed, False
            continue
        elif kind == _SINGLE:
            words[filled] = (seed ^ np.uint64(entry & np.uint32(0xFFFFFF))) * _P
            filled += 1
        position += width
    if in_word:
        words[filled] = h
        filled += 1
    for k in range(first, filled):
        words[k] = (words[k] ^ (words[k] >> _S32)) * _Q
    return filled, position


@numba.njit(cache=True, inline="always")
def decode(data: np.ndarray, position: int, end: int) -> tuple[np.uint32, int]:
    """Decode one character from a byte >= 0x80; a stray or cut-off byte reads as a space of width 1.

    `char_classes.decode_wide` also validates; three bytes first and inlined, this makes Chinese 1.2-1.4 times faster.
    """
    lead = np.uint32(data[position])
    six = np.uint32(0x3F)
    if lead >= 0xE0 and lead < 0xF0 and position + 2 < end:
        middle = np.uint32(data[position + 1]) & six
        return ((lead & np.uint32(0x0F)) << 12) | (middle << 6) | (np.uint32(data[position + 2]) & six), 3
    if lead >= 0xC0 and lead < 0xE0 and position + 1 < end:
        return ((lead & np.uint32(0x1F)) << 6) | (np.uint32(data[position + 1]) & six), 2
    if lead >= 0xF0 and position + 3 < end:
        high = ((lead & np.uint32(0x07)) << 18) | ((np.uint32(data[position + 1]) & six) << 12)
        return high | ((np.uint32(data[position + 2]) & six) << 6) | (np.uint32(data[position + 3]) & six), 4
    return np.uint32(0x20), 1


@numba.njit(cache=True, nogil=True)
def scan_segmented(
    data: np.ndarray, span: tuple[int, int], table: np.ndarray, flags: np.ndarray, seed: np.uint64, words: np.ndarray,
    filled: int,
) -> tuple[int, int]:  # fmt: skip
    """As `scan_words` over ``data[span[0]:span[1]]``, but characters of unspaced scripts make words by `flags`.

    A word begins where `flags` (uint8, shape of `data`) is not zero; letters and such characters never share a word.
    """
    position, end = span
    h, in_word, joined = seed, False, False
    while position < end:
        if filled == len(words) and not in_word:
            return filled, position
        code_point, width = np.uint32(data[position]), 1
        if code_point >= 0x80:
            code_point, width = decode(data, position, end)
        entry = table[code_point] if code_point < _TABLE_SIZE else np.uint32(_SKIP << 24)
        kind = entry >> np.uint32(24)
        apart = kind == _SINGLE and (not joined or flags[position] != 0)
        if in_word and (kind == _BREAK or apart or (kind == _WORD and joined)):
            words[filled] = (h ^ (h >> _S32)) * _Q
            filled += 1
            h, in_word, joined = seed, False, False
            continue
        if kind in (_WORD, _SINGLE) or (kind == _MARK and in_word):
            h = (h ^ np.uint64(entry & np.uint32(0xFFFFFF))) * _P
            in_word = True
            joined = joined or kind == _SINGLE
        position += width
    if in_word:
        words[filled] = (h ^ (h >> _S32)) * _Q
        filled += 1
    return filled, position
