"""Our own encoder for byte-level BPE vocabularies: reads a ``tokenizer.json`` into tables, runs the kernel on them.

What it cannot reproduce it refuses with the reason, and `refinery.tokenization.encode` takes another engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from refinery.kernels.bpe_encode import encode_documents, new_state
from refinery.kernels.bpe_join import JoinTables, inner_bytes, pair_table, token_table
from refinery.kernels.char_starts import char_starts
from refinery.kernels.pretoken_scan import GPT2_DIGITS
from refinery.tokenization.byte_level import byte_of, spelt
from refinery.tokenization.char_classes import char_classes
from refinery.tokenization.recipe import SPLIT_PATTERNS

CACHE_SETS = 1 << 16
"""Pairs of cache lines: 8 MiB, 131,072 pretokens."""

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: Mapping[str, tuple[bool, int]] = {
    SPLIT_PATTERNS["gpt4_digits3"]: (False, 3),
    SPLIT_PATTERNS["gpt4_digits1"]: (False, 1),
    _CL100K.format(digits=r"\p{N}{1,3}"): (True, 3),  # Llama 3
    _CL100K.format(digits=r"\p{N}"): (True, 1),  # Qwen
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": (True, GPT2_DIGITS),
}
"""Split pattern -> whether its classes are the plain ones, and the scanner's `max_digits`."""


class UnknownLayoutError(ValueError):
    """A ``tokenizer.json`` that the kernel does not encode; the message says what in it."""


class TableEncoder:
    """One vocabulary as tables, and the cache of pretokens that its use fills. One thread at a time."""

    def __init__(self, definition: bytes, cache_sets: int = CACHE_SETS) -> None:
        """Read a ``tokenizer.json``; special tokens in it are known by no text.

        Raises:
            UnknownLayoutError: the kernel cannot encode with it.
        """
        parsed = json.loads(definition)
        plain, max_digits = _pattern(parsed)
        self._tables = _tables(parsed, char_classes(plain=plain), max_digits)
        self._state = new_state(cache_sets, len(self._tables.token_starts) - 1)

    def encode(
        self, offsets: np.ndarray, data: np.ndarray, eos_id: int | None, dtype: np.dtype
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode D documents.

        Args:
            offsets: int64, shape (D + 1,): document i is ``data[offsets[i]:offsets[i + 1]]``.
            data: uint8, valid UTF-8 document by document: the caller has checked it.
            eos_id: id after every document, or None.
            dtype: uint16 or int32.
        Returns: int64, shape (D + 1,), and the ids.
        """
        # Room for a token a byte; pages that receive no id are never touched.
        out = np.empty(int(offsets[-1] - offsets[0]) + len(offsets), dtype=dtype)
        bounds = encode_documents(offsets, data, self._tables, self._state, -1 if eos_id is None else eos_id, out)
        out.resize(int(bounds[-1]), refcheck=False)  # gives the untouched pages back and copies nothing
        return bounds, out

    @property
    def cache_use(self) -> dict[str, int]:
        """Return how many pretokens were encoded, not found in the cache, and too long for it."""
        seen, missed, left_out = self._state.totals.tolist()
        return {"pretokens": seen, "missed": missed, "not_kept": left_out}


def _pattern(parsed: dict[str, Any]) -> tuple[bool, int]:
    """Return which scanner cuts as the pre-tokenizer does: (plain classes, max_digits)."""
    steps = parsed.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise UnknownLayoutError(f"its pre-tokenizer ends with {last.get('type')!r}, not with plain ByteLevel")
    if len(steps) == 1 and last.get("use_regex", True):
        return True, GPT2_DIGITS
    split = steps[0]
    pattern = split.get("pattern", {}).get("Regex")
    known = len(steps) == 2 and not last.get("use_regex", True) and split.get("type") == "Split"
    if not known or split.get("behavior") != "Isolated" or split.get("invert") or pattern not in _PATTERNS:
        raise UnknownLayoutError(f"its split pattern is none of the known ones: {str(pattern or steps)[:80]}")
    return _PATTERNS[pattern]


def _check(parsed: dict[str, Any]) -> None:
    model = parsed["model"]
    if model.get("type") != "BPE":
        raise UnknownLayoutError(f"its model is {model.get('type')}, not BPE")
    for option in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise UnknownLayoutError(f"its model sets {option}={model[option]!r}")
    if parsed.get("normalizer") is not None:
        raise UnknownLayoutError(f"it has a normaliser, {parsed['normalizer'].get('type')}")
    text_tokens = [token["content"] for token in parsed.get("added_tokens", []) if not token.get("special")]
    if text_tokens:
        raise UnknownLayoutError(f"it cuts text at {len(text_tokens)} added tokens, {text_tokens[0]!r} for one")


def _tables(parsed: dict[str, Any], classes: np.ndarray, max_digits: int) -> JoinTables:
    _check(parsed)
    vocab: dict[str, int] = parsed["model"]["vocab"]
    missing = [char for char in byte_of() if char not in vocab]
    if missing:
        raise UnknownLayoutError(f"{len(missing)} bytes have no token, {byte_of()[missing[0]]} for one")
    byte_ids = np.zeros(256, dtype=np.int32)
    for char, byte in byte_of().items():
        byte_ids[byte] = vocab[char]
    names: list[str] = [""] * (max(vocab.values()) + 1)
    for name, index in vocab.items():
        names[index] = name
    spellings = [spelt(name) for name in names]
    starts = np.concatenate([[0], np.cumsum([len(text) for text in spellings])]).astype(np.int64)
    token_bytes = np.frombuffer(b"".join(spellings), dtype=np.uint8)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in parsed["model"]["merges"]]
    found = np.array([(vocab[a], vocab[b], vocab[a + b]) for a, b in pairs], dtype=np.int32).reshape(-1, 3)
    left, right, ids = (np.ascontiguousarray(found[:, column]) for column in range(3))
    table = pair_table(left, right, ids)
    return JoinTables(
        classes=classes,
        max_digits=max_digits,
        byte_ids=byte_ids,
        pairs=table,
        char_ids=char_starts(left, right, ids, table, byte_ids, starts, token_bytes),
        whole=bool(parsed["model"].get("ignore_merges")),
        token_starts=starts,
        token_bytes=token_bytes,
        token_slots=token_table(starts, token_bytes),
        inner=inner_bytes(starts, token_bytes),
    )
