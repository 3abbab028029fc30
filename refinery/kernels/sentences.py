r"""Sentences as byte spans that tile each document exactly, and hashes that find their exact repeats.

One pass over UTF-8 bytes, no language argument: the rules are chosen by script, so a mixed document is split as well.

Lines. A blank line always ends a sentence. A line that opens a list item, heading, quote, dialogue (dash) or HTML tag
begins one; a heading or an underline ends one. Fenced code, table rows (``|``) and, after a blank line, lines indented
by a tab or four spaces that begin with an ASCII character are blocks: one span each, never split inside. Any other
single newline ends a sentence unless the text reads on: the next line begins with a lower-case letter, or the line
before has 40 to 120 characters (hard-wrapped text) and does not end a sentence by the rules below.

Terminals. A run of ``. ! ? …`` with the closing quotes and brackets behind it ends a sentence before white space,
unless what follows is lower case after a quote or a dash (direct speech) or an exclamation ("Oh! my dear"), or a full
stop stands behind an initial, a listed abbreviation (en de fr ru), an ordinal, or a list number. ``。！？；`` with
closing quotes end one anywhere;
``…`` does before white space or behind a closing quote, since ``……`` is a pause more often than an end.

White space behind a sentence belongs to it, up to the start of the next sentence's line: removing a span removes whole
lines, and indentation stays with the line that it indents.

Shape legend: D documents, N bytes, S sentences.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.hashing import splitmix64_array
from refinery.kernels.sentence_rules import (
    BLANK,
    FENCE,
    HEADING,
    INDENTED,
    ITEM,
    NEXT_END,
    NEXT_LOWER,
    PROSE,
    RULE,
    byte_table,
    classify_line,
    closer_width,
    full_stop_ends,
    is_cjk,
    letter_table,
    space_width,
    terminal_at,
    what_follows,
    word_table,
)
from refinery.kernels.shingles import words_hash
from refinery.kernels.text import TextViews

FORMAT_VERSION = 2
"""Changes with any change of the rules: spans and hashes of sentences are stored."""

WRAP_MIN_CHARS, WRAP_MAX_CHARS = 40, 120
"""A line in these bounds may be one of hard-wrapped prose; shorter are titles, longer are whole paragraphs."""


_BLOCK = re.compile(r"[ \t\r]*(?:```|~~~|\|)|(?: {4}| {0,3}\t)")


class SentenceSpans(NamedTuple):
    """Sentences of D documents; those of one document tile it: no gap, no overlap, none is empty."""

    doc_offsets: np.ndarray
    """int64, shape (D + 1,): document i owns sentences ``doc_offsets[i]:doc_offsets[i + 1]``; an empty one has none."""
    starts: np.ndarray
    """int64, shape (S,): first byte, relative to the document."""
    ends: np.ndarray
    """int64, shape (S,): one past the last byte."""


class SentenceHashes(NamedTuple):
    """Normalised hashes of S sentences."""

    hashes: np.ndarray
    """uint64, shape (S,): equal for sentences that differ in case, white space and punctuation only."""
    num_words: np.ndarray
    """int64, shape (S,): 0 where nothing is left (rules, bullets): such sentences repeat nothing."""


class RepeatUnits(NamedTuple):
    """What may repeat across documents: U sentences and runs of sentences."""

    hashes: np.ndarray
    """uint64, shape (U,)."""
    owner: np.ndarray
    """int64, shape (U,): document."""
    first: np.ndarray
    """int64, shape (U,): first sentence."""
    size: np.ndarray
    """int64, shape (U,): sentences."""


@numba.njit(cache=True)
def _end_of_line(data: np.ndarray, i: int, end: int) -> int:
    while i < end and data[i] != 0x0A:
        i += 1
    return min(i + 1, end)


@numba.njit(cache=True)
def _reads_on(data: np.ndarray, previous: int, line: int, end: int, letters: np.ndarray) -> bool:
    """Tell whether the text of the line at `previous` goes on in the one at `line`."""
    first = line
    width = space_width(data, first, end)
    while width > 0:
        first += width
        width = space_width(data, first, end) if first < end else 0
    following, _, _ = what_follows(data, first, end, letters)
    if following == NEXT_LOWER:
        return True
    num_chars = 0
    for k in range(previous, line - 1):
        num_chars += (data[k] & 0xC0) != 0x80
    return num_chars >= WRAP_MIN_CHARS and num_chars <= WRAP_MAX_CHARS


@numba.njit(cache=True)
def _behind_terminal(
    data: np.ndarray, begin: int, i: int, end: int, letters: np.ndarray, words: np.ndarray
) -> tuple[bool, int]:
    """Look at the run of terminals at i: (whether a sentence ends behind it, first byte behind it and its closers)."""
    width, kind = terminal_at(data, i, end)
    stop, run, wide, hard, ellipsis, exclaims = i, 0, False, False, True, True
    while width > 0:
        run += 1
        exclaims = exclaims and data[i] == 0x21
        wide = wide or kind == 4
        ellipsis = ellipsis and kind == 3
        hard = hard or kind == 2
        i += width
        width, kind = terminal_at(data, i, end) if i < end else (0, 0)
    quoted = False
    while i < end:
        width = closer_width(data, i, end, wide)
        if width == 0 and not wide and not quoted:  # French: a space before the closing guillemet
            space = space_width(data, i, end)
            if space > 0 and i + space + 1 < end and data[i + space] == 0xC2 and data[i + space + 1] == 0xBB:
                width = space + 2
        if width == 0:
            break
        quoted = True
        i += width
    if wide or i >= end:
        return True, i
    if space_width(data, i, end) == 0:
        # ASCII terminals between ideographs, and …… behind a closing quote
        between = is_cjk(data, i, end) and stop - 3 >= begin and is_cjk(data, stop - 3, end)
        return between and (hard or (ellipsis and quoted)), i
    k, newlines = i, 0
    width = space_width(data, k, end)
    while width > 0 and newlines < 2:
        newlines += data[k] == 0x0A
        k += width
        width = space_width(data, k, end) if k < end else 0
    if newlines >= 2 or k >= end:
        return True, i
    following, next_word, dash = what_follows(data, k, end, letters)
    if following == NEXT_END or (following == NEXT_LOWER and (quoted or dash)):
        return following == NEXT_END, i
    hard = hard and not (exclaims and following == NEXT_LOWER)  # Oh! my dear
    if run > 1 or ellipsis:  # ... and … are pauses before lower case
        return hard or following != NEXT_LOWER, i
    if exclaims:
        return hard, i
    return hard or full_stop_ends(data, begin, stop, end, following, next_word, letters, words), i


@numba.njit(cache=True)
def _scan_prose(  # noqa: PLR0913, PLR0917 - compiled inner kernel: arrays and positions, no object to carry them
    data: np.ndarray,
    i: int,
    begin: int,
    end: int,
    stops: np.ndarray,
    letters: np.ndarray,
    words: np.ndarray,
    out: np.ndarray,
    at: int,
) -> tuple[int, int, int, bool]:
    """Cut one line of prose; return (next line, start of the open sentence, at, whether the line ended it)."""
    ended = False
    while i < end:
        if stops[data[i]] == 0:
            i += 1
            continue
        if data[i] == 0x0A:
            return i + 1, begin, at, ended
        width, _ = terminal_at(data, i, end)
        if width == 0:
            i += 1
            continue
        ends, i = _behind_terminal(data, begin, i, end, letters, words)
        if not ends:
            continue
        width = space_width(data, i, end) if i < end else 0
        while width > 0 and data[i] != 0x0A:
            i += width
            width = space_width(data, i, end) if i < end else 0
        ended = width > 0 or i >= end
        if not ended:
            out[at] = i
            at += 1
            begin = i
    return i, begin, at, ended


@numba.njit(cache=True)
def _split_document(
    data: np.ndarray, begin: int, end: int, stops: np.ndarray, letters: np.ndarray, words: np.ndarray, out: np.ndarray
) -> int:
    """Write the absolute end of every sentence of ``data[begin:end]`` to `out`; return how many."""
    at, i, previous_line = 0, begin, begin
    previous, ended, content, in_fence = BLANK, False, False, False
    while i < end:
        line = i
        kind = classify_line(data, line, end)
        if in_fence:
            in_fence = kind != FENCE
            previous, i = FENCE, _end_of_line(data, i, end)
            continue
        if kind == BLANK:
            previous, i = BLANK, _end_of_line(data, i, end)
            continue
        if kind == INDENTED and previous not in (BLANK, INDENTED):
            kind = PROSE
        if kind == PROSE:
            cut = ended or previous not in (PROSE, ITEM) or not _reads_on(data, previous_line, line, end, letters)
        elif kind == RULE:
            cut = previous not in (PROSE, ITEM)
        else:
            cut = kind in (ITEM, HEADING, FENCE) or previous != kind
        if cut and content:
            out[at] = line
            at += 1
            begin = line
        content, ended = True, False
        in_fence = kind == FENCE
        if kind in (PROSE, ITEM):
            first = line
            if kind == ITEM:  # past the marker, so that the stop of "1. " is no terminal
                while first < end and data[first] <= 0x20:
                    first += 1
                while first < end and data[first] > 0x20:
                    first += 1
            i, begin, at, ended = _scan_prose(data, first, begin, end, stops, letters, words, out, at)
        else:
            i = _end_of_line(data, i, end)
        previous, previous_line = kind, line
    if begin < end:
        out[at] = end
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _split_documents(
    offsets: np.ndarray, data: np.ndarray, stops: np.ndarray, letters: np.ndarray, words: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    room = (offsets[-1] - offsets[0]) // 32 + 64
    out = np.empty(room, dtype=np.int64)
    at = 0
    for doc in range(len(offsets) - 1):
        first, last = offsets[doc], offsets[doc + 1]
        most = (last - first) // 2 + 2  # no sentence but the last is shorter than two bytes
        if at + most > len(out):
            grown = np.empty(max(2 * len(out), at + most), dtype=np.int64)
            grown[:at] = out[:at]
            out = grown
        count = _split_document(data, first, last, stops, letters, words, out[at:])
        for k in range(at, at + count):
            out[k] -= first
        counts[doc] = count
        at += count
    return out[:at].copy()


def sentence_spans(views: TextViews) -> SentenceSpans:
    """Split documents into sentences.

    Args:
        views: D documents.
    Returns: see `SentenceSpans`. The spans of a document depend on that document alone.
    """
    counts = np.zeros(views.num_docs + 1, dtype=np.int64)
    ends = _split_documents(views.offsets, views.data, byte_table(), letter_table(), word_table(), counts[1:])
    doc_offsets = np.cumsum(counts)
    starts = np.empty_like(ends)
    starts[1:] = ends[:-1]
    filled = doc_offsets[:-1][np.diff(doc_offsets) > 0]
    starts[filled] = 0
    return SentenceSpans(doc_offsets, starts, ends)


def is_block(sentence: str) -> bool:
    """Tell whether a sentence begins as a block does: fenced code, a table row, a line indented by four.

    Blocks repeat as blocks or not at all. A model of sentences does not read them: ``let x`` and ``let mut x`` are the
    same to it, and no guard knows the difference.
    """
    return _BLOCK.match(sentence) is not None


def sentence_views(views: TextViews, spans: SentenceSpans) -> TextViews:
    """Return every sentence as a document of its own; zero copy, since spans tile the text.

    Raises:
        SchemaError: the spans are not those of these documents.
    """
    lengths = np.diff(views.offsets)
    if len(spans.doc_offsets) != len(views.offsets) or int((spans.ends - spans.starts).sum()) != int(lengths.sum()):
        raise SchemaError(
            f"spans of {len(spans.doc_offsets) - 1} documents do not tile {views.num_docs} documents; "
            "pass the spans that sentence_spans returned for them"
        )
    offsets = np.empty(len(spans.ends) + 1, dtype=np.int64)
    offsets[0] = views.offsets[0]
    offsets[1:] = spans.ends + np.repeat(views.offsets[:-1], np.diff(spans.doc_offsets))
    offsets.flags.writeable = False
    return TextViews(offsets, views.data)


def normalised_hash(views: TextViews, spans: SentenceSpans) -> SentenceHashes:
    """Hash every sentence with case, white space and punctuation folded, as `shingles.words_hash` does.

    Exact repeats across documents are then counted on hashes alone. Numbers stay: "Article 12" and "Article 13" differ.

    Raises:
        SchemaError: the spans are not those of these documents.
    """
    hashed = words_hash(sentence_views(views, spans))
    return SentenceHashes(hashed.hashes[:, 0].copy(), hashed.num_words)


def window_hashes(hashes: np.ndarray, doc_offsets: np.ndarray, size: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Hash every window of `size` consecutive sentences inside a document (C4, 1910.10683: three).

    Args:
        hashes: uint64, shape (S,).
        doc_offsets: int64, shape (D + 1,).
        size: sentences per window, at least 1.
    Returns: hashes, uint64, shape (W,), and the index of each window's first sentence, int64, shape (W,).

    Raises:
        ConfigError: the size is below 1.
    """
    if size < 1:
        raise ConfigError(f"a window of {size} sentences is empty; 3 is the published size")
    doc_of = np.repeat(np.arange(len(doc_offsets) - 1), np.diff(doc_offsets))
    starts = np.arange(max(0, len(hashes) - size + 1), dtype=np.int64)
    starts = starts[doc_of[starts] == doc_of[starts + size - 1]]
    value = np.zeros(len(starts), dtype=np.uint64)
    for k in range(size):
        value = splitmix64_array(value ^ hashes[starts + k])
    return value, starts


def repeat_units(
    hashes: np.ndarray, num_words: np.ndarray, doc_offsets: np.ndarray, *, exact: bool, min_words: int, window: int
) -> RepeatUnits:
    """Return what can repeat in documents: sentences, and runs of `window` consecutive ones.

    Args:
        hashes: uint64, shape (S,).
        num_words: integers, shape (S,).
        doc_offsets: int64, shape (D + 1,).
        exact: whether single sentences count.
        min_words: sentences and runs with fewer words repeat nothing.
        window: sentences of a run, 0 for none.
    Returns: see `RepeatUnits`.
    """
    words = np.concatenate([[0], np.cumsum(num_words)])
    found = [(np.empty(0, np.uint64), np.empty(0, np.int64), 1)]
    if exact:
        long = np.flatnonzero(num_words >= min_words)
        found.append((hashes[long], long, 1))
    if window:
        value, starts = window_hashes(hashes, doc_offsets, window)
        enough = words[starts + window] - words[starts] >= min_words
        found.append((value[enough], starts[enough], window))
    first = np.concatenate([f[1] for f in found]).astype(np.int64)
    size = np.concatenate([np.full(len(f[1]), f[2], dtype=np.int64) for f in found])
    owner = np.searchsorted(doc_offsets, first, side="right") - 1
    return RepeatUnits(np.concatenate([f[0] for f in found]), owner, first, size)
