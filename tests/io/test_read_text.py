from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import pytest

from refinery.io.sources import BadRecord, InputSpec, RawDocument, plan_splits, read_split


def read(path: Path, part_bytes: int = 1 << 26, **options: Any) -> tuple[list[RawDocument], list[BadRecord]]:
    spec = InputSpec(source="s", domain="d", role="pool", format="text", paths=(str(path),), options=options)
    records = [r for split in plan_splits(spec, part_bytes) for r in read_split(spec, split)]
    return [r for r in records if isinstance(r, RawDocument)], [r for r in records if isinstance(r, BadRecord)]


BODY = "first line\nsecond\n\n \nthird 中文\r\n\n\nlast"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    ("unit", "texts", "offsets"),
    [
        ("file", [BODY], [0]),
        ("line", ["first line", "second", "third 中文", "last"], [0, 11, 21, 37]),
        ("paragraph", ["first line\nsecond", "third 中文", "last"], [0, 21, 37]),
    ],
)
def test_units(tmp_path: Path, name: str, unit: str, texts: list[str], offsets: list[int]) -> None:
    path = tmp_path / name
    raw = BODY.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    documents, bad = read(path, unit=unit)
    assert [d.text for d in documents] == texts
    assert [d.offset for d in documents] == offsets
    assert bad == []


def test_lines_split_by_bytes_give_the_same_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} é" for i in range(200)), "utf-8")
    assert read(path, 100, unit="line") == read(path, unit="line")


@pytest.mark.parametrize(
    ("raw", "declared", "text", "charset"),
    [
        ("中文编码，很常见".encode("gb18030"), "gb2312", "中文编码，很常见", "declared:gb18030"),
        ("naïve".encode("latin-1"), "iso-8859-1", "naïve", "declared:cp1252"),
        ("utf-16 中".encode("utf-16"), None, "utf-16 中", "bom:utf-16-le"),
        ("with mark".encode("utf-8-sig"), None, "with mark", None),
        ("valid é".encode(), "latin-1", "valid é", None),
    ],
)
def test_charsets(tmp_path: Path, raw: bytes, declared: str | None, text: str, charset: str | None) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    (document,), _ = read(path, **({"encoding": declared} if declared else {}))
    assert (document.text, document.meta.get("charset")) == (text, charset)


def test_undeclared_charset_is_never_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("这是一个没有声明编码的中文网页，内容足够长，可以猜出来。".encode("gb18030") * 5)
    (document,), bad = read(path)
    assert document.meta["charset"] in ("detected:gb18030", "repaired")
    assert bad == []
    path.write_bytes(bytes(range(256)))
    assert len(read(path)[0]) == 1


def test_too_long_and_blank_units_are_bad_records(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    assert [b.reason for b in read(path, max_document_bytes=50)[1]] == ["document_too_long"]
    assert [b.reason for b in read(path, unit="line", max_line_bytes=50)[1]] == ["line_too_long"]
    path.write_text("ab\ncd\nef\n\ngh")
    documents, bad = read(path, unit="paragraph", max_document_bytes=6)
    assert ([d.text for d in documents], [b.reason for b in bad]) == (["gh"], ["document_too_long"])
    path.write_text(" \n ")
    assert [b.reason for b in read(path)[1]] == ["no_text"]


def test_truncated_gzip_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(b"\n".join(b"line %d" % i for i in range(5000)))
    path.write_bytes(packed[: len(packed) // 2])
    documents, bad = read(path, unit="line")
    assert len(documents) > 100
    assert [b.reason for b in bad] == ["truncated"]


def test_zip_members_in_name_order_and_nothing_is_extracted(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", "bee")
        archive.writestr("../../escape.txt", "evil")
        archive.writestr("folder/", "")
        archive.writestr("a/c.txt", "sea")
    documents, bad = read(path)
    assert [(d.path.split("!")[1], d.text) for d in documents] == [
        ("../../escape.txt", "evil"),
        ("a/c.txt", "sea"),
        ("b.txt", "bee"),
    ]
    assert bad == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "sub"]


def test_bad_zips(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK nonsense")
    assert [b.reason for b in read(path)[1]] == ["bad_zip"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.txt", b" " * (80 << 20))
        archive.writestr("fine.txt", "fine")
    documents, bad = read(path)
    assert ([d.text for d in documents], [b.reason for b in bad]) == (["fine"], ["decompression_bomb"])
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xa0"))
    assert [b.reason for b in read(path)[1]] == ["bad_zip"]  # needs a version of zip that there is not
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "abcdefgh" * 10)
        archive.writestr("b.txt", "good")
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abcdefgX", 1))
    documents, bad = read(path)
    assert ([d.text for d in documents], [b.reason for b in bad]) == (["good"], ["bad_zip"])
