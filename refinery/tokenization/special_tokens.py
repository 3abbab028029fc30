"""Names and roles of special tokens: which ones a new vocabulary holds, which ones a given vocabulary plays with.

Special tokens are control, never text: the trainer gives them the lowest ids, so that they stay where they are when a
vocabulary is extended, and the encoder never produces them from a document (`refinery.tokenization.encode`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from refinery.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"
"""Ends every document; GPT-2's name for it."""
PAD = "<|pad|>"
"""Fills rows that no document ends exactly; masked out of the loss."""

_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "<|eos|>")
_KNOWN_PADS = (PAD, "<pad>", "<|finetune_right_pad_id|>", "[PAD]")


def reserved_names(count: int) -> list[str]:
    """Return `count` names for slots that later training stages may rename (chat roles, tools, fill-in-the-middle)."""
    return [f"<|reserved_{index}|>" for index in range(count)]


def check_special_tokens(tokens: Iterable[str]) -> tuple[str, ...]:
    """Return the tokens as a tuple.

    Raises:
        ConfigError: no tokens, an empty one, a repeated one, one with white space, or no end-of-text token.
    """
    names = tuple(tokens)
    for name in names:
        if not name or any(char.isspace() for char in name):
            raise ConfigError(f"special token {name!r} is empty or holds white space; name it like {END_OF_TEXT!r}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"special tokens {repeated} are listed more than once; remove the repeats")
    if END_OF_TEXT not in names:
        raise ConfigError(f"special_tokens {list(names)} lack {END_OF_TEXT!r}, which ends documents; add it")
    return names


def end_and_pad(tokenizer: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    """Find which special tokens end and pad documents in a vocabulary made elsewhere.

    Args:
        tokenizer: the parsed ``tokenizer.json``.
        config: the parsed ``tokenizer_config.json``, if there is one; its ``eos_token`` and ``pad_token`` win, as in
            the transformers library. Without it, the usual names are looked up.
    Returns: (end, pad), None where none is known.
    """
    contents = [token["content"] for token in tokenizer.get("added_tokens", [])]

    def choose(field: str, usual: tuple[str, ...]) -> str | None:
        named = (config or {}).get(field)
        if isinstance(named, Mapping):
            named = named.get("content")
        if isinstance(named, str):
            return named
        return next((name for name in usual if name in contents), None)

    return choose("eos_token", _KNOWN_ENDS), choose("pad_token", _KNOWN_PADS)
