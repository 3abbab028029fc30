from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.io.compressed import iter_lines
from refinery.io.sources import BadRecord, InputSpec, RawDocument, Split, check_input, plan_splits, read_split


def spec_of(paths: list[str] | str, **changes: object) -> InputSpec:
    paths = [paths] if isinstance(paths, str) else paths
    fields: dict[str, object] = {"source": "s", "domain": "d", "role": "pool", "format": "jsonl", "paths": tuple(paths)}
    return InputSpec(**{**fields, **changes})


def texts_of(spec: InputSpec, splits: list[Split]) -> list[str]:
    records = [r for split in splits for r in read_split(spec, split)]
    assert all(isinstance(r, RawDocument) for r in records), records
    return [r.text if isinstance(r.text, str) else r.text.decode() for r in records]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 200), st.booleans())
def test_byte_ranges_give_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], part_bytes: int, newline: bool
) -> None:
    path = tmp_path_factory.mktemp("r") / "a.jsonl"
    lines = [json.dumps({"text": f"{i}{'中' * n}"}, ensure_ascii=False) for i, n in enumerate(sizes)]
    path.write_text("\n".join(lines) + "\n" * newline, "utf-8")
    spec = spec_of(str(path))
    splits = plan_splits(spec, part_bytes)
    assert texts_of(spec, splits) == [f"{i}{'中' * n}" for i, n in enumerate(sizes)]
    assert splits[0].start == 0
    assert all(a.end == b.start for a, b in pairwise(splits))


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=12),
    st.integers(1, 7),
    st.integers(0, 6),
)
def test_line_reader_equals_split_for_any_chunks(lines: list[bytes], chunk: int, limit: int) -> None:
    data = b"\n".join(lines)
    chunks = [data[i : i + chunk] for i in range(0, len(data), chunk)]
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    got = list(iter_lines(iter(chunks), limit))
    assert [line for _, line in got] == [line if len(line) <= limit else None for line in expected]
    starts = [sum(len(x) + 1 for x in expected[:i]) for i in range(len(expected))]
    assert [offset for offset, _ in got] == starts


def test_small_files_share_a_split_and_the_plan_is_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "notes.bin").write_text("x")
    spec = spec_of(str(tmp_path))
    assert texts_of(spec, plan_splits(spec, 1 << 20)) == ["a", "b", "c"]
    assert len(plan_splits(spec, 1 << 20)) == 1
    assert len(plan_splits(spec, 10)) == 6  # 14 bytes each: two ranges a file


def test_globs_home_and_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jsonl").write_text('{"text":"a"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = spec_of(["~/x/*.jsonl", str(tmp_path / "**" / "a.jsonl"), "~/x"])
    assert texts_of(spec, plan_splits(spec, 100)) == ["a"]


def test_relative_paths_keep_their_name_and_open_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"a"}')
    monkeypatch.chdir(tmp_path)
    spec = spec_of("a.jsonl")
    splits = plan_splits(spec, 100)
    monkeypatch.chdir("/")
    (document,) = read_split(spec, splits[0])
    assert isinstance(document, RawDocument)
    assert document.path == "a.jsonl"


def test_missing_path_names_the_nearest_folder(tmp_path: Path) -> None:
    (tmp_path / "here.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="matches no file; the nearest folder that exists is") as caught:
        plan_splits(spec_of(str(tmp_path / "none" / "*.jsonl")), 100)
    assert str(tmp_path) in str(caught.value)
    assert "here.jsonl" in str(caught.value)


def test_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ConfigError, match="is empty: 1 file"):
        plan_splits(spec_of(str(tmp_path / "a.jsonl")), 100)


def test_empty_file_beside_others_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text('{"text":"b"}')
    spec = spec_of(str(tmp_path))
    records = [r for s in plan_splits(spec, 1 << 20) for r in read_split(spec, s)]
    assert isinstance(records[0], BadRecord)
    assert records[0].reason == "empty_file"
    assert len(records) == 2


def test_file_gone_after_planning_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text":"a"}')
    spec = spec_of(str(path))
    splits = plan_splits(spec, 100)
    path.unlink()
    (record,) = read_split(spec, splits[0])
    assert isinstance(record, BadRecord)
    assert record.reason == "missing_file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "jsonlines"}, "did you mean 'jsonl'"),
        ({"options": {"text_field": 1, "joinr": ""}}, "is unknown for jsonl"),
        ({"options": {"joinr": ""}}, "did you mean 'joiner'"),
        ({"format": "text", "options": {"unit": "page"}}, "must be one of file, line, paragraph"),
        ({"paths": ()}, "has no paths"),
        ({"options": {"max_line_bytes": "64MB"}}, "must be a number above 0"),
        ({"format": "python_environment"}, "takes no paths"),
        ({"format": "python_environment", "paths": ()}, "say which collection"),
    ],
)
def test_wrong_inputs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_input(replace(spec_of("x"), **changes))


def test_parquet_splits_by_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{i} " + "x" * 1000 for i in range(100)]}),
        path,
        row_group_size=10,
        compression="none",
        use_dictionary=False,
    )
    spec = spec_of(str(path), format="parquet")
    splits = plan_splits(spec, 25_000)
    assert [(s.start, s.end) for s in splits] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert [t.split()[0] for t in texts_of(spec, splits)] == [str(i) for i in range(100)]
    offsets = [r.offset for s in splits for r in read_split(spec, s)]
    assert offsets == list(range(100))


def test_large_compressed_file_has_shares_and_gives_every_document_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    body = "".join(json.dumps({"text": hashlib.sha256(str(i).encode()).hexdigest()}) + "\n" for i in range(10_000))
    path.write_bytes(gzip.compress(body.encode()))
    spec = spec_of(str(path))
    splits = plan_splits(spec, 50_000)
    count = -(-len(body) * 5 // 4 // 50_000)  # a quarter to spare
    assert [(s.unit, s.start, s.end) for s in splits] == [("shares", i, count) for i in range(count)]
    assert len(texts_of(spec, splits)) == 10_000
    assert len({str(s.fingerprint()) for s in splits}) == count
    assert [s.unit for s in plan_splits(spec, 1 << 22)] == ["files"]
    assert [Split.unpack(s.pack()) for s in splits] == splits


@pytest.mark.parametrize(
    ("name", "changes", "unit"),
    [
        ("a.csv", {"format": "csv"}, "shares"),
        ("a.json", {"format": "json"}, "shares"),
        ("a.warc", {"format": "warc"}, "shares"),
        ("a.txt.gz", {"format": "text", "options": {"unit": "line"}}, "shares"),
        ("a.txt.gz", {"format": "text"}, "files"),
        ("a.html", {"format": "html"}, "files"),
        ("a.txt", {"format": "text", "options": {"unit": "line"}}, "bytes"),
    ],
)
def test_which_large_files_have_shares(tmp_path: Path, name: str, changes: dict[str, object], unit: str) -> None:
    path = tmp_path / name
    body = b"0123456789abcde\n" * 1000
    path.write_bytes(gzip.compress(body) if name.endswith("gz") else body)
    assert {s.unit for s in plan_splits(spec_of(str(path), **changes), 2000 if "gz" not in name else 200)} == {unit}


def test_fingerprint_follows_content_not_location(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text":"a"}')
    (before,) = plan_splits(spec_of(str(path)), 100)
    os.utime(path, ns=(1, 1))
    (after,) = plan_splits(spec_of(str(path)), 100)
    assert before.fingerprint() != after.fingerprint()
    assert before.fingerprint().keys() == {"files", "unit", "start", "end", "items"}


def test_memory_urls_are_read_through_fsspec() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/in/a.jsonl", b'{"text":"a"}\n{"text":"b"}\n' * 100)
    store.pipe("/bucket/in/b.jsonl.gz", gzip.compress(b'{"text":"c"}\n'))
    try:
        for path in ("memory://bucket/in/*.jsonl*", "memory://bucket/in"):
            spec = spec_of(path)
            assert texts_of(spec, plan_splits(spec, 500)) == ["a", "b"] * 100 + ["c"]
        with pytest.raises(ConfigError, match="matches no file"):
            plan_splits(spec_of("memory://bucket/none/*.jsonl"), 500)
    finally:
        store.rm("/bucket", recursive=True)


def test_a_million_tiny_files_would_spread_over_parts(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text("x")
    splits = plan_splits(spec_of(str(tmp_path), format="text"), 40_000)
    assert [len(s.files) for s in splits] == [9, 9, 9, 9, 4]
