from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.export_megatron import export_megatron
from refinery.shards.plan import first_plan
from refinery.shards.reader import ShardReader
from tests.shards import datasets
from tests.shards.test_plan import LAW, SHARES, WEB


def read_pair(prefix):
    """An independent reader of Megatron's pair, written from its layout alone."""
    raw = prefix.with_name(prefix.name + ".idx").read_bytes()
    magic, version, code = struct.unpack("<9sQB", raw[:18])
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
    sequences, entries = struct.unpack("<QQ", raw[18:34])
    lengths = struct.unpack(f"<{sequences}i", raw[34 : 34 + 4 * sequences])
    offsets = struct.unpack(f"<{sequences}q", raw[34 + 4 * sequences : 34 + 12 * sequences])
    documents = struct.unpack(f"<{entries}q", raw[34 + 12 * sequences :])
    body = prefix.with_name(prefix.name + ".bin").read_bytes()
    letter = {8: "H", 4: "i"}[code]
    rows = [
        struct.unpack_from(f"<{length}{letter}", body, offset) for length, offset in zip(lengths, offsets, strict=True)
    ]
    assert documents == tuple(range(sequences + 1))
    assert len(body) == sum(lengths) * struct.calcsize(letter)
    return rows


def test_every_row_reads_back_and_the_blend_names_every_stream(shared_dataset, tmp_path):
    root, manifest = shared_dataset
    plan = first_plan(manifest, 3, [(400, SHARES), (100, {LAW: 0.5, WEB: 0.5})])
    export = export_megatron(root, manifest, tmp_path, plan)
    with ShardReader(root, manifest) as reader:
        for index, stream in enumerate(manifest.streams):
            expected = np.empty((stream.rows, datasets.L), dtype=np.uint16)
            reader.read_rows(index, np.arange(stream.rows), expected)
            assert read_pair(export.prefixes[stream.name]) == [tuple(row) for row in expected.tolist()]
    for blend, stage in zip(export.blends, plan.stages, strict=True):
        words = blend.read_text().split()
        assert dict(zip(words[1::2], map(int, words[::2]), strict=True)) == {
            str(export.prefixes[name]): weight for name, weight in stage.weights
        }
    facts = json.loads((tmp_path / "export.json").read_text())
    assert [stage["samples"] for stage in facts["stages"]] == [400, 100]
    assert facts["content_hash"] == manifest.content_hash
    assert not list(tmp_path.glob(".*.tmp-*"))


@pytest.mark.parametrize("vocab_size", [65_500, 65_536])
def test_vocabularies_that_megatron_misreads_are_refused(shared_dataset, tmp_path, vocab_size):
    root, manifest = shared_dataset
    wide = replace(manifest, tokenizer=replace(manifest.tokenizer, vocab_size=vocab_size))
    with pytest.raises(ConfigError, match="fast path"):
        export_megatron(root, wide, tmp_path)


def test_truncated_part_is_refused(own_dataset, tmp_path_factory):
    root, manifest = own_dataset
    out = tmp_path_factory.mktemp("export")
    path = root / (manifest.streams[0].parts[0].path + ".bin")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(IntegrityError, match="truncated"):
        export_megatron(root, manifest, out)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        export_megatron(root, manifest, out)
    assert not list(out.glob("*.bin"))


def test_megatron_core_reads_the_export(shared_dataset, tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    root, manifest = shared_dataset
    export = export_megatron(root, manifest, tmp_path)
    for stream in manifest.streams:
        dataset = indexed.IndexedDataset(str(export.prefixes[stream.name]))
        assert [tuple(dataset[i].tolist()) for i in range(len(dataset))] == read_pair(export.prefixes[stream.name])


class _Tokenizer:
    """The little that GPTDataset asks of a tokenizer."""

    eod = pad = bos = datasets.EOS
    vocab_size = datasets.VOCAB
    unique_identifiers = {"class": "test"}  # noqa: RUF012 - read by megatron-core as it is


@pytest.mark.parametrize("extra_token", [True, False])
def test_megatron_core_trains_on_intact_rows_in_the_exact_blend(shared_dataset, tmp_path, extra_token):
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset", reason="megatron-core is not installed")
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from torch import distributed

    root, manifest = shared_dataset
    plan = first_plan(manifest, 3, [(100, SHARES)])
    export = export_megatron(root, manifest, tmp_path / "export", plan)
    words = export.blends[0].read_text().split()
    config = gpt.GPTDatasetConfig(
        random_seed=1,
        sequence_length=datasets.L,
        blend=(words[1::2], [float(weight) for weight in words[::2]]),
        split="1,0,0",
        path_to_cache=str(tmp_path / "cache"),
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        add_extra_token_to_sequence=extra_token,
    )
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        train = BlendedMegatronDatasetBuilder(gpt.GPTDataset, [100, 0, 0], lambda: True, config).build()[0]
        rows = [tuple(train[i]["tokens"].tolist()) for i in range(100)]
    finally:
        distributed.destroy_process_group()
    stream_of = {row: name for name, prefix in export.prefixes.items() for row in read_pair(prefix)}
    drawn = Counter(stream_of[row] for row in rows)
    for name, weight in plan.stages[0].weights:
        assert abs(drawn[name] - 100 * weight / 2**20) < 1
