"""What a tokenizer is trained to be: a frozen, hashed description read from ``tokenizer/*.yaml``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from refinery.errors import ConfigError
from refinery.hashing import sha256_hex
from refinery.tokenization.special_tokens import END_OF_TEXT, PAD, check_special_tokens, reserved_names


def _cl100k_like(digits: str) -> str:
    r"""Return the split pattern: each alternative takes one kind of pretoken, and merges never cross pretokens.

    The shape is GPT-4's public cl100k pattern, with three differences:

    - Han runs are cut after four characters. Chinese has no spaces, so a whole clause would be one pretoken: nearly
      every one distinct (the trainer's memory is in distinct pretokens), its merging the slowest of all. Words and
      idioms have up to four characters, nearly all of them, and can still become one token.
      `kitoken` encodes Chinese at 19.1 MB/s this way, at 14.8 with cl100k's whole runs (one core, 16k vocabulary).
    - Han never joins Latin letters or a punctuation mark before it: ``在Python中`` is three pretokens.
    - Combining marks (``\p{M}``) count as letters, so that Indic scripts and decomposed accents are not cut inside a
      syllable.

    Two engines read it (Oniguruma in `tokenizers`, fancy-regex in `kitoken`), so it uses only what both read alike:
    no possessive quantifiers, no inline flag but ``(?i:...)``.
    """
    letters = r"[\p{L}\p{M}&&[^\p{Han}]]"
    return "|".join(
        (
            r"\p{Han}{1,4}",
            r"(?i:'(?:[sdmt]|ll|ve|re))",
            rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?{letters}+",
            digits,
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


SPLIT_PATTERNS = {
    "gpt4_digits3": _cl100k_like(r"\p{N}{1,3}"),  # numbers in groups of up to three from the left, as cl100k
    "gpt4_digits1": _cl100k_like(r"\p{N}"),  # every digit alone, as LLaMA
}


_MAX_DIGITS = {"gpt4_digits3": 3, "gpt4_digits1": 1}


class TokenizerRecipe(BaseModel):
    """One tokenizer to train; the same recipe and the same sample give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1)
    """Names the vocabulary in reports and manifests."""
    vocab_size: int = Field(ge=256, le=2_000_000)
    """All ids: special tokens and reserved slots + 256 bytes + merges."""
    split_pattern: str = "gpt4_digits3"
    """Name of a split pattern of this module."""
    normaliser: None = None
    """None: decoding gives back every byte. The text was normalised at ingest, once."""
    special_tokens: tuple[str, ...] = (END_OF_TEXT, PAD)
    num_reserved: int = Field(default=14, ge=0, le=4096)
    """Special slots without a meaning yet; they follow `special_tokens` in id order."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair is merged only while it occurs this often in the sample."""
    sample_bytes: int = Field(ge=1)
    """UTF-8 bytes of text to train on, over all domains."""
    max_pretoken_bytes: int = Field(default=64_000_000, ge=1000)
    """Bytes of distinct pretokens that training keeps; the rarest go first. Memory is about 30 bytes for each."""
    weights: dict[str, float] | None = None
    """Share of the sample by domain, summing to 1; None takes the shares of the run's mix."""
    seed: int = 0

    @field_validator("special_tokens", mode="before")
    @classmethod
    def _tokens_from_yaml(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """Special tokens, then reserved slots: position = id."""
        return self.special_tokens + tuple(reserved_names(self.num_reserved))

    @property
    def num_merges(self) -> int:
        """Merges that fill the vocabulary."""
        return self.vocab_size - 256 - len(self.all_special_tokens)

    @property
    def max_digits(self) -> int:
        """Characters of numbers that one pretoken takes."""
        return _MAX_DIGITS[self.split_pattern]

    @property
    def pattern(self) -> str:
        """The regular expression that cuts text into pretokens."""
        return SPLIT_PATTERNS[self.split_pattern]

    def canonical_json(self) -> str:
        """Return the recipe as JSON with sorted keys, the pattern written out: what `sha256` covers."""
        return json.dumps({**self.model_dump(mode="json"), "pattern": self.pattern}, sort_keys=True, ensure_ascii=False)

    @property
    def sha256(self) -> str:
        """Hash of `canonical_json`."""
        return sha256_hex(self.canonical_json().encode())


def load_recipe(path: str | Path) -> TokenizerRecipe:
    """Read a tokenizer recipe from YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (the nearest known one is named) or a value out of bounds.
    """
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no tokenizer recipe at {file}; the ones that ship lie in tokenizer/*.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{file} holds a {type(content).__name__}, not a mapping of recipe keys to values")
    return recipe_from_mapping(content, where=str(file))


def recipe_from_mapping(content: Mapping[str, Any], where: str = "tokenizer recipe") -> TokenizerRecipe:
    """Check a mapping and return it as a recipe.

    Raises:
        ConfigError: as `load_recipe`; `where` starts the message.
    """
    known = list(TokenizerRecipe.model_fields)
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}{_nearest(str(key), known)}; known keys: {', '.join(known)}"
            )
    try:
        recipe = TokenizerRecipe(**content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}, not {item['input']!r}"
            for item in error.errors()
        )
        raise ConfigError(f"{where}: {problems}") from error
    if recipe.split_pattern not in SPLIT_PATTERNS:
        names = list(SPLIT_PATTERNS)
        nearest = _nearest(recipe.split_pattern, names)
        raise ConfigError(
            f"{where}: unknown split_pattern {recipe.split_pattern!r}{nearest}; known: {', '.join(names)}"
        )
    check_special_tokens(recipe.all_special_tokens)
    if recipe.num_merges < 0:
        floor = 256 + len(recipe.all_special_tokens)
        raise ConfigError(
            f"{where}: vocab_size {recipe.vocab_size:,} is under {floor:,} = 256 bytes + "
            f"{len(recipe.all_special_tokens)} special and reserved tokens; raise vocab_size or lower num_reserved"
        )
    return recipe


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
