from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from refinery.io.read_html import extract_text
from refinery.io.sources import BadRecord, InputSpec, RawDocument, plan_splits, read_split

pytest.importorskip("resiliparse")

PARAGRAPH = "The quick brown fox jumps over the lazy dog, and then it does so again in a longer sentence. " * 3
PAGE = f"""<!doctype html><html lang="en-GB"><head><title>T</title><script>var x = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<main><article><h1>Heading</h1><p>{PARAGRAPH}</p><p>中文段落。</p></article></main>
<footer>Copyright</footer></body></html>"""


def read(path: Path, **options: Any) -> list[RawDocument | BadRecord]:
    spec = InputSpec(source="s", domain="d", role="pool", format="html", paths=(str(path),), options=options)
    return [r for split in plan_splits(spec, 1 << 26) for r in read_split(spec, split)]


def test_main_content_is_extracted_without_script_and_navigation(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(PAGE.encode()))
    documents = read(tmp_path)
    assert len(documents) == 2
    for document in documents:
        assert isinstance(document, RawDocument)
        assert "quick brown fox" in document.text
        assert "中文段落" in document.text
        assert "var x" not in document.text
        assert "About us" not in document.text
        assert document.meta == {"html_lang": "en-GB"}
        assert document.lang is None


def test_whole_page_on_request() -> None:
    assert "About us" in extract_text(PAGE, {"main_content": False})


def test_trafilatura_by_one_word(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    (document,) = read(tmp_path, extractor="trafilatura")
    assert isinstance(document, RawDocument)
    assert "quick brown fox" in document.text


def test_charset_of_the_meta_element_counts(tmp_path: Path) -> None:
    page = PAGE.replace("<head>", '<head><meta charset="gb2312">')
    (tmp_path / "a.html").write_bytes(page.encode("gb18030"))
    (document,) = read(tmp_path)
    assert isinstance(document, RawDocument)
    assert "中文段落" in document.text
    assert document.meta["charset"] == "detected:gb18030"


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", "empty_file"), (b"<html><body></body></html>", "no_text"), (b"<p>" + b"x" * 3000, "document_too_long")],
)
def test_pages_without_text_are_bad_records(tmp_path: Path, body: bytes, reason: str) -> None:
    (tmp_path / "a.html").write_bytes(body)
    (tmp_path / "b.html").write_text("<p>fine " + "words " * 100)
    records = read(tmp_path, max_document_bytes=2000, main_content=False)
    assert isinstance(records[0], BadRecord)
    assert records[0].reason == reason
    assert isinstance(records[1], RawDocument)


def test_hostile_markup_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "deep.html").write_text("<div>" * 20_000 + "deep")
    (tmp_path / "wide.html").write_bytes(codecs.BOM_UTF16_LE + ("<div>" * 20_000 + "deep").encode("utf-16-le"))
    (tmp_path / "nul.html").write_bytes(b"<p>a\0b\xff\xfe<p>" * 100)
    (tmp_path / "open.html").write_text("<p <a <!-- <script> text")
    (tmp_path / "tags.html").write_text("<p>one <b>word</b><br>" * 20_000)
    records = {Path(r.path).name: r for r in read(tmp_path, main_content=False)}
    assert len(records) == 5
    assert isinstance(records["deep.html"], BadRecord)
    assert isinstance(records["wide.html"], BadRecord)
    assert isinstance(records["tags.html"], RawDocument)


def test_real_pages_hold_most_of_the_checked_main_text(shared_data: Path) -> None:
    found = []
    with gzip.open(shared_data / "html" / "readability-pages.jsonl.gz") as f:
        for line in f:
            page = json.loads(line)
            expected = set(extract_text(page["expected_main_html"], {"main_content": False}).split())
            got = set(extract_text(page["html"], {}).split())
            if expected:
                found.append(len(expected & got) / len(expected))
    assert sorted(found)[len(found) // 2] > 0.9
