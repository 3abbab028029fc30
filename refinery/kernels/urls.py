"""URLs brought to one form, so that captures of the same page meet.

Scheme, ``www.``, default port, fragment, trailing slash, empty query and the parameters that only track visitors do not
make another page; case of the host neither. Path, and order and values of all other parameters, do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np
import xxhash

FORMAT_VERSION = 1
"""Changes with any change to the normal form."""

_TRACKING = re.compile(
    r"(?:^|&)(?:utm_[a-z_]+|gclid|dclid|fbclid|msclkid|yclid|igshid|mc_[ce]id|_ga|spm)(?:=[^&]*)?(?=&|$)", re.IGNORECASE
)


def normal_url(url: str) -> str | None:
    """Return the normal form of an absolute URL, ``host[:port]/path[?query]``; None where there is no host in it."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return None
    if not host:
        return None
    host = host.removeprefix("www.")
    place = "" if port in (None, 80, 443) else f":{port}"
    query = _TRACKING.sub("", parts.query).strip("&") if parts.query else ""
    return host + place + parts.path.rstrip("/") + (f"?{query}" if query else "")


def url_keys(urls: Sequence[str | None]) -> list[int | None]:
    """Return a 64-bit hash of each normal form as int64; None for documents without a URL."""
    keys: list[int | None] = []
    for url in urls:
        normal = normal_url(url) if url else None
        keys.append(None if normal is None else _as_int64(xxhash.xxh3_64_intdigest(normal.encode("utf-8", "replace"))))
    return keys


def _as_int64(value: int) -> int:
    return int(np.uint64(value).view(np.int64))
