"""Masking of personal data whose form can be checked: no guess about names or addresses.

| kind | what counts | becomes |
|---|---|---|
| ``email`` | an address with a known shape; not the reserved example domains, not ``git@host`` | ``[EMAIL]`` |
| ``userinfo`` | ``user:password@`` in a URL (not ``git@``) | ``[USER]@`` |
| ``ip`` | IPv4 and IPv6 addresses that are globally routable, one part with three digits | ``[IP]`` |
| ``phone`` | Chinese mobile numbers: 1, 3-9, nine more digits, with or without +86 and separators | ``[PHONE]`` |
| ``id_card`` | 18-character PRC identity numbers with a true date and check digit (GB 11643) | ``[ID]`` |
| ``bank_card`` | 14-19 digits of a card scheme's prefix and length that pass Luhn (ISO/IEC 7812) | ``[CARD]`` |

The tokens hold nothing that a second pass would mask. FineWeb masks e-mails and public IPs only, with fixed fake
values; plain tokens are easier to count, and to keep out of a vocabulary.

Cost: a text without ``@`` and without candidate digits pays for byte-level scans only. Measured on one core: Chinese
statutes 280 MB/s, English novels 170, documents with addresses 170, source code 110, raw e-mail (14 addresses each) 31.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterator

EMAIL, USERINFO, IP, PHONE, ID_CARD, BANK_CARD = "email", "userinfo", "ip", "phone", "id_card", "bank_card"
TOKENS = {
    EMAIL: "[EMAIL]",
    USERINFO: "[USER]",
    IP: "[IP]",
    PHONE: "[PHONE]",
    ID_CARD: "[ID]",
    BANK_CARD: "[CARD]",
}
"""Kind -> what stands in the text instead."""

_LOCAL_CHARS = 64  # RFC 5321, 4.5.3.1
_DOMAIN_CHARS = 255
_LOCAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+'-]*[A-Za-z0-9_+-])?\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])")
_LOCAL_TAIL = re.compile(r"[A-Za-z0-9._%+'-]{1,64}\Z")
_USERINFO = re.compile(r"://([^\s/@?#<>\"'&=\[\]]{1,128})\Z")
_NO_PERSON = frozenset({"git", "hg", "svn"})
_RESERVED = re.compile(r"(?:.*\.)?(?:example\.(?:com|org|net|edu)|example|invalid|test|localhost)\Z", re.IGNORECASE)

# the shape of a text: digits become 0, a-f become a; "." ":" blank and "-" stay; all else is "x". One search in it
# tells whether a long number or an address can be there at all
_SHAPES = bytes.maketrans(
    bytes(range(256)),
    bytes(
        0x30 if b in b"0123456789" else 0x61 if b in b"abcdefABCDEF" else b if b in b".: -" else 0x78
        for b in range(256)
    ),
)
_SEPARATORS = b" -"
_IPV6_COLONS = 7  # of an address without "::"
_LONG_NUMBER = b"0" * 11
_DOTTED = re.compile(rb"0\.0{1,3}\.0{1,3}\.0")
_COLONS = re.compile(rb"0[0a]{3}:[0a:]")

# each begins with a class and looks back after it: a pattern that begins with a look-back is tried at every character
_NUMBER = re.compile(r"[0-9](?<![0-9A-Za-z_.][0-9])(?:[ -]?[0-9]){9,22}[Xx]?(?![0-9A-Za-z_])(?!\.[0-9])")
_MOBILE = re.compile(r"(?:86[ -]?)?(1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4})\Z")
_MOBILE_IN_RUN = re.compile(r"(?<![0-9])(?:86[ -]?)?1[3-9][0-9](?:[0-9]{8}|[ -][0-9]{4}[ -][0-9]{4})(?![0-9])")
_IPV4 = re.compile(r"[0-9](?<![0-9A-Za-z_.-][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_-])(?!\.[0-9])")
_IPV6 = re.compile(r"[23](?<![0-9A-Za-z_:.][23])[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,40}(?![0-9A-Za-z_:])")
_LONG_PART = re.compile(r"[0-9]{3}")
_VERSION_BEFORE = re.compile(r"(?:\bv|\bver|version|release|版本|版)[ .:：]{0,2}\Z", re.IGNORECASE)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS = "10X98765432"
_REGIONS = frozenset(
    str(code)
    for first, last in ((11, 15), (21, 23), (31, 37), (41, 46), (50, 54), (61, 65), (71, 71), (81, 83))
    for code in range(first, last + 1)
)

_Span = tuple[int, int, str]


def mask(text: str) -> tuple[str, dict[str, int]]:
    """Replace personal data by tokens.

    Returns: the text (the same object if nothing was found), and how many of each kind were replaced.
    """
    spans: list[_Span] = []
    if "@" in text:
        spans += _at_spans(text)
    raw = text.encode("utf-8", "replace")
    shape = raw.translate(_SHAPES)
    if _LONG_NUMBER in shape.translate(None, _SEPARATORS):
        spans += _number_spans(text)
    if b"0.0" in shape and _DOTTED.search(shape):
        spans += _ipv4_spans(text)
    if b"::" in shape or shape.count(b":") >= _IPV6_COLONS:
        spans += _ipv6_spans(text) if _COLONS.search(shape) else ()
    if not spans:
        return text, {}
    return _replaced(text, sorted(spans))


def _replaced(text: str, spans: list[_Span]) -> tuple[str, dict[str, int]]:
    """Put a token in the place of every span; spans that overlap are one, of the kind of the longest."""
    parts: list[str] = []
    counts: dict[str, int] = {}
    at = 0
    for start, end, kind in _joined(spans):
        parts += (text[at:start], TOKENS[kind])
        counts[kind] = counts.get(kind, 0) + 1
        at = end
    parts.append(text[at:])
    return "".join(parts), counts


def _joined(spans: list[_Span]) -> Iterator[_Span]:
    first, last, kind, longest = *spans[0], spans[0][1] - spans[0][0]
    for start, end, other in spans[1:]:
        if start >= last:
            yield first, last, kind
            first, last, kind, longest = start, end, other, end - start
            continue
        last = max(last, end)
        if end - start > longest:
            kind, longest = other, end - start
    yield first, last, kind


def _at_spans(text: str) -> Iterator[_Span]:
    """Look around every ``@``: a pattern that scans for addresses is quadratic in a long run of letters."""
    at = text.find("@")
    while at >= 0:
        before = text[max(0, at - 132) : at]
        info = _USERINFO.search(before)
        if info and info.group(1) in _NO_PERSON:
            pass
        elif info and at + 1 < len(text) and not text[at + 1].isspace():
            yield at - len(info.group(1)), at, USERINFO
        else:
            tail = _LOCAL_TAIL.search(before[-_LOCAL_CHARS:])
            domain = _DOMAIN.match(text, at + 1, at + 1 + _DOMAIN_CHARS)
            if tail and domain:
                local = tail.group().lstrip(".%+'-")
                if _LOCAL.match(local) and local not in _NO_PERSON and not _RESERVED.match(domain.group()):
                    yield at - len(local), domain.end(), EMAIL
        at = text.find("@", at + 1)


def _number_spans(text: str) -> Iterator[_Span]:
    for match in _NUMBER.finditer(text):
        run = match.group()
        kind = _kind_of_number(run)
        if kind:
            plus = kind == PHONE and match.start() > 0 and text[match.start() - 1] == "+"
            yield match.start() - plus, match.end(), kind
            continue
        # several numbers in a row, separated by single blanks, look like one run
        for part in _MOBILE_IN_RUN.finditer(run):
            yield match.start() + part.start(), match.start() + part.end(), PHONE
        for piece in re.finditer(r"[0-9]{11,19}[Xx]?", run):
            kind = _kind_of_number(piece.group())
            if kind in (ID_CARD, BANK_CARD):
                yield match.start() + piece.start(), match.start() + piece.end(), kind


def _kind_of_number(run: str) -> str | None:
    digits = run.replace(" ", "").replace("-", "")
    if len(digits) == 18 and len(run) == 18 and is_id_card(digits):
        return ID_CARD
    if _MOBILE.match(run):
        return PHONE
    if digits.isdigit() and is_bank_card(digits) and _is_grouped_like_a_card(run):
        return BANK_CARD
    return None


def _is_grouped_like_a_card(run: str) -> bool:
    groups = re.split("[ -]", run)
    return len(groups) == 1 or all(3 <= len(g) <= 7 for g in groups)


def is_id_card(number: str) -> bool:
    """Tell whether 18 characters are a PRC identity number: region, true birth date, ISO 7064 MOD 11-2 check."""
    if len(number) != 18 or not number[:17].isdigit() or number[:2] not in _REGIONS:
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(w * int(d) for w, d in zip(_ID_WEIGHTS, number, strict=False))
    return 1900 <= born.year <= 2100 and _ID_CHECKS[total % 11] == number[17].upper()


def is_bank_card(digits: str) -> bool:
    """Tell whether digits have the prefix and length of a card scheme and pass Luhn's check."""
    size, two = len(digits), int(digits[:2])
    known = (
        (digits[0] == "4" and size in (16, 19))
        or (51 <= two <= 55 and size == 16)
        or (2221 <= int(digits[:4]) <= 2720 and size == 16)
        or (two in (34, 37) and size == 15)
        or (two in (30, 36, 38) and size == 14)
        or (two == 35 and size == 16)
        or (two in (60, 62, 64, 65) and 16 <= size <= 19)
    )
    if not known or len(set(digits)) < 4:
        return False
    total = 0
    for i, letter in enumerate(reversed(digits)):
        d = int(letter)
        total += d if i % 2 == 0 else d * 2 - 9 * (d > 4)
    return total % 10 == 0


def _ipv4_spans(text: str) -> Iterator[_Span]:
    for match in _IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            continue
        # four short parts are a version or a section far more often than an address (of addresses, 2 % look so)
        if (
            address.is_global
            and not address.is_multicast
            and _LONG_PART.search(match.group())
            and not _VERSION_BEFORE.search(text[max(0, match.start() - 12) : match.start()])
        ):
            yield match.start(), match.end(), IP


def _ipv6_spans(text: str) -> Iterator[_Span]:
    for match in _IPV6.finditer(text):
        try:
            address = ipaddress.IPv6Address(match.group())
        except ValueError:
            continue
        if address.is_global:
            yield match.start(), match.end(), IP
