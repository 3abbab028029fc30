"""From what rules say of lines to the spans that they take out, compiled.

Helper of `line_rules`, which states the semantics.
"""

from __future__ import annotations

import numba
import numpy as np

from refinery.hashing import load_uint64

CUT, EDITED, TRIPPED = range(3)
"""What became of a span: its line was cut, it was taken out of its line, or it drops the document and stays."""

# Columns of what is found.
_DOC, _START, _END, _RULE, _DONE, _BITS = range(6)
UNTOUCHED = 0xFF
"""Says of a byte that no rule took it."""
_EIGHT_UNTOUCHED, _NO_BYTES = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)


@numba.njit(cache=True)
def _room(found: np.ndarray, count: int, more: int) -> np.ndarray:
    if count + more <= len(found):
        return found
    larger = np.empty((2 * (count + more), 6), dtype=np.int64)
    larger[:count] = found[:count]
    return larger


@numba.njit(cache=True)
def _put(found: np.ndarray, at: int, doc: int, span: tuple[int, int], rule: int, done: int, bits: int) -> None:
    row = found[at]
    row[_DOC], row[_START], row[_END], row[_RULE], row[_DONE], row[_BITS] = doc, span[0], span[1], rule, done, bits


@numba.njit(cache=True)
def _add_edits(
    owner: np.ndarray, span: tuple[int, int], doc: int, begin: int, found: np.ndarray, count: int
) -> tuple[np.ndarray, int]:
    """Add what edits took out of a line that stays, one span per run of bytes of one rule."""
    i = span[0]
    while i < span[1]:
        if i + 8 <= len(owner):
            behind = _EIGHT_UNTOUCHED << np.uint64(8 * (span[1] - i)) if span[1] - i < 8 else _NO_BYTES
            if load_uint64(owner, i) | behind == _EIGHT_UNTOUCHED:
                i += 8
                continue
        rule = int(owner[i])
        first = i
        while i < span[1] and owner[i] == rule:
            i += 1
        if rule != UNTOUCHED:
            found = _room(found, count, 1)
            _put(found, count, doc, (first - begin, i - begin), rule, EDITED, int(np.int64(1) << rule))
            count += 1
    return found, count


@numba.njit(cache=True, nogil=True)
def spans_of(
    offsets: np.ndarray,
    data: np.ndarray,
    lines: tuple[np.ndarray, np.ndarray, np.ndarray],
    verdicts: tuple[np.ndarray, np.ndarray, np.ndarray],
    edited: np.ndarray,
    owner: np.ndarray,
) -> np.ndarray:
    """Return findings: int64, shape (F, 6), columns document, first byte, last + 1, rule, what was done, rules' bits.

    Neighbouring lines that the same rules cut are one span, and blank lines behind a cut line are of its span.

    Args:
        offsets: int64, shape (D + 1,).
        data: uint8: text of D documents.
        lines: (document, start, stop), int64, shape (L,) each.
        verdicts: (rule that cuts, bits of all that would, rule tripped over), int64, shape (L,) each; -1 for no rule.
        edited: bool, shape (L,).
        owner: uint8, one per byte: the rule that took it, or `UNTOUCHED`.
    """
    docs, starts, stops = lines
    found, count = np.empty((1024, 6), dtype=np.int64), 0
    run, last_cut, cut_to = -1, -1, -1
    for line in range(len(docs)):
        doc, start, stop = docs[line], starts[line], stops[line]
        cut, bits, tripped = verdicts[0][line], verdicts[1][line], verdicts[2][line]
        begin, end = offsets[doc], offsets[doc + 1]
        following = min(stop + 1, end)
        if start == begin:
            run, cut_to = -1, -1
        found = _room(found, count, 2)
        if tripped >= 0:
            _put(found, count, doc, (start - begin, following - begin), tripped, TRIPPED, bits)
            count += 1
        if cut >= 0:
            joins = cut_to == start and (
                stop == start or (found[last_cut, _RULE] == cut and found[last_cut, _BITS] == bits)
            )  # fmt: skip
            if joins:
                found[last_cut, _END] = following - begin
            else:
                run, last_cut = run if cut_to == start else count, count
                _put(found, count, doc, (start - begin, following - begin), cut, CUT, bits)
                count += 1
            cut_to = following
        elif edited[line]:
            found, count = _add_edits(owner, (start, stop), doc, begin, found, count)
        if following == end and cut_to == end and found[run, _START] > 0 and data[end - 1] != 0x0A:
            found[run, _START] -= 1  # the line end that the last line which stays would keep
    return found[:count].copy()
