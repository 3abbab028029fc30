"""HTML pages as files, and the text of a page for every reader that meets HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refinery.errors import ConfigError
from refinery.io.charset import decode_document
from refinery.io.compressed import BrokenStreamError, codec_of, limits_from, open_raw, read_all, read_chunks
from refinery.io.records import BadRecord, InputSpec, RawDocument, Split, document_from_text

MAX_PAGE_BYTES = 16 << 20
"""Default of ``max_document_bytes`` for pages: longer ones are dumps; parsing takes many times their size."""

_HTML_LANG = re.compile(r"<html[^>]{0,500}?\slang=[\"']?([A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,2})", re.IGNORECASE)
_HEAD_CHARS = 4096
MAX_DEPTH = 2000
"""Open elements inside one another. Browsers stop at 512; extraction is quadratic in depth (20,000 took 9 s)."""
_MANY_TAGS = 4 * MAX_DEPTH
_NESTING_TAG = re.compile(
    r"<(/?)(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr|p|li|td|tr|th|dd|dt|option)\b)[a-z]",
    re.IGNORECASE,
)


class ExtractionError(Exception):
    """A page cannot be parsed; internal to the readers, which turn it into a bad record."""


def extract_text(page: str, options: Mapping[str, Any]) -> str:
    """Return the readable text of a page; "" where it holds none.

    Args:
        page: HTML, decoded.
        options: ``extractor`` (resiliparse, default, or trafilatura: 12-16 times slower, better on news pages) and
            ``main_content`` (default true: without navigation, headers, footers).

    Raises:
        ExtractionError: the extraction library refuses the page.
        ConfigError: the library is not installed.
    """
    main_content = bool(options.get("main_content", True))
    name = options.get("extractor", "resiliparse")
    try:
        if name == "trafilatura":
            import trafilatura  # noqa: PLC0415 - slow to import, and only here

            if not main_content:
                return str(trafilatura.html2txt(page) or "")
            return str(trafilatura.extract(page, include_comments=False) or "")
        from resiliparse.extract.html2text import extract_plain_text  # noqa: PLC0415

        return str(extract_plain_text(page, main_content=main_content, alt_texts=False))
    except ImportError as error:
        raise ConfigError(f"extractor {name!r} is not installed ({error}); pip install {name}") from error
    except Exception as error:
        # third-party parsers on hostile input: whatever they raise is about this page alone
        raise ExtractionError(f"{type(error).__name__}: {error}"[:120]) from error


def _check_depth(page: str, utf8: bytes | None) -> None:
    """Refuse a page that nests too deep; counting tags in bytes, where the page has some, takes a fifth of the time.

    Raises:
        ExtractionError: elements nest deeper than `MAX_DEPTH`.
    """
    stored = np.frombuffer(utf8, dtype=np.uint8) if utf8 is not None else None
    tags = page.count("<") if stored is None else np.count_nonzero(stored == ord("<"))
    if tags > _MANY_TAGS and _depth(page) > MAX_DEPTH:
        raise ExtractionError(f"elements nest over {MAX_DEPTH} deep")


def _depth(page: str) -> int:
    """Return about how deep elements nest; elements that HTML closes by itself do not count."""
    steps = np.array([-1 if slash else 1 for slash in _NESTING_TAG.findall(page)], dtype=np.int64)
    depths = np.concatenate(([0], np.cumsum(steps)))
    return int((depths - np.minimum.accumulate(depths)).max())  # what is closed without having been opened is skipped


def declared_lang(page: str) -> str | None:
    """Return the ``lang`` of a page's html element: a hint that goes into ``meta``, often wrong on the web."""
    match = _HTML_LANG.search(page, 0, _HEAD_CHARS)
    return match.group(1) if match else None


def page_document(spec: InputSpec, raw: bytes, where: tuple[str, int], **facts: Any) -> RawDocument | BadRecord:
    """Decode a page, extract its text and make a document of it.

    Args:
        spec: the input.
        raw: the page as stored.
        where: file name and offset.
        **facts: ``charset`` as HTTP declares it, and what `document_from_text` takes.
    """
    page, charset = decode_document(raw, facts.pop("charset", None) or spec.options.get("encoding"))
    try:
        _check_depth(page, None if charset else raw)
        text = extract_text(page, spec.options)
    except ExtractionError as error:
        return BadRecord(*where, "bad_html", str(error))
    meta: dict[str, Any] = {}
    if charset:
        meta["charset"] = charset
    lang = declared_lang(page)
    if lang:
        meta["html_lang"] = lang
    return document_from_text(spec, text, *where, meta=meta, **facts)


def read_html(spec: InputSpec, split: Split, storage: Mapping[str, Any] | None) -> Iterator[RawDocument | BadRecord]:
    """Read HTML files, one document each."""
    limit = int(spec.options.get("max_document_bytes", MAX_PAGE_BYTES))
    for file in split.files:
        if file.size_bytes == 0:
            yield BadRecord(file.name, 0, "empty_file")
            continue
        try:
            with open_raw(file.path, storage) as raw:
                data = read_all(read_chunks(raw, codec_of(file.name), limits_from(spec.options)), limit)
        except BrokenStreamError as error:
            yield BadRecord(file.name, error.offset, error.reason, error.detail)
            continue
        except FileNotFoundError:
            yield BadRecord(file.name, 0, "missing_file")
            continue
        if data is None:
            yield BadRecord(file.name, 0, "document_too_long", f"over {limit} bytes")
        else:
            yield page_document(spec, data, (file.name, 0))
