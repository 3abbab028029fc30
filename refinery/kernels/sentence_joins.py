"""What stands between sentences, so that a text still reads where some are cut out.

The white space behind a sentence belongs to it. Cutting the last sentence of a paragraph would glue two paragraphs, so
there the cut takes the white space before it instead. A cut whose next sentence leans on it ("However, ...", 但是……) is
given back: the copy stays, the text makes sense.

Shape legend: D documents, S sentences.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numba
import numpy as np

from refinery.kernels.sentence_rules import space_width
from refinery.kernels.sentences import SentenceSpans
from refinery.kernels.text import TextViews

_CONNECTIVES = (
    "however|therefore|thus|hence|moreover|furthermore|nevertheless|nonetheless|otherwise|instead|consequently|"
    "accordingly|likewise|similarly|but|so|yet|this means|as a result|for this reason|in contrast|by contrast|"
    "on the other hand|in other words|for example|for instance|that is why|in that case|"
    "jedoch|daher|deshalb|deswegen|dennoch|trotzdem|außerdem|allerdings|folglich|somit|aber|doch|sonst|andernfalls|"
    "stattdessen|zudem|dagegen|hingegen|zum beispiel|in diesem fall|"
    "cependant|toutefois|néanmoins|pourtant|donc|par conséquent|en effet|ainsi|de plus|en outre|sinon|mais|"
    "par exemple|au contraire|dans ce cas|"
    "однако|поэтому|следовательно|тем не менее|кроме того|но|например|иначе|в этом случае"
)
_CONNECTIVES_ZH = (
    "但是|但|然而|因此|所以|于是|不过|此外|另外|而且|并且|否则|可是|从而|相反|换句话说|总之|例如|也就是说|前款|前项|"
    "上述|因而|故"
)
_LONGEST = 32


class SentenceLayout(NamedTuple):
    """How S sentences stand in their documents."""

    space: np.ndarray
    """int32, shape (S,): bytes of white space at the end of each sentence."""
    newlines: np.ndarray
    """int8, shape (S,): newlines in it, at most 2."""
    leans: np.ndarray
    """bool, shape (S,): whether it begins with a word that leans on the sentence before."""


class JoinedCuts(NamedTuple):
    """Which sentences go, and which bytes."""

    cut: np.ndarray
    """bool, shape (S,): sentences that go in the end."""
    starts: np.ndarray
    """int64, shape (S,): first byte that goes with each; what is not cut keeps its own span."""
    ends: np.ndarray
    """int64, shape (S,)."""
    num_given_back: int
    """Sentences that stay because the next one leans on them."""


@functools.cache
def _openings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return connectives as bytes: uint8 (K, longest), lengths int64 (K,), bool (K,) whether a letter may follow."""
    latin = _CONNECTIVES.split("|")
    words = [*latin, *(word[0].upper() + word[1:] for word in latin)]
    rows = sorted([(word.encode(), False) for word in words] + [(w.encode(), True) for w in _CONNECTIVES_ZH.split("|")])
    table = np.zeros((len(rows), _LONGEST), dtype=np.uint8)
    for k, (raw, _) in enumerate(rows):
        table[k, : len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    return table, np.array([len(raw) for raw, _ in rows]), np.array([free for _, free in rows])


@numba.njit(cache=True)
def _leans(
    data: np.ndarray, first: int, last: int, table: np.ndarray, lengths: np.ndarray, free: np.ndarray
) -> bool:
    while first < last and (data[first] in (0x22, 0x27, 0x28, 0x2A, 0x5F) or space_width(data, first, last) > 0):
        first += max(1, space_width(data, first, last))
    low, high = 0, len(lengths)
    while low < high and first < last:  # first row whose first byte is that of the sentence
        middle = (low + high) // 2
        if table[middle, 0] < data[first]:
            low = middle + 1
        else:
            high = middle
    k = low
    while k < len(lengths) and first < last and table[k, 0] == data[first]:
        size = lengths[k]
        if first + size <= last:
            same = True
            for j in range(size):
                if data[first + j] != table[k, j]:
                    same = False
                    break
            if same:
                behind = data[first + size] if first + size < last else np.uint8(0x20)
                letter = (behind >= 0x61 and behind <= 0x7A) or (behind >= 0x41 and behind <= 0x5A)
                wide = behind >= 0xC3 and behind <= 0xD1
                if free[k] or not (letter or wide):
                    return True
        k += 1
    return False


@numba.njit(cache=True, nogil=True)
def _layout(  # noqa: PLR0913, PLR0917 - compiled inner kernel
    data: np.ndarray,
    firsts: np.ndarray,
    lasts: np.ndarray,
    table: np.ndarray,
    lengths: np.ndarray,
    free: np.ndarray,
    space: np.ndarray,
    newlines: np.ndarray,
    leans: np.ndarray,
) -> None:
    for s in range(len(firsts)):
        first, last = firsts[s], lasts[s]
        end, lines = last, 0
        while end > first:
            at = end - 1
            while at > first and data[at] & 0xC0 == 0x80:
                at -= 1
            if space_width(data, at, end) != end - at:
                break
            lines += data[at] == 0x0A
            end = at
        space[s] = last - end
        newlines[s] = min(lines, 2)
        leans[s] = _leans(data, first, end, table, lengths, free)


def sentence_layout(views: TextViews, spans: SentenceSpans) -> SentenceLayout:
    """Look at the end and the beginning of every sentence.

    Args:
        views: D documents.
        spans: their sentences.
    Returns: see `SentenceLayout`.
    """
    bases = np.repeat(views.offsets[:-1], np.diff(spans.doc_offsets))
    count = len(spans.starts)
    space, newlines, leans = np.zeros(count, np.int32), np.zeros(count, np.int8), np.zeros(count, np.bool_)
    _layout(views.data, bases + spans.starts, bases + spans.ends, *_openings(), space, newlines, leans)
    return SentenceLayout(space, newlines, leans)


@numba.njit(cache=True)
def _join(
    doc_offsets: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    space: np.ndarray,
    newlines: np.ndarray,
    leans: np.ndarray,
    cut: np.ndarray,
) -> int:
    given_back = 0
    for doc in range(len(doc_offsets) - 1):
        low, high = doc_offsets[doc], doc_offsets[doc + 1]
        for s in range(high - 2, low - 1, -1):  # backwards: what is given back may lean on a cut one itself
            if cut[s] and not cut[s + 1] and leans[s + 1] and newlines[s] < 2:
                cut[s] = False
                given_back += 1
        s = low
        while s < high:
            if not cut[s]:
                s += 1
                continue
            last = s
            while last + 1 < high and cut[last + 1]:
                last += 1
            if s > low and (last + 1 == high or newlines[last] > newlines[s - 1]):
                before = space[s - 1]
                for k in range(s, last + 1):
                    starts[k] -= before
                    ends[k] -= space[k]
                    before = space[k]
            s = last + 1
    return given_back


def join_cuts(spans: SentenceSpans, layout: SentenceLayout, cut: np.ndarray) -> JoinedCuts:
    """Settle which bytes go, so that what remains has the right white space and no sentence that hangs in the air.

    Args:
        spans: sentences of D documents.
        layout: of the same sentences.
        cut: bool, shape (S,): sentences that repeat others.
    Returns: see `JoinedCuts`; cuts of one document are disjoint, and those of neighbours touch.
    """
    kept_cut = np.array(cut, dtype=np.bool_)
    starts, ends = spans.starts.astype(np.int64), spans.ends.astype(np.int64)
    given_back = _join(spans.doc_offsets, starts, ends, *layout, kept_cut)
    return JoinedCuts(kept_cut, starts, ends, int(given_back))
