"""Take byte spans out of documents: how every later change to a text is applied."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pyarrow as pa

from refinery.errors import IntegrityError
from refinery.hashing import load_uint64, store_uint64
from refinery.kernels.text import TextViews

_NONE_STAYS, _MIXED, _ALL_STAY = np.uint64(0), np.uint64(2), np.uint64(0x0101010101010101)
"""Eight flags at once; `_MIXED` is what eight flags never are."""


def merged_spans(starts: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """Return the union of half-open spans, sorted and disjoint."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def apply_cuts(
    views: TextViews, rows: np.ndarray, cut_rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> pa.Array:
    """Return the documents without the given spans.

    Args:
        views: D documents.
        rows: int64, shape (D,): row numbers of the documents in their part, ascending.
        cut_rows: int64, shape (C,): row number of the document each cut belongs to; others are ignored.
        starts: int64, shape (C,): first byte of a cut, in the document as it was ingested.
        ends: int64, shape (C,): one past the last byte.
    Returns: large_string array of D documents.
    Raises:
        IntegrityError: a cut reaches outside its document.
    """
    kept = kept_bytes(views, rows, cut_rows, starts, ends)
    if kept is None:
        return _as_array(views.offsets, views.data)
    return without_bytes(views, *kept)


def without_bytes(views: TextViews, keep: np.ndarray, new_lengths: np.ndarray) -> pa.Array:
    """Return documents (large_string) with the bytes alone that `kept_bytes` says stay."""
    data = kept_of(views.data[views.offsets[0] : views.offsets[-1]], keep)
    return _as_array(np.concatenate([[0], np.cumsum(new_lengths)]).astype(np.int64), data)


def kept_bytes(
    views: TextViews, rows: np.ndarray, cut_rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return which bytes of the documents cuts leave; None if no cut is theirs. Args and errors as `apply_cuts`.

    Returns: (bool, one per byte from ``offsets[0]`` to ``offsets[-1]``; int64, shape (D,): new lengths).
    """
    index = np.searchsorted(rows, cut_rows)
    inside = (index < len(rows)) & (rows[np.minimum(index, max(len(rows) - 1, 0))] == cut_rows) if len(rows) else None
    if inside is None or not inside.any():
        return None
    owners = index[inside]
    starts, ends = starts[inside], ends[inside]
    lengths = np.diff(views.offsets)
    if (starts < 0).any() or (starts > ends).any() or (ends > lengths[owners]).any():
        raise IntegrityError("a cut reaches outside its document; the cuts table belongs to other documents")
    keep = np.ones(int(views.offsets[-1] - views.offsets[0]), dtype=bool)
    new_lengths = lengths.copy()
    _strike(owners, views.offsets - views.offsets[0], starts, ends, keep, new_lengths)
    return keep, new_lengths


@numba.njit(cache=True, nogil=True)
def _strike(
    owners: np.ndarray, offsets: np.ndarray, starts: np.ndarray, ends: np.ndarray, keep: np.ndarray,
    new_lengths: np.ndarray,
) -> None:  # fmt: skip
    """Clear `keep` in every span, then count what stays of documents with cuts: spans may share bytes."""
    for cut in range(len(owners)):
        begin = offsets[owners[cut]]
        keep[begin + starts[cut] : begin + ends[cut]] = False
    counted: Any = np.zeros(len(new_lengths), dtype=np.bool_)
    for doc in owners:
        if not counted[doc]:
            counted[doc] = True
            new_lengths[doc] = np.sum(keep[offsets[doc] : offsets[doc + 1]])


def kept_of(values: np.ndarray, keep: np.ndarray, *, behind_cuts: int | None = None) -> np.ndarray:
    """Return the values (uint8, one per byte of text) of the bytes that stay.

    Args:
        values: uint8, shape (N,).
        keep: bool, shape (N,).
        behind_cuts: the value that the first byte behind each cut has instead of its own; None: its own.
    Raises:
        IntegrityError: the two have different lengths.
    """
    if len(values) != len(keep):
        raise IntegrityError(f"{len(values)} values for {len(keep)} bytes of text; they belong to other documents")
    kept = np.empty(int(np.count_nonzero(keep)), dtype=np.uint8)
    instead = -1 if behind_cuts is None else behind_cuts
    _keep(np.ascontiguousarray(values), keep.view(np.uint8), instead, kept)
    return kept


@numba.njit(cache=True, nogil=True)
def _keep(values: np.ndarray, keep: np.ndarray, behind_cuts: int, kept: np.ndarray) -> None:
    """Copy by eight bytes where eight stay; numpy's selection by a mask took twice as long."""
    i, count, is_cut = 0, 0, False
    while i < len(keep):
        eight = load_uint64(keep, i) if i + 8 <= len(keep) else _MIXED
        if eight == _NONE_STAYS:
            is_cut = True
            i += 8
            continue
        first, step = count, 1
        if eight == _ALL_STAY:
            store_uint64(kept, count, load_uint64(values, i))
            count, step = count + 8, 8
        elif keep[i]:
            kept[count] = values[i]
            count += 1
        if count > first and is_cut and behind_cuts >= 0:
            kept[first] = behind_cuts
        is_cut = count == first
        i += step


def _as_array(offsets: np.ndarray, data: np.ndarray) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)


def to_original(
    starts: np.ndarray, ends: np.ndarray, cut_starts: np.ndarray, cut_ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Map spans of a document that was cut back to the document as it was ingested.

    A span that crosses an earlier cut is extended over it; one that touches it is not.

    Args:
        starts: int64, shape (S,): first byte of each span in the text without the cuts.
        ends: int64, shape (S,): one past its last byte; spans are not empty.
        cut_starts: int64, shape (C,): the cuts, in the document as ingested.
        cut_ends: int64, shape (C,).
    Returns: (starts, ends) in the document as ingested.
    """
    merged = np.array(merged_spans(cut_starts, cut_ends), dtype=np.int64).reshape(-1, 2)
    lengths = merged[:, 1] - merged[:, 0]
    gone = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = merged[:, 0] - gone[:-1]  # where each cut lies in the shortened text
    return (
        starts + gone[np.searchsorted(places, starts, side="right")],
        ends + gone[np.searchsorted(places, ends, side="left")],
    )


def as_ingested(
    rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, cuts: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map spans of documents that were cut back to the documents as ingested, without what is cut there already.

    Args:
        rows: int64, shape (S,): row number of the document of each span.
        starts: int64, shape (S,): first byte of each span, in the text without the cuts.
        ends: int64, shape (S,): one past its last byte; spans are not empty.
        cuts: (rows, starts, ends) of the earlier cuts, int64, shape (C,) each, as ingested.
    Returns: (span, start, end) of pieces, int64: index of the span that each is of, in order; a span that crosses an
        earlier cut has several pieces, and all of them together are as long as the span.
    """
    order = np.lexsort((cuts[1], cuts[0]))
    cut_rows, cut_starts, cut_ends = (column[order] for column in cuts)
    first, last = (np.searchsorted(cut_rows, rows, side=side) for side in ("left", "right"))
    found = np.empty((len(rows) + int((last - first).sum()), 3), dtype=np.int64)  # a cut parts a span once at most
    count = _pieces(starts, ends, first, last, cut_starts, cut_ends, found)
    return found[:count, 0], found[:count, 1], found[:count, 2]


@numba.njit(cache=True, nogil=True)
def _pieces(
    starts: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray, cut_starts: np.ndarray,
    cut_ends: np.ndarray, found: np.ndarray,
) -> int:  # fmt: skip
    """Write (span, start, end) of every piece of the spans, each crossed by its document's cuts first to last."""
    count = 0
    for span in range(len(starts)):
        at, gone = 0, 0  # as ingested: where text goes on behind the cuts passed so far, and how much they took
        for cut in range(first[span], last[span] + 1):
            behind = cut == last[span]
            stop = ends[span] + gone if behind else cut_starts[cut]
            begin, end = max(starts[span] + gone, at), min(ends[span] + gone, stop)
            if begin < end:
                found[count, 0], found[count, 1], found[count, 2] = span, begin, end
                count += 1
            if behind or ends[span] + gone <= stop:
                break
            gone += max(0, cut_ends[cut] - max(at, stop))
            at = max(at, cut_ends[cut])
    return count


def minus_spans(spans: list[tuple[int, int]], gone: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what spans cover and others do not: sorted, disjoint pieces, none empty.

    Args:
        spans: sorted and disjoint, as from `merged_spans`.
        gone: sorted and disjoint.
    """
    left: list[tuple[int, int]] = []
    for start, end in spans:
        at = start
        for first, last in gone:
            if last <= at or first >= end:
                continue
            if first > at:
                left.append((at, first))
            at = max(at, last)
        if at < end:
            left.append((at, end))
    return left


def touched(
    rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, cuts: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Say which spans share a byte with a cut of the same document.

    Args:
        rows: int64, shape (S,): row number of the document of each span.
        starts: int64, shape (S,): first byte of each span, in the document as ingested.
        ends: int64, shape (S,): one past its last byte; spans are not empty.
        cuts: (rows, starts, ends) of the cuts, int64, shape (C,) each; in any order, none empty.
    Returns: bool, shape (S,).
    """
    cut_rows, cut_starts, cut_ends = cuts
    documents = np.unique(cut_rows)
    if not len(documents) or not len(rows):
        return np.zeros(len(rows), dtype=bool)
    width = int(max(ends.max(), cut_ends.max())) + 1  # documents one behind the other on one axis
    at = np.searchsorted(documents, rows)
    has_cuts = documents[np.minimum(at, len(documents) - 1)] == rows
    base, cut_base = at * width, np.searchsorted(documents, cut_rows) * width
    begun = np.searchsorted(np.sort(cut_base + cut_starts), base + ends, side="left")
    ended = np.searchsorted(np.sort(cut_base + cut_ends), base + starts, side="right")
    return has_cuts & (begun > ended)
