"""The byte-level alphabet: every byte as one printable character, GPT-2's map, and the bytes that a token spells."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

from tokenizers import pre_tokenizers


@functools.cache
def byte_of() -> Mapping[str, int]:
    """Return the byte that each character of the byte-level alphabet stands for.

    Printable Latin-1 stands for itself; the 68 other bytes, in order, are the characters from U+0100 on.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {char: ord(char) for char in alphabet if ord(char) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return MappingProxyType(own | dict(zip(alphabet[len(own) :], others, strict=True)))


def spelt(name: str) -> bytes:
    """Return the bytes that a token's name stands for; empty for a name that no bytes have."""
    known = byte_of()
    return bytes(known[char] for char in name) if all(char in known for char in name) else b""
