from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from refinery.errors import ConfigError
from refinery.io.sources import BadRecord, InputSpec, RawDocument, plan_splits, read_split


def read(path: Path, text_field: str = "text", **options: Any) -> tuple[list[RawDocument], list[BadRecord]]:
    spec = InputSpec(
        source="s", domain="d", role="pool", format="csv", paths=(str(path),), text_field=text_field, options=options
    )
    records = [r for split in plan_splits(spec, 1 << 26) for r in read_split(spec, split)]
    return [r for r in records if isinstance(r, RawDocument)], [r for r in records if isinstance(r, BadRecord)]


def test_header_quotes_line_breaks_and_meta(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress('\ufeffid,text,label\r\n7,"two\nlines, ""quoted""",x\r\n\r\n8,中文,y'.encode()))
    documents, bad = read(path)
    assert [(d.upstream_id, d.text, d.meta) for d in documents] == [
        ("7", 'two\nlines, "quoted"', {"label": "x"}),
        ("8", "中文", {"label": "y"}),
    ]
    assert bad == []


def test_no_header_joined_fields_and_entities(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("3\tTitle\tFish &amp; chips\n")
    options = {"header": False, "columns": ["class", "title", "body"], "text_fields": ["title", "body"]}
    (document,), _ = read(path, joiner=": ", unescape_html=True, **options)
    assert (document.text, document.meta) == ("Title: Fish & chips", {"class": "3"})


def test_bad_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n2\n3,b,c\n4,\n5," + b"x" * 500 + b"\n6,caf\xe9\n7,z\n")
    documents, bad = read(path, max_line_bytes=100)
    assert [d.upstream_id for d in documents] == ["1", "6", "7"]
    assert documents[1].meta["charset"] == "repaired"
    assert sorted(b.reason for b in bad) == ["bad_csv", "bad_csv", "line_too_long", "no_text"]


def test_an_unclosed_quote_is_stopped_by_the_field_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"never closed\n' + "line of text\n" * 1000)
    documents, bad = read(path, max_line_bytes=2000)
    assert bad
    assert {b.reason for b in bad} == {"bad_csv"}
    assert documents


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,a\n")
    with pytest.raises(ConfigError, match="no text column 'text'; its columns are id, body"):
        read(path)
    with pytest.raises(ConfigError, match=r"name its fields in options\.columns"):
        read(path, header=False)
