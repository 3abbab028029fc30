"""Normalisation of text at ingest: the only place where Refinery changes a text; all later changes are cuts.

What it does: NFC; CRLF, CR, NEL, U+2028 and U+2029 to LF; control characters (except tab and LF), byte-order marks,
zero-width spaces and non-characters dropped; blanks at line ends dropped. It keeps ZWJ and ZWNJ (emoji, Persian,
Indic scripts need them), full-width forms and compatibility characters (NFKC would change meaning and code).

Nearly all documents are clean, so the cost is that of finding out: one pass of a table over the UTF-8 bytes. Measured
on one core: English 580 MB/s, French 330, Chinese 420-750 (a regular expression over characters took 63, 64 and 230).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import numba
import numpy as np
import xxhash

from refinery.hashing import load_uint64
from refinery.kernels.text import TextViews
from refinery.kernels.white_space import (
    collapse_white_space,
    is_white_space,
    white_space_kinds,
    without_blanks_at_line_ends,
)

_ASCII_CONTROLS = bytes([*range(9), *range(11, 32), 127])
_C1_CONTROLS = re.compile(b"\xc2[\x80-\x9f]")
_OTHER_LINE_ENDS = [end.encode() for end in "\x85\u2028\u2029"]
_OTHER_DROPPED = [letter.encode() for letter in "\u200b\ufeff\ufffe\uffff"]
_BLANKS = " \t\xa0\u3000"
# a UTF-8 lead byte read as Windows-1252, followed by what a continuation byte then looks like; no-break space,
# quotes and dashes are left out, because real French and German put them after accented letters
_TAIL = "[\x80-\x9f¡-ª¬-º¼-¿€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_TAIL}|â€|[ã-ï]{_TAIL}{{2}}")
MIN_MOJIBAKE_HITS = 2

_DIRTY, _UNSURE, _BLANK, _LINE_END = 1, 2, 3, 4
_HIGH, _SEVEN_BITS = np.uint64(0x8080808080808080), np.uint64(0x7F7F7F7F7F7F7F7F)
_ONES, _FROM_SPACE = np.uint64(0x0101010101010101), np.uint64(0x6060606060606060)
_TABS, _NEWLINES, _SPACES = (_ONES * np.uint64(byte) for byte in (9, 10, 32))
_FIRST_HIGH, _S8, _S56 = np.uint64(0x80), np.uint64(8), np.uint64(56)
_TABLE_LETTERS = 0x30000
"""Planes 0 to 2; nothing above them is changed by NFC."""


def clean_text(text: str, *, max_newlines: int | None = None, repair: Callable[[str], str] | None = None) -> str:
    """Return the normal form of a text; applying it twice changes nothing.

    Args:
        text: any string; lone surrogates become U+FFFD.
        max_newlines: longest run of newlines to keep (2 = one blank line); None keeps all.
        repair: encoding repair (ftfy's ``fix_encoding``), called only where `looks_like_mojibake`.
    """
    text = clean_utf8(text, repair=repair).decode()
    if max_newlines is not None and "\n" * (max_newlines + 1) in text:
        text = re.sub(f"\n{{{max_newlines + 1},}}", "\n" * max_newlines, text)
    return text


def clean_utf8(text: str | bytes, *, repair: Callable[[str], str] | None = None) -> bytes:
    """Return `clean_text` of a text as UTF-8; a text that comes as UTF-8 and is clean is not made a string.

    Args:
        text: any string, or valid UTF-8.
        repair: as in `clean_text`.
    """
    raw = text if isinstance(text, bytes) else _utf8(text)
    if repair is not None and _is_mojibake(raw):
        raw = _utf8(repair(raw.decode()))
    return raw if _is_clean(raw) else _normalise(raw)


def _utf8(text: str) -> bytes:
    """Return the UTF-8 of a text; lone surrogates as U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def is_clean(text: str) -> bool:
    """Tell whether `clean_text` would return the text as it is (without its options)."""
    try:
        return _is_clean(text.encode())
    except UnicodeEncodeError:
        return False


def _is_clean(raw: bytes) -> bool:
    if not raw:
        return True
    verdict = _scan(np.frombuffer(raw, dtype=np.uint8), _letter_kinds())
    return verdict == 0 or (verdict == _UNSURE and unicodedata.is_normalized("NFC", raw.decode()))


def is_blank(raw: bytes) -> bool:
    """Tell whether UTF-8 holds nothing but white space: the empty text, and what ``str.isspace`` is true of."""
    return not raw or is_white_space(np.frombuffer(raw, dtype=np.uint8), white_space_kinds())


def looks_like_mojibake(text: str) -> bool:
    """Tell whether a text holds UTF-8 that was read as Windows-1252, by letter pairs that no language writes."""
    return _is_mojibake(_utf8(text))


def _is_mojibake(raw: bytes) -> bool:
    # The pattern reads 80 MB/s; nearly all texts have too few letters that a hit begins with.
    if raw.find(0xC3) < 0 or _mojibake_leads(np.frombuffer(raw, np.uint8)) < MIN_MOJIBAKE_HITS:
        return False
    hits = _MOJIBAKE.finditer(raw.decode())
    return sum(1 for _ in zip(range(MIN_MOJIBAKE_HITS), hits, strict=False)) == MIN_MOJIBAKE_HITS


@numba.njit(cache=True, nogil=True)
def _mojibake_leads(raw: np.ndarray) -> int:
    """Count where the first letter of a mojibake hit stands before a character of the rows that its second is from.

    Stops at `MIN_MOJIBAKE_HITS`.
    """
    found, i = 0, 0
    while i + 2 < len(raw) and found < MIN_MOJIBAKE_HITS:
        if i + 8 <= len(raw) and load_uint64(raw, i) & _HIGH == 0:
            i += 8
            continue
        if raw[i] == 0xC3 and (raw[i + 1] in (0x82, 0x83) or 0xA2 <= raw[i + 1] <= 0xAF):
            found += raw[i + 2] in (0xC2, 0xC5, 0xC6, 0xCB, 0xE2)
        i += 1
    return found


def cut_to_bytes(raw: bytes, max_bytes: int) -> bytes:
    """Return the longest beginning of UTF-8 of at most `max_bytes`, at a line end if the last eighth holds one."""
    if len(raw) <= max_bytes:
        return raw
    end = raw.rfind(b"\n", max_bytes - max_bytes // 8, max_bytes + 1)
    if end < 0:
        end = max_bytes
        while end and raw[end] & 0xC0 == 0x80:
            end -= 1
    return raw[:end].decode().rstrip(_BLANKS + "\n").encode()


def _normalise(raw: bytes) -> bytes:
    # byte tables and plain replacements run at memory speed; a pattern over all characters at 60-200 MB/s
    raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").translate(None, _ASCII_CONTROLS)
    if not raw.isascii():
        for end in _OTHER_LINE_ENDS:
            raw = raw.replace(end, b"\n")
        for letter in _OTHER_DROPPED:
            raw = raw.replace(letter, b"")
        raw = _C1_CONTROLS.sub(b"", raw)
        text = raw.decode()
        composed = unicodedata.normalize("NFC", text)
        if composed is not text:  # it gives back what needs no change
            raw = composed.encode()
    return without_blanks_at_line_ends(raw)


def text_hash(text: str) -> str:
    """Return the identity of a text: xxh3-128 (hex) of its NFC form with every run of white space as one blank.

    Two texts that differ only in spacing and line breaks are the same text; case and punctuation count. Equal to
    xxh3-128 of ``" ".join(normalize("NFC", text).split())`` in UTF-8, at 4-8 times its speed.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    raw = text.encode("utf-8", "replace")
    if not raw:
        return xxhash.xxh3_128_hexdigest(b"")
    packed = np.empty(len(raw), dtype=np.uint8)
    [end] = collapse_white_space(np.array((0, len(raw))), np.frombuffer(raw, dtype=np.uint8), packed)
    return xxhash.xxh3_128_hexdigest(packed[:end].data)


def text_hashes(views: TextViews) -> list[str]:
    """Return `text_hash` of each document of a batch that is already clean (NFC), at memory speed.

    Source: white space is what ``str.split`` takes for it (Unicode White_Space and U+001C to U+001F).
    """
    hashes: list[str] = []
    out = np.empty(0, dtype=np.uint8)
    for first, last in _groups(views.offsets, _GROUP_BYTES):
        offsets = views.offsets[first : last + 1]
        size = int(offsets[-1] - offsets[0])
        if len(out) < size:
            out = np.empty(size, dtype=np.uint8)
        ends = collapse_white_space(offsets, views.data, out)
        view = memoryview(out.data)
        hashes += [xxhash.xxh3_128_hexdigest(view[a:b]) for a, b in pairwise([0, *ends])]
    return hashes


_GROUP_BYTES = 1 << 20
"""Documents are packed and hashed by so many bytes, in one buffer: one for the whole batch has to be touched for the
first time, and has left the cache when it is hashed."""


def _groups(offsets: np.ndarray, num_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of runs of documents of at most so many bytes, or of one document."""
    first, num_docs = 0, len(offsets) - 1
    while first < num_docs:
        last = int(np.searchsorted(offsets, offsets[first] + num_bytes, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


@cache
def _letter_kinds() -> np.ndarray:
    """Build the kind of every code point: 0 plain, dirty, unsure (may combine with its neighbour), blank, line end.

    Takes 15 ms once per process. Characters that NFC changes alone are dirty; those that it may join to the one
    before (non-zero combining class, second halves of compositions, Hangul vowels and finals) make a text unsure.
    """
    kinds = np.zeros(_TABLE_LETTERS, dtype=np.uint8)
    for code in range(0x80, _TABLE_LETTERS):
        if 0x3400 <= code < 0xA000 or 0xAC00 <= code < 0xF900 or 0x20000 <= code < 0x2F800:
            continue  # Han, Hangul syllables, surrogates, private use: NFC keeps them
        letter = chr(code)
        if unicodedata.combining(letter):
            kinds[code] = _UNSURE
        parts = unicodedata.decomposition(letter)
        if parts and not parts.startswith("<"):
            if unicodedata.normalize("NFC", letter) != letter:
                kinds[code] = _DIRTY
            elif " " in parts:
                kinds[int(parts.split()[1], 16)] = _UNSURE
    kinds[0x1161:0x1176] = _UNSURE
    kinds[0x11A8:0x11C3] = _UNSURE
    kinds[[*_ASCII_CONTROLS, *range(0x80, 0xA0)]] = _DIRTY
    kinds[[ord(letter.decode()) for letter in _OTHER_LINE_ENDS + _OTHER_DROPPED]] = _DIRTY
    kinds[[ord(letter) for letter in _BLANKS]] = _BLANK
    kinds[10] = _LINE_END
    kinds.flags.writeable = False
    return kinds


@numba.njit(cache=True, inline="always")
def _ascii_eight(eight: np.uint64, behind_blank: bool) -> tuple[bool, bool]:
    """Tell of eight ASCII bytes whether one makes a text dirty, and whether the last is a blank."""
    line_ends = ~((eight ^ _NEWLINES) + _SEVEN_BITS)
    tabs = ~((eight ^ _TABS) + _SEVEN_BITS)
    blanks = (~((eight ^ _SPACES) + _SEVEN_BITS) | tabs) & _HIGH
    controls = (~(eight + _FROM_SPACE) & ~line_ends & ~tabs) | (eight + _ONES)
    stripped = line_ends & ((blanks << _S8) | (_FIRST_HIGH if behind_blank else np.uint64(0)))
    return (controls | stripped) & _HIGH != 0, blanks >> _S56 != 0


@numba.njit(cache=True, nogil=True)
def _scan(data: np.ndarray, kinds: np.ndarray) -> int:
    """Return 0 (clean), _DIRTY or _UNSURE for valid UTF-8."""
    verdict = 0
    before = 0
    i = 0
    while i < len(data):
        code = np.int64(data[i])
        if code < 0x80:
            if i + 8 <= len(data):
                eight = load_uint64(data, i)
                if eight & _HIGH == 0:
                    dirty, blank = _ascii_eight(eight, before == _BLANK)
                    if dirty:
                        return _DIRTY
                    before = _BLANK if blank else 0
                    i += 8
                    continue
            i += 1
        elif 0xE4 <= code <= 0xE9:
            before = 0  # U+4000 to U+9FFF: nearly all Chinese
            i += 3
            continue
        elif code < 0xE0:
            code = (code & 0x1F) << 6 | (data[i + 1] & 0x3F)
            i += 2
        elif code < 0xF0:
            code = (code & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F)
            i += 3
        else:
            code = (code & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12 | np.int64(data[i + 2] & 0x3F) << 6
            code |= data[i + 3] & 0x3F
            i += 4
            if code >= _TABLE_LETTERS:
                before = 0
                continue
        kind = kinds[code]
        if kind:
            if kind == _DIRTY or (kind == _LINE_END and before == _BLANK):
                return _DIRTY
            if kind == _UNSURE:
                verdict = _UNSURE
        before = kind
    return _DIRTY if before == _BLANK else verdict
