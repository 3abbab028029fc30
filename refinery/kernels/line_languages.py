"""How much of a document is in other languages than its own, by lines.

Scripts are counted on every line. The language model reads only a few lines of a document, those whose bytes hash
lowest, so the choice is fair, repeatable and cheap; over a corpus the chosen lines estimate the share of each language
of the text, tails included, and `share_interval` says how well. A monolingual model notices 0.1 % of another language
(reference: Blevins and Zettlemoyer 2204.08110), far below what one label per document can show.

Shape legend: D documents, S chosen lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numba
import numpy as np

from refinery.hashing import hash_bytes
from refinery.kernels.char_classes import ALPHA, HAN, KANA, LATIN, class_of, class_table, decode
from refinery.kernels.langid import LanguageModel, is_cyrillic
from refinery.kernels.preparation import iterate_lines
from refinery.kernels.text import TextViews

LINES_PER_DOCUMENT = 2
MIN_LINE_LETTERS = 40
"""A line of fewer letters (ideographs count three) says too little of its language."""
MAX_LINE_BYTES = 384
"""The model reads no more of a line than this."""
OTHER_CONFIDENCE = 0.8
"""A line counts as another language only where the model is this sure: short lines of one language are often taken
for its kin with 0.3 to 0.6."""
_SEED = np.uint64(0x6C696E6573)
_NUM_SCRIPTS = 5
_HAN, _KANA, _LATIN, _CYRILLIC, _OTHER = range(_NUM_SCRIPTS)


class LineScripts(NamedTuple):
    """Letters of a document by the script that leads on their line."""

    letters: np.ndarray
    """int64, shape (D, 5): Han, kana, Latin, Cyrillic, other scripts."""

    def other_script_frac(self) -> np.ndarray:
        """Return float32, shape (D,): share of letters on lines that another script leads than the document's own.

        Kana and Han lines count as one where kana is there at all. 0 without letters.
        """
        letters = self.letters.astype(np.float64)
        japanese = letters[:, _KANA] * 4 > letters[:, _HAN]
        joined = letters.copy()
        joined[japanese, _KANA] += joined[japanese, _HAN]
        joined[japanese, _HAN] = 0.0
        total = joined.sum(axis=1)
        own = joined.max(axis=1)
        return np.divide(total - own, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


class ChosenLines(NamedTuple):
    """The lines that the model reads, at most `LINES_PER_DOCUMENT` of each document."""

    lines: TextViews
    """S lines, blanks folded, at most `MAX_LINE_BYTES` each."""
    doc: np.ndarray
    """int64, shape (S,): the document of each line, ascending."""
    num_bytes: np.ndarray
    """int64, shape (S,): bytes of the whole line."""

    def weights(self, doc_bytes: np.ndarray) -> np.ndarray:
        """Return float64, shape (S,): the text that each line stands for, its document's bytes shared out by length.

        Args:
            doc_bytes: int64, shape (D,): size of each document.
        """
        chosen = np.bincount(self.doc, weights=self.num_bytes, minlength=len(doc_bytes))
        return doc_bytes[self.doc] * (self.num_bytes / chosen[self.doc])


def line_scripts(views: TextViews) -> LineScripts:
    """Count the letters of every line and credit them to the line's leading script."""
    letters = np.zeros((views.num_docs, _NUM_SCRIPTS), dtype=np.int64)
    _count_line_scripts(views.offsets, views.data, class_table(), letters)
    return LineScripts(letters)


def choose_lines(views: TextViews, per_document: int = LINES_PER_DOCUMENT) -> ChosenLines:
    """Choose lines of enough letters by the hash of their bytes, lowest first, ties by position.

    A document's choice depends on its text alone.
    """
    found = np.empty((views.num_docs, per_document, 2), dtype=np.int64)
    counts = np.zeros(views.num_docs, dtype=np.int64)
    _choose(views.offsets, views.data, class_table(), found, counts)
    doc = np.repeat(np.arange(views.num_docs), counts)
    place = np.arange(len(doc)) - np.repeat(np.cumsum(counts) - counts, counts)
    spans = found[doc, place]
    offsets = np.zeros(len(doc) + 1, dtype=np.int64)
    out = np.empty(len(doc) * MAX_LINE_BYTES, dtype=np.uint8)
    _copy_lines(views.data, spans, offsets, out)
    lines = out[: offsets[-1]]
    offsets.flags.writeable = False
    lines.flags.writeable = False
    return ChosenLines(TextViews(offsets, lines), doc, spans[:, 1] - spans[:, 0])


def line_languages(model: LanguageModel, chosen: ChosenLines) -> tuple[np.ndarray, np.ndarray]:
    """Name the language of each chosen line.

    Returns: (int16, shape (S,): index into ``model.languages``, -1 for none; float32, shape (S,): confidence).
    """
    label = np.full(len(chosen.doc), -1, dtype=np.int16)
    confidence = np.zeros(len(chosen.doc), dtype=np.float32)
    for index, line in iterate_lines(chosen.lines):
        for probability, name in model.model.predict(line, 1, 0.0, "strict"):
            label[index], confidence[index] = model.index_of[name], min(probability, 1.0)
    return label, confidence


def share_interval(part_bytes: float, total_bytes: float, total_squares: float, z: float = 1.96) -> tuple[float, float]:
    """Return a Wilson interval for the share of text that a sample of lines estimates.

    Args:
        part_bytes: weight of the chosen lines that count.
        total_bytes: weight of all chosen lines.
        total_squares: sum of the squared weights of all chosen lines; heavy lines count for more, so the sample is
            worth ``total_bytes ** 2 / total_squares`` equal lines (Kish's effective size).
        z: 1.96 for 95 %.
    """
    if total_bytes <= 0 or total_squares <= 0:
        return 0.0, 1.0
    size = total_bytes**2 / total_squares
    share = part_bytes / total_bytes
    centre = share + z * z / (2 * size)
    spread = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    scale = 1 + z * z / size
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def shares_by_language(sums: Mapping[str, Mapping[str, float]]) -> list[dict[str, float | str]]:
    """Return the estimated share of each line language, largest first.

    Args:
        sums: line language -> ``lines``, ``bytes`` (sum of weights) and ``squares`` of its chosen lines.
    """
    total = sum(row["bytes"] for row in sums.values())
    squares = sum(row["squares"] for row in sums.values())
    rows: list[dict[str, float | str]] = []
    for language, row in sums.items():
        low, high = share_interval(row["bytes"], total, squares)
        share = row["bytes"] / total if total else 0.0
        rows.append({"language": language, "lines": row["lines"], "share": share, "low": low, "high": high})
    return sorted(rows, key=lambda r: (-float(r["share"]), str(r["language"])))


@numba.njit(cache=True, nogil=True)
def _count_line_scripts(offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, letters: np.ndarray) -> None:
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        han, kana, latin, cyrillic, other = 0, 0, 0, 0, 0
        while position <= end:
            if position == end or data[position] == 0x0A:
                total = han + kana + latin + cyrillic + other
                if total > 0:
                    lead, most = 0, han
                    if kana > 0 and (han + kana) > most:
                        lead, most = 1, han + kana
                    if latin > most:
                        lead, most = 2, latin
                    if cyrillic > most:
                        lead, most = 3, cyrillic
                    if other > most:
                        lead = 4
                    letters[doc, lead] += total
                han, kana, latin, cyrillic, other = 0, 0, 0, 0, 0
                position += 1
                continue
            code, width = decode(data, position, end)
            position += width
            flags = class_of(classes, code)
            if flags & ALPHA:
                if flags & LATIN:
                    latin += 1
                elif flags & HAN:
                    han += 1
                elif flags & KANA:
                    kana += 1
                elif is_cyrillic(code):
                    cyrillic += 1
                else:
                    other += 1


@numba.njit(cache=True, nogil=True)
def _choose(
    offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, found: np.ndarray, counts: np.ndarray
) -> None:
    most = found.shape[1]
    best = np.empty(most, dtype=np.uint64)
    for doc in range(len(offsets) - 1):
        start, end = offsets[doc], offsets[doc + 1]
        held = 0
        while start < end:
            stop = start
            letters = 0
            while stop < end and data[stop] != 0x0A:
                code, width = decode(data, stop, end)
                stop += width
                flags = class_of(classes, code)
                if flags & ALPHA:
                    letters += 3 if flags & (HAN | KANA) else 1
            if letters >= MIN_LINE_LETTERS:
                value = hash_bytes(data, start, stop, _SEED)
                place = held
                while place > 0 and best[place - 1] > value:
                    place -= 1
                if place < most:
                    held = min(held + 1, most)
                    for k in range(held - 1, place, -1):
                        best[k] = best[k - 1]
                        found[doc, k, 0], found[doc, k, 1] = found[doc, k - 1, 0], found[doc, k - 1, 1]
                    best[place] = value
                    found[doc, place, 0], found[doc, place, 1] = start, stop
            start = stop + 1
        counts[doc] = held


@numba.njit(cache=True, nogil=True)
def _copy_lines(data: np.ndarray, spans: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    at = 0
    for line in range(len(spans)):
        start, stop = spans[line, 0], spans[line, 1]
        if stop - start > MAX_LINE_BYTES:
            stop = start + MAX_LINE_BYTES
            while stop > start and data[stop] & 0xC0 == 0x80:
                stop -= 1
        for position in range(start, stop):
            byte = data[position]
            out[at] = 0x20 if byte < 0x20 or byte == 0x7F else byte
            at += 1
        offsets[line + 1] = at
