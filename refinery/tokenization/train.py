"""Train a byte-level BPE vocabulary from counted pretokens.

The `tokenizers` library's trainer takes texts only and keeps every distinct pretoken as objects, which is what runs out
of memory on Chinese. So pretokens are counted here (or in many tasks, whose counts are summed), the rarest are cut when
they would not fit, and our own loop learns the merges. Where nothing is cut, the file equals the library's on the same
text. Neither the order of texts nor how they are split over tasks matters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from refinery.errors import ConfigError, DataError
from refinery.kernels.bpe_merges import Merges, learn_merges
from refinery.kernels.pretokens import PretokenCounter, PretokenCounts
from refinery.kernels.text import text_views
from refinery.tokenization.byte_level import spelt
from refinery.tokenization.char_classes import char_classes
from refinery.tokenization.info import TokenizerInfo, auto_config, describe, write_tokenizer
from refinery.tokenization.recipe import TokenizerRecipe

_LOG = logging.getLogger(__name__)
_MIB = 1 << 20
_BATCH_CHARS = 1 << 19


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


@dataclass(frozen=True)
class CountedSample:
    """What training needs of a sample."""

    pretokens: PretokenCounts
    num_docs: int
    num_bytes: int
    smallest_count: int = 1
    """Pretokens seen less often were cut."""
    num_cut: int = 0
    """Distinct pretokens that were cut."""
    num_cut_bytes: int = 0
    """Bytes of the sample's text in them."""


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


def pretoken_counter(recipe: TokenizerRecipe) -> PretokenCounter:
    """Return an empty counter that cuts text by the recipe's split pattern."""
    return PretokenCounter(char_classes(), recipe.max_digits)


def smallest_count_kept(tallies: Iterable[tuple[int, int]], max_bytes: int) -> int:
    """Return the count below which pretokens are cut: the smallest for which those that stay fit.

    All pretokens of one count stay or go together, so the cut depends on the sample alone.

    Args:
        tallies: (count, bytes of the distinct pretokens seen so often), in any order.
        max_bytes: bound on the bytes of the distinct pretokens kept.
    """
    room, smallest = max_bytes, None
    for count, size in sorted(tallies, reverse=True):
        room -= size
        if room < 0:
            return count + 1 if smallest is None else smallest
        smallest = count
    return 1


def cut_rare(pretokens: PretokenCounts, max_bytes: int) -> tuple[PretokenCounts, int, int, int]:
    """Cut the rarest pretokens by `smallest_count_kept`.

    Returns: those that stay, the smallest count among them, how many were cut, and the bytes of text in those.
    """
    lengths = np.diff(pretokens.offsets)
    if len(pretokens.data) <= max_bytes:
        return pretokens, 1, 0, 0
    found, where = np.unique(pretokens.counts, return_inverse=True)
    sizes = np.bincount(where, weights=lengths).astype(np.int64)
    smallest = smallest_count_kept(zip(found.tolist(), sizes.tolist(), strict=True), max_bytes)
    keep = pretokens.counts >= smallest
    offsets = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    data = pretokens.data[np.repeat(keep, lengths)]
    cut_bytes = int((lengths * pretokens.counts)[~keep].sum())
    return PretokenCounts(offsets, data, pretokens.counts[keep]), smallest, int((~keep).sum()), cut_bytes


def count_texts(
    texts: Iterable[str], recipe: TokenizerRecipe, progress: Callable[[int, int], None] | None = None
) -> CountedSample:
    """Count the pretokens of a sample in this process; arguments and errors as `train_bpe`."""
    # The mask of sample_mask is a draw: its bytes scatter around sample_bytes, most for few long documents.
    sample = CheckedSample(texts, 2 * recipe.sample_bytes + 16 * _MIB, progress)
    counter = pretoken_counter(recipe)
    batch: list[str] = []
    room = _BATCH_CHARS
    for text in sample:
        batch.append(text)
        room -= len(text)
        if room < 0:
            counter.add(text_views(pa.array(batch, pa.large_string())))
            batch, room = [], _BATCH_CHARS
    counter.add(text_views(pa.array(batch, pa.large_string())))
    kept, smallest, num_cut, cut_bytes = cut_rare(counter.counts(), recipe.max_pretoken_bytes)
    return CountedSample(kept, sample.num_docs, sample.num_bytes, smallest, num_cut, cut_bytes)


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
    return train_counted(count_texts(texts, recipe, progress), recipe, out_dir)


def train_counted(sample: CountedSample, recipe: TokenizerRecipe, out_dir: str | Path) -> TokenizerInfo:
    """Train a vocabulary from counted pretokens; files, result and errors as `train_bpe`."""
    names = [*recipe.all_special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pretokens = sample.pretokens
    merges = learn_merges(
        *(pretokens.offsets, pretokens.data, pretokens.counts, [spelt(name) for name in names]),
        *(recipe.vocab_size, recipe.min_frequency),
    )
    pairs = _named(names, merges)
    num_learnt = len(names) - 256 - len(recipe.all_special_tokens)
    if num_learnt < recipe.num_merges:
        raise ConfigError(
            f"{recipe.name}: learnt {num_learnt:,} merges of the {recipe.num_merges:,} that vocab_size "
            f"{recipe.vocab_size:,} needs, from {sample.num_docs:,} documents with {sample.num_bytes:,} bytes (pairs "
            f"seen {recipe.min_frequency}+ times); raise sample_bytes, or set vocab_size to "
            f"{recipe.vocab_size - recipe.num_merges + num_learnt:,} or less"
        )
    tokenizer = new_tokenizer(recipe)
    tokenizer.model = models.BPE({name: index for index, name in enumerate(names)}, pairs)
    tokenizer.add_special_tokens(list(recipe.all_special_tokens))
    definition = tokenizer.to_str(pretty=False).encode()
    info = describe(definition, None, recipe.name, _origin(sample, recipe, merges))
    write_tokenizer(out_dir, definition, auto_config(info), info)
    _LOG.info(
        "trained %s: %d ids from %d documents, %d bytes", info.name, info.vocab_size, sample.num_docs, sample.num_bytes
    )
    return info


def _origin(sample: CountedSample, recipe: TokenizerRecipe, merges: Merges) -> dict[str, Any]:
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": recipe.sha256,
        "sample_docs": sample.num_docs,
        "sample_bytes": sample.num_bytes,
        "num_pretokens": len(sample.pretokens.counts),
        "smallest_count_kept": sample.smallest_count,
        "num_pretokens_cut": sample.num_cut,
        "text_bytes_cut": sample.num_cut_bytes,
        "largest_pair_count": int(merges.counts.max(initial=0)),
        "num_merge_conflicts": len(merges.ids) - len(np.unique(merges.ids)),
        "tokenizers_version": tokenizers.__version__,
    }


def _named(names: list[str], merges: Merges) -> list[tuple[str, str]]:
    """Return the merges as names, in order, and append the name of every new token to `names`."""
    # Of a pair that was merged twice the library keeps the later rank.
    pairs: dict[tuple[str, str], None] = {}
    for left, right, index in zip(merges.left.tolist(), merges.right.tolist(), merges.ids.tolist(), strict=True):
        pair = (names[left], names[right])
        if index == len(names):
            names.append(names[left] + names[right])
        pairs.pop(pair, None)
        pairs[pair] = None
    return list(pairs)
