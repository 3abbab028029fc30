from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refinery.errors import ConfigError
from refinery.io.sources import BadRecord, InputSpec, RawDocument, plan_splits, read_split


def read(path: Path, part_bytes: int = 1 << 26, **changes: Any) -> list[RawDocument | BadRecord]:
    fields: dict[str, Any] = {"source": "s", "domain": "d", "role": "pool", "format": "parquet", "paths": (str(path),)}
    spec = InputSpec(**{**fields, **changes})
    return [r for split in plan_splits(spec, part_bytes) for r in read_split(spec, split)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_every_string_type_reads_alike(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array(["a", "中文", None, ""], pa.string()).cast(
        kind if not pa.types.is_dictionary(kind) else pa.string()
    )
    if pa.types.is_dictionary(kind):
        column = column.dictionary_encode()
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": column, "score": [0.5] * 4, "tags": [["x"]] * 4}), path)
    documents = read(path)
    assert documents[:2] == [
        RawDocument(b"a", "1", str(path), 0, None, None, None, None, {"score": 0.5}),
        RawDocument("中文".encode(), "2", str(path), 1, None, None, None, None, {"score": 0.5}),
    ]
    assert [(d.offset, d.reason) for d in documents[2:] if isinstance(d, BadRecord)] == [(2, "no_text"), (3, "no_text")]


def test_missing_text_column_lists_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "content": ["a"]}), path)
    with pytest.raises(ConfigError, match="no text column 'text'; its columns are id, content; set text_field"):
        read(path)
    assert len(read(path, text_field="content")) == 1


def test_text_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1]}), path)
    with pytest.raises(ConfigError, match="is int64, not text"):
        read(path)


@pytest.mark.parametrize("part_bytes", [1, 1 << 26])
def test_broken_files_are_bad_records(tmp_path: Path, part_bytes: int) -> None:
    good = tmp_path / "good.parquet"
    pq.write_table(
        pa.table({"text": ["a b c" * 100] * 50}), good, row_group_size=10, compression="none", use_dictionary=False
    )
    data = good.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    footer = data.rindex(b"text")
    (tmp_path / "name.parquet").write_bytes(data[:footer] + b"te\xd6t" + data[footer + 4 :])
    (tmp_path / "not.parquet").write_bytes(b"hello")
    damaged = bytearray(data)
    damaged[30:60] = b"\xff" * 30  # the page header of the first row group
    (tmp_path / "page.parquet").write_bytes(damaged)
    records = read(tmp_path, part_bytes)
    bad = {Path(r.path).name: r.reason for r in records if isinstance(r, BadRecord)}
    assert bad.keys() >= {"cut.parquet", "not.parquet"}
    assert set(bad.values()) == {"bad_parquet"}
    assert sum(Path(r.path).name == "good.parquet" for r in records) == 50


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_invalid_utf8_is_repaired_row_by_row(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([b"caf\xe9", "café".encode()], pa.large_binary() if "large" in str(kind) else pa.binary())
    pq.write_table(pa.table({"text": column.view(kind)}), path)
    broken, whole = read(path)
    assert isinstance(broken, RawDocument)
    assert isinstance(whole, RawDocument)
    assert (broken.text, broken.meta) == ("caf\ufffd", {"charset": "repaired"})
    assert (whole.text, whole.meta) == ("café", {})


def test_several_texts_and_a_text_that_is_the_address_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"], "b": pa.array([b"y"], pa.binary())}), path)
    (joined,) = read(path, options={"text_fields": ["a", "b"], "joiner": "-"})
    assert (joined.text, joined.meta) == ("x-y", {})
    (same,) = read(path, text_field="a", id_field="a", options={"meta_fields": ["a"]})
    assert (same.text, same.upstream_id, same.meta) == ("x", "x", {"a": "x"})


def test_nested_text_field_and_chosen_meta(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": [{"raw": "t", "n": 1}], "a": [1], "b": [2]}), path)
    (document,) = read(path, text_field="body.raw", options={"meta_fields": ["b", "body.n"]})
    assert isinstance(document, RawDocument)
    assert (document.text, document.meta) == ("t", {"b": 2, "body.n": 1})
