"""What docs/data-format.md says about other readers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from refinery.shards.plan import first_plan, plan_bytes
from refinery.shards.reader import ShardReader
from tests.shards import datasets
from tests.shards.test_plan import SHARES

DOC = Path(__file__).parent.parent.parent / "docs" / "data-format.md"


def test_the_random_access_source_of_the_docs_gives_every_row_of_a_plan(tmp_path):
    manifest = datasets.build(tmp_path)
    plan = first_plan(manifest, 3, [(40, SHARES)])
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "main.json").write_bytes(plan_bytes(plan))
    code = re.search(r"```python\n(.*?class PlanRows.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    exec(compile(code.group(1), "docs", "exec"), names)
    source = names["PlanRows"](str(tmp_path))
    assert len(source) == 40
    with ShardReader(tmp_path, manifest) as reader:
        whole = reader.batch(plan, 0, 40)
    order = np.argsort(whole.k)
    for k in range(40):
        one = source[k]
        assert np.array_equal(one["input"], whole.tokens[order[k]])
        assert np.array_equal(one["labels"], whole.labels()[order[k]])
        assert sum(one["seq_lens"]) == datasets.L


def test_bin_files_are_plain_arrays_of_rows(shared_dataset):
    root, manifest = shared_dataset
    with ShardReader(root, manifest) as reader:
        for index, stream in enumerate(manifest.streams):
            raw = [np.memmap(root / f"{p.path}.bin", dtype=manifest.dtype_name, mode="r") for p in stream.parts]
            rows = np.concatenate(raw).reshape(-1, manifest.sequence_length)
            expected = np.empty_like(rows)
            reader.read_rows(index, np.arange(stream.rows), expected)
            assert np.array_equal(rows, expected)


def test_int32_ids_have_the_bits_of_uint32():
    ids = np.array([0, 151_642, 2**31 - 1], dtype="<i4")
    assert ids.view("<u4").tolist() == ids.tolist()
