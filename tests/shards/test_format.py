from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refinery.errors import ConfigError, IntegrityError
from refinery.kernels import packing_fit
from refinery.shards import format as shard_format
from refinery.shards.format import IGNORE_INDEX, Segments

GOLDEN = Path(__file__).parent.parent / "golden"


def small_segments():
    """Rows of 4 tokens: a whole document and a cut one; a tail and padding; padding never alone."""
    return Segments(
        np.array([0, 2, 4, 5], dtype=np.int64),
        np.array([0x1122334455667788, 2**64 - 1, 2**64 - 1, 0, 7], dtype=np.uint64),
        np.array([1, 3, 2, 2, 4], dtype=np.int32),
        np.array([3, 1, 2, 4, 3], dtype=np.uint8),
    )


GOLDEN_BYTES = {
    "shard-v1-uint16.idx": lambda: shard_format.encode_idx(3, 4, np.dtype("<u2")),
    "shard-v1-int32.idx": lambda: shard_format.encode_idx(2, 8, np.dtype("<i4")),
    "shard-v1.seg": lambda: shard_format.encode_seg(small_segments()),
}


@pytest.mark.parametrize("name", sorted(GOLDEN_BYTES))
def test_bytes_equal_the_golden_file(name):
    assert GOLDEN_BYTES[name]() == (GOLDEN / name).read_bytes()


def test_index_has_megatrons_layout_byte_by_byte():
    expected = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little")
    expected += (4).to_bytes(8, "little")
    expected += b"".join((4).to_bytes(4, "little") for _ in range(3))
    expected += b"".join((8 * r).to_bytes(8, "little") for r in range(3))
    expected += b"".join(d.to_bytes(8, "little") for d in range(4))
    raw = shard_format.encode_idx(3, 4, np.dtype("<u2"))
    assert raw == expected
    assert len(raw) == 34 + 12 * 3 + 8 * 4
    dtype, lengths, offsets, documents = shard_format.decode_idx(raw, "x")
    assert (dtype, lengths.tolist(), offsets.tolist()) == (np.dtype("<u2"), [4, 4, 4], [0, 8, 16])
    assert documents.tolist() == [0, 1, 2, 3]


def test_segments_round_trip_and_layout():
    segments = small_segments()
    raw = shard_format.encode_seg(segments)
    assert raw[:8] == b"RFNSEG1\x00"
    assert int.from_bytes(raw[8:16], "little") == 3
    assert int.from_bytes(raw[16:24], "little") == 5
    assert len(raw) == 24 + 8 * 4 + 13 * 5
    assert int.from_bytes(raw[24 + 32 : 24 + 40], "little") == 0x1122334455667788
    back = shard_format.decode_seg(raw, "x")
    for name in ("row_ptr", "doc_hash", "seg_len", "flags"):
        assert getattr(back, name).tolist() == getattr(segments, name).tolist()
    assert segments.problem(4) == ""
    assert segments.loss_tokens.tolist() == [2, 1, 3]
    assert segments.padding_tokens.tolist() == [0, 2, 0]
    assert segments.num_docs.tolist() == [2, 1, 1]
    assert segments.row(1) == slice(2, 4)


def test_labels_stop_at_document_ends_padding_and_row_ends():
    tokens = np.arange(1, 13, dtype=np.uint16).reshape(3, 4)
    labels = shard_format.next_token_labels(tokens, small_segments())
    no = IGNORE_INDEX
    assert labels.tolist() == [[no, 3, 4, no], [6, no, no, no], [10, 11, 12, no]]
    assert (labels != no).sum(axis=1).tolist() == small_segments().loss_tokens.tolist()
    assert shard_format.next_token_labels(tokens[:0], Segments(np.zeros(1, np.int64), *_empty())).shape == (0, 4)


def _empty():
    return np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.uint8)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.seg_len.__setitem__(0, 2), "row 0 do not add up"),
        (lambda s: s.seg_len.__setitem__(0, 0), "least is 1"),
        (lambda s: s.row_ptr.__setitem__(1, 0), "row_ptr"),
        (lambda s: s.flags.__setitem__(2, 4), "not the last"),
        (lambda s: s.flags.__setitem__(3, 5), "padding carries"),
        (lambda s: s.doc_hash.__setitem__(3, 9), "padding carries"),
    ],
)
def test_segments_that_break_a_rule_are_named(change, problem):
    segments = small_segments()
    change(segments)
    assert problem in segments.problem(4)


def test_dtype_rule():
    assert shard_format.token_dtype(65_499) == np.dtype("<u2")
    assert shard_format.token_dtype(65_500) == np.dtype("<i4")
    with pytest.raises(ConfigError):
        shard_format.token_dtype(0)


@pytest.mark.parametrize("decode", [shard_format.decode_idx, shard_format.decode_seg])
def test_damaged_headers_are_refused(decode):
    raw = shard_format.encode_idx(3, 4, np.dtype("<u2"))
    raw = raw if decode is shard_format.decode_idx else shard_format.encode_seg(small_segments())
    for damaged in (b"", raw[:20], b"X" + raw[1:], raw[:-1], raw + b"\x00"):
        with pytest.raises(IntegrityError, match="somewhere"):
            decode(damaged, "somewhere")


def test_flags_of_packing_are_those_of_the_format():
    names = ("STARTS_DOCUMENT", "ENDS_DOCUMENT", "PADDING")
    assert [getattr(packing_fit, name) for name in names] == [getattr(shard_format, name) for name in names]
