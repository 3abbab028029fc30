"""Train a byte-level BPE vocabulary with the `tokenizers` library.

The library's trainer counts pretokens and breaks ties between equally frequent pairs by their ids, so the same texts
give the same bytes whatever their order or the number of threads. It keeps every distinct pretoken in memory, which is
why the split pattern bounds Han runs and the recipe bounds the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from refinery.errors import ConfigError, DataError
from refinery.tokenization.info import TokenizerInfo, auto_config, describe, write_tokenizer
from refinery.tokenization.recipe import TokenizerRecipe

_LOG = logging.getLogger(__name__)
_MIB = 1 << 20


class CheckedSample:
    """Counts and checks texts on their way into the trainer."""

    def __init__(
        self, texts: Iterable[str], bound_bytes: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._texts = texts
        self._bound_bytes = bound_bytes
        self._progress = progress
        self.num_docs = 0
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the texts; an error passes through the trainer as it is."""
        for text in self._texts:
            self._count(text)
            yield text

    def _count(self, text: str) -> None:
        if not isinstance(text, str):
            raise DataError(f"sample document {self.num_docs} is {type(text).__name__}, not str; decode it first")
        try:
            self.num_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise DataError(
                f"sample document {self.num_docs} is not valid Unicode ({error}); clean it first"
            ) from error
        self.num_docs += 1
        if self.num_bytes > self._bound_bytes:
            raise ConfigError(
                f"the sample passed {self._bound_bytes:,} bytes after {self.num_docs:,} documents, twice what the "
                "recipe's sample_bytes allows; draw it with refinery.tokenization.sample or raise sample_bytes"
            )
        if self._progress is not None:
            self._progress(self.num_docs, self.num_bytes)


def new_tokenizer(recipe: TokenizerRecipe) -> Tokenizer:
    """Return an untrained byte-level tokenizer with the recipe's split pattern and no normaliser."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(recipe.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_bpe(
    texts: Iterable[str],
    recipe: TokenizerRecipe,
    out_dir: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizerInfo:
    """Train a vocabulary and write it as ``tokenizer.json``, ``tokenizer_config.json`` and ``info.json``.

    Args:
        texts: the sample, one document each, read once.
        recipe: size, pattern, special tokens.
        out_dir: folder to write into.
        progress: called with (documents, UTF-8 bytes) read so far.
    Returns: the card of the new vocabulary.

    Raises:
        ConfigError: the sample is too small for the vocabulary, or over twice the recipe's `sample_bytes`.
        DataError: a document is not a valid string.
    """
    tokenizer = new_tokenizer(recipe)
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        special_tokens=list(recipe.all_special_tokens),
        # Every byte is a token, seen or not: no text is ever unknown.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The mask of sample_mask is a draw: its bytes scatter around sample_bytes, most for few long documents.
    sample = CheckedSample(texts, 2 * recipe.sample_bytes + 16 * _MIB, progress)
    tokenizer.train_from_iterator(iter(sample), trainer)
    num_learnt = tokenizer.get_vocab_size() - 256 - len(recipe.all_special_tokens)
    if num_learnt < recipe.num_merges:
        raise ConfigError(
            f"{recipe.name}: learnt {num_learnt:,} merges of the {recipe.num_merges:,} that vocab_size "
            f"{recipe.vocab_size:,} needs, from {sample.num_docs:,} documents with {sample.num_bytes:,} bytes (pairs "
            f"seen {recipe.min_frequency}+ times); raise sample_bytes, or set vocab_size to "
            f"{recipe.vocab_size - recipe.num_merges + num_learnt:,} or less"
        )
    definition = tokenizer.to_str(pretty=False).encode()
    origin = {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": recipe.sha256,
        "sample_docs": sample.num_docs,
        "sample_bytes": sample.num_bytes,
        "tokenizers_version": tokenizers.__version__,
    }
    info = describe(definition, None, recipe.name, origin)
    write_tokenizer(out_dir, definition, auto_config(info), info)
    _LOG.info(
        "trained %s: %d ids from %d documents, %d bytes", info.name, info.vocab_size, sample.num_docs, sample.num_bytes
    )
    return info
