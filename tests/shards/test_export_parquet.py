from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from refinery.cli import app
from refinery.errors import IntegrityError
from refinery.shards import export_parquet as module
from refinery.shards.card import CardFacts
from refinery.shards.export_parquet import export_parquet
from refinery.shards.format import Segments
from refinery.shards.plan import first_plan, plan_bytes
from refinery.shards.reader import ShardReader
from tests.shards import datasets
from tests.shards.test_plan import SHARES


def _read(files):
    """Rows and segments of Parquet files, from the columns alone."""
    columns = {name: [] for name in ("row", "input_ids", "seg_len", "doc_hash", "seg_flags")}
    for file in files:
        table = pq.read_table(file)
        for name in columns:
            columns[name] += table.column(name).to_pylist()
    counts = [len(lengths) for lengths in columns["seg_len"]]
    flat = {name: [v for row in columns[name] for v in row] for name in ("seg_len", "doc_hash", "seg_flags")}
    segments = Segments(
        np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        np.array(flat["doc_hash"], np.uint64),
        np.array(flat["seg_len"], np.int32),
        np.array(flat["seg_flags"], np.uint8),
    )
    return columns["row"], np.array(columns["input_ids"]), segments


@pytest.mark.parametrize("group_tokens", [1 << 22, 3 * datasets.L])
def test_rows_and_documents_come_back(shared_dataset, tmp_path, monkeypatch, group_tokens):
    monkeypatch.setattr(module, "_GROUP_TOKENS", group_tokens)
    root, manifest = shared_dataset
    export = export_parquet(root, manifest, tmp_path)
    with ShardReader(root, manifest) as reader:
        for index, stream in enumerate(manifest.streams):
            expected = np.empty((stream.rows, datasets.L), dtype=np.uint16)
            reader.read_rows(index, np.arange(stream.rows), expected)
            rows, tokens, segments = _read(export.files[stream.name])
            assert rows == list(range(stream.rows))
            assert np.array_equal(tokens, expected)
            theirs = reader.segments(index, np.arange(stream.rows))
            for name in ("row_ptr", "doc_hash", "seg_len", "flags"):
                assert np.array_equal(getattr(segments, name), getattr(theirs, name)), name
    assert json.loads((tmp_path / "export.json").read_text())["content_hash"] == manifest.content_hash
    first = next(iter(export.files.values()))[0]
    assert pq.read_schema(first).metadata[b"refinery.content_hash"].decode() == manifest.content_hash


def test_card_names_every_file_once_by_configuration_and_split(shared_dataset, tmp_path):
    root, manifest = shared_dataset
    export = export_parquet(root, manifest, tmp_path, CardFacts(name="rows"))
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    entries = [entry for config in front["configs"] for entry in config["data_files"]]
    found = [path for entry in entries for path in tmp_path.glob(entry["path"])]
    assert sorted(found) == sorted(path for files in export.files.values() for path in files)
    law = next(c for c in front["configs"] if c["config_name"] == "law-target-zh-w0")
    assert {entry["split"] for entry in law["data_files"]} == {"train", "validation"}


def test_the_datasets_library_loads_a_configuration(shared_dataset, tmp_path):
    library = pytest.importorskip("datasets", reason="the datasets library is not installed")
    root, manifest = shared_dataset
    export_parquet(root, manifest, tmp_path / "out")
    rows = library.load_dataset(str(tmp_path / "out"), "law-target-zh-w0", split="train", cache_dir=str(tmp_path / "c"))
    assert len(rows) == manifest.stream("law/target/zh/w0/train").rows
    assert len(rows[0]["input_ids"]) == datasets.L


def test_a_truncated_part_leaves_no_final_file_of_it(own_dataset, tmp_path_factory):
    root, manifest = own_dataset
    out = tmp_path_factory.mktemp("export")
    part = manifest.streams[0].parts[0].path
    (root / f"{part}.bin").write_bytes((root / f"{part}.bin").read_bytes()[:-2])
    with pytest.raises(IntegrityError, match="truncated"):
        export_parquet(root, manifest, out)
    assert not list(out.rglob("*.parquet*"))
    assert not (out / "README.md").exists()


def test_the_commands_write_parquet_and_the_blend_of_a_named_plan(shared_dataset, tmp_path):
    root, manifest = shared_dataset
    copy = tmp_path / "set"
    shutil.copytree(root, copy)
    (copy / "plan").mkdir(exist_ok=True)
    for name, rows in (("main", 100), ("second", 70)):
        (copy / "plan" / f"{name}.json").write_bytes(plan_bytes(first_plan(manifest, 3, [(rows, SHARES)])))
    said = CliRunner().invoke(app, ["export", "hf-parquet", str(copy / "manifest.json"), str(tmp_path / "p"), "--json"])
    files = json.loads(said.output)["files"]
    assert set(files) == {s.name for s in manifest.streams}
    out = str(tmp_path / "m")
    said = CliRunner().invoke(app, ["export", "megatron", str(copy), out, "--plan", "second", "--json"])
    assert len(json.loads(said.output)["blends"]) == 1
    assert json.loads((tmp_path / "m" / "export.json").read_text())["stages"][0]["samples"] == 70
