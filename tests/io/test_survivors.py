from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from refinery.contracts.tables import CUTS, DECISIONS, DOCUMENTS, PART_SHIFT, WORDS
from refinery.errors import IntegrityError, SchemaError
from refinery.io.parts import part_path, write_part
from refinery.io.survivors import keep_mask, read_labels, read_survivors
from refinery.kernels.boundaries import pack_boundaries
from refinery.kernels.segmentation import segment_han
from refinery.kernels.text import text_views, views_of

PART = 3
TEXTS = ["one two", "第一条　合同", "", "четыре 🙂", "five\r\nfive", "six\0", "seven"] * 3


def _ids():
    return (PART << PART_SHIFT) + np.arange(len(TEXTS), dtype=np.int64)


@pytest.fixture
def workdir(tmp_path):
    """A part of 21 documents, two deciding stages, cuts by the second."""
    count = len(TEXTS)
    sizes = [len(t.encode()) for t in TEXTS]
    rows = {name: pa.nulls(count, DOCUMENTS.field(name).type) for name in DOCUMENTS.names}
    rows |= {name: pa.array(["x"] * count) for name in ("text_hash", "source", "domain", "role", "split")}
    rows |= {
        "doc_id": _ids(), "doc_key": pa.array([f"{i:032x}" for i in range(count)]), "text": pa.array(TEXTS),
        "num_bytes": sizes, "num_chars": [len(t) for t in TEXTS], "lang": pa.array(["en"] * count),
    }  # fmt: skip
    write_part(part_path(str(tmp_path), "ingest", "documents", PART), pa.table(rows), DOCUMENTS, "p")
    first = [i % 4 != 1 for i in range(count)]
    second = [None if not kept else i % 5 != 0 for i, kept in enumerate(first)]
    for stage, keep in (("rules", first), ("dedup_sentences", second)):
        table = pa.table({
            "doc_id": _ids(), "keep": keep, "drop_reason": [f"{stage}.x" if k is False else None for k in keep],
            "rule_bits": [0] * count, "stage": [stage if k is False else None for k in keep],
            "because_of": pa.nulls(count, pa.string()),
        })  # fmt: skip
        write_part(part_path(str(tmp_path), stage, "decisions", PART), table, DECISIONS, "p")
    _write_cuts(tmp_path, [(3, 0, 12), (14, 0, 3), (14, 4, 5), (6, 0, 5)])
    return str(tmp_path)


def _write_cuts(root, cuts):
    ids = [(PART << PART_SHIFT) + row for row, _, _ in cuts]
    table = pa.table({
        "doc_id": pa.array(ids, pa.int64()), "start": [c[1] for c in cuts], "end": [c[2] for c in cuts],
        "stage": ["dedup_sentences"] * len(cuts), "reason": ["r"] * len(cuts),
        "because_of": pa.nulls(len(cuts), pa.string()),
    })  # fmt: skip
    write_part(part_path(str(root), "dedup_sentences", "cuts", PART), table, CUTS, "p")


def _read(workdir, columns, upto, slice_rows):
    pieces = list(read_survivors(workdir, PART, columns, upto, slice_rows))
    rows = [r for p in pieces for r in p.rows.tolist()]
    assert all(p.table.column_names == list(columns) for p in pieces)
    assert all(0 < p.table.num_rows <= slice_rows for p in pieces)
    return rows, [row for p in pieces for row in p.table.to_pylist()]


def test_all_documents_before_any_stage(workdir):
    rows, found = _read(workdir, ["text", "doc_id"], (), 4)
    assert rows == list(range(len(TEXTS)))
    assert [r["text"] for r in found] == TEXTS
    assert [r["doc_id"] for r in found] == _ids().tolist()


def test_dropped_documents_are_gone_and_cuts_are_out(workdir):
    upto = ("rules", "dedup_sentences")
    rows, found = _read(workdir, ["doc_id", "text"], upto, 100)
    assert rows == [i for i in range(len(TEXTS)) if i % 4 != 1 and i % 5 != 0]
    texts = dict(zip(rows, (r["text"] for r in found), strict=True))
    assert texts[3] == " 🙂"
    assert texts[14] == " wo", "two cuts in one document"
    assert texts[6] == ""
    assert all(texts[i] == TEXTS[i] for i in rows if i not in (3, 6, 14))
    ids = {i: r["doc_id"] for i, r in zip(rows, found, strict=True)}
    assert all(ids[i] == _ids()[i] for i in rows)


def test_only_the_stages_named_count(workdir):
    rows, found = _read(workdir, ["text"], ("rules",), 100)
    assert rows == [i for i in range(len(TEXTS)) if i % 4 != 1]
    assert found[rows.index(3)]["text"] == TEXTS[3], "cuts of a later stage do not show"


@pytest.mark.parametrize("slice_rows", [1, 2, 7, 1000])
@pytest.mark.parametrize("upto", [(), ("rules",), ("rules", "dedup_sentences")])
def test_slices_change_nothing(workdir, slice_rows, upto):
    assert _read(workdir, ["text", "num_bytes"], upto, slice_rows) == _read(workdir, ["text", "num_bytes"], upto, 4096)


def test_labels_carry_the_bytes_that_cuts_left(workdir):
    upto = ("rules", "dedup_sentences")
    labels = read_labels(workdir, PART, ["doc_id", "num_bytes", "lang"], upto).to_pylist()
    texts = dict(_pairs(workdir, upto))
    for row, text in texts.items():
        assert labels[row]["num_bytes"] == len(text.encode())
    assert len(labels) == len(TEXTS), "labels are aligned, survivors are not"
    before = read_labels(workdir, PART, ["num_bytes"], ("rules",)).column("num_bytes").to_pylist()
    assert before == [len(t.encode()) for t in TEXTS]


def _pairs(workdir, upto):
    rows, found = _read(workdir, ["text"], upto, 5)
    return list(zip(rows, (r["text"] for r in found), strict=True))


def test_masks_of_all_stages_are_joined(workdir):
    upto = ("rules", "dedup_sentences")
    mask = keep_mask(workdir, PART, len(TEXTS), upto)
    assert mask[[0, 1, 2, 5]].tolist() == [False, False, True, False]
    assert not keep_mask(workdir, PART, len(TEXTS), ("rules",))[[1, 5]].any()
    assert keep_mask(workdir, PART, len(TEXTS), ()).all()


def test_a_cut_outside_its_document_is_refused(workdir):
    _write_cuts(Path(workdir), [(3, 0, 1000)])
    with pytest.raises(IntegrityError, match="outside its document"):
        _read(workdir, ["text"], ("rules", "dedup_sentences"), 10)


def test_missing_and_damaged_parts_are_refused(workdir):
    with pytest.raises(IntegrityError, match="is missing"):
        list(read_survivors(workdir, 9, ["text"], (), 10))
    with pytest.raises(IntegrityError, match="is missing"):
        _read(workdir, ["text"], ("quality",), 10)
    with pytest.raises(SchemaError, match="lacks columns"):
        _read(workdir, ["text", "colour"], (), 10)
    path = Path(part_path(workdir, "ingest", "documents", PART))
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(IntegrityError, match="damaged"):
        _read(workdir, ["text"], (), 10)


def _store_words(workdir):
    views = views_of(TEXTS)
    found = segment_han(views)
    packed = pack_boundaries(views, found.boundaries, found.has_han)
    table = pa.table({"doc_id": _ids(), "boundaries": packed})
    write_part(part_path(workdir, "rules", "words", PART), table, WORDS, "p")


def _starts(workdir, upto, slice_rows):
    """Row -> the text's words by its stored boundaries, None without a bitmap."""
    out = {}
    for piece in read_survivors(workdir, PART, ["words", "text"], upto, slice_rows):
        assert piece.table.column_names == ["words", "text"]
        views = text_views(piece.table.column("text"))
        flags = piece.boundaries(views)
        stored = piece.table.column("words").is_valid().to_pylist()
        for i, row in enumerate(piece.rows.tolist()):
            begin, end = views.offsets[i : i + 2]
            out[row] = flags[begin:end].nonzero()[0].tolist() if stored[i] else None
            assert stored[i] or flags is None or flags[begin:end].all()
    return out


@pytest.mark.parametrize("slice_rows", [1, 3, 100])
def test_word_boundaries_follow_the_cuts(workdir, slice_rows):
    _store_words(workdir)
    upto = ("rules", "dedup_sentences")
    before = _starts(workdir, ("rules",), slice_rows)
    assert before[8] == [0, 9, 12], "第一条|　|合同"
    assert before[0] is None, "no Han"
    _write_cuts(Path(workdir), [(8, 3, 6), (8, 12, 15)])
    after = _starts(workdir, upto, slice_rows)
    assert after[8] == [0, 3, 6, 9], "第|条|　|同: what follows a cut starts a word"
    assert {r: s for r, s in after.items() if r != 8} == {r: before[r] for r in after if r != 8}


def test_words_come_with_their_text(workdir):
    _store_words(workdir)
    with pytest.raises(SchemaError, match="ask for the column text"):
        _read(workdir, ["words"], (), 10)
    piece = next(read_survivors(workdir, PART, ["text"], (), 10))
    assert piece.boundaries(text_views(piece.table.column("text"))) is None


def test_missing_words_are_refused(workdir):
    with pytest.raises(IntegrityError, match="is missing"):
        _read(workdir, ["text", "words"], (), 10)
