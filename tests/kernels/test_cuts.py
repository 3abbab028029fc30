from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import IntegrityError
from refinery.kernels.cuts import apply_cuts, as_ingested, kept_of, merged_spans, minus_spans, to_original, touched
from refinery.kernels.text import text_views

TEXTS = ["", "a plain line\r\n", "第一条　合同", "чистый текст", "🙂\0🙂", "e\u0301", "x" * 40]


def _reference(text: str, spans: list[tuple[int, int]]) -> str:
    """Drop every byte that any span covers."""
    raw = text.encode()
    return bytes(b for i, b in enumerate(raw) if not any(a <= i < z for a, z in spans)).decode()


def _cut(texts, rows, cuts):
    array = pa.array(texts, pa.large_string())
    columns = [np.array([c[i] for c in cuts], dtype=np.int64) for i in range(3)]
    return apply_cuts(text_views(array), np.array(rows, dtype=np.int64), *columns).to_pylist()


@st.composite
def documents_with_cuts(draw):
    """Documents at ascending rows, and cuts at character borders, some of rows that are not there."""
    texts = draw(st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)), max_size=8))
    texts = [t for t in texts if not any(0xD800 <= ord(c) < 0xE000 for c in t)]
    rows = sorted(draw(st.sets(st.integers(0, 50), min_size=len(texts), max_size=len(texts))))
    cuts = []
    for row, text in zip(rows, texts, strict=True):
        borders = [len(text[:i].encode()) for i in range(len(text) + 1)]
        for _ in range(draw(st.integers(0, 4))):
            start, end = sorted((draw(st.sampled_from(borders)), draw(st.sampled_from(borders))))
            cuts.append((row, start, end))
    absent = draw(st.integers(51, 60))
    cuts += [(absent, 0, 10**6)] * draw(st.integers(0, 1))
    return texts, rows, draw(st.permutations(cuts))


@given(documents_with_cuts())
def test_equals_dropping_bytes_one_by_one(case):
    texts, rows, cuts = case
    wanted = [
        _reference(t, [(a, z) for owner, a, z in cuts if owner == row]) for row, t in zip(rows, texts, strict=True)
    ]
    assert _cut(texts, rows, cuts) == wanted


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=12))
def test_kept_values_are_those_that_stay(runs):
    keep = np.concatenate([np.full(length, stays) for stays, length in runs] + [np.empty(0, bool)]).astype(bool)
    values = np.arange(len(keep), dtype=np.uint8)
    assert kept_of(values, keep).tolist() == values[keep].tolist()
    marked = [255 if i and not keep[i - 1] else int(values[i]) for i in np.flatnonzero(keep)]
    assert kept_of(values, keep, behind_cuts=255).tolist() == marked
    with pytest.raises(IntegrityError, match="other documents"):
        kept_of(values, np.append(keep, True))


@given(documents_with_cuts())
def test_slices_give_the_same_as_the_whole(case):
    texts, rows, cuts = case
    pieces = [_cut(texts[i : i + 1], rows[i : i + 1], cuts)[0] for i in range(len(texts))]
    assert _cut(texts, rows, cuts) == pieces


def test_a_sliced_array_is_read_from_its_offset():
    array = pa.array(["zero", "one", "two three"], pa.large_string()).slice(1)
    cuts = (np.array([7]), np.array([3]), np.array([9]))
    assert apply_cuts(text_views(array), np.array([4, 7]), *cuts).to_pylist() == ["one", "two"]


def test_overlapping_and_touching_spans_count_once():
    assert merged_spans(np.array([5, 0, 3, 20]), np.array([9, 3, 6, 20])) == [(0, 9), (20, 20)]
    assert _cut(["0123456789"], [0], [(0, 1, 4), (0, 2, 6), (0, 6, 7)]) == ["0789"]


@pytest.mark.parametrize("span", [(0, 11), (-1, 3), (5, 4)])
def test_a_cut_outside_its_document_is_refused(span):
    with pytest.raises(IntegrityError, match="outside its document"):
        _cut(["0123456789", "next"], [3, 4], [(3, *span)])


def test_no_documents_and_no_cuts():
    assert _cut([], [], [(3, 0, 1)]) == []
    assert _cut(["a", ""], [0, 1], []) == ["a", ""]


@st.composite
def a_document_with_cuts_and_spans(draw):
    size = draw(st.integers(1, 30))
    place = st.integers(0, size)
    cuts = [tuple(sorted((draw(place), draw(place)))) for _ in range(draw(st.integers(0, 4)))]
    left = [i for i in range(size) if not any(a <= i < z for a, z in cuts)]
    spans = []
    for _ in range(draw(st.integers(0, 4)) if left else 0):
        start = draw(st.integers(0, len(left) - 1))
        spans.append((start, draw(st.integers(start + 1, len(left)))))
    return left, cuts, spans


def _column(pairs, index):
    return np.array([p[index] for p in pairs], dtype=np.int64)


@given(a_document_with_cuts_and_spans())
def test_spans_map_back_to_the_bytes_they_cover(case):
    left, cuts, spans = case
    starts, ends = to_original(_column(spans, 0), _column(spans, 1), _column(cuts, 0), _column(cuts, 1))
    for (start, end), first, last in zip(spans, starts.tolist(), ends.tolist(), strict=True):
        assert (first, last) == (left[start], left[end - 1] + 1)
        assert [i for i in range(first, last) if i in set(left)] == left[start:end]


@given(a_document_with_cuts_and_spans())
def test_what_is_left_of_spans_is_disjoint_from_earlier_cuts_and_conserves_bytes(case):
    left, cuts, spans = case
    gone = merged_spans(_column(cuts, 0), _column(cuts, 1))
    back = to_original(_column(spans, 0), _column(spans, 1), _column(cuts, 0), _column(cuts, 1))
    pieces = minus_spans(merged_spans(*back), gone)
    covered = [i for a, z in pieces for i in range(a, z)]
    assert covered == sorted({left[i] for a, z in spans for i in range(a, z)})
    assert all(a < z for a, z in pieces)


spans_of_rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20), st.integers(1, 6)), max_size=8)


@given(spans_of_rows, spans_of_rows)
def test_touched_equals_looking_at_every_byte(spans, cuts):
    def columns(rows):
        values = np.array([(r, a, a + n) for r, a, n in rows], dtype=np.int64).reshape(-1, 3)
        return values[:, 0], values[:, 1], values[:, 2]

    expected = [any(r == q and a < b + m and b < a + n for q, b, m in cuts) for r, a, n in spans]
    assert touched(*columns(spans), columns(cuts)).tolist() == expected


@given(
    st.text("ab汉é ", min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=4),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=4),
)
def test_later_spans_map_back_around_earlier_cuts(text, earlier, later):
    """Cutting spans out of the shortened text is cutting their pieces out of the whole one, and no byte twice."""
    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    cuts = np.array([(a, min(a + n, len(raw))) for a, n in earlier if a < len(raw)], dtype=np.int64).reshape(-1, 2)
    keep = np.ones(len(raw), dtype=bool)
    for start, end in cuts:
        keep[start:end] = False
    short = raw[keep]
    spans = np.array([(a, min(a + n, len(short))) for a, n in later if a < len(short)], np.int64).reshape(-1, 2)
    rows = np.full(len(spans), 5)
    owners, starts, ends = as_ingested(
        rows, spans[:, 0], spans[:, 1], (np.full(len(cuts), 5), cuts[:, 0], cuts[:, 1])
    )  # fmt: skip
    left = np.ones(len(short), dtype=bool)
    for start, end in spans:
        left[start:end] = False
    whole = keep.copy()
    for start, end in zip(starts, ends, strict=True):
        assert keep[start:end].all(), "nothing that is cut already"
        whole[start:end] = False
    assert bytes(raw[whole]) == bytes(short[left])
    lengths = np.bincount(owners, ends - starts, len(spans)) if len(spans) else np.empty(0)
    assert lengths.tolist() == (spans[:, 1] - spans[:, 0]).tolist()
    assert owners.tolist() == sorted(owners.tolist())
