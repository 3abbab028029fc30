"""Add tokens for a new domain or language to an existing byte-level BPE vocabulary, for continual pretraining.

BPE training goes on where it stopped: the new texts are encoded with the old vocabulary, and the most frequent pairs
of what results become new merges after all old ones. Old ids stay. A text that needs none of the new tokens encodes as
before, since new merges rank last: they apply only to what the old ones leave. Each new token is mapped to the old
tokens that it stands for, whose mean is the usual start of its embedding row (Chinese-LLaMA, arXiv 2304.08177, adds
20,000 Chinese tokens to LLaMA and trains the new rows).
"""

from __future__ import annotations

import heapq
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer

from refinery.errors import ConfigError, IntegrityError
from refinery.tokenization.info import (
    CONFIG_FILE,
    TokenizerInfo,
    auto_config,
    describe,
    load_info,
    plain_tokenizer,
    read_definition,
    tokenizer_folder,
    write_atomically,
    write_tokenizer,
)
from refinery.tokenization.train import CheckedSample

_LOG = logging.getLogger(__name__)

PIECES_FILE = "new_token_pieces.json"
"""``base_sha256``, ``first_new_id`` and ``pieces``: entry i lists the old ids, two or more, that token
``first_new_id + i`` stands for."""
_MAX_SAMPLE_BYTES = 400_000_000

Pair = tuple[int, int]


@dataclass
class _Words:
    """Distinct pretokens as old ids, with where each pair stands; merges are applied in place."""

    ids: list[list[int]]
    counts: list[int]
    pair_counts: Counter[Pair] = field(default_factory=Counter)
    pair_words: dict[Pair, set[int]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for word, ids in enumerate(self.ids):
            self._count(word, ids, 1)

    def _count(self, word: int, ids: list[int], sign: int) -> None:
        for pair in pairwise(ids):
            self.pair_counts[pair] += sign * self.counts[word]
            if sign > 0:
                self.pair_words[pair].add(word)

    def merge(self, pair: Pair, new_id: int) -> set[Pair]:
        """Join every occurrence of `pair`, leftmost first, and return the pairs whose counts may have grown."""
        grown: set[Pair] = set()
        for word in self.pair_words.pop(pair):
            old = self.ids[word]
            new: list[int] = []
            place = 0
            while place < len(old):
                if place + 1 < len(old) and (old[place], old[place + 1]) == pair:
                    new.append(new_id)
                    place += 2
                else:
                    new.append(old[place])
                    place += 1
            self._count(word, old, -1)
            self._count(word, new, 1)
            self.ids[word] = new
            grown.update(found for found in pairwise(new) if new_id in found)
        del self.pair_counts[pair]
        return grown


def extend_bpe(
    path: str | Path,
    texts: Iterable[str],
    num_new: int,
    out_dir: str | Path,
    *,
    min_frequency: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizerInfo:
    """Add `num_new` tokens to a vocabulary and write the larger one, with the pieces of each new token.

    Args:
        path: folder of a tokenizer with its card (`refinery.tokenization.info.adopt_tokenizer` makes one).
        texts: text of the new domains, one document each, read once; at most 400 MB.
        num_new: tokens to add.
        out_dir: folder to write into, not the old one.
        min_frequency: a pair becomes a token only while it occurs this often.
        progress: called with (documents, UTF-8 bytes) read so far.
    Returns: the card of the larger vocabulary.

    Raises:
        ConfigError: the vocabulary is no byte-level BPE, or the texts do not yield `num_new` tokens.
        DataError: a document is not a valid string.
        IntegrityError: the old vocabulary is damaged, or would not keep its ids.
    """
    folder = tokenizer_folder(path)
    base = load_info(folder)
    if num_new < 1 or Path(out_dir).resolve() == folder.resolve():
        raise ConfigError(f"cannot add {num_new} tokens to {folder} in {out_dir}: give 1 or more, and another folder")
    definition = json.loads(read_definition(folder))
    _check_extensible(definition, base.name)
    tokenizer = plain_tokenizer(read_definition(folder), str(folder))
    sample = CheckedSample(texts, _MAX_SAMPLE_BYTES, progress)
    words = _count_words(tokenizer, sample)
    merges, new_ids = _learn(
        words, tokenizer.get_vocab(with_added_tokens=True), base.vocab_size, num_new, min_frequency
    )
    if len(new_ids) < num_new:
        raise ConfigError(
            f"{base.name}: found {len(new_ids):,} new tokens of the {num_new:,} asked for in {sample.num_docs:,} "
            f"documents with {sample.num_bytes:,} bytes (pairs seen {min_frequency}+ times); give more text or ask for "
            f"{len(new_ids):,} or fewer"
        )
    larger = json.dumps(_with_merges(definition, tokenizer, merges, new_ids), ensure_ascii=False).encode()
    origin = {
        "extended_from": base.sha256,
        "num_new": num_new,
        "min_frequency": min_frequency,
        "sample_docs": sample.num_docs,
        "sample_bytes": sample.num_bytes,
        "tokenizers_version": tokenizers.__version__,
    }
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    # Through the library, so that the file is laid out as the library lays it out.
    loaded = plain_tokenizer(larger, "the extended tokenizer")
    _check_ids_kept(tokenizer, loaded, base)
    larger = loaded.to_str(pretty=False).encode()
    info = describe(larger, config, f"{base.name}+{num_new}", origin)
    _write(Path(out_dir), larger, config or auto_config(info), info, _pieces(merges, base.vocab_size))
    return info


def _write(
    out_dir: Path, definition: bytes, config: dict[str, Any], info: TokenizerInfo, pieces: list[list[int]]
) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "base_sha256": info.origin["extended_from"],
        "first_new_id": info.vocab_size - len(pieces),
        "pieces": pieces,
    }
    write_atomically(out_dir / PIECES_FILE, (json.dumps(content) + "\n").encode())
    write_tokenizer(out_dir, definition, config, info)
    _LOG.info("extended to %s: %d new tokens, %d ids", info.name, len(pieces), info.vocab_size)


def _check_extensible(definition: dict[str, Any], name: str) -> None:
    model = definition["model"]
    splitter = json.dumps(definition.get("pre_tokenizer"))
    if model.get("type") != "BPE" or '"ByteLevel"' not in splitter or model.get("byte_fallback"):
        raise ConfigError(
            f"{name} is a {model.get('type')} model with pre-tokenizer {splitter[:80]}; only byte-level BPE can be "
            "extended: adopt a tokenizer of the GPT-2, Llama-3 or Qwen kind"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ConfigError(f"{name} sets {option}={model[option]!r}, which extending does not carry on; unset it")


def _count_words(tokenizer: Tokenizer, sample: CheckedSample) -> _Words:
    counts: Counter[str] = Counter()
    for text in sample:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer is not None else text
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    # Sorted: word numbers, and so nothing that follows, depend on the order of documents.
    kept = sorted(counts.items())
    ids = [[token.id for token in tokenizer.model.tokenize(word)] for word, _ in kept]
    return _Words(ids, [count for _, count in kept])


def _learn(
    words: _Words, vocab: dict[str, int], first_new_id: int, num_new: int, min_frequency: int
) -> tuple[list[tuple[Pair, int]], dict[str, int]]:
    """Return new merges in order as (pair, id), and the new tokens by their text."""
    texts = {index: text for text, index in vocab.items()}
    # Most frequent first, ties by ids; counts in the heap can be stale and are checked when popped.
    heap = [(-count, pair) for pair, count in words.pair_counts.items() if count >= min_frequency]
    heapq.heapify(heap)
    merges: list[tuple[Pair, int]] = []
    new_ids: dict[str, int] = {}
    while heap and len(new_ids) < num_new:
        negative, pair = heapq.heappop(heap)
        count = words.pair_counts.get(pair, 0)
        if count < min_frequency:
            continue
        if count != -negative:
            heapq.heappush(heap, (-count, pair))
            continue
        text = texts[pair[0]] + texts[pair[1]]
        if text in vocab:
            continue  # the old vocabulary has the token but never makes it this way; doing so would change old text
        new_id = new_ids.setdefault(text, first_new_id + len(new_ids))
        texts[new_id] = text
        merges.append((pair, new_id))
        for grown in words.merge(pair, new_id):
            if words.pair_counts[grown] >= min_frequency:
                heapq.heappush(heap, (-words.pair_counts[grown], grown))
    return merges, new_ids


def _with_merges(
    definition: dict[str, Any], tokenizer: Tokenizer, merges: list[tuple[Pair, int]], new_ids: dict[str, int]
) -> dict[str, Any]:
    model = definition["model"]
    old = tokenizer.get_vocab(with_added_tokens=True)
    texts = {index: text for text, index in [*old.items(), *new_ids.items()]}
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    pairs = [[texts[left], texts[right]] for (left, right), _ in merges]
    # Control tokens outside the model's own vocabulary are numbered after it when the file is loaded, so a larger
    # vocabulary would push them up; inside it they keep their ids, and no merge makes them.
    return {
        **definition,
        "model": {
            **model,
            "vocab": {**old, **new_ids},
            "merges": model["merges"] + [" ".join(pair) if as_text else pair for pair in pairs],
        },
    }


def _pieces(merges: list[tuple[Pair, int]], first_new_id: int) -> list[list[int]]:
    pieces: dict[int, list[int]] = {}
    for pair, new_id in merges:
        if new_id not in pieces:
            pieces[new_id] = [part for index in pair for part in pieces.get(index, [index])]
    return [pieces[first_new_id + number] for number in range(len(pieces))]


def _check_ids_kept(old: Tokenizer, new: Tokenizer, base: TokenizerInfo) -> None:
    before, after = old.get_vocab(with_added_tokens=True), new.get_vocab(with_added_tokens=True)
    moved = [token for token, index in before.items() if after.get(token) != index]
    # With `ignore_merges` a pretoken that equals a token is taken whole, control tokens now included.
    controls = [
        token for token, index in base.special_ids.items() if index in new.encode(token, add_special_tokens=False).ids
    ]
    if moved or controls:
        raise IntegrityError(
            f"{base.name} cannot be extended: {len(moved)} old tokens would get other ids ({moved[:5]}), "
            f"{len(controls)} control tokens would come out of plain text ({controls[:5]}); unsupported layout"
        )
