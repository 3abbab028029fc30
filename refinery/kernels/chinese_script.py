"""Simplified or traditional Chinese, by characters that only one of the two writes.

The language model cannot tell them apart. The two national character sets can: a character that GB 2312 (1980) has and
Big5 (1984) has not is written in simplified text, the other way round in traditional text. Both sets come with Python
as codecs, so the table is built from them, once per process in about 30 ms: 2,380 simplified and 8,678 traditional
characters; what both or neither contain says nothing.

Shape legend: D documents.
"""

from __future__ import annotations

import re
from functools import cache

import numba
import numpy as np

from refinery.kernels.char_classes import decode
from refinery.kernels.text import TextViews, views_of

MIN_MARKS = 3
"""Fewer telling characters than this leave the script open."""
HANS, HANT = 1, 2
CHINESE = ("zh", "yue", "wuu")
"""The model's labels for which the question makes sense; Japanese text mixes the two sets."""
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_FIRST, _LAST = 0x4E00, 0x9FFF


def chinese_scripts(views: TextViews) -> np.ndarray:
    """Return uint8, shape (D,): `HANS`, `HANT`, or 0 where fewer than `MIN_MARKS` characters tell or they balance."""
    counts = np.zeros((views.num_docs, 2), dtype=np.int64)
    _count_marks(views.offsets, views.data, script_marks(), counts)
    told = counts.sum(axis=1) >= MIN_MARKS
    simplified, traditional = counts[:, 0], counts[:, 1]
    script = np.where(simplified > traditional, HANS, np.where(traditional > simplified, HANT, 0))
    return np.where(told, script, 0).astype(np.uint8)


def is_traditional(text: str) -> bool:
    """Tell whether one text is traditional Chinese; kana says that it is Japanese, whose text mixes the two sets."""
    if text.isascii() or _KANA.search(text):
        return False
    return bool(chinese_scripts(views_of([text]))[0] == HANT)


@cache
def script_marks() -> np.ndarray:
    """Return uint8, one per code point from U+4E00 to U+9FFF: `HANS`, `HANT` or 0."""
    marks = np.zeros(_LAST - _FIRST + 1, dtype=np.uint8)
    for code in range(_FIRST, _LAST + 1):
        simplified, traditional = _encodes(code, "gb2312"), _encodes(code, "big5")
        if simplified != traditional:
            marks[code - _FIRST] = HANS if simplified else HANT
    marks.flags.writeable = False
    return marks


def _encodes(code: int, charset: str) -> bool:
    try:
        chr(code).encode(charset)
    except UnicodeEncodeError:
        return False
    return True


@numba.njit(cache=True, nogil=True)
def _count_marks(offsets: np.ndarray, data: np.ndarray, marks: np.ndarray, counts: np.ndarray) -> None:
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        while position < end:
            if data[position] < 0xE4 or data[position] > 0xE9:  # lead bytes of U+4000 to U+9FFF
                position += 1
                continue
            code, width = decode(data, position, end)
            position += width
            if _FIRST <= code <= _LAST:
                mark = marks[code - _FIRST]
                if mark:
                    counts[doc, mark - 1] += 1
