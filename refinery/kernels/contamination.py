"""Which n-grams of evaluation items stand in documents, and where: an index of hashes and a scan against it.

Items and documents are normalised by one scan (`refinery.kernels.shingles`): unit ``"words"`` folds case, takes runs of
letters and digits as words and every Han or kana character as a word, so 13 words of English and 13 characters of
Chinese are one n-gram each; unit ``"code"`` also takes every symbol as a word and keeps ``_`` inside identifiers,
because code without its symbols is a list of names. N-grams of 13 words are those of GPT-3 (2005.14165, appendix C).

Items with fewer words than an n-gram are looked for whole: their first words find the place, then the hash of all of
them decides. The scan asks a bit map first (one memory access a word for text that matches nothing) and only documents
in which an n-gram stands are scanned again for positions.

Shape legend: D documents, I items, G n-grams and whole short items, P postings, H matches.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.kernels.text import TextViews
from refinery.kernels.word_scan import BLOCK_WORDS, WORD_SEED, decode, scan_table, scan_words

ALGORITHM_VERSION = 1
"""Changes with the normalisation, the hashes, or which n-grams of an item are in the index."""

EVAL_UNITS = ("words", "code")
MAX_ITEMS_PER_NGRAM = 64
"""An n-gram in more items than this is the eval's own template: it names no item and is not looked for."""

_BREAK, _WORD, _SINGLE, _MARK = range(4)  # kinds of code points in a scan table
_BITS_PER_NGRAM = 16
"""One to two in 16 bits are set, so 3-6 % of strange n-grams go on to the table."""
WINDOW_FACTOR = np.uint64(0xA0761D6478BD642F)
"""What the sum of a window is multiplied by when a word enters."""
_R = np.uint64(0xE7037ED1A0B428DB)
_S32, _S6, _S63 = np.uint64(32), np.uint64(6), np.uint64(63)


class WordPositions(NamedTuple):
    """The words of D documents with the bytes where they stand."""

    offsets: np.ndarray
    """int64, shape (D + 1,): document i owns words ``offsets[i]:offsets[i + 1]``."""
    hashes: np.ndarray
    """uint64: the word hashes of `refinery.kernels.shingles`."""
    starts: np.ndarray
    """int64: first byte of each word, counted from its document's first."""
    ends: np.ndarray
    """int64: one past its last byte."""


class NgramIndex(NamedTuple):
    """The n-grams of one unit's items, ready for the scan. N-gram ids are places in the sorted hashes."""

    unit: str
    size: int
    """Words of an n-gram."""
    prefix_size: int
    """Words by which short items are found; the floor of their length."""
    lengths: np.ndarray
    """int32, shape (G,): words that each n-gram or whole short item covers."""
    posting_offsets: np.ndarray
    """int64, shape (G + 1,)."""
    posting_items: np.ndarray
    """int32, shape (P,): items in which the n-gram stands."""
    posting_words: np.ndarray
    """int32, shape (P,): at which word."""
    bitmap: np.ndarray
    """uint64: prefilter of the n-grams."""
    keys: np.ndarray
    """uint64, a power of two long: open addressing, linear probing."""
    ids: np.ndarray
    """int32, beside `keys`: the n-gram id, -1 where the slot is free."""
    short_bitmap: np.ndarray
    """uint64: prefilter of the short items' prefixes."""
    prefixes: np.ndarray
    """uint64, sorted, one per short item: hash of its first `prefix_size` words."""
    short_lengths: np.ndarray
    """int64, beside `prefixes`: words of the whole item."""
    short_hashes: np.ndarray
    """uint64, beside `prefixes`: hash of all words."""
    first_short: int
    """Id of the first short item; the others follow in the order of `prefixes`."""

    @property
    def num_ngrams(self) -> int:
        """N-grams and whole short items."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(a.nbytes for a in self if isinstance(a, np.ndarray))


class Matches(NamedTuple):
    """Every place of D documents where an indexed n-gram or short item stands, in text order."""

    docs: np.ndarray
    """int64, shape (H,): index of the document in its batch."""
    words: np.ndarray
    """int64, shape (H,): number of the first matched word in its document."""
    starts: np.ndarray
    """int64, shape (H,): first matched byte of the document."""
    ends: np.ndarray
    """int64, shape (H,): one past the last."""
    ngrams: np.ndarray
    """int64, shape (H,): n-gram id."""
    doc_words: np.ndarray
    """int64, shape (H,): words of the whole document."""


@functools.cache
def unit_table(unit: str) -> np.ndarray:
    """Return the scan table of a unit (`refinery.kernels.word_scan.scan_table`), read-only.

    Raises:
        ConfigError: the unit is unknown.
    """
    if unit not in EVAL_UNITS:
        raise ConfigError(f"unit {unit!r} of an eval is unknown; choose one of {', '.join(EVAL_UNITS)}")
    table = scan_table("words")
    if unit == "words":
        return table
    table = table.copy()
    for code_point in range(len(table)):
        if unicodedata.category(chr(code_point))[0] in "PS":
            kind = _WORD if chr(code_point) == "_" else _SINGLE
            table[code_point] = (kind << 24) | (int(table[code_point]) & 0xFFFFFF)
    table.flags.writeable = False
    return table


def word_positions(views: TextViews, unit: str) -> WordPositions:
    """Return the words of every document with their hashes and bytes.

    Raises:
        ConfigError: the unit is unknown.
    """
    table = unit_table(unit)
    offsets = np.zeros(views.num_docs + 1, dtype=np.int64)
    _count_words(views.offsets, views.data, table, offsets)
    hashes = np.empty(offsets[-1], dtype=np.uint64)
    starts = np.empty(offsets[-1], dtype=np.int64)
    ends = np.empty(offsets[-1], dtype=np.int64)
    _locate_words(views.offsets, views.data, table, offsets, hashes, starts, ends)
    return WordPositions(offsets, hashes, starts, ends)


@numba.njit(cache=True, nogil=True)
def _count_words(offsets: np.ndarray, data: np.ndarray, table: np.ndarray, out_offsets: np.ndarray) -> None:
    words = np.empty(BLOCK_WORDS, dtype=np.uint64)
    total = 0
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        while position < end:
            filled, position = scan_words(data, position, end, table, WORD_SEED, words, 0)
            total += filled
        out_offsets[doc + 1] = total


@numba.njit(cache=True, nogil=True)
def _locate_words(
    offsets: np.ndarray, data: np.ndarray, table: np.ndarray, word_offsets: np.ndarray,
    hashes: np.ndarray, starts: np.ndarray, ends: np.ndarray,
) -> None:  # fmt: skip
    """Read documents as `scan_words` does, noting where each word begins and ends."""
    one = np.empty(1, dtype=np.uint64)
    for doc in range(len(offsets) - 1):
        at, first, end = word_offsets[doc], offsets[doc], offsets[doc + 1]
        position, word_start, word_end, in_word = first, first, first, False
        while position <= end:
            kind, width = np.uint32(_BREAK), 1
            if position < end:
                code_point = np.uint32(data[position])
                if code_point >= 0x80:
                    code_point, width = decode(data, position, end)
                kind = table[code_point] >> np.uint32(24) if code_point < len(table) else np.uint32(_MARK + 1)
            if in_word and kind != _WORD and kind <= _SINGLE:
                starts[at], ends[at], in_word = word_start - first, word_end - first, False
                at += 1
            if kind == _WORD or (kind == _MARK and in_word):
                if not in_word:
                    word_start, in_word = position, True
                word_end = position + width
            elif kind == _SINGLE:
                starts[at], ends[at] = position - first, position + width - first
                at += 1
            position += width
        for word in range(word_offsets[doc], at):
            scan_words(data, first + starts[word], first + ends[word], table, WORD_SEED, one, 0)
            hashes[word] = one[0]


@numba.njit(cache=True, inline="always")
def finish_window(total: np.uint64) -> np.uint64:
    """Mix the rolling sum of a window into its hash: all bits of it serve, the top ones the bit map."""
    mixed = (total ^ (total >> _S32)) * _R
    return (mixed ^ (mixed >> _S32)) * WINDOW_FACTOR


@numba.njit(cache=True, nogil=True)
def window_hash(words: np.ndarray, first: int, size: int) -> np.uint64:
    """Return the hash of ``words[first:first + size]``: an n-gram, or a whole short item."""
    total = np.uint64(0)
    for k in range(first, first + size):
        total = total * WINDOW_FACTOR + words[k]
    return finish_window(total)


@numba.njit(cache=True, nogil=True)
def window_power(size: int) -> np.uint64:
    """Return what the word that leaves a window of `size` words was multiplied by."""
    value = np.uint64(1)
    for _ in range(size):
        value *= WINDOW_FACTOR
    return value


@numba.njit(cache=True, nogil=True)
def _windows(word_offsets: np.ndarray, words: np.ndarray, size: int, out_offsets: np.ndarray, out: np.ndarray) -> None:
    """Write the hashes of all windows of each document to ``out[out_offsets[doc]:]``."""
    leaving = window_power(size)
    for doc in range(len(word_offsets) - 1):
        at, total = out_offsets[doc], np.uint64(0)
        for k in range(word_offsets[doc], word_offsets[doc + 1]):
            total = total * WINDOW_FACTOR + words[k]
            if k - word_offsets[doc] >= size:
                total -= words[k - size] * leaving
            if k - word_offsets[doc] >= size - 1:
                out[at] = finish_window(total)
                at += 1


def build_index(views: TextViews, items: np.ndarray, unit: str, size: int, prefix_size: int) -> NgramIndex:
    """Index the n-grams of items.

    Args:
        views: texts of items of one unit; one of fewer than `size` words is indexed whole, one of fewer than
            `prefix_size` not at all.
        items: int64: the number of each item among all evals' items.
        unit: one of `EVAL_UNITS`.
        size: words of an n-gram.
        prefix_size: floor of the length of short items, 1..size.
    Returns: the index; `num_ngrams` is 0 where no item has enough words.

    Raises:
        ConfigError: the unit is unknown, or a size is out of its bounds.
    """
    if not 1 <= prefix_size <= size <= 1000:
        raise ConfigError(f"n-grams of {size} words with a floor of {prefix_size}: need 1 <= floor <= n-gram <= 1000")
    words = word_positions(views, unit)
    counts = np.diff(words.offsets)
    gram_counts = np.maximum(counts - size + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(gram_counts)]).astype(np.int64)
    hashes = np.empty(offsets[-1], dtype=np.uint64)
    _windows(words.offsets, words.hashes, size, offsets, hashes)
    owners = np.repeat(items, gram_counts)
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], gram_counts)
    hashes, owners, places = _without_templates(hashes, owners, places)
    keys, posting_offsets, order = _grouped(hashes)
    is_short = np.flatnonzero((counts < size) & (counts >= prefix_size))
    short_hashes = np.array([window_hash(words.hashes, words.offsets[i], counts[i]) for i in is_short], np.uint64)
    prefixes = np.array([window_hash(words.hashes, words.offsets[i], prefix_size) for i in is_short], np.uint64)
    by_prefix = np.lexsort((items[is_short], short_hashes, counts[is_short], prefixes))
    is_short, short_hashes, prefixes = is_short[by_prefix], short_hashes[by_prefix], prefixes[by_prefix]
    table_keys, table_ids = _hash_table(keys)
    num_shorts = len(is_short)
    return NgramIndex(
        unit=unit,
        size=size,
        prefix_size=prefix_size,
        lengths=np.concatenate([np.full(len(keys), size), counts[is_short]]).astype(np.int32),
        posting_offsets=np.concatenate([posting_offsets, posting_offsets[-1] + 1 + np.arange(num_shorts)]),
        posting_items=np.concatenate([owners[order], items[is_short]]).astype(np.int32),
        posting_words=np.concatenate([places[order], np.zeros(num_shorts)]).astype(np.int32),
        bitmap=_bitmap(keys),
        keys=table_keys,
        ids=table_ids,
        short_bitmap=_bitmap(prefixes),
        prefixes=prefixes,
        short_lengths=counts[is_short].astype(np.int64),
        short_hashes=short_hashes,
        first_short=len(keys),
    )


def _grouped(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (sorted distinct hashes, offsets of each one's group, the order that groups)."""
    order = np.argsort(hashes, kind="stable")
    keys, counts = np.unique(hashes, return_counts=True)
    return keys, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), order


def _without_templates(
    hashes: np.ndarray, owners: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((owners, hashes))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(hashes[order]) != 0) | (np.diff(owners[order]) != 0)
    keys, num_items = np.unique(hashes[order][first], return_counts=True)
    if not len(keys) or num_items.max() <= MAX_ITEMS_PER_NGRAM:
        return hashes, owners, places
    names = num_items[np.searchsorted(keys, hashes)] <= MAX_ITEMS_PER_NGRAM
    return hashes[names], owners[names], places[names]


class IndexSize(NamedTuple):
    """Bytes of an index: of the tables that a scan reads, and of everything."""

    bitmap_bytes: int
    """The prefilter: every word of the text asks it, so it should fit the processor's cache."""
    table_bytes: int
    """The hash table behind it."""
    num_bytes: int
    """All arrays, postings included."""


def index_size(num_ngrams: int, num_postings: int, num_shorts: int) -> IndexSize:
    """Return the size of an index before it is built.

    Args:
        num_ngrams: distinct n-grams; the number of all of them bounds the size from above.
        num_postings: n-grams counted once per place in an item.
        num_shorts: short items that are looked for whole.
    """
    bitmap = 8 * (1 << (_bitmap_bits(num_ngrams) - 6))
    table = 12 * _num_slots(num_ngrams)
    whole = num_ngrams + num_shorts
    short_bitmap = 8 * (1 << (_bitmap_bits(num_shorts) - 6))
    others = 12 * whole + 8 + 8 * (num_postings + num_shorts) + short_bitmap + 24 * num_shorts
    return IndexSize(bitmap, table, bitmap + table + others)


def _bitmap_bits(count: int) -> int:
    return max(6, (count * _BITS_PER_NGRAM - 1).bit_length()) if count else 6


def _num_slots(count: int) -> int:
    return 1 << max(3, int(1.4 * count).bit_length())  # at most 5 of 7 slots are taken


def _bitmap(keys: np.ndarray) -> np.ndarray:
    bits = _bitmap_bits(len(keys))
    bitmap = np.zeros(1 << (bits - 6), dtype=np.uint64)
    places = keys >> np.uint64(64 - bits)
    np.bitwise_or.at(bitmap, (places >> _S6).astype(np.int64), np.uint64(1) << (places & _S63))
    return bitmap


def _hash_table(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slots = _num_slots(len(keys))
    table_keys = np.zeros(slots, dtype=np.uint64)
    table_ids = np.full(slots, -1, dtype=np.int32)
    _fill_table(keys, table_keys, table_ids)
    return table_keys, table_ids


@numba.njit(cache=True, nogil=True)
def _fill_table(keys: np.ndarray, table_keys: np.ndarray, table_ids: np.ndarray) -> None:
    mask = np.uint64(len(table_keys) - 1)
    for k in range(len(keys)):
        slot = keys[k] & mask
        while table_ids[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table_keys[slot] = keys[k]
        table_ids[slot] = k
