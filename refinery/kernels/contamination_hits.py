"""From matches of n-grams to hits: which item stands in which document, how much of it, and where.

A match of one n-gram proves little; a hit is an item of which a share, or a run of n-grams without a gap, stands in one
document. N-grams that the corpus itself is full of do not count. All of it is arithmetic on the matches, so bounds
change without reading text again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refinery.kernels.contamination import Matches, NgramIndex


class HitBounds(NamedTuple):
    """What makes a hit."""

    min_item_frac: float
    """Share of the item's words that must stand in the document, or"""
    min_run_ngrams: int
    """as many n-grams one behind the other, in the item and in the document."""


class Hits(NamedTuple):
    """Stretches of documents that hold items which count; one row per document, item and stretch."""

    docs: np.ndarray
    """int64, shape (H,): the matches' document."""
    items: np.ndarray
    """int64, shape (H,): number of the item."""
    doc_starts: np.ndarray
    """int64, shape (H,): first byte of the stretch in the document."""
    doc_ends: np.ndarray
    """int64, shape (H,): one past the last byte."""
    item_first_words: np.ndarray
    """int64, shape (H,): first word of the item that the stretch holds."""
    item_last_words: np.ndarray
    """int64, shape (H,): last word, included."""
    item_covered_fracs: np.ndarray
    """float64, shape (H,): share of the item's words that n-grams of the document cover, over all stretches."""
    doc_covered_fracs: np.ndarray
    """float64, shape (H,): share of the document's words that the item's n-grams cover."""
    num_ngrams: np.ndarray
    """int64, shape (H,): matched n-grams of the stretch."""
    longest_runs: np.ndarray
    """int64, shape (H,): longest run of n-grams of document and item, over all stretches."""


def document_frequencies(docs: np.ndarray, ngrams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n-gram ids ascending, number of documents each one stands in)."""
    if not len(docs):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pairs = np.unique(np.stack([ngrams, docs], axis=1), axis=0)
    ids, counts = np.unique(pairs[:, 0], return_counts=True)
    return ids, counts.astype(np.int64)


def find_hits(
    matches: Matches, index: NgramIndex, item_words: np.ndarray, common: np.ndarray, bounds: HitBounds
) -> tuple[Hits, int]:
    """Turn matches into hits.

    Args:
        matches: of any documents, those of one document together.
        index: the matches' index.
        item_words: int64, shape (I,): words of every item.
        common: int64, sorted: n-gram ids that do not count.
        bounds: what makes a hit.
    Returns: (hits by document, item and place; number of pairs of document and item that share an n-gram that counts
        but are no hit).
    """
    counted = ~np.isin(matches.ngrams, common)
    match = np.repeat(np.flatnonzero(counted), _postings(index, matches.ngrams[counted]))
    nth = _counting(_postings(index, matches.ngrams[counted]))
    posting = index.posting_offsets[matches.ngrams[match]] + nth
    docs, items = matches.docs[match], index.posting_items[posting]
    doc_words, item_places = matches.words[match], index.posting_words[posting]
    lengths = index.lengths[matches.ngrams[match]]
    order = np.lexsort((item_places, doc_words, items, docs))
    docs, items, doc_words, item_places, lengths, match = (
        a[order] for a in (docs, items, doc_words, item_places, lengths, match)
    )
    pairs = _starts_of_groups(docs, items)
    pair = np.cumsum(pairs) - 1
    num_pairs = int(pair[-1]) + 1 if len(pair) else 0
    by_item = np.lexsort((item_places, pair))
    in_item = _covered(pair[by_item], item_places[by_item], lengths[by_item], num_pairs) / item_words[items[pairs]]
    in_doc = _covered(pair, doc_words, lengths, num_pairs) / matches.doc_words[match][pairs]
    runs = _longest_runs(pair, doc_words, item_places, num_pairs)
    is_hit = (in_item >= bounds.min_item_frac) | (runs >= bounds.min_run_ngrams)
    begins = pairs.copy()
    begins[1:] |= np.diff(doc_words) > lengths[:-1] + index.size  # further apart than one n-gram: another stretch
    first = np.flatnonzero(begins)
    if not len(first):
        return Hits(*(np.empty(0, np.int64),) * 6, *(np.empty(0),) * 2, *(np.empty(0, np.int64),) * 2), 0
    of_pair = pair[first]
    distinct = _starts_of_groups(np.cumsum(begins), doc_words)
    hits = Hits(
        docs[first],
        items[first],
        np.minimum.reduceat(matches.starts[match], first),
        np.maximum.reduceat(matches.ends[match], first),
        np.minimum.reduceat(item_places, first),
        np.maximum.reduceat(item_places + lengths - 1, first),
        in_item[of_pair],
        in_doc[of_pair],
        np.add.reduceat(distinct.astype(np.int64), first),
        runs[of_pair],
    )
    return Hits(*(column[is_hit[of_pair]] for column in hits)), int((~is_hit).sum())


def _postings(index: NgramIndex, ngrams: np.ndarray) -> np.ndarray:
    return index.posting_offsets[ngrams + 1] - index.posting_offsets[ngrams]


def _counting(counts: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... up to each count, one behind the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _starts_of_groups(*columns: np.ndarray) -> np.ndarray:
    """Return bool: True where any column differs from the row before."""
    starts = np.ones(len(columns[0]), dtype=bool)
    starts[1:] = np.logical_or.reduce([np.diff(column) != 0 for column in columns])
    return starts


def _covered(groups: np.ndarray, places: np.ndarray, lengths: np.ndarray, num_groups: int) -> np.ndarray:
    """Return the number of words that intervals cover in each group; rows are sorted by group, then place."""
    reach = places + lengths
    ends = _running_max(groups, reach)
    before = np.zeros(len(places), dtype=np.int64)
    before[1:] = np.where(np.diff(groups) == 0, ends[:-1], 0)
    new = np.maximum(reach - np.maximum(places, before), 0)
    return np.bincount(groups, weights=new, minlength=num_groups)


def _running_max(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the largest value so far inside each group (groups ascend)."""
    if not len(values):
        return values
    step = int(values.max()) + 1
    return np.maximum.accumulate(values + groups * step) - groups * step


def _longest_runs(pair: np.ndarray, doc_words: np.ndarray, item_places: np.ndarray, num_pairs: int) -> np.ndarray:
    """Return per pair the most matches one behind the other in both texts."""
    longest = np.zeros(num_pairs, dtype=np.int64)
    if not num_pairs:
        return longest
    diagonal = doc_words - item_places
    order = np.lexsort((doc_words, diagonal, pair))
    pair, diagonal, doc_words = pair[order], diagonal[order], doc_words[order]
    begins = _starts_of_groups(pair, diagonal)
    begins[1:] |= np.diff(doc_words) != 1
    first = np.flatnonzero(begins)
    np.maximum.at(longest, pair[first], np.diff(np.append(first, len(pair))))
    return longest
