from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import IntegrityError
from refinery.kernels import packing
from refinery.stages import pack_part as module
from refinery.stages.pack_part import pack_part
from tests.shards import datasets


def _chunks(docs, bounds, dtype=np.uint16):
    """The ids of documents as Arrow chunks cut at `bounds`, and their hashes."""
    lengths, tie, offsets, tokens = docs
    values = [tokens[offsets[d] : offsets[d + 1]].astype(dtype).tobytes() for d in range(len(lengths))]
    edges = sorted({0, len(values), *(b % (len(values) + 1) for b in bounds)})
    arrays = [pa.array(values[a:b], pa.binary()) for a, b in itertools.pairwise(edges)]
    return pa.chunked_array(arrays, pa.binary()), tie


@given(
    bounds=st.lists(st.integers(0, 10**6), max_size=5),
    count=st.integers(1, 60),
    policy=st.sampled_from(packing.POLICIES),
    block_rows=st.integers(1, 9),
)
def test_chunks_and_blocks_do_not_change_a_byte(tmp_path_factory, bounds, count, policy, block_rows):
    folder = tmp_path_factory.mktemp("part")
    docs = datasets.documents("x", count)
    whole = datasets.pack(*docs, policy=policy)
    expected = datasets.write_shard(
        folder / "whole", "p", whole[1], whole[2],
        packing.row_bytes(whole[0], whole[1], datasets.TOKEN_BYTES), datasets.SPEC,
    )  # fmt: skip
    ids, tie = _chunks(docs, bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block_rows * datasets.L * 2)
        part = pack_part((folder / "blocks", "p"), ids, tie, datasets.TOKEN_BYTES, datasets.SPEC, policy)
    assert part.entry == expected
    assert part.documents_cut == whole[0].num_docs_cut
    assert part.dropped_tokens == whole[0].dropped_tokens
    assert part.concat_rows == packing.plan_rows(docs[0], tie, datasets.L, "concat").num_rows


def test_order_of_documents_does_not_change_a_byte(tmp_path):
    lengths, tie, offsets, tokens = datasets.documents("x", 50)
    ids, _ = _chunks((lengths, tie, offsets, tokens), [])
    turned = pa.chunked_array([ids.chunk(0).take(pa.array(np.arange(49, -1, -1)))])
    one = pack_part((tmp_path / "a", "p"), ids, tie, datasets.TOKEN_BYTES, datasets.SPEC, "best_fit")
    two = pack_part((tmp_path / "b", "p"), turned, tie[::-1].copy(), datasets.TOKEN_BYTES, datasets.SPEC, "best_fit")
    assert one == two


def test_an_id_beyond_the_vocabulary_in_a_late_block_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", datasets.L * 2)
    docs = datasets.documents("x", 60)
    docs[3][docs[2][57] : docs[2][58]] = datasets.VOCAB
    ids, tie = _chunks(docs, [])
    with pytest.raises(IntegrityError, match="vocabulary"):
        pack_part((tmp_path, "p"), ids, tie, datasets.TOKEN_BYTES, datasets.SPEC, "best_fit")
    assert list(tmp_path.iterdir()) == []
