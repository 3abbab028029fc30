"""Numbers and strangers' text as a page shows them: escaped, and with nothing invisible left in it."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Controls (tab and line feed apart), zero-width characters, bidirectional controls, tags: they hide or reorder."""
NO_BREAK = "\u00a0"
"""Between a number and its unit."""
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def visible(text: str) -> Markup:
    """Return text for HTML: escaped, hidden and reordering characters written out as their code points."""
    pieces: list[str] = []
    end = 0
    for match in _HIDDEN.finditer(text):
        pieces.append(str(escape(text[end : match.start()])))
        pieces.append(f'<span class="code-point">U+{ord(match.group()):04X}</span>')
        end = match.end()
    pieces.append(str(escape(text[end:])))
    return Markup("".join(pieces))  # noqa: S704 - every piece is escaped above


def breakable(text: str) -> Markup:
    """Return a name as `visible` does, with places where a narrow column may break it."""
    return Markup("<wbr>").join(visible(piece) for piece in re.split(r"(?<=[_./])", text))


def token(text: str) -> str:
    """Return a token with its white space drawn, so that a run of spaces can be seen."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def plain(text: str) -> str:
    """Return text for an attribute or a terminal, hidden characters written out."""
    return _HIDDEN.sub(lambda match: f"[U+{ord(match.group()):04X}]", text)


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separators; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def size(num_bytes: float | None) -> str:
    """Return bytes in decimal units, three significant digits."""
    if num_bytes is None:
        return "–"
    value = float(num_bytes)
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f}{NO_BREAK}{_UNITS[unit]}"


def rate(bytes_per_second: float | None) -> str:
    """Return a speed in bytes per second."""
    return "–" if bytes_per_second is None else f"{size(bytes_per_second)}/s"


def percent(frac: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; small ones are never shown as zero."""
    if frac is None:
        return "–"
    least = 10**-digits
    if 0 < abs(frac * 100) < least / 2:
        return f"<{NO_BREAK}{least:.{digits}f}{NO_BREAK}%"
    return f"{frac * 100:.{digits}f}{NO_BREAK}%"


def duration(seconds: float | None) -> str:
    """Return a time span in the two largest units that say something."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
