"""Repetition inside one document: repeated segments (lines, paragraphs) and repeated word n-grams.

N-grams are exact, not hashed: an n-gram is the pair (its first n-1 words, its last word), and both members already
have an identifier, the position of their first occurrence. An n-gram can repeat only where its two (n-1)-grams do, so
each order looks only at the positions that the order below left; prose leaves few after n = 3, which makes orders
4 to 10 nearly free.

Definitions follow datatrove's Gopher repetition filter (2112.11446, table A1) with these differences: n-grams are
over words (`refinery.kernels.words`), symbols are skipped; sequences of words are compared, where datatrove compares
the concatenation, so that "ab c" equals "a bc" there.
"""

from __future__ import annotations

import numba
import numpy as np

_HEAD, _TAIL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
"""Odd, of which one product each mixes a pair: two such in place of splitmix64 are a tenth of all n-grams' time."""
FIRST_TOP, LAST_TOP = 2, 4
"""Orders of which the characters of the most frequent n-gram are counted."""
FIRST_DUP, LAST_DUP = 5, 10
"""Orders of which the characters of repeated n-grams are counted."""


@numba.njit(cache=True)
def table_mask(entries: int) -> int:
    """Return the slot mask (a power of two less one) of a table that `entries` keys fill to at most a half."""
    size = 8
    while size < 2 * entries:
        size *= 2
    return size - 1


@numba.njit(cache=True)
def table_capacity(entries: int) -> int:
    """Return the number of slots that `table_mask` asks for."""
    return table_mask(entries) + 1


@numba.njit(cache=True, nogil=True)
def first_positions(
    keys: np.ndarray, count: int, table: np.ndarray, first: np.ndarray, occurrences: np.ndarray
) -> None:
    """For each of ``keys[:count]`` (uint64) find the first position with the same key.

    Args:
        keys: uint64, well mixed (the low bits choose the slot).
        count: number of keys.
        table: int32 scratch of at least ``table_capacity(count)`` slots.
        first: int32 output, shape (count,): first position of the same key.
        occurrences: int32 output: ``occurrences[p]`` for a first position p is the number of equal keys.
    """
    mask = table_mask(count)
    table[: mask + 1] = -1
    for i in range(count):
        key = keys[i]
        slot = np.int64(key & np.uint64(mask))
        found = table[slot]
        while (found >= 0) & (keys[max(found, 0)] != key):
            slot = (slot + 1) & mask
            found = table[slot]
        found = i if found < 0 else found  # no jump: whether a key is new cannot be foretold
        table[slot] = found
        occurrences[i] = 0
        first[i] = found
        occurrences[found] += 1


@numba.njit(cache=True, nogil=True)
def repeated_segments(
    keys: np.ndarray, num_chars: np.ndarray, count: int, table: np.ndarray, first: np.ndarray, occurrences: np.ndarray
) -> tuple[int, int]:
    """Return (segments, characters) of all copies after the first among ``count`` segments hashed to `keys`.

    The scratch arrays are those of `first_positions`; `num_chars` is int32, shape (count,) or longer.
    """
    first_positions(keys, count, table, first, occurrences)
    segments, chars = 0, 0
    for i in range(count):
        if first[i] != i:
            segments += 1
            chars += num_chars[i]
    return segments, chars


@numba.njit(cache=True, nogil=True)
def next_order(  # noqa: PLR0913, PLR0917 (inner kernel: caller-owned scratch)
    n: int,
    num_words: int,
    word_ids: np.ndarray,
    repeated: np.ndarray,
    positions: np.ndarray,
    num_positions: int,
    candidates: np.ndarray,
    first: np.ndarray,
    occurrences: np.ndarray,
    table: np.ndarray,
) -> int:
    """Go from repeated (n-1)-grams to repeated n-grams, in place; all arrays int32.

    On entry ``positions[:num_positions]`` holds, ascending, where a repeated (n-1)-gram starts, and ``repeated[i]``
    is the first position of the (n-1)-gram at i, or -1 where it does not repeat. On return both speak of n-grams;
    ``occurrences`` counts them at their first positions. Returns the new number of positions.
    """
    num_candidates = 0
    for j in range(num_positions):
        i = positions[j]
        is_candidate = (i + n <= num_words) & (repeated[min(i + 1, num_words - 1)] >= 0)
        candidates[num_candidates] = i
        num_candidates += is_candidate
        repeated[i] = repeated[i] if is_candidate else -1
    mask = table_mask(num_candidates)
    bits = 0
    while mask >> bits:
        bits += 1
    shift = np.uint64(64 - bits)  # the slot is the high bits of a product: every bit below has a part in them
    table[: mask + 1] = -1
    for j in range(num_candidates):
        i = candidates[j]
        head, tail = repeated[i], word_ids[i + n - 1]
        slot = np.int64((np.uint64(head) * _HEAD + np.uint64(tail) * _TAIL) >> shift)
        found = table[slot]
        while (found >= 0) & ((repeated[max(found, 0)] != head) | (word_ids[max(found, 0) + n - 1] != tail)):
            slot = (slot + 1) & mask
            found = table[slot]
        found = i if found < 0 else found
        table[slot] = found
        occurrences[i] = 0
        first[i] = found
        occurrences[found] += 1
    kept = 0
    for j in range(num_candidates):
        i = candidates[j]
        is_repeated = occurrences[first[i]] >= 2
        repeated[i] = first[i] if is_repeated else -1
        positions[kept] = i
        kept += is_repeated
    return kept


@numba.njit(cache=True, nogil=True)
def top_ngram_chars(
    n: int,
    num_words: int,
    repeated: np.ndarray,
    positions: np.ndarray,
    num_positions: int,
    occurrences: np.ndarray,
    char_ends: np.ndarray,
) -> int:
    """Return length x count of the most frequent n-gram, its words joined by single spaces.

    Ties go to the n-gram seen first; without a repeated n-gram the first one counts once (datatrove; a short document
    can fail on it). ``char_ends[w]`` (int32) is the number of characters of the first w words.
    """
    if num_words < n:
        return 0
    best, best_count = 0, 1
    for j in range(num_positions):
        i = positions[j]
        if repeated[i] == i and occurrences[i] > best_count:
            best, best_count = i, occurrences[i]
    return (char_ends[best + n] - char_ends[best] + n - 1) * best_count


@numba.njit(cache=True, nogil=True)
def dup_ngram_chars(
    n: int,
    repeated: np.ndarray,
    positions: np.ndarray,
    num_positions: int,
    occurrences: np.ndarray,
    char_ends: np.ndarray,
) -> int:
    """Return the characters inside repeated n-grams, first copies free, no word counted twice.

    One walk from left to right: an n-gram met before counts, and the walk goes on after its n words; an n-gram not
    met before is remembered, and the walk goes on one word later (datatrove). Overwrites `occurrences`.
    """
    chars, resume = 0, 0
    for j in range(num_positions):
        i = positions[j]
        if i < resume:
            continue
        if occurrences[repeated[i]] == 0:
            chars += char_ends[i + n] - char_ends[i]
            resume = i + n
        else:
            occurrences[repeated[i]] = 0
    return chars


@numba.njit(cache=True, nogil=True)
def repeated_words(
    keys: np.ndarray,
    num_words: int,
    table: np.ndarray,
    word_ids: np.ndarray,
    occurrences: np.ndarray,
    repeated: np.ndarray,
    positions: np.ndarray,
) -> int:
    """Number the words, and list those that occur twice: where `next_order` begins; return how many are listed.

    Fills `word_ids` and `occurrences` as `first_positions`, `repeated` with a word's number or -1, and `positions`.
    """
    first_positions(keys, num_words, table, word_ids, occurrences)
    count = 0
    for i in range(num_words):
        is_repeated = occurrences[word_ids[i]] >= 2
        repeated[i] = word_ids[i] if is_repeated else -1
        positions[count] = i
        count += is_repeated
    return count


@numba.njit(cache=True, nogil=True)
def ngram_repetition(
    keys: np.ndarray,
    num_words: int,
    char_ends: np.ndarray,
    integers: np.ndarray,
    table: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Count the characters of top and repeated n-grams of one document.

    Args:
        keys: uint64, one hash per word.
        num_words: number of words W.
        char_ends: int32, shape (W + 1,): characters of the first w words.
        integers: int32 scratch, shape (6, at least W).
        table: int32 scratch, at least ``table_capacity(W)``.
        counts: output, shape (9,): top 2-, 3-, 4-gram characters, repeated 5- … 10-gram characters.
    """
    word_ids, repeated, positions, candidates, first, occurrences = (
        integers[0], integers[1], integers[2], integers[3], integers[4], integers[5],
    )  # fmt: skip
    num_positions = repeated_words(keys, num_words, table, word_ids, occurrences, repeated, positions)
    for n in range(2, LAST_DUP + 1):
        num_positions = next_order(
            n, num_words, word_ids, repeated, positions, num_positions, candidates, first, occurrences, table
        )
        if n <= LAST_TOP:
            counts[n - 2] = top_ngram_chars(
                n, num_words, repeated, positions, num_positions, occurrences, char_ends
            )
        else:
            counts[n - 2] = dup_ngram_chars(n, repeated, positions, num_positions, occurrences, char_ends)
