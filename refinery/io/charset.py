"""From bytes to text: what a file says of its encoding, what the bytes say, and what is done when both are wrong."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import cast

from refinery.errors import ConfigError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

MAX_DETECT_BYTES = 1 << 16


def decode_line(raw: bytes) -> tuple[str, str]:
    """Decode one line of a UTF-8 file; a line is too short to guess another encoding from.

    Returns: the text, and "" or "repaired" (invalid bytes became U+FFFD).
    """
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), "repaired"


def decode_document(raw: bytes, declared: str | None = None) -> tuple[str, str]:
    """Decode a whole document.

    Order: byte-order mark; valid UTF-8 (a text that decodes as UTF-8 by chance is so rare that it beats a wrong
    header); the declared encoding; the detector of Resiliparse (uchardet), if installed; UTF-8 with replacement.
    UTF-8 is tried after the declaration for encodings that are themselves ASCII (ISO-2022-JP, HZ).

    Returns: the text, and how it was found: "" for UTF-8, else "bom:…", "declared:…", "detected:…" or "repaired".
    """
    for mark, name in _BOMS:
        if raw.startswith(mark):
            text = raw[len(mark) :].decode(name, "replace")
            return text, "" if name == "utf-8" else f"bom:{name}"
    label = _codec_name(declared)
    if label and label.startswith(("iso2022", "hz", "utf-16", "utf-32")):
        try:
            return raw.decode(label), f"declared:{label}"
        except UnicodeError:
            pass
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    for candidate, how in ((label, "declared"), (_detect(raw), "detected")):
        if candidate and candidate != "utf-8":
            try:
                return raw.decode(candidate), f"{how}:{candidate}"
            except (UnicodeError, LookupError):
                continue
    return raw.decode("utf-8", "replace"), "repaired"


def _codec_name(label: str | None) -> str | None:
    """Map a web label to a Python codec: Latin-1 means Windows-1252 and GB2312 means GB18030, as browsers read them."""
    if not label:
        return None
    try:
        name = codecs.lookup(label.strip().strip("'\"")).name
    except (LookupError, ValueError):
        return None
    return {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}.get(name, name)


def _detect(raw: bytes) -> str | None:
    try:
        from resiliparse.parse.encoding import detect_encoding  # noqa: PLC0415 - optional, and only for broken input
    except ImportError:
        return None
    return _codec_name(detect_encoding(raw[:MAX_DETECT_BYTES], from_html_meta=True))


def mojibake_repair() -> Callable[[str], str]:
    """Return ftfy's encoding repair: it undoes UTF-8 that was read as another encoding, and nothing else."""
    from ftfy import fix_encoding  # noqa: PLC0415 - 60 ms that only tasks which repair pay

    return cast("Callable[[str], str]", fix_encoding)


def simplified_converter() -> Callable[[str], str]:
    """Return a converter from traditional to simplified Chinese, by phrases (OpenCC's t2s).

    Raises:
        ConfigError: OpenCC is not installed.
    """
    try:
        from opencc import OpenCC  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ConfigError(
            "ingest.chinese: simplified needs OpenCC; pip install 'refinery[chinese]', or take the key out"
        ) from error
    return cast("Callable[[str], str]", OpenCC("t2s").convert)
