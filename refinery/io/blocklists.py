"""Lists of unwanted hosts, URLs and URL words, in the layout of the UT1 lists (Université Toulouse Capitole).

UT1 has a folder per subject with the files ``domains`` (a host a line) and ``urls`` (``host/path`` a line). A single
file may mix both. ``#`` starts a comment. Files may be gzipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from refinery.errors import ConfigError
from refinery.hashing import sha256_hex
from refinery.io import storage
from refinery.io.compressed import DecompressionLimits, codec_of, iter_lines, read_chunks

_UT1_FILES = ("domains", "urls", "domains.gz", "urls.gz")
_MAX_LINE_BYTES = 8192
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Blocklist:
    """What is blocked; nothing, unless lists were read."""

    hosts: frozenset[str] = frozenset()
    """Hosts, in lower case; their subdomains are meant too."""
    prefixes: frozenset[str] = frozenset()
    """``host/path``: everything under that path on that host."""
    words: frozenset[str] = frozenset()
    """Words, in lower case, that no URL may hold as a whole word."""
    _identity: str = field(default="", repr=False)

    def identity(self) -> str:
        """Return a hash of the hosts and URLs: a list of millions has no place in a manifest."""
        return self._identity

    def reason(self, url: str | None) -> str | None:
        """Return why a URL is blocked: ``host``, ``url`` or ``url_word``; None where it is not, or is no URL."""
        if not url or not (self.hosts or self.prefixes or self.words):
            return None
        try:
            parts = urlsplit(url if "//" in url else f"//{url}")
            host = (parts.hostname or "").lower()
        except ValueError:
            return None
        labels = host.split(".")
        if self.hosts and any(".".join(labels[i:]) in self.hosts for i in range(len(labels))):
            return "host"
        if self.prefixes and any(prefix in self.prefixes for prefix in _prefixes(host, parts.path)):
            return "url"
        text = unquote(f"{host} {parts.path} {parts.query}").lower()
        return "url_word" if self.words and not self.words.isdisjoint(_WORD.findall(text)) else None


def read_blocklist(hosts: str | None, words: str | None) -> Blocklist:
    """Read the lists of a recipe.

    Args:
        hosts: a file of hosts and URLs, or a UT1 folder; None = no list.
        words: a file of words; None = no list.

    Raises:
        ConfigError: a file does not exist or holds no entry.
    """
    entries = [_bare(line) for path in _host_files(hosts) for line in _lines(path)] if hosts else []
    listed = frozenset(e for e in entries if "/" not in e), frozenset(e for e in entries if "/" in e)
    if hosts and not entries:
        raise ConfigError(f"screen.blocked_hosts: {hosts} names no host; take the key out instead")
    blocked = frozenset(_lines(_existing(words, "blocked_url_words"))) if words else frozenset()
    if words and not blocked:
        raise ConfigError(f"screen.blocked_url_words: {words} holds no word; take the key out instead")
    several = sorted(word for word in blocked if len(_WORD.findall(word)) != 1)
    if several:
        raise ConfigError(f"screen.blocked_url_words: {several[:3]} are not single words; give one word a line")
    return Blocklist(*listed, blocked, sha256_hex("\n".join(sorted({*entries})).encode()))


def _host_files(path: str) -> list[Path]:
    found = _existing(path, "blocked_hosts")
    if not found.is_dir():
        return [found]
    files = [found / name for name in _UT1_FILES if (found / name).is_file()]
    if not files:
        raise ConfigError(f"screen.blocked_hosts: folder {path} holds none of {', '.join(_UT1_FILES)}")
    return files


def _existing(path: str, key: str) -> Path:
    file = storage.local_path(path)
    if not file.exists():
        raise ConfigError(f"screen.{key}: {path} does not exist")
    return file


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as raw:
        chunks = read_chunks(raw, codec_of(str(path)), DecompressionLimits())
        for _, data in iter_lines(chunks, _MAX_LINE_BYTES):
            line = (data or b"").decode("utf-8", "replace").split("#")[0].strip().lower()
            if line:
                yield line


def _bare(entry: str) -> str:
    """Return an entry without its scheme and trailing slash."""
    return entry.partition("://")[2].rstrip("/") if "://" in entry else entry.rstrip("/")


def _prefixes(host: str, path: str) -> Iterator[str]:
    """Yield ``host/a``, ``host/a/b`` … of a URL, for the host and the domains above it."""
    steps = [s for s in path.lower().split("/") if s]
    labels = host.split(".")
    for i in range(max(1, len(labels) - 1)):
        base = ".".join(labels[i:])
        for k in range(1, len(steps) + 1):
            yield f"{base}/{'/'.join(steps[:k])}"
