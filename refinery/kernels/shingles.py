r"""Shingles: hashed word n-grams, the sets whose Jaccard similarity defines a near-duplicate.

Text is normalised while it is scanned, once, from UTF-8 bytes, so that trivial edits do not change the set: case is
folded, words are runs of letters, digits and marks, and punctuation and white space only separate. Scripts that write
no spaces (Han, kana, bopomofo, Thai, Lao, Burmese, Khmer) give one word per character: with ``\w+`` words a Chinese
clause is a single word and one changed character costs a whole clause (recall 0.67-0.79 in the libraries that do so,
0.99 by characters). Unit ``"chars"`` takes every character that is not white space, punctuation included.

The hashes are part of the signature format (`FORMAT_VERSION`)::

    word      h = WORD_SEED;  for each folded code point c:  h = (h xor c) * P;   w = (h xor (h >> 32)) * Q
    shingle   s = w_1 * M^(n-1) + w_2 * M^(n-2) + ... + w_n;   x = ((s xor (s >> 32)) * R) >> 32

all modulo 2^64: the sum is order-sensitive and rolls (one word enters, one leaves), x is 32 bits. Two different
shingles share x with probability 2^-32, which moves a Jaccard similarity by less than one part in a million.

Shape legend: D documents, N bytes, S shingles.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.hashing import splitmix64
from refinery.kernels.text import TextViews
from refinery.kernels.word_scan import BLOCK_WORDS, UNITS, WORD_SEED, scan_segmented, scan_table, scan_words
from refinery.kernels.words import boundary_flags

FORMAT_VERSION = 1
"""Changes with any change to the normalisation or to the formulas above."""

_SECOND_SEED = np.uint64(0x8CB92BA72F3D8DD7)
_M = np.uint64(0xA0761D6478BD642F)
_R = np.uint64(0xE7037ED1A0B428DB)
_S32 = np.uint64(32)


class Shingles(NamedTuple):
    """Shingles of D documents."""

    offsets: np.ndarray
    """int64, shape (D + 1,)."""
    hashes: np.ndarray
    """uint32, shape (S,): document i owns ``hashes[offsets[i]:offsets[i + 1]]``."""


class WordsHash(NamedTuple):
    """Hash of the normalised word stream of D documents."""

    hashes: np.ndarray
    """uint64, shape (D, 2): equal for texts that differ only in case, white space and punctuation."""
    num_words: np.ndarray
    """int64, shape (D,): 0 means that there was nothing to hash; such documents all share one value."""


@numba.njit(cache=True, nogil=True)
def roll_shingles(words: np.ndarray, filled: int, size: int, out: np.ndarray, at: int) -> int:
    """Write the shingles of ``words[:filled]`` to ``out[at:]``; return how many (``max(0, filled - size + 1)``)."""
    if filled < size:
        return 0
    leaving = np.uint64(1)
    total = np.uint64(0)
    for k in range(size):
        leaving *= _M
        total = total * _M + words[k]
    for k in range(filled - size):
        out[at + k] = ((total ^ (total >> _S32)) * _R) >> _S32
        total = total * _M + (words[k + size] - words[k] * leaving)
    out[at + filled - size] = ((total ^ (total >> _S32)) * _R) >> _S32
    return filled - size + 1


@numba.njit(cache=True, nogil=True)
def _shingle_documents(
    views: TextViews, flags: np.ndarray, table: np.ndarray, size: int, out_offsets: np.ndarray, out: np.ndarray
) -> None:
    offsets, data = views.offsets, views.data
    words = np.empty(BLOCK_WORDS + size, dtype=np.uint64)
    at = 0
    for doc in range(len(offsets) - 1):
        position, end, filled = offsets[doc], offsets[doc + 1], 0
        while position < end:
            if len(flags):
                filled, position = scan_segmented(data, (position, end), table, flags, WORD_SEED, words, filled)
            else:
                filled, position = scan_words(data, position, end, table, WORD_SEED, words, filled)
            at += roll_shingles(words, filled, size, out, at)
            filled = keep_tail(words, filled, size)
        out_offsets[doc + 1] = at


@numba.njit(cache=True, nogil=True)
def keep_tail(words: np.ndarray, filled: int, size: int) -> int:
    """Move the last ``size - 1`` words to the front, where the next block's first shingles need them."""
    tail = min(filled, size - 1)
    for k in range(tail):
        words[k] = words[filled - tail + k]
    return tail


@numba.njit(cache=True, nogil=True)
def _compact_sorted(offsets: np.ndarray, hashes: np.ndarray, out_offsets: np.ndarray) -> int:
    """Drop repeats inside each sorted document, in place; fills `out_offsets`; returns the new length."""
    at = 0
    for doc in range(len(offsets) - 1):
        first = at
        for k in range(offsets[doc], offsets[doc + 1]):
            value = hashes[k]
            if at == first or hashes[at - 1] != value:
                hashes[at] = value
                at += 1
        out_offsets[doc + 1] = at
    return at


@numba.njit(cache=True, nogil=True)
def _hash_documents(
    offsets: np.ndarray, data: np.ndarray, table: np.ndarray, hash_D2: np.ndarray, num_words: np.ndarray
) -> None:
    words = np.empty(BLOCK_WORDS, dtype=np.uint64)
    for doc in range(len(offsets) - 1):
        for half in range(2):  # two scans with two seeds: a collision of one word hash cannot decide both halves
            seed = WORD_SEED if half == 0 else _SECOND_SEED
            position, end, total, state = offsets[doc], offsets[doc + 1], 0, seed
            while position < end:
                filled, position = scan_words(data, position, end, table, seed, words, 0)
                total += filled
                for k in range(filled):
                    state = (state ^ words[k]) * _M
                    state ^= state >> _S32
            hash_D2[doc, half] = splitmix64(state ^ np.uint64(total))
            num_words[doc] = total


def check_shingle_size(size: int, unit: str) -> None:
    """Check the size of a shingle.

    Raises:
        ConfigError: the size is not in 1..1000, or the unit is unknown.
    """
    if unit not in UNITS:
        raise ConfigError(f"shingle unit {unit!r} is unknown; choose one of {', '.join(UNITS)}")
    if not 1 <= size <= 1000:
        raise ConfigError(f"shingle size {size} is out of bounds 1..1000; 5 words or 13 chars are the published values")


def check_shingles(offsets: np.ndarray, hashes: np.ndarray) -> None:
    """Check arrays of shingles that come from a table.

    Raises:
        SchemaError: the types are not int64 and uint32, or the offsets do not fit the hashes.
    """
    if offsets.dtype != np.int64 or hashes.dtype != np.uint32:
        raise SchemaError(
            f"shingles must be int64 offsets and uint32 hashes, not {offsets.dtype} and {hashes.dtype}; "
            "view signed columns as unsigned before the kernel"
        )
    if len(offsets) == 0 or offsets[0] < 0 or offsets[-1] > len(hashes):
        raise SchemaError(f"shingle offsets do not fit {len(hashes)} hashes; pass D + 1 offsets, the last at most that")


def shingle_hashes(
    views: TextViews, size: int = 5, unit: str = "words", boundaries: np.ndarray | None = None
) -> Shingles:
    """Return every shingle of every document, in text order, with repeats.

    A document of fewer than `size` words has none: it is compared by `words_hash`, not by similarity.

    Args:
        views: D documents.
        size: words (or characters) per shingle: 5 words in FineWeb (2406.17557), 13 characters in MAP-NEO.
        unit: ``"words"`` or ``"chars"``.
        boundaries: segmented words for unit ``"words"``: uint8, shape of `views.data`, not zero at the first byte of
            each; read at characters of unspaced scripts only. None: each such character is a word.
    Returns: see `Shingles`.

    Raises:
        ConfigError: `size` or `unit` is out of bounds. SchemaError: `boundaries` has another length than the text.
    """
    check_shingle_size(size, unit)
    flags = boundary_flags(views, boundaries)
    num_bytes = int(views.offsets[-1] - views.offsets[0])
    # Room for the most that can come: a word needs a separator behind it, a character of an unspaced script 3 bytes.
    room = num_bytes if unit == "chars" else num_bytes // 2 + views.num_docs
    out = np.empty(room, dtype=np.uint32)
    offsets = np.zeros(views.num_docs + 1, dtype=np.int64)
    _shingle_documents(views, flags, scan_table(unit), size, offsets, out)
    return Shingles(offsets, out[: offsets[-1]].copy())


def shingle_sets(
    views: TextViews, size: int = 5, unit: str = "words", boundaries: np.ndarray | None = None
) -> Shingles:
    """Return the set of shingles of every document: sorted, unique. Arguments and errors as in `shingle_hashes`."""
    shingles = shingle_hashes(views, size, unit, boundaries)
    hashes = shingles.hashes
    bounds = shingles.offsets.tolist()
    # numpy sorts uint32 with vector instructions, several times faster than a sort compiled by numba, so a Python
    # loop over documents (a microsecond each) wins.
    for first, last in itertools.pairwise(bounds):
        hashes[first:last].sort()
    offsets = np.zeros_like(shingles.offsets)
    length = _compact_sorted(shingles.offsets, hashes, offsets)
    return Shingles(offsets, hashes[:length].copy())


def words_hash(views: TextViews, unit: str = "words") -> WordsHash:
    """Hash the normalised word stream of each document to 128 bits: the short-text rule's identity.

    Texts that differ only in case, white space, punctuation (unit ``"words"``) and invisible characters are equal.

    Raises:
        ConfigError: the unit is unknown.
    """
    hash_D2 = np.empty((views.num_docs, 2), dtype=np.uint64)
    num_words = np.zeros(views.num_docs, dtype=np.int64)
    _hash_documents(views.offsets, views.data, scan_table(unit), hash_D2, num_words)
    return WordsHash(hash_D2, num_words)
