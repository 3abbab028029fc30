r"""Lines and paragraphs as byte spans that tile each document, and hashes that find their exact repeats.

The rule is CCNet's (1911.00359, section 3.2; paragraphs there are lines here): case folded, every digit ``0``,
punctuation gone, so that "Page 3 of 12." and "page 5 of 17" are one line. Wider than CCNet's list: every character of
the Unicode classes P and S goes, ASCII included, and runs of white space count as one blank. Accents stay, as there.

A line ends behind ``\n``. A paragraph ends behind the blank lines that follow it; lines of white space are blank.
White space before the first paragraph belongs to it. Removing a span removes whole lines.

Shape legend: D documents, N bytes, S spans.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.hashing import splitmix64
from refinery.kernels.text import TextViews
from refinery.kernels.word_scan import decode, scan_table

FORMAT_VERSION = 1
"""Changes with the normalisation, the spans or the hash."""

LINE_UNITS = ("line", "paragraph")
_SKIP, _CHAR, _LETTER, _SPACE = range(4)  # kinds of code points, in the top byte of the table
_SEED = np.uint64(0x6C696E6573)
_P = np.uint64(0x9FB21C651E98DF25)
_S32 = np.uint64(32)


class LineSpans(NamedTuple):
    """Lines or paragraphs of D documents; those of one document tile it: no gap, no overlap, none is empty."""

    doc_offsets: np.ndarray
    """int64, shape (D + 1,): document i owns spans ``doc_offsets[i]:doc_offsets[i + 1]``; an empty one has none."""
    starts: np.ndarray
    """int64, shape (S,): first byte, relative to the document."""
    ends: np.ndarray
    """int64, shape (S,): one past the last byte."""
    hashes: np.ndarray
    """uint64, shape (S,): equal for spans that are equal after normalisation."""
    num_letters: np.ndarray
    """int64, shape (S,): letters (ideographs among them); 0 for blank lines, rules and rows of numbers."""


@functools.cache
def line_table() -> np.ndarray:
    """Return kind << 24 | normalised code point, uint32, for code points below 2^18; above, all are skipped."""
    table = scan_table("chars").copy()  # its low 24 bits are the folded code point
    for code_point in range(len(table)):
        character = chr(code_point)
        category = unicodedata.category(character)
        folded = int(table[code_point]) & 0xFFFFFF
        if character.isspace() or category[0] == "Z":
            table[code_point] = (_SPACE << 24) | 0x20
        elif category[0] in "PSC":
            table[code_point] = _SKIP << 24
        elif category == "Nd":
            table[code_point] = (_CHAR << 24) | ord("0")
        else:
            table[code_point] = ((_LETTER if category[0] == "L" else _CHAR) << 24) | folded
    table.flags.writeable = False
    return table


@numba.njit(cache=True, nogil=True)
def _is_blank(data: np.ndarray, start: int, end: int, table: np.ndarray) -> bool:
    position = start
    while position < end:
        code_point, width = np.uint32(data[position]), 1
        if code_point >= 0x80:
            code_point, width = decode(data, position, end)
        if code_point >= len(table) or table[code_point] >> np.uint32(24) != _SPACE:
            return False
        position += width
    return True


@numba.njit(cache=True, nogil=True)
def _absorb(
    data: np.ndarray, start: int, end: int, table: np.ndarray, state: np.uint64, counts: tuple[int, int, bool]
) -> tuple[np.uint64, tuple[int, int, bool]]:
    """Hash ``data[start:end]`` on; `counts` are normalised characters, letters, and whether white space is due."""
    length, letters, gap = counts
    position = start
    while position < end:
        code_point, width = np.uint32(data[position]), 1
        if code_point >= 0x80:
            code_point, width = decode(data, position, end)
        position += width
        entry = table[code_point] if code_point < len(table) else np.uint32(0)
        kind = entry >> np.uint32(24)
        if kind == _SPACE:
            gap = length > 0
        elif kind != _SKIP:
            if gap:
                state = (state ^ np.uint64(0x20)) * _P
                state ^= state >> _S32
                gap = False
            state = (state ^ np.uint64(entry & np.uint32(0xFFFFFF))) * _P
            state ^= state >> _S32
            length += 1
            letters += kind == _LETTER
    return state, (length, letters, gap)


@numba.njit(cache=True, nogil=True)
def _split_documents(
    offsets: np.ndarray, data: np.ndarray, table: np.ndarray, paragraphs: bool, room: int, doc_offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ends, hashes, letters) of at most `room` spans and fill `doc_offsets`."""
    ends, num_letters = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
    hashes = np.empty(room, dtype=np.uint64)
    at = 0
    for doc in range(len(offsets) - 1):
        first, end = offsets[doc], offsets[doc + 1]
        position, started, text_seen, blank_seen = first, False, False, False
        state, counts = _SEED, (0, 0, False)
        while position < end:
            stop = position
            while stop < end and data[stop] != 0x0A:
                stop += 1
            stop = min(stop + 1, end)
            blank = paragraphs and _is_blank(data, position, stop, table)
            if started and (not paragraphs or (text_seen and blank_seen and not blank)):
                ends[at], hashes[at], num_letters[at] = position - first, splitmix64(state), counts[1]
                at += 1
                state, counts, text_seen, blank_seen = _SEED, (0, 0, False), False, False
            state, counts = _absorb(data, position, stop, table, state, counts)
            started, text_seen, blank_seen = True, text_seen or not blank, blank
            position = stop
        if started:
            ends[at], hashes[at], num_letters[at] = end - first, splitmix64(state), counts[1]
            at += 1
        doc_offsets[doc + 1] = at
    return ends[:at].copy(), hashes[:at].copy(), num_letters[:at].copy()


def line_spans(views: TextViews, unit: str = "line") -> LineSpans:
    """Split documents into lines or paragraphs and hash each after normalisation.

    Args:
        views: D documents.
        unit: one of `LINE_UNITS`.
    Returns: see `LineSpans`. The spans of a document depend on that document alone.

    Raises:
        ConfigError: the unit is unknown.
    """
    if unit not in LINE_UNITS:
        raise ConfigError(f"unit {unit!r} of repeated text is unknown; choose one of {', '.join(LINE_UNITS)}")
    text = views.data[views.offsets[0] : views.offsets[-1]]
    room = int(np.count_nonzero(text == 0x0A)) + views.num_docs
    doc_offsets = np.zeros(views.num_docs + 1, dtype=np.int64)
    ends, hashes, num_letters = _split_documents(
        views.offsets, views.data, line_table(), unit == "paragraph", room, doc_offsets
    )
    starts = np.empty_like(ends)
    starts[1:] = ends[:-1]
    starts[doc_offsets[:-1][np.diff(doc_offsets) > 0]] = 0
    return LineSpans(doc_offsets, starts, ends, hashes, num_letters)
