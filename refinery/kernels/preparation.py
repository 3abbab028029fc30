"""Preparation of text for fastText classifiers: one line of blank-separated tokens per document.

Preparation is part of a model: text prepared one way at training and another way at scoring gives scores that look
right and are wrong. So each preparation has a name and a version, and the card beside a model records both
(`fasttext_model`).

- ``words`` (own models): lower-cased words, symbols and characters of unspaced scripts (Han, kana, Thai …), one blank
  between tokens; words and folding as in `word_scan.scan_words`. A run of one symbol is one token of at most three
  characters. ``__label__`` and ``</s>`` cannot occur. ChineseWebText segments with jieba; characters with word pairs
  carry the same signal and need no dictionary.
- ``segmented`` (own models): the same, but characters of Chinese text stand in the words that the project's own
  segmentation finds (`segmentation`, jieba's dictionary), whether stored by rules or made here: the bytes are the same.
- ``one_line`` (third-party models): ASCII white space becomes a blank and the ends are stripped, nothing else changes:
  the text that DCLM's scorer sees, up to runs of blanks.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.kernels.char_classes import PUNCT, SPACE, class_table, decode
from refinery.kernels.segmentation import ALGORITHM_VERSION as SEGMENTATION_VERSION
from refinery.kernels.segmentation import segment_han
from refinery.kernels.segmentation_dictionary import dictionary_identity
from refinery.kernels.text import TextViews, views_of
from refinery.kernels.word_scan import scan_table, table_digest
from refinery.kernels.words import boundary_flags

PREPARATIONS = {"words": 1, "segmented": 1, "one_line": 1}
"""Name -> version; a version changes with any change to the bytes that come out."""

_SYMBOL_RUN = 3
_BREAK, _WORD, _SINGLE, _MARK, _SKIP, _SYMBOL = range(6)


def preparation_digest(preparation: str) -> str:
    """Return what prepared text depends on besides the text: the character table, and the dictionary of words."""
    digest = table_digest("words")
    if preparation != "segmented":
        return digest
    return hashlib.sha256(f"{digest} {SEGMENTATION_VERSION} {dictionary_identity()}".encode()).hexdigest()[:16]


def han_boundaries(views: TextViews) -> np.ndarray | None:
    """Return the word boundaries of documents that hold Han: uint8, shape of `views.data`; None where none does."""
    found = segment_han(views)
    return found.boundaries if found.has_han.any() else None


def prepare(views: TextViews, preparation: str = "words", boundaries: np.ndarray | None = None) -> TextViews:
    """Return one line per document, without line feeds, as training and scoring both read it.

    Args:
        views: D documents.
        preparation: a name of `PREPARATIONS`.
        boundaries: for ``segmented``: the stored word boundaries of the text; None segments it here.
    Returns: D lines of UTF-8.

    Raises:
        ConfigError: the preparation is unknown.
    """
    check_preparation(preparation)
    num_bytes = int(views.offsets[-1] - views.offsets[0])
    offsets = np.zeros(views.num_docs + 1, dtype=np.int64)
    # Twice the input is the most that can come: ",," is two bytes and no blank, "a," two and one, U+023A (two bytes)
    # folds to three and a blank.
    out = np.empty(2 * num_bytes, dtype=np.uint8)
    if preparation in ("words", "segmented"):
        if preparation == "words":
            boundaries = None
        elif boundaries is None:
            boundaries = han_boundaries(views)
        flags = boundary_flags(views, boundaries)
        _prepare_words(views.offsets, views.data, _preparation_table(), flags, offsets, out)
    else:
        _prepare_one_line(views.offsets, views.data, class_table(), offsets, out)
    lines = out[: offsets[-1]]
    offsets.flags.writeable = False
    lines.flags.writeable = False
    return TextViews(offsets, lines)


def training_line(text: str, preparation: str = "words") -> bytes:
    """Return one prepared document: for samples and reports; batches go through `prepare`."""
    return prepare(views_of([text]), preparation).data.tobytes()


def iterate_lines(lines: TextViews, wanted_D: np.ndarray | None = None) -> Iterable[tuple[int, bytes]]:
    """Yield (document index, line with its final line feed) of each wanted document whose line is not empty."""
    bounds = lines.offsets.tolist()
    raw = lines.data
    for index in range(lines.num_docs) if wanted_D is None else np.flatnonzero(wanted_D).tolist():
        start, end = bounds[index], bounds[index + 1]
        if end > start:
            yield index, raw[start:end].tobytes() + b"\n"


def check_preparation(preparation: str) -> None:
    """Check the name of a preparation.

    Raises:
        ConfigError: it is unknown.
    """
    if preparation not in PREPARATIONS:
        raise ConfigError(f"preparation {preparation!r} is unknown; choose one of {', '.join(PREPARATIONS)}")


@functools.cache
def _preparation_table() -> np.ndarray:
    """The scan table of shingles with one more kind, symbols, among the characters that only separate there."""
    table = scan_table("words").copy()
    is_symbol = (table >> 24 == _BREAK) & (class_table()[: len(table)] & PUNCT != 0)
    table[is_symbol] |= np.uint32(_SYMBOL << 24)
    table.flags.writeable = False
    return table


@numba.njit(cache=True, inline="always")
def _put(out: np.ndarray, at: int, code: np.uint32) -> int:
    """Write one code point as UTF-8; return the next free position."""
    if code < 0x80:
        out[at] = code
        return at + 1
    if code < 0x800:
        out[at] = 0xC0 | (code >> 6)
        out[at + 1] = 0x80 | (code & 0x3F)
        return at + 2
    if code < 0x10000:
        out[at] = 0xE0 | (code >> 12)
        out[at + 1] = 0x80 | ((code >> 6) & 0x3F)
        out[at + 2] = 0x80 | (code & 0x3F)
        return at + 3
    out[at] = 0xF0 | (code >> 18)
    out[at + 1] = 0x80 | ((code >> 12) & 0x3F)
    out[at + 2] = 0x80 | ((code >> 6) & 0x3F)
    out[at + 3] = 0x80 | (code & 0x3F)
    return at + 4


@numba.njit(cache=True, nogil=True)
def _prepare_words(
    offsets: np.ndarray,
    data: np.ndarray,
    table: np.ndarray,
    boundaries: np.ndarray,
    out_offsets: np.ndarray,
    out: np.ndarray,
) -> None:
    at = 0
    segmented = len(boundaries) > 0
    for doc in range(len(offsets) - 1):
        first = at
        position, end = offsets[doc], offsets[doc + 1]
        in_word, after_single, run, symbol = False, False, 0, np.uint32(0)
        while position < end:
            start = position
            code, width = decode(data, position, end)
            position += width
            entry = table[code] if code < len(table) else np.uint32(_SKIP << 24)
            kind, folded = entry >> np.uint32(24), entry & np.uint32(0xFFFFFF)
            if kind == _SKIP or (kind == _MARK and not in_word):
                continue
            continues = in_word and kind in (_WORD, _MARK)
            if segmented and after_single and kind == _SINGLE and boundaries[start] == 0:
                at = _put(out, at, folded)
                continue
            after_single = kind == _SINGLE
            if kind == _SYMBOL:
                run = run + 1 if run > 0 and folded == symbol else 1
                symbol = folded
                in_word = False
                if run > _SYMBOL_RUN:
                    continue
                continues = run > 1
            else:
                run = 0
                in_word = kind == _WORD or continues
                if kind == _BREAK:
                    continue
            if not continues and at > first:
                out[at] = 0x20
                at += 1
            at = _put(out, at, folded)
            while kind == _WORD and position < end and data[position] < 0x80:  # the rest of an ASCII word
                entry = table[data[position]]
                if entry >> np.uint32(24) != _WORD:
                    break
                out[at] = entry & np.uint32(0xFFFFFF)
                at += 1
                position += 1
        out_offsets[doc + 1] = at


@numba.njit(cache=True, nogil=True)
def _prepare_one_line(
    offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, out_offsets: np.ndarray, out: np.ndarray
) -> None:
    at = 0
    for doc in range(len(offsets) - 1):
        first = at
        for position in range(offsets[doc], offsets[doc + 1]):
            byte = data[position]
            # ASCII white space, NUL included, is what fastText splits at; other spaces are text to it.
            if byte == 0 or (byte < 0x80 and classes[byte] & SPACE):
                byte = np.uint8(0x20)
                if at == first:
                    continue
            out[at] = byte
            at += 1
        while at > first and out[at - 1] == 0x20:
            at -= 1
        out_offsets[doc + 1] = at
