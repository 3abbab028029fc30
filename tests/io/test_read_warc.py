from __future__ import annotations

import base64
import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from refinery.io.sources import BadRecord, InputSpec, RawDocument, plan_splits, read_split

pytest.importorskip("fastwarc")
pytest.importorskip("resiliparse")

TEXT = "A page about rivers, with enough words in it to look like real content to any extractor. "
HTML = f"<html><body><main><p>{TEXT * 4}</p></main></body></html>".encode()


def http(body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def warc(kind: str, block: bytes, number: int, content_type: str = "application/http; msgtype=response") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
        f"WARC-Date: 2024-05-06T07:08:09Z\r\nWARC-Target-URI: http://site.org/{number}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def arc(block: bytes, url: str, length: int | None = None) -> bytes:
    return (
        f"{url} 1.2.3.4 20080430204825 text/html {len(block) if length is None else length}\n".encode() + block + b"\n"
    )


RECORDS = [
    warc("warcinfo", b"software: none\r\n", 0, "application/warc-fields"),
    warc("response", http(HTML), 1),
    warc("request", b"GET / HTTP/1.1\r\n\r\n", 2, "application/http; msgtype=request"),
    warc("response", http(b"\x89PNG", "image/png"), 3),
    warc("response", http(HTML, status="404 Not Found"), 4),
    warc("response", http(b"plain words", "text/plain"), 5),
    warc("conversion", "wet text 中文".encode(), 6, "text/plain"),
    warc("resource", HTML, 7, "text/html"),
    warc("response", http(gzip.compress(HTML), extra="Content-Encoding: gzip\r\n"), 8),
]


def read(path: Path, **options: Any) -> tuple[list[RawDocument], list[BadRecord]]:
    spec = InputSpec(source="s", domain="d", role="pool", format="warc", paths=(str(path),), options=options)
    records = [r for split in plan_splits(spec, 1 << 26) for r in read_split(spec, split)]
    return [r for r in records if isinstance(r, RawDocument)], [r for r in records if isinstance(r, BadRecord)]


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".lz4": lz4}


@pytest.mark.parametrize("packer", PACKERS)
def test_records_with_text_become_documents(tmp_path: Path, packer: str) -> None:
    path = tmp_path / f"a.warc{packer}"
    path.write_bytes(b"".join(PACKERS[packer](r) for r in RECORDS))
    documents, bad = read(path)
    assert [d.url for d in documents] == [f"http://site.org/{n}" for n in (1, 5, 6, 7, 8)]
    assert documents[0].upstream_id == f"<urn:uuid:{1:032x}>"
    assert documents[0].date == "2024-05-06T07:08:09+00:00"
    assert all("rivers" in documents[i].text for i in (0, 3, 4))
    assert (documents[1].text, documents[2].text) == ("plain words", "wet text 中文")
    assert len({d.offset for d in documents}) == 5
    assert bad == []


@pytest.mark.parametrize(
    ("form", "name", "count"), [("wet", "a.warc.wet", 1), ("arc", "odd-name", 1), ("warc", "b.arc", 1)]
)
def test_wet_and_arc_are_formats_of_their_own(tmp_path: Path, form: str, name: str, count: int) -> None:
    path = tmp_path / name
    path.write_bytes(RECORDS[6] if form == "wet" else arc(http(b"plain", "text/plain"), "http://site.org/plain"))
    spec = InputSpec(source="s", domain="d", role="pool", format=form, paths=(str(path),))
    records = [r for split in plan_splits(spec, 1 << 26) for r in read_split(spec, split)]
    assert [type(r) for r in records] == [RawDocument] * count


def test_mime_and_status_filters_are_options(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(RECORDS))
    assert len(read(path, statuses=[404])[0]) == 3  # the 404, and the two records that have no status
    assert len(read(path, mime_types=["text/plain"])[0]) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_archive_keeps_what_came_before(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    data = b"".join(gzip.compress(r) if packed else r for r in RECORDS)
    path.write_bytes(data[:-60])
    documents, bad = read(path)
    assert [d.url for d in documents][:4] == [f"http://site.org/{n}" for n in (1, 5, 6, 7)]
    assert len(documents) + len(bad) >= 5


def test_damage_in_the_middle_is_counted_and_later_records_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join([*RECORDS[:2], b"garbage that is no header\r\n" * 5, *RECORDS[5:7]]))
    documents, bad = read(path)
    assert [d.url for d in documents] == [f"http://site.org/{n}" for n in (1, 5, 6)]
    assert [b.reason for b in bad] == ["bad_record"]


def test_large_captures_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    bomb = http(gzip.compress(b" " * (64 << 20)), "text/plain", extra="Content-Encoding: gzip\r\n")
    path.write_bytes(gzip.compress(warc("response", bomb, 1)) + gzip.compress(RECORDS[5]))
    documents, bad = read(path, max_document_bytes=1 << 20)
    assert [d.text for d in documents] == ["plain words"]
    assert [b.reason for b in bad] == ["document_too_long"]


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"not gzip at all")
    documents, bad = read(path)
    assert (documents, [b.reason for b in bad]) == ([], ["bad_record"])


def digested(body: bytes, block: str | None, payload: str | None, number: int = 1, extra: str = "") -> bytes:
    """Return a capture with the digests named: right, wrong, or None for no such field."""
    stored = http(body, "text/plain", extra=extra)
    fields = ""
    for name, kind, data in (("Block", block, stored), ("Payload", payload, body)):
        digest = base64.b32encode(hashlib.sha1(data if kind == "right" else b"?").digest()).decode()
        fields += f"WARC-{name}-Digest: sha1:{digest}\r\n" if kind else ""
    return warc("response", stored, number).replace(b"WARC-Date", fields.encode() + b"WARC-Date", 1)


@pytest.mark.parametrize(
    ("block", "payload", "ok"),
    [
        ("right", "right", True), ("right", "wrong", True), ("wrong", "right", True), ("wrong", "wrong", False),
        ("wrong", None, False), (None, "wrong", False), (None, "right", True), (None, None, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [False, True])
def test_wrong_digests_are_counted_with_their_place(
    tmp_path: Path, block: str | None, payload: str | None, ok: bool, zipped: bool
) -> None:
    path = tmp_path / "a.warc"
    body, extra = (gzip.compress(b"plain words"), "Content-Encoding: gzip\r\n") if zipped else (b"plain words", "")
    path.write_bytes(RECORDS[5] + digested(body, block, payload, extra=extra) + RECORDS[6])
    documents, bad = read(path)
    assert [d.text for d in documents] == ["plain words"] * (1 + ok) + ["wet text 中文"]
    assert [(b.reason, b.offset) for b in bad] == ([] if ok else [("wrong_digest", len(RECORDS[5]))])
    assert len(read(path, digests="ignore")[0]) == 3


@pytest.mark.parametrize("chunks", [b"zz\r\nplain words\r\n0\r\n\r\n", b"ff\r\nplain", b"-5\r\nplain\r\n"])
def test_bad_chunked_encoding_never_stops_the_file(tmp_path: Path, chunks: bytes) -> None:
    path = tmp_path / "a.warc"
    broken = http(chunks, "text/plain", extra="Transfer-Encoding: chunked\r\n")
    path.write_bytes(warc("response", broken, 1) + RECORDS[5])
    documents, bad = read(path)
    assert documents[-1].text == "plain words"
    assert len(documents) + len(bad) == 2
    assert {b.reason for b in bad} <= {"bad_http", "no_text"}
    assert all(b.offset == 0 for b in bad)


@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz", "a.arc.zst", "a.arc.lz4"])
def test_arc_files(tmp_path: Path, name: str) -> None:
    version = b"1 0 InternetArchive\nURL IP-address Archive-date Content-type Archive-length\n"
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (HTML[:50], HTML[50:])) + b"0\r\n\r\n"
    records = [
        arc(version, "filedesc://a.arc"),
        arc(http(HTML), "http://site.org/with space in it"),
        arc(http(chunked, extra="Transfer-Encoding: chunked\r\n"), "http://site.org/chunked"),
        arc(http(gzip.compress(HTML), extra="Content-Encoding: gzip\r\n"), "http://site.org/gzip"),
        arc(http(b"zz\r\nbad", extra="Transfer-Encoding: chunked\r\n"), "http://site.org/bad-chunks"),
        arc(http(b"gone", status="404 Not Found"), "http://site.org/gone"),
        b"this is no header line\nnor this\n",
        arc(b"no http head", "http://site.org/headless"),
        arc(http(b"plain", "text/plain"), "http://site.org/plain"),
        arc(http(b"cut", "text/plain"), "http://site.org/cut", length=5000),
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(PACKERS[path.suffix.replace(".arc", "")](r) for r in records))
    documents, bad = read(path)
    names = [(d.url or "").rpartition("/")[2] for d in documents]
    assert names == ["with space in it", "chunked", "gzip", "plain"]
    assert documents[0].date == "2008-04-30T20:48:25+00:00"
    assert [b.reason for b in bad] == ["bad_http", "bad_record", "bad_http", "truncated"]


def test_real_archives_all_run_and_arc_equals_warc(shared_data: Path) -> None:
    counts = {}
    texts = {}
    for path in sorted((shared_data / "web").rglob("*")):
        if path.suffix in (".warc", ".arc") or path.name.endswith((".warc.gz", ".arc.gz", ".wet.gz")):
            documents, bad = read(path)
            counts[path.name] = (len(documents), dict(Counter(b.reason for b in bad)))
            texts[path.name] = [d.text for d in documents]
    assert counts["IAH-20080430204825-00000-blackbook.warc.gz"][0] == 128
    assert sorted(texts["IAH-20080430204825-00000-blackbook.warc.gz"]) == sorted(
        texts["IAH-20080430204825-00000-blackbook.arc.gz"]
    )
    assert counts["derived.warc.wet.gz"] == (224, {})
    assert counts["readability-pages.repacked.warc.gz"][0] >= 129
    assert counts["example.warc"] == counts["example.warc.gz"] == counts["example.arc"] == (1, {})
    assert counts["example-trunc.warc"] == (0, {"wrong_digest": 1})
    assert counts["example-wrong-chunks.warc.gz"] == (1, {})  # the payload is what was crawled, the block is not
