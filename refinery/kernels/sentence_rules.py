"""Rules on bytes behind the sentence kernel: what a line is, what a terminal is, whether a full stop ends a sentence.

Compiled helpers that look at a few bytes each; `sentences` holds the passes that call them and states the rules.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import numba
import numpy as np

from refinery.kernels.sentence_words import (
    BEFORE_LOWER,
    NEVER,
    ORDINAL_AFTER,
    ORDINAL_BEFORE,
    STARTER,
    hash_code_points,
    word_classes,
)

_LOWER, _UPPER, _LETTER = 1, 2, 4
_TABLE_SIZE = 0x600  # Latin, Greek, Cyrillic, Armenian: the scripts with case that these rules serve
_WORD_SLOTS = 2048
_MAX_WORD_BYTES = 40
# What a line is, by its first characters.
BLANK, PROSE, ITEM, HEADING, RULE, FENCE, INDENTED, TABLE = range(8)
# What stands behind a terminal.
NEXT_OTHER, NEXT_LOWER, NEXT_UPPER, NEXT_DIGIT, NEXT_END = range(5)


@functools.cache
def byte_table() -> np.ndarray:
    """Bytes at which the scanner stops: newline, ASCII terminals, lead bytes of the wide ones."""
    table = np.zeros(256, dtype=np.uint8)
    # E2 …, E3 。, EF ！？；．｡, E0 danda, DB and D8 Arabic full stop and question mark
    table[[0x0A, 0x21, 0x2E, 0x3F, 0xE2, 0xE3, 0xEF, 0xE0, 0xD8, 0xDB]] = 1
    table.flags.writeable = False
    return table


@functools.cache
def letter_table() -> np.ndarray:
    """Case flags << 16 | lower-case code point, for code points below 0x600: uint32."""
    table = np.empty(_TABLE_SIZE, dtype=np.uint32)
    for code in range(_TABLE_SIZE):
        char = chr(code)
        category = unicodedata.category(char)
        flags = (_LETTER if category[0] == "L" else 0) | {"Ll": _LOWER, "Lu": _UPPER}.get(category, 0)
        lower = char.lower()
        table[code] = (flags << 16) | (ord(lower) if len(lower) == 1 and ord(lower) < _TABLE_SIZE else code)
    table.flags.writeable = False
    return table


@functools.cache
def word_table() -> np.ndarray:
    """Open-addressed set of listed words: uint64, shape (slots, 2), columns hash (0 = free) and class."""
    table = np.zeros((_WORD_SLOTS, 2), dtype=np.uint64)
    for word, classes in word_classes().items():
        value = hash_code_points([ord(char) for char in word])
        slot = value % _WORD_SLOTS
        while table[slot, 0]:
            slot = (slot + 1) % _WORD_SLOTS
        table[slot] = (value, classes)
    table.flags.writeable = False
    return table


@numba.njit(cache=True, inline="always")
def _low_code(data: np.ndarray, i: int, end: int) -> tuple[int, int]:
    """Return (code point, width) of the character at i; characters of 3 and 4 bytes read as (-1, width)."""
    lead: Any = np.int64(data[i])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return ((lead & 0x1F) << 6) | (np.int64(data[min(i + 1, end - 1)]) & 0x3F), 2
    return -1, 3 if lead < 0xF0 else 4


@numba.njit(cache=True)
def _look_up(data: np.ndarray, first: int, last: int, letters: np.ndarray, words: np.ndarray) -> int:
    """Return the classes of the word ``data[first:last]``, 0 when it is not listed."""
    h = np.uint64(0xCBF29CE484222325)
    i = first
    while i < last:
        code, width = _low_code(data, i, last)
        if code < 0 or code >= _TABLE_SIZE:
            return 0
        h = (h ^ np.uint64(letters[code] & np.uint32(0xFFFF))) * np.uint64(0x100000001B3)
        i += width
    slot = np.int64(h % np.uint64(_WORD_SLOTS))
    while words[slot, 0] != np.uint64(0):
        if words[slot, 0] == h:
            classes: Any = np.int64(words[slot, 1])
            return classes
        slot = (slot + 1) % _WORD_SLOTS
    return 0


@numba.njit(cache=True)
def closer_width(data: np.ndarray, i: int, end: int, cjk: bool) -> int:
    """Return the width of the closing quote or bracket at i, 0 when there is none."""
    b = data[i]
    if b in (0x22, 0x27, 0x29, 0x5D, 0x7D, 0x2A, 0x5F, 0x60):
        return 1  # " ' ) ] } and the marks of Markdown emphasis and code
    if b == 0xC2 and i + 1 < end and (data[i + 1] == 0xBB or data[i + 1] == 0xAB):
        return 2  # » « (German books close with «)
    if i + 2 >= end:
        return 0
    second, third = data[i + 1], data[i + 2]
    if b == 0xE2 and second == 0x80:
        # ’ ” always; “ ‘ close in German, but open the next sentence in Chinese
        if third in (0x99, 0x9D) or (not cjk and (third in (0x9C, 0x98))):
            return 3
        return 3 if third in (0xBA, 0xB9) else 0  # › ‹
    if b == 0xE3 and second == 0x80 and third >= 0x89 and third <= 0x99:
        # 〉》」』】〕〗: odd code points but for 〔〖 openers
        return 3 if third in (0x89, 0x8B, 0x8D, 0x8F, 0x91, 0x95, 0x97) else 0
    if b == 0xEF and ((second == 0xBC and third in (0x89, 0xBD)) or (second == 0xBD and third in (0x9D, 0xA3))):
        return 3  # ） ］ ｝ ｣
    return 0


@numba.njit(cache=True)
def terminal_at(data: np.ndarray, i: int, end: int) -> tuple[int, int]:
    """Return (width, kind) of the terminal at i: 1 full stop, 2 ! or ?, 3 ellipsis, 4 needs no space, 0 none."""
    b = data[i]
    if b == 0x2E:
        return 1, 1
    if b in (0x21, 0x3F):
        return 1, 2
    if b < 0x80 or i + 1 >= end:
        return 0, 0
    second = data[i + 1]
    if (b == 0xD8 and second == 0x9F) or (b == 0xDB and second == 0x94):
        return 2, 2  # ؟ ۔
    if i + 2 >= end:
        return 0, 0
    third = data[i + 2]
    if b == 0xE2 and second == 0x80 and third == 0xA6:
        return 3, 3
    if b == 0xE2 and second == 0x81 and third >= 0x87 and third <= 0x89:
        return 3, 2  # ⁇ ⁈ ⁉
    if b == 0xE3 and second == 0x80 and third == 0x82:
        return 3, 4
    if b == 0xEF and ((second == 0xBC and third in (0x81, 0x9F, 0x9B)) or (second == 0xBD and third == 0xA1)):
        return 3, 4  # ！ ？ ； ｡
    if b == 0xE0 and second == 0xA5 and (third in (0xA4, 0xA5)):
        return 3, 4  # danda
    return 0, 0


@numba.njit(cache=True)
def space_width(data: np.ndarray, i: int, end: int) -> int:
    """Return the width of the white space at i (newline included), 0 when there is none."""
    b = data[i]
    if b == 0x20 or (b >= 0x09 and b <= 0x0D):
        return 1
    if b == 0xC2 and i + 1 < end and (data[i + 1] == 0xA0 or data[i + 1] == 0x85):
        return 2
    if i + 2 < end:
        second, third = data[i + 1], data[i + 2]
        if b == 0xE3 and second == 0x80 and third == 0x80:
            return 3
        if b == 0xE2 and second == 0x80 and (third <= 138 or third in (0xA8, 0xA9, 0xAF)):
            return 3
    return 0


@numba.njit(cache=True)
def is_cjk(data: np.ndarray, i: int, end: int) -> bool:
    """Tell whether an ideograph, kana or full-width punctuation begins at i."""
    return i < end and ((data[i] >= 0xE3 and data[i] <= 0xE9) or data[i] == 0xEF or data[i] == 0xF0)


@numba.njit(cache=True)
def what_follows(data: np.ndarray, i: int, end: int, letters: np.ndarray) -> tuple[int, int, bool]:
    """Look past opening quotes, brackets and dashes: (what the next word begins with, where, whether behind a dash)."""
    dash = False
    while i < end:
        b = data[i]
        width = space_width(data, i, end)
        if width > 0:
            if not dash or b == 0x0A:
                break
            i += width
        elif b in (0x22, 0x27, 0x28, 0x5B, 0x2A, 0x5F, 0x60):
            i += 1
        elif b == 0x2D:
            dash = True
            i += 1
        elif b == 0xC2 and i + 1 < end and data[i + 1] in (0xAB, 0xBB, 0xBF, 0xA1):
            i += 2
        elif b == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] >= 0x90 and data[i + 2] <= 0x9F:
            dash = dash or data[i + 2] <= 0x95
            i += 3
        else:
            break
    if i >= end:
        return NEXT_END, i, dash
    code, _ = _low_code(data, i, end)
    if code >= 0x30 and code <= 0x39:
        return NEXT_DIGIT, i, dash
    if code < 0 or code >= _TABLE_SIZE:
        return NEXT_OTHER, i, dash
    flags = letters[code] >> np.uint32(16)
    if flags & np.uint32(_LOWER):
        return NEXT_LOWER, i, dash
    return (NEXT_UPPER if flags & np.uint32(_UPPER) else NEXT_OTHER), i, dash


@numba.njit(cache=True)
def _word_before(data: np.ndarray, begin: int, end: int) -> int:
    """Return where the word that ends at `end` begins: behind white space, a bracket, a quote or another script."""
    i = end
    low = max(begin, end - _MAX_WORD_BYTES - 4)
    while i > low:
        b = data[i - 1]
        if b <= 0x2D and b != 0x26:  # white space, quotes, brackets, comma, hyphen; & stays
            break
        if b in (0x2F, 0x5B, 0x5F, 0x60, 0x7B, 0x7C):
            break
        if b >= 0x80:
            lead = i - 1
            while lead > low and data[lead] & 0xC0 == 0x80:
                lead -= 1
            if data[lead] == 0xC2 or data[lead] >= 0xE0:  # no-break space, guillemets, § and typographic quotes
                break
            i = lead
        else:
            i -= 1
    return i


@numba.njit(cache=True)
def _word_after(data: np.ndarray, begin: int, end: int, letters: np.ndarray) -> int:
    """Return where the run of letters that begins at `begin` ends."""
    i = begin
    while i < end and i < begin + _MAX_WORD_BYTES:
        code, width = _low_code(data, i, end)
        if code < 0 or code >= _TABLE_SIZE or not (letters[code] >> np.uint32(16)) & np.uint32(_LETTER):
            break
        i += width
    return i


@numba.njit(cache=True)
def full_stop_ends(  # noqa: PLR0913, PLR0917 - compiled inner kernel: arrays and positions, no object to carry them
    data: np.ndarray,
    begin: int,
    stop: int,
    end: int,
    following: int,
    next_word: int,
    letters: np.ndarray,
    words: np.ndarray,
) -> bool:
    """Decide whether the single full stop at `stop` ends a sentence that began at `begin`."""
    first = _word_before(data, begin, stop)
    if stop - first > _MAX_WORD_BYTES:
        return True
    num_chars = num_digits = num_dots = num_letters = 0
    i = first
    while i < stop:
        code, width = _low_code(data, i, stop)
        num_chars += 1
        num_digits += code >= 0x30 and code <= 0x39
        num_dots += code == 0x2E
        if code >= 0 and code < _TABLE_SIZE:
            num_letters += (letters[code] >> np.uint32(18)) & np.uint32(1)
        i += width
    if num_chars == 0:
        return following != NEXT_LOWER
    after = _look_up(data, next_word, _word_after(data, next_word, end, letters), letters, words)
    if num_digits == num_chars:
        # A number alone at the front counts a list or a paragraph; inside it may be a German ordinal.
        before = first
        while before > begin and data[before - 1] <= 0x20:
            before -= 1
        if before == begin:
            return False
        if num_chars > 2:
            return following != NEXT_LOWER
        article = _look_up(data, _word_before(data, begin, before), before, letters, words)
        return following != NEXT_LOWER and not after & ORDINAL_AFTER and not article & ORDINAL_BEFORE
    listed = _look_up(data, first, stop, letters, words)
    if listed & NEVER:
        return False
    if listed & BEFORE_LOWER:
        return following in (NEXT_UPPER, NEXT_OTHER, NEXT_END)
    if num_letters == 1 and num_chars == 1:
        if first > begin and data[first - 1] in (0x2D, 0x27):
            return True  # the tail of a word, as in Russian "помню-с."
        return data[first] == 0x49 and after & STARTER != 0  # an initial; the English pronoun only before a starter
    if num_dots > 0 and num_letters > 0 and num_letters <= 2 * num_dots + 1 and num_digits == 0:
        return following == NEXT_END or after & STARTER != 0  # U.S., i.e., z.B.
    return True


@numba.njit(cache=True)
def classify_line(data: np.ndarray, start: int, end: int) -> int:
    """Return what the line at `start` is, by its first characters (end: of the document)."""
    i = start
    indent = 0
    while i < end and data[i] != 0x0A and (data[i] == 0x20 or (data[i] >= 0x09 and data[i] <= 0x0D)):
        indent += 4 if data[i] == 0x09 else 1
        i += 1
    if i >= end or data[i] == 0x0A:
        return BLANK
    b = data[i]
    if b >= 0x80:
        if i + 3 < end and b == 0xE2 and data[i + 1] == 0x80 and data[i + 2] in (0x93, 0x94, 0x95, 0xA2):
            return ITEM  # – — ― •
        width = space_width(data, i, end)
        while width > 0:
            i += width
            if i >= end or data[i] == 0x0A:
                return BLANK
            width = space_width(data, i, end)
        return PROSE
    if (b in (0x60, 0x7E)) and i + 2 < end and data[i + 1] == b and data[i + 2] == b:
        return FENCE
    if b == 0x7C:
        return TABLE
    following = data[i + 1] if i + 1 < end else np.uint8(0x0A)
    if b in (0x23, 0x3D):
        k = i
        while k < end and data[k] == b:
            k += 1
        if k < end and (data[k] == 0x20 or data[k] == 0x09) and k - i <= 6:
            return HEADING
    if b in (0x23, 0x3D, 0x2D, 0x7E, 0x5E, 0x2A, 0x2B, 0x5F, 0x22):
        k = i
        while k < end and data[k] == b:
            k += 1
        if k - i >= 3 and (k == end or data[k] == 0x0A or data[k] == 0x0D):
            return RULE
    if indent >= 4:
        return INDENTED
    if b in (0x2D, 0x2A, 0x2B, 0x3E) and (following in (0x20, 0x09)):
        return ITEM
    if b == 0x3C or (b == 0x2D and following == 0x2D):
        return ITEM
    k = i
    while k < end and data[k] >= 0x30 and data[k] <= 0x39 and k < i + 4:
        k += 1
    if k > i and k + 1 < end and (data[k] == 0x2E or data[k] == 0x29) and (data[k + 1] == 0x20 or data[k + 1] == 0x09):
        return ITEM
    return PROSE
