from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from refinery.io.sources import BadRecord, InputSpec, RawDocument, plan_splits, read_split

GOOD = [{"id": f"doc-{i}", "text": f"text {i} 中文 😀"} for i in range(50)]
LINES = "".join(json.dumps(g, ensure_ascii=False) + "\n" for g in GOOD).encode()


def read(path: Path, **changes: Any) -> tuple[list[RawDocument], list[BadRecord]]:
    fields: dict[str, Any] = {"source": "s", "domain": "d", "role": "pool", "format": "jsonl", "paths": (str(path),)}
    spec = InputSpec(**{**fields, **changes})
    records = [r for split in plan_splits(spec, 1 << 26) for r in read_split(spec, split)]
    return [r for r in records if isinstance(r, RawDocument)], [r for r in records if isinstance(r, BadRecord)]


def zstd_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {
    "jsonl.lz4": lz4,
    "jsonl": bytes,
    "jsonl.gz": gzip.compress,
    "jsonl.bz2": bz2.compress,
    "jsonl.xz": lzma.compress,
    "jsonl.zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_codec_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(PACKERS[suffix](LINES))
    documents, bad = read(path)
    assert [(d.upstream_id, d.text) for d in documents] == [(g["id"], g["text"]) for g in GOOD]
    assert [d.offset for d in documents[:2]] == [0, len(LINES.split(b"\n")[0]) + 1]
    assert bad == []


@pytest.mark.parametrize("suffix", [s for s in PACKERS if s != "jsonl"])
def test_several_members_are_read_through(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(PACKERS[suffix](LINES[:1000]) + PACKERS[suffix](LINES[1000:]))
    documents, bad = read(path)
    assert (len(documents), bad) == (50, [])


@pytest.mark.parametrize("suffix", [s for s in PACKERS if s != "jsonl"])
def test_truncated_file_keeps_what_came_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    packed = PACKERS[suffix](LINES) + PACKERS[suffix](LINES)
    path.write_bytes(packed[: -len(packed) // 4])
    documents, bad = read(path)
    assert len(documents) >= 50 or suffix == "jsonl.lz4"  # its decoder keeps the last 64 KiB to itself
    assert [b.reason for b in bad] == ["truncated"]
    assert bad[0].offset >= len(LINES) or suffix == "jsonl.lz4"


@pytest.mark.parametrize("suffix", [s for s in PACKERS if s != "jsonl"])
def test_corrupt_data_is_reported_and_what_came_before_is_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    broken = bytearray(PACKERS[suffix](LINES * 3))
    broken[len(broken) // 2 : len(broken) // 2 + 20] = b"\xff" * 20
    path.write_bytes(PACKERS[suffix](LINES) + bytes(broken))
    documents, bad = read(path)
    assert len(documents) >= 50 or suffix == "jsonl.lz4"  # its decoder keeps the last 64 KiB to itself
    assert bad
    assert bad[-1].reason in ("corrupt_data", "truncated")


@pytest.mark.parametrize("suffix", [s for s in PACKERS if s != "jsonl"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(LINES)
    assert [b.reason for b in read(path)[1]] == ["corrupt_data"]


def test_trailing_garbage_after_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES) + b"\0" * 512)
    assert (len(read(path)[0]), read(path)[1]) == (50, [])
    path.write_bytes(gzip.compress(LINES) + b"garbage")
    documents, bad = read(path)
    assert (len(documents), [b.reason for b in bad]) == (50, ["trailing_garbage"])


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz"])
def test_decompression_bomb_is_stopped_by_ratio_and_by_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(PACKERS[suffix](LINES + b" " * (80 << 20)))
    documents, bad = read(path, options={"max_decompression_ratio": 100})
    assert (len(documents), [b.reason for b in bad]) == (50, ["decompression_bomb"])
    path.write_bytes(PACKERS[suffix](LINES + b" " * (4 << 20)))
    documents, bad = read(path, options={"max_decompressed_bytes": 1 << 21})
    assert (len(documents), [b.reason for b in bad]) == (50, ["decompression_bomb"])


def test_each_kind_of_bad_line_has_its_reason_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text":"ok"}',
        b"{not json",
        b'["a list"]',
        b'{"id":1}',
        b'{"text":null}',
        b'{"text":7}',
        b'{"text":""}',
        b"",
        b'{"text":"' + b"x" * 5000 + b'"}',
        b"[" * 100_0,
        b'{"text":"ok too"}\r',
    ]
    path.write_bytes(b"\n".join(lines))
    documents, bad = read(path, options={"max_line_bytes": 2000})
    assert [d.text for d in documents] == ["ok", "ok too"]
    reasons = [
        "bad_json",
        "not_an_object",
        "no_text",
        "no_text",
        "text_not_string",
        "no_text",
        "line_too_long",
        "bad_json",
    ]
    assert [b.reason for b in bad] == reasons
    assert bad[0].offset == 14
    assert bad[0].path == str(path)


def test_a_hundred_megabyte_line_is_read_past_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(b'{"text":"')
        for _ in range(100):
            f.write(b"x" * (1 << 20))
        f.write(b'"}\n{"text":"after"}\n')
    tracemalloc.start()
    documents, bad = read(path, options={"max_line_bytes": 1 << 20})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == ["after"]
    assert [b.reason for b in bad] == ["line_too_long"]
    assert peak < 30 << 20


def test_broken_characters_are_repaired_and_flagged(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text":"bom"}\n{"text":"caf\xe9"}\n{"text":"\\ud83d"}\n'
        b'{"text":"\\ud83d\\ude00 fine"}\n{"text":"nul \\u0000"}'
    )
    documents, bad = read(path)
    assert [d.text for d in documents] == ["bom", "caf\ufffd", "\ufffd", "😀 fine", "nul \0"]
    assert [d.meta.get("charset") for d in documents] == [None, "repaired", "repaired", None, None]
    assert bad == []


def test_fields_are_mapped_and_the_rest_is_meta(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = {
        "id": 7,
        "body": {"raw": "t"},
        "text2": "u",
        "url": "http://x",
        "lang": "zh",
        "score": 0.5,
        "html": "y" * 600,
        "tags": ["a"],
    }
    path.write_text(json.dumps(record))
    (document,), _ = read(path, text_field="body.raw", license="MIT", lang="en")
    assert document == RawDocument("t", "7", str(path), 0, "http://x", None, "MIT", "zh", {"text2": "u", "score": 0.5})
    (document,), _ = read(path, text_field="body.raw", id_field=None, options={"meta_fields": ["tags", "none"]})
    assert (document.upstream_id, document.meta) == (None, {"tags": ["a"]})
    (document,), _ = read(path, options={"text_fields": ["body.raw", "missing", "text2"], "joiner": " | "})
    assert document.text == "t | u"


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", ["list", "values"])
def test_json_files_of_one_list_or_of_values(tmp_path: Path, form: str, indent: int | None) -> None:
    path = tmp_path / "a.json.gz"
    body = json.dumps(GOOD, indent=indent) if form == "list" else "\n".join(json.dumps(g, indent=indent) for g in GOOD)
    path.write_bytes(gzip.compress(body.encode()))
    documents, bad = read(path, format="json")
    assert [d.upstream_id for d in documents] == [g["id"] for g in GOOD]
    assert [d.offset for d in documents] == list(range(50))
    assert bad == []
    if form == "list":
        assert len(read(path, format="jsonl")[0]) == 50


def test_json_list_that_breaks_keeps_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text":"a"}, 5, {"text":"b"}, {"text": oops}]')
    documents, bad = read(path, format="json")
    assert [d.text for d in documents] == ["a", "b"]
    assert [(b.reason, b.offset) for b in bad] == [("not_an_object", 1), ("bad_json", 3)]
    path.write_text('[{"text":"a"}')
    assert [b.reason for b in read(path, format="json")[1]] == ["bad_json"]


def test_json_values_longer_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    long = "中" * 900_000
    path.write_text(json.dumps([{"text": long}, {"text": "b"}, {"text": long}], ensure_ascii=False), "utf-8")
    documents, bad = read(path, format="json")
    assert [len(d.text) for d in documents] == [900_000, 1, 900_000]
    assert bad == []
