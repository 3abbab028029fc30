"""Locality-sensitive hashing of MinHash signatures: bands, candidate pairs, and the choice of bands and rows.

A signature is cut into `num_bands` bands of `rows_per_band` consecutive entries; documents that agree on a whole band
are candidates. Documents of Jaccard J become candidates with probability ``1 - (1 - J^rows)^bands`` (Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, section 3.4). Candidates are verified afterwards, so the bands are chosen
for recall, and precision costs time only.

Shape legend: D documents, H hashes, B bands, P pairs, M members of buckets.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from refinery.errors import ConfigError
from refinery.hashing import splitmix64

FORMAT_VERSION = 1
"""Version of stored band keys."""

MAX_ALL_PAIRS = 64
NUM_REPRESENTATIVES = 4

_BAND_SEED = np.uint64(0x5851F42D4C957F2D)
_P = np.uint64(0xD6E8FEB86659FD93)
_S32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


class Bands(NamedTuple):
    """How a signature is cut."""

    num_bands: int
    rows_per_band: int

    @property
    def num_hashes(self) -> int:
        """Hashes per signature."""
        return self.num_bands * self.rows_per_band


PRESETS: dict[str, Bands] = {
    "14x8": Bands(14, 8),  # FineWeb 2406.17557: finds 92 % at J = 0.8, 98.8 % at 0.85
    "20x13": Bands(20, 13),  # NeMo Curator's default: 68 % at 0.8, 92 % at 0.85
    "26x11": Bands(26, 11),
    "450x20": Bands(450, 20),  # Lee et al. 2107.06499 (RefinedWeb's prose swaps the two numbers): 99.5 % at 0.8
}
"""Bands by name, bands x rows; the first is the default."""


def parse_bands(name: str) -> Bands:
    """Return the bands that a name such as ``"14x8"`` (bands x rows) states; any such pair is accepted.

    Raises:
        ConfigError: the name is not two positive integers joined by x.
    """
    left, _, right = name.partition("x")
    if not (left.isdecimal() and right.isdecimal() and int(left) > 0 and int(right) > 0):
        raise ConfigError(f"bands {name!r} are not of the form BANDSxROWS; for example {', '.join(PRESETS)}")
    return Bands(int(left), int(right))


def collision_probability(jaccard: float, num_bands: int, rows_per_band: int) -> float:
    """Return the probability that two documents of the given Jaccard similarity share at least one band."""
    return 1.0 - (1.0 - jaccard**rows_per_band) ** num_bands


def choose_bands(
    target_jaccard: float,
    *,
    min_recall: float = 0.985,
    max_chance: float = 0.06,
    max_hashes: int = 9000,
) -> Bands:
    """Return the bands of fewest hashes that find nearly all pairs just above the target and few far below it.

    Two conditions: P(target + 0.05) >= `min_recall`, and P(target - 0.3) <= `max_chance`, without which one row per
    band would win and every pair of documents would be verified. A target of 0.8 gives 14 x 8.

    Args:
        target_jaccard: in [0.4, 0.95]: pairs at or above are near-duplicates.
        min_recall: share of pairs at target + 0.05 that must be found.
        max_chance: bound on the share of pairs at target - 0.3 that become candidates.
        max_hashes: longest signature that is allowed.
    Raises:
        ConfigError: the target is out of bounds, or no bands within `max_hashes` satisfy both conditions.
    """
    if not 0.4 <= target_jaccard <= 0.95:
        raise ConfigError(f"target Jaccard {target_jaccard} is out of bounds 0.4..0.95; 0.8 is usual")
    if not (0.0 < min_recall < 1.0 and 0.0 < max_chance < 1.0):
        raise ConfigError(f"min_recall {min_recall} and max_chance {max_chance} must lie strictly between 0 and 1")
    high = min(target_jaccard + 0.05, 0.999)
    best: Bands | None = None
    for rows in range(1, 65):
        miss = np.log1p(-(high**rows))
        bands = max(1, int(np.ceil(np.log1p(-min_recall) / miss - 1e-9)))
        candidate = Bands(bands, rows)
        if candidate.num_hashes > max_hashes or (best and candidate.num_hashes >= best.num_hashes):
            continue
        if collision_probability(target_jaccard - 0.3, bands, rows) <= max_chance:
            best = candidate
    if best is None:
        raise ConfigError(
            f"no bands within {max_hashes} hashes find {min_recall} of the pairs at Jaccard {high:.2f} and at most "
            f"{max_chance} of those at {target_jaccard - 0.3:.2f}; raise max_hashes or max_chance, or lower min_recall"
        )
    return best


def resolve_bands(name: str, target_jaccard: float) -> Bands:
    """Return the bands that a recipe names.

    Args:
        name: ``"14x8"`` and the like; ``"auto"``: the cheapest by `choose_bands`; ``"datasketch:128"``: those that
            datasketch would take for that many hashes.
        target_jaccard: bound of the recipe.
    Raises:
        ConfigError: the name is of none of these forms, or no bands suit the bound.
    """
    if name == "auto":
        return choose_bands(target_jaccard)
    kind, _, hashes = name.partition(":")
    if kind == "datasketch" and hashes.isdecimal():
        return choose_bands_datasketch(target_jaccard, int(hashes))
    return parse_bands(name)


CURVE_JACCARDS = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def collision_curve(bands: Bands) -> list[list[float]]:
    """Return [Jaccard, share of the pairs of that similarity that become candidates] at `CURVE_JACCARDS`."""
    return [[j, round(collision_probability(j, *bands), 6)] for j in CURVE_JACCARDS]


def choose_bands_datasketch(threshold: float, num_hashes: int) -> Bands:
    """Return the bands that datasketch's ``MinHashLSH(threshold, num_perm)`` chooses (equal weights).

    It minimises the area of false positives below the threshold plus that of false negatives above it, each by the
    midpoint rule with step 0.001. Balancing the two is right for unverified buckets and wrong before verification:
    for 128 hashes and 0.8 it takes 9 x 13, which finds 69 % of the pairs at Jaccard 0.85.

    Raises:
        ConfigError: the threshold is not in (0, 1), or `num_hashes` is below 2.
    """
    if not 0.0 < threshold < 1.0 or num_hashes < 2:
        raise ConfigError(f"threshold {threshold} must lie in (0, 1) and num_hashes {num_hashes} be at least 2")
    step = 0.001
    below = np.arange(0, int(threshold / step) + 1) * step + step / 2
    below = below[: len(np.arange(0.0, threshold, step))]
    above = threshold + (np.arange(len(np.arange(threshold, 1.0, step))) + 0.5) * step
    least, best = np.inf, Bands(1, 1)
    for bands in range(1, num_hashes + 1):
        for rows in range(1, num_hashes // bands + 1):
            false_positive = np.sum(1.0 - (1.0 - below**rows) ** bands) * step
            false_negative = np.sum((1.0 - np.minimum(above, 1.0) ** rows) ** bands) * step
            error = 0.5 * (false_positive + false_negative)
            if error < least:
                least, best = error, Bands(bands, rows)
    return best


@numba.njit(cache=True, nogil=True)
def _hash_bands(signature_DH: np.ndarray, num_bands: int, keys_DB: np.ndarray) -> None:
    rows = signature_DH.shape[1] // num_bands
    for doc in range(signature_DH.shape[0]):
        for band in range(num_bands):
            h = splitmix64(_BAND_SEED ^ np.uint64(band))
            for row in range(band * rows, (band + 1) * rows):
                h = (h ^ np.uint64(signature_DH[doc, row])) * _P
                h ^= h >> _S32
            keys_DB[doc, band] = splitmix64(h)


def band_keys(signature_DH: np.ndarray, num_bands: int) -> np.ndarray:
    """Hash each band of a signature, together with the number of the band, to one key.

    Documents without shingles have equal signatures and therefore equal keys: leave them out before grouping.

    Args:
        signature_DH: uint32, shape (D, H).
        num_bands: must divide H; rows per band = H / `num_bands`.
    Returns: uint64, shape (D, B). Equal keys make a bucket; by chance two unequal bands share a key with 2^-64.

    Raises:
        ConfigError: `num_bands` does not divide H.
    """
    num_hashes = signature_DH.shape[1]
    if num_bands < 1 or num_hashes % num_bands:
        raise ConfigError(
            f"{num_bands} bands do not divide {num_hashes} hashes; make num_hashes a multiple of num_bands"
        )
    keys = np.empty((signature_DH.shape[0], num_bands), dtype=np.uint64)
    _hash_bands(np.ascontiguousarray(signature_DH), num_bands, keys)
    return keys


@numba.njit(cache=True, nogil=True)
def _num_pairs(members: int, max_all_pairs: int, representatives: int) -> int:
    if members <= max_all_pairs or members <= representatives:
        return members * (members - 1) // 2
    return representatives * (members - representatives) + representatives * (representatives - 1) // 2


@numba.njit(cache=True, nogil=True)
def _end_of_run(values: np.ndarray, first: int, end: int) -> int:
    last = first + 1
    while last < end and values[last] == values[first]:
        last += 1
    return last


@numba.njit(cache=True, nogil=True)
def _cross_pairs(
    scopes: np.ndarray, held: np.ndarray, docs: np.ndarray, span: tuple[int, int], most: int, out: np.ndarray, at: int
) -> int:
    """Pair up to `most` held-out members of a bucket with all of other scopes; write them if `out` has rows."""
    first, last = span
    taken = 0
    for i in range(first, last):
        if not held[i]:
            continue
        taken += 1
        if taken > most:
            break
        for j in range(first, last):
            if held[j] or scopes[j] == scopes[i]:
                continue
            if len(out):
                out[at, 0], out[at, 1] = min(docs[i], docs[j]), max(docs[i], docs[j])
            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _bucket_pairs(
    keys: np.ndarray,
    docs: np.ndarray,
    scopes: np.ndarray,
    held: np.ndarray,
    limits: tuple[int, int],
    out: np.ndarray,
) -> int:
    """Return the number of pairs; write them if `out` has rows. `scopes` and `held` may be empty: one scope."""
    max_all_pairs, representatives = limits
    at, first = 0, 0
    while first < len(keys):
        last = _end_of_run(keys, first, len(keys))
        begin = first
        while begin < last:
            end = last if len(scopes) == 0 else _end_of_run(scopes, begin, last)
            if len(out) == 0:
                at += _num_pairs(end - begin, max_all_pairs, representatives)
            else:
                giant = end - begin > max_all_pairs and end - begin > representatives
                for i in range(begin, begin + representatives if giant else end):
                    for j in range(i + 1, end):
                        out[at, 0], out[at, 1] = min(docs[i], docs[j]), max(docs[i], docs[j])
                        at += 1
            begin = end
        if len(scopes) and scopes[first] != scopes[last - 1]:
            most = last - first if last - first <= max_all_pairs else representatives
            at = _cross_pairs(scopes, held, docs, (first, last), most, out, at)
        first = last
    return at


def candidate_pairs(
    keys: np.ndarray,
    docs: np.ndarray,
    max_all_pairs: int = MAX_ALL_PAIRS,
    num_representatives: int = NUM_REPRESENTATIVES,
    scopes: np.ndarray | None = None,
    held: np.ndarray | None = None,
) -> np.ndarray:
    """Return the pairs to verify of all buckets.

    A bucket of up to `max_all_pairs` members gives all its pairs. A larger one pairs its first `num_representatives`
    members with every member, so that a bucket of 100,000 copies of one cookie page costs 400,000 pairs and not five
    thousand million; several, because one unlucky representative below the threshold would lose the bucket.

    With scopes, members are paired inside their scope only; but held-out documents are paired with the others of every
    scope, for validation text must stand nowhere in the training text.

    Args:
        keys: uint64 (or int64), shape (M,), equal keys adjacent: band keys sorted.
        docs: int64, shape (M,): distinct inside a bucket. The order inside a bucket decides which are representatives:
            sort by (key, scope, place in the keep order) to make it the same for every partitioning.
        max_all_pairs: largest bucket of which all pairs are taken.
        num_representatives: at least 1.
        scopes: int64, shape (M,), equal scopes adjacent inside a key; None: one scope.
        held: bool, shape (M,): held-out documents; goes with `scopes`.
    Returns: int64, shape (P, 2), smaller document first; a pair occurs once per bucket that it shares. The memory is
        allocated once, exactly.

    Raises:
        ConfigError: a bound is not positive, or the arrays differ in length.
    """
    if max_all_pairs < 1 or num_representatives < 1:
        raise ConfigError(
            f"max_all_pairs {max_all_pairs} and num_representatives {num_representatives} must be at least 1"
        )
    if len(keys) != len(docs):
        raise ConfigError(f"{len(keys)} keys and {len(docs)} documents differ in number; pass one key per document")
    if scopes is not None and (held is None or not len(keys) == len(scopes) == len(held)):
        raise ConfigError(f"scopes and held-out flags must both have {len(keys)} entries, one per key")
    keys = np.ascontiguousarray(keys).view(np.uint64)
    docs = np.ascontiguousarray(docs, dtype=np.int64)
    scopes = np.empty(0, np.int64) if scopes is None else np.ascontiguousarray(scopes, dtype=np.int64)
    held = np.empty(0, np.bool_) if held is None or not len(scopes) else np.ascontiguousarray(held, dtype=np.bool_)
    limits = (max_all_pairs, num_representatives)
    count = _bucket_pairs(keys, docs, scopes, held, limits, np.empty((0, 2), dtype=np.int64))
    out = np.empty((count, 2), dtype=np.int64)
    if count:
        _bucket_pairs(keys, docs, scopes, held, limits, out)
    return out


def bucket_pairs(
    docs: np.ndarray, max_all_pairs: int = MAX_ALL_PAIRS, num_representatives: int = NUM_REPRESENTATIVES
) -> np.ndarray:
    """Return the pairs to verify of one bucket: `candidate_pairs` with a single key."""
    return candidate_pairs(np.zeros(len(docs), dtype=np.uint64), docs, max_all_pairs, num_representatives)


def counted_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows of an int64 array of shape (P, 2), sorted by both columns, and how often each occurs.

    Args:
        pairs: places, from 0 to 2^32 - 1, so that one sort of a uint64 does the work of two.
    """
    places = pairs.view(np.uint64)
    packed = places[:, 0] << _S32
    packed |= places[:, 1]
    del pairs, places  # of a giant bucket the largest array of the stage
    packed.sort()
    starts = np.flatnonzero(np.r_[len(packed) > 0, packed[1:] != packed[:-1]])
    counts = np.diff(np.r_[starts, len(packed)])
    distinct = packed[starts]
    del packed, starts
    rows = np.empty((len(distinct), 2), dtype=np.int64)
    rows[:, 0] = distinct >> _S32
    rows[:, 1] = distinct & _LOW
    return rows, counts


def counted_bucket_pairs(
    keys: np.ndarray,
    docs: np.ndarray,
    max_all_pairs: int = MAX_ALL_PAIRS,
    scopes: np.ndarray | None = None,
    held: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct `candidate_pairs`, sorted by both columns, and how many buckets each shares.

    Pairs of places in the sorted documents are counted: that takes a third of the memory that pairs of ids take.
    """
    ids, places = np.unique(docs, return_inverse=True)
    rows, counts = counted_pairs(candidate_pairs(keys, places, max_all_pairs, scopes=scopes, held=held))
    for column in (0, 1):  # in place: with a giant bucket another array of pairs would be missed
        rows[:, column] = ids[rows[:, column]]
    return rows, counts
