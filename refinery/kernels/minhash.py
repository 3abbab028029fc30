"""MinHash signatures: a fixed-size sketch whose share of equal entries estimates Jaccard similarity.

The family is multiply-shift (Dietzfelbinger 1996), for a 32-bit shingle x and random 64-bit a (odd) and b::

    h(x) = ((a * x + b) mod 2^64) >> 32

The wrap modulo 2^64 is the definition, not an accident: libraries that document ``(a * x + b) mod p`` and compute it
in 64 or 32 bits wrap first and hash with another function than the one they state. The minima run along the shingles
of a block, a few hashes at a time (`multiply_shift`): 24.6 thousand million hashes a second on a Zen 5 core with
AVX-512, 9.4 on a Zen 3 core with AVX2. A 32-bit `a` would save a third of the work, but is universal to one bit of
output only.

The estimator's variance is J (1 - J) / H. Hashes are nested: the first 112 of 256 are the 112 of a shorter signature.

Shape legend: D documents, H hashes, S shingles.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.hashing import splitmix64_array, stage_seed
from refinery.kernels.multiply_shift import HASHES_PER_PASS, lower_minima, lower_minima_wide, multiplies_wide_lanes
from refinery.kernels.shingles import check_shingle_size, check_shingles, keep_tail, roll_shingles
from refinery.kernels.text import TextViews
from refinery.kernels.word_scan import BLOCK_WORDS, WORD_SEED, scan_segmented, scan_table, scan_words
from refinery.kernels.words import boundary_flags

FORMAT_VERSION = 1
"""Version of stored signatures; a change of shingles or of the family changes it."""

EMPTY = np.uint32(0xFFFFFFFF)
"""Every entry of the signature of a document without shingles. Such a document is no candidate for anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MinHashConfig:
    """What a signature is made of."""

    num_hashes: int = 112
    """Hashes per signature: 14 bands of 8 rows (FineWeb, 2406.17557)."""
    shingle_size: int = 5
    """Words or characters per shingle."""
    unit: str = "words"
    """``"words"`` or ``"chars"``; in words, characters of unspaced scripts count one each."""
    seed: int = 1
    """Seed of the hash family; signatures of different seeds cannot be compared."""

    def __post_init__(self) -> None:
        check_shingle_size(self.shingle_size, self.unit)
        _check_num_hashes(self.num_hashes)


class Signatures(NamedTuple):
    """Signatures of D documents."""

    values: np.ndarray
    """uint32, shape (D, H); all `EMPTY` where a document has no shingles."""
    num_shingles: np.ndarray
    """int64, shape (D,): shingles with repeats; the signature is valid where it is above 0."""


@functools.cache
def hash_family(num_hashes: int, seed: int) -> np.ndarray:
    """Return the rows (a, b) of the multiply-shift family: uint64, shape (2, H), read-only; every a is odd.

    Raises:
        ConfigError: `num_hashes` is not in 1..65536.
    """
    _check_num_hashes(num_hashes)
    base = np.uint64(stage_seed(seed, "minhash"))
    counter = np.arange(num_hashes, dtype=np.uint64) * np.uint64(2)
    family = np.stack([splitmix64_array(splitmix64_array(counter + np.uint64(k)) ^ base) for k in range(2)])
    family[0] |= np.uint64(1)
    family.flags.writeable = False
    return family


def _check_num_hashes(num_hashes: int) -> None:
    if not 1 <= num_hashes <= 65536:
        raise ConfigError(f"num_hashes {num_hashes} is out of bounds 1..65536; 112 (14 bands x 8 rows) is the default")


@numba.njit(cache=True, nogil=True)
def _lower(block: np.ndarray, count: int, family: np.ndarray, minima: np.ndarray, wide: bool) -> None:
    if wide:
        lower_minima_wide(block, count, family, minima)
    else:
        lower_minima(block, count, family, minima)


@numba.njit(cache=True, nogil=True)
def _sign_shingles(offsets: np.ndarray, hashes: np.ndarray, wide: bool, family: np.ndarray, out: np.ndarray) -> None:
    block = np.empty(BLOCK_WORDS, dtype=np.uint32)
    minima = np.empty(family.shape[1], dtype=np.uint32)
    for doc in range(len(offsets) - 1):
        minima[:] = EMPTY
        for first in range(offsets[doc], offsets[doc + 1], BLOCK_WORDS):
            count = min(BLOCK_WORDS, offsets[doc + 1] - first)
            block[:count] = hashes[first : first + count]
            _lower(block, count, family, minima, wide)
        out[doc] = minima[: out.shape[1]]


@numba.njit(cache=True, nogil=True)
def _sign_text(
    views: TextViews,
    flags: np.ndarray,
    table: np.ndarray,
    size: int,
    wide: bool,
    family: np.ndarray,
    out: np.ndarray,
) -> np.ndarray:
    offsets, data = views.offsets, views.data
    num_shingles = np.zeros(len(offsets) - 1, dtype=np.int64)
    words = np.empty(BLOCK_WORDS + size - 1, dtype=np.uint64)
    block = np.empty(BLOCK_WORDS, dtype=np.uint32)
    minima = np.empty(family.shape[1], dtype=np.uint32)
    for doc in range(len(offsets) - 1):
        minima[:] = EMPTY
        position, end, filled, total = offsets[doc], offsets[doc + 1], 0, 0
        while position < end:
            if len(flags):
                filled, position = scan_segmented(data, (position, end), table, flags, WORD_SEED, words, filled)
            else:
                filled, position = scan_words(data, position, end, table, WORD_SEED, words, filled)
            count = roll_shingles(words, filled, size, block, 0)
            if count > 0:
                _lower(block, count, family, minima, wide)
            total += count
            filled = keep_tail(words, filled, size)
        num_shingles[doc] = total
        out[doc] = minima[: out.shape[1]]
    return num_shingles


def _padded_family(num_hashes: int, seed: int) -> np.ndarray:
    """Return the family filled up to whole passes; hashes are nested, so the first ones are the ones asked for."""
    return hash_family(-(-num_hashes // HASHES_PER_PASS) * HASHES_PER_PASS, seed)


def signatures(shingle_offsets: np.ndarray, shingles: np.ndarray, num_hashes: int, seed: int) -> np.ndarray:
    """Return the signatures of shingles that exist already; repeats do not matter.

    Args:
        shingle_offsets: int64, shape (D + 1,).
        shingles: uint32, shape (S,).
        num_hashes: H.
        seed: seed of the family.
    Returns: uint32, shape (D, H); a document without shingles has `EMPTY` everywhere.

    Raises:
        ConfigError: `num_hashes` is out of bounds.
        SchemaError: the arrays are of other types.
    """
    check_shingles(shingle_offsets, shingles)
    _check_num_hashes(num_hashes)
    out = np.empty((len(shingle_offsets) - 1, num_hashes), dtype=np.uint32)
    _sign_shingles(shingle_offsets, shingles, multiplies_wide_lanes(), _padded_family(num_hashes, seed), out)
    return out


def signatures_of_text(views: TextViews, config: MinHashConfig, boundaries: np.ndarray | None = None) -> Signatures:
    """Return the signatures of documents straight from their text; shingles exist one block at a time.

    Equal to `signatures` of `shingle_hashes`. Cost: O(bytes + shingles * H); memory besides the result is one block.

    Args:
        views: D documents.
        config: hashes, shingles and seed.
        boundaries: segmented words, see `shingles.shingle_hashes`.
    Returns: see `Signatures`.

    Raises:
        SchemaError: `boundaries` has another length than the text.
    """
    flags = boundary_flags(views, boundaries)
    family = _padded_family(config.num_hashes, config.seed)
    out = np.empty((views.num_docs, config.num_hashes), dtype=np.uint32)
    wide, table = multiplies_wide_lanes(), scan_table(config.unit)
    num_shingles = _sign_text(views, flags, table, config.shingle_size, wide, family, out)
    return Signatures(out, num_shingles)


def estimate_jaccard(left_PH: np.ndarray, right_PH: np.ndarray) -> np.ndarray:
    """Return the share of equal entries of paired signatures: float64, shape (P,); sigma is sqrt(J (1 - J) / H)."""
    return np.mean(left_PH == right_PH, axis=1)
