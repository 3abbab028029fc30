"""Which engine encodes a vocabulary: the fastest that gives the library's ids on texts made to tell engines apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from kitoken import Kitoken
from tokenizers import Tokenizer

from refinery.hashing import splitmix64_int
from refinery.tokenization.info import PROBES
from refinery.tokenization.table_encoder import TableEncoder, UnknownLayoutError

KERNEL, KITOKEN, LIBRARY = "kernel", "kitoken", "tokenizers"


class Engine(NamedTuple):
    """What encodes, and why it and no faster one."""

    name: str
    reason: str
    kernel: TableEncoder | None
    encode: Callable[[str], list[int]] | None
    """Encodes one text; None where `kernel` does or the library itself is to."""


def choose_engine(definition: bytes, tokenizer: Tokenizer) -> Engine:
    """Return the fastest proven engine.

    Args:
        definition: the bytes of ``tokenizer.json``.
        tokenizer: the same, loaded by the library so that special tokens are read as text.
    """
    proof = [(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in hard_texts(tokenizer)]
    kernel, against = _proven_kernel(definition, proof)
    if kernel is not None:
        return Engine(KERNEL, "our kernel gives the library's ids on every proof text", kernel, None)
    fast, reason = _proven_kitoken(definition, proof)
    return Engine(LIBRARY if fast is None else KITOKEN, f"{reason}; {against}", None, fast)


def _proven_kernel(definition: bytes, proof: list[tuple[str, list[int]]]) -> tuple[TableEncoder | None, str]:
    try:
        kernel = TableEncoder(definition)
    except UnknownLayoutError as error:
        return None, f"our kernel does not read this tokenizer.json: {error}"
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        return None, f"our kernel cannot read this tokenizer.json ({type(error).__name__}: {error})"
    spelt = [text.encode() for text, _ in proof]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in spelt])]).astype(np.int64)
    data = np.frombuffer(b"".join(spelt), dtype=np.uint8)
    for _ in range(2):  # with an empty cache, then from the cache
        bounds, ids = kernel.encode(offsets, data, None, np.dtype(np.int32))
        for number, (text, expected) in enumerate(proof):
            if ids[bounds[number] : bounds[number + 1]].tolist() != expected:
                return None, f"our kernel gives other ids than the library on proof text {number} ({text[:40]!r})"
    return kernel, ""


def _proven_kitoken(
    definition: bytes, proof: list[tuple[str, list[int]]]
) -> tuple[Callable[[str], list[int]] | None, str]:
    try:
        fast = Kitoken.from_tokenizers(_without_special_tokens(definition)).encode
        for number, (text, expected) in enumerate(proof):
            if fast(text) != expected:
                return None, f"kitoken gives other ids than the library on proof text {number} ({text[:40]!r})"
    except (ValueError, RuntimeError, TypeError) as error:
        return None, f"kitoken cannot read this tokenizer.json ({error})"
    return fast, "kitoken gives the library's ids on every proof text"


def _without_special_tokens(definition: bytes) -> bytes:
    # kitoken cuts the text where a special token's name stands even when it reads it as text, so " <|endoftext|>"
    # loses the " <" pretoken that the library makes; with the names unknown, both cut alike.
    parsed = json.loads(definition)
    parsed["added_tokens"] = [token for token in parsed.get("added_tokens", []) if not token.get("special")]
    return json.dumps(parsed, ensure_ascii=False).encode()


_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Re", "'\u017f")
_BLOCKS = ((0x4E00, 0x5200), (0x80, 0x800), (0x800, 0x2100), (0x3000, 0x2000), (0xAC00, 0x2BA4), (0x1F300, 0x700))
"""(first code point, how many): Chinese most of all, since the kernel starts from whole characters."""


def hard_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield proof texts: the probes, awkward shapes, every special token inside text, and words of the vocabulary.

    The last are 64 texts of 200 tokens drawn by hash, so that merges of this very vocabulary meet at odd borders;
    before them come 96 of 60 characters, drawn from six blocks of Unicode, that meet as no text has them. About
    185 kB: 0.1 s in the library.
    """
    yield from PROBES
    yield ""
    yield "".join(PROBES)
    # A contraction after a line end is where kitoken's reading of GPT-2's split pattern departs from the library's.
    for before in ("", "\r", "\n", "\r\n", "\t", " ", "  ", "a", "1", "中", ".", "'"):
        yield "".join(f"{before}{mark}{after} " for mark in _CONTRACTIONS for after in ("", "o", "lo", "1", "中", "'"))
        yield from (f"{before}{mark}o" for mark in _CONTRACTIONS)
    yield from (unit * 3000 for unit in ("a", "ab", "=", " ", "\n", "中", "9", "\r\n", "e\u0301", "👍🏽"))
    # Lengths around the bounds of cached keys and of scans for the next pair.
    yield from (f"{unit * length} " for unit in ("a", "é", "中", " ") for length in (*range(1, 34), 63, 64, 65, 257))
    for token in tokenizer.get_added_tokens_decoder().values():
        yield from (f"{token.content}", f"end {token.content} of\n{token.content}.", f"x{token.content}中")
    for number in range(96):
        first, size = _BLOCKS[number % len(_BLOCKS)]
        yield "".join(chr(first + splitmix64_int(number * 60 + place) % size) for place in range(60))
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=False)
    for number in range(64):
        drawn = [splitmix64_int(number * 200 + place) % vocab_size for place in range(200)]
        yield tokenizer.decode(drawn, skip_special_tokens=False)
