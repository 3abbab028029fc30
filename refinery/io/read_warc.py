"""Web archives: WARC and WET by FastWARC, ARC (the format before 2009) by a small reader of our own.

Documents come from ``response`` and ``resource`` records (HTML extracted, plain text as it is) and ``conversion``
records (WET). Requests, metadata, revisits and captures of other MIME types or statuses hold no text and are passed.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from refinery.errors import ConfigError
from refinery.io.charset import decode_document
from refinery.io.compressed import BrokenStreamError, codec_of, limits_from, open_raw, read_chunks
from refinery.io.read_html import MAX_PAGE_BYTES, page_document
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, SplitFile, document_from_text

MIME_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
STATUSES = (200,)
_PAGES = ("text/html", "application/xhtml+xml")
_ARC_HEADER = re.compile(rb"^(\S.*) (\S+) (\d{8,17}) (\S+)(?: .*)? (\d{1,18})$")
_MAX_HEADER_BYTES = 1 << 16
_MAX_HASHED_BYTES = 64 << 20
_CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)", re.IGNORECASE)


def read_warc(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read web archives; the offset is the record's in the stored file (ARC: in the decompressed file).

    Options: ``mime_types``, ``statuses``, ``extractor``, ``main_content``, ``max_document_bytes``, ``digests``
    (``check``, the default: a record whose bytes have none of the digests that it declares is bad; ``ignore``).

    Raises:
        ConfigError: FastWARC is not installed.
    """
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            with open_raw(file.path, storage) as raw:
                if spec.format == "arc" or re.search(r"\.arc(\.\w+)?$", file.name.lower()):
                    yield from _arc_documents(spec, file, raw)
                else:
                    yield from _warc_documents(spec, file, raw)
        except BrokenStreamError as error:
            yield BadRecord(file.name, error.offset, error.reason, error.detail)
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")


def _warc_documents(spec: InputSpec, file: SplitFile, raw: BinaryIO) -> Iterator[RawDocument | BadRecord]:
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType  # noqa: PLC0415 - only web archives need it
    except ImportError as error:
        raise ConfigError(f"web archives need FastWARC ({error}); pip install fastwarc") from error
    kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    last, last_bad = -1, -1
    # a second pass goes on after a header that strict parsing refuses, in the lenient mode that seeks the next record
    for lenient in (False, True):
        raw.seek(0)
        try:
            records = ArchiveIterator(raw, record_types=kinds, parse_http=False, quirks_mode=lenient)
            for record in records:
                if record.stream_pos <= last:
                    continue
                last = record.stream_pos
                document = _checked_document(spec, file.name, record)
                if isinstance(document, BadRecord):
                    last_bad = last
                if document is not None:
                    yield document
        except OSError as error:
            if not lenient and last_bad != max(last, 0):  # a body that breaks off stops the iterator, too
                reason = "truncated" if _is_cut_off(error) else "bad_record"
                yield BadRecord(file.name, max(last, 0), reason, f"after this record: {error}"[:120])
            continue
        return


def _is_cut_off(error: OSError) -> bool:
    return any(word in str(error).lower() for word in ("eof", "truncat", "unexpected end", "incomplete"))


def _checked_document(spec: InputSpec, name: str, record: Any) -> RawDocument | BadRecord | None:
    """Return a record's document if its digests allow; digests are over the bytes as stored, so before decoding."""
    wrong = None
    try:
        if spec.options.get("digests", "check") == "check":
            wrong = _wrong_digest(record)
        if record.is_http:
            record.parse_http(auto_decode="all")
    except (OSError, ValueError, EOFError) as error:
        return BadRecord(name, int(record.stream_pos), "bad_http", str(error)[:120])
    document = _document_of_record(spec, name, record)
    if wrong and isinstance(document, RawDocument):
        return BadRecord(name, int(record.stream_pos), "wrong_digest", wrong)
    return document


def _wrong_digest(record: Any) -> str | None:
    """Say which digest is wrong; None where one is right, or none can be checked.

    A right payload outweighs a wrong block: crawlers rewrite HTTP heads, and some lose the chunking of bodies. The
    payload is what stands behind the HTTP head as stored, so it is hashed here: the library's own check leaves a reader
    that cannot decode any more. Records too large for a document are not hashed: they are refused for that.
    """
    block = record.headers.get("WARC-Block-Digest")
    payload = record.headers.get("WARC-Payload-Digest") if record.is_http else None
    if not (block or payload) or record.content_length > _MAX_HASHED_BYTES:
        return None
    if block and _algorithm(block) and record.verify_block_digest(consume=False):
        return None
    checked = block if block and _algorithm(block) else None
    algorithm = _algorithm(payload or "")
    if payload and algorithm:
        record.freeze()
        stored = record.reader.read()
        record.reader.seek(0)
        digest = hashlib.new(algorithm, stored.partition(b"\r\n\r\n")[2]).digest()
        declared = payload.partition(":")[2].strip()
        if declared.lower() == digest.hex() or declared.upper() == base64.b32encode(digest).decode():
            return None
        checked = checked or payload
    return f"declares {checked}" if checked else None


def _algorithm(digest: str) -> str | None:
    name = digest.partition(":")[0].strip().lower().replace("-", "")
    return name if name in ("sha1", "md5", "sha256", "sha512") else None


def _document_of_record(spec: InputSpec, name: str, record: Any) -> RawDocument | BadRecord | None:
    """Return the document of a FastWARC record, or None if the record holds none by its kind."""
    where = (name, int(record.stream_pos))
    charset: str | None
    if record.headers.get("WARC-Type") == "conversion":
        mime, charset = "text/plain", "utf-8"
    elif record.http_headers is not None:
        if record.http_headers.status_code not in spec.options.get("statuses", STATUSES):
            return None
        mime, charset = record.http_content_type or "", record.http_charset
    else:
        content_type = record.headers.get("Content-Type") or ""
        mime, charset = _mime_of(content_type)
    if mime.lower() not in spec.options.get("mime_types", MIME_TYPES):
        return None
    limit = int(spec.options.get("max_document_bytes", MAX_PAGE_BYTES))
    try:
        body = record.reader.read(limit + 1)
    except (OSError, ValueError, EOFError) as error:
        return BadRecord(*where, "bad_http", str(error)[:120])
    date = record.record_date
    facts = {
        "upstream_id": record.headers.get("WARC-Record-ID"),
        "url": (record.headers.get("WARC-Target-URI") or "").strip("<>") or None,
        "date": date.isoformat() if date is not None else None,
    }
    return _document_of_body(spec, where, body, limit, {"mime": mime, "charset": charset, **facts})


def _document_of_body(
    spec: InputSpec, where: tuple[str, int], body: bytes, limit: int, facts: dict[str, Any]
) -> RawDocument | BadRecord:
    if len(body) > limit:
        return BadRecord(*where, "document_too_long", f"over {limit} bytes")
    mime = facts.pop("mime").lower()
    if mime in _PAGES:
        return page_document(spec, body, where, **facts)
    text, how = decode_document(body, facts.pop("charset"))
    return document_from_text(spec, text, *where, meta={"charset": how} if how else None, **facts)


def _mime_of(content_type: str) -> tuple[str, str | None]:
    charset = _CHARSET.search(content_type)
    return content_type.partition(";")[0].strip().lower(), charset.group(1) if charset else None


def _arc_documents(spec: InputSpec, file: SplitFile, raw: BinaryIO) -> Iterator[RawDocument | BadRecord]:
    """Read an ARC file: a header line ``URL IP date type length``, then that many bytes, then a line end."""
    stream = _Buffer(read_chunks(raw, codec_of(file.name), limits_from(spec.options)))
    limit = int(spec.options.get("max_document_bytes", MAX_PAGE_BYTES))
    while True:
        offset = stream.offset
        line = stream.line(_MAX_HEADER_BYTES)
        if line is None:
            return
        if not line.strip():
            continue
        header = _ARC_HEADER.match(line.rstrip(b"\r"))
        if header is None:
            # no length, so the next header has to be looked for line by line
            yield BadRecord(file.name, offset, "bad_record", line[:80].decode("utf-8", "replace"))
            stream.seek_line(_ARC_HEADER)
            continue
        url, length = header.group(1).decode("utf-8", "replace"), int(header.group(5))
        block = stream.take(length, keep=limit + _MAX_HEADER_BYTES)
        if block is None:
            yield BadRecord(file.name, offset, "truncated", f"the record declares {length} bytes")
            return
        if url.startswith(("filedesc:", "dns:")):
            continue
        date = header.group(3).decode()
        document = _document_of_arc_block(spec, (file.name, offset), block, (url, date, limit))
        if document is not None:
            yield document


def _document_of_arc_block(
    spec: InputSpec, where: tuple[str, int], block: bytes, about: tuple[str, str, int]
) -> RawDocument | BadRecord | None:
    url, date, limit = about
    head, blank, body = block.partition(b"\r\n\r\n")
    if not blank or b"\n\n" in head:
        head, blank, body = block.partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()
    status = re.match(r"HTTP/[\d.]+ +(\d{3})", lines[0]) if lines else None
    if not blank or status is None:
        return BadRecord(*where, "bad_http", "the capture has no HTTP head")
    if int(status.group(1)) not in spec.options.get("statuses", STATUSES):
        return None
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    mime, charset = _mime_of(fields.get("content-type", ""))
    if mime not in spec.options.get("mime_types", MIME_TYPES):
        return None
    try:
        body = _decoded_body(body, fields, limit)
    except (ValueError, zlib.error) as error:
        return BadRecord(*where, "bad_http", str(error)[:120])
    day = f"{date[:4]}-{date[4:6]}-{date[6:8]}"
    if len(date) == 14:
        day += f"T{date[8:10]}:{date[10:12]}:{date[12:14]}+00:00"
    return _document_of_body(spec, where, body, limit, {"mime": mime, "charset": charset, "url": url, "date": day})


def _decoded_body(body: bytes, fields: Mapping[str, str], limit: int) -> bytes:
    if fields.get("transfer-encoding", "").lower() == "chunked":
        parts: list[bytes] = []
        rest = body
        while rest:
            size_line, _, rest = rest.partition(b"\r\n")
            size = int(size_line.partition(b";")[0] or b"0", 16)
            if size == 0:
                break
            parts.append(rest[:size])
            rest = rest[size:].removeprefix(b"\r\n")
        body = b"".join(parts)
    if fields.get("content-encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
        body = zlib.decompressobj(wbits=47).decompress(body, limit + 1)
    return body


class _Buffer:
    """Lines and counted blocks from a stream of chunks, in memory bounded by what is kept."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""
        self._at = 0
        self.offset = 0

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._held = self._held[self._at :] + chunk
        self._at = 0
        return True

    def line(self, limit: int) -> bytes | None:
        """Return the next line without its end (cut at `limit`), or None at the end of the stream."""
        while (stop := self._held.find(b"\n", self._at)) < 0 and len(self._held) - self._at < limit:
            if not self._more():
                break
        if self._at == len(self._held):
            return None
        stop = stop if stop >= 0 else min(len(self._held), self._at + limit) - 1
        line = self._held[self._at : stop + 1]
        self.offset += len(line)
        self._at = stop + 1
        return line.rstrip(b"\n")

    def take(self, size: int, keep: int) -> bytes | None:
        """Read past `size` bytes and return the first `keep` of them, or None if the stream ends before."""
        parts: list[bytes] = []
        left, wanted = size, keep
        while left:
            if self._at == len(self._held) and not self._more():
                return None
            part = self._held[self._at : self._at + left]
            self._at += len(part)
            self.offset += len(part)
            left -= len(part)
            if wanted > 0:
                parts.append(part[:wanted])
                wanted -= len(parts[-1])
        return b"".join(parts)

    def seek_line(self, pattern: re.Pattern[bytes]) -> None:
        """Read past lines until the next one matches."""
        while True:
            mark = (self._held, self._at, self.offset)
            line = self.line(_MAX_HEADER_BYTES)
            if line is None:
                return
            if pattern.match(line.rstrip(b"\r")):
                # step back; only safe within the held bytes, which still hold the whole line
                self.offset = mark[2]
                self._at -= len(line) + 1
                return
