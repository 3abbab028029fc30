"""Text to token ids, always the ids that the `tokenizers` library gives, by the fastest engine proven to do so.

Three engines read the same ``tokenizer.json``: our kernel, `kitoken` and the library itself (speeds in
benchmarks/encode.py). The first of them that can read the file and gives the library's ids on a set of hard texts at
opening runs; the log says which and why. Special tokens that appear inside a document are text: a page that quotes
``<|endoftext|>`` cannot end a document.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from refinery.errors import ConfigError, DataError, IntegrityError
from refinery.kernels.text import text_views
from refinery.tokenization.engines import choose_engine
from refinery.tokenization.info import (
    TOKENIZER_FILE,
    TokenizerInfo,
    load_info,
    plain_tokenizer,
    probe_ids,
    read_definition,
    tokenizer_folder,
)

_LOG = logging.getLogger(__name__)

UINT16_VOCAB_LIMIT = 65_500
"""Vocabularies under it store ids as uint16, others as int32: Megatron-LM's bound for its indexed datasets."""

_LIBRARY_GROUP_BYTES = 1 << 20


class Views(Protocol):
    """Documents as one buffer: what `refinery.kernels.text.TextViews` is."""

    @property
    def offsets(self) -> np.ndarray:
        """int64, shape (D + 1,)."""

    @property
    def data(self) -> np.ndarray:
        """uint8, UTF-8."""


class EncodedBatch(NamedTuple):
    """Ids of D documents, back to back."""

    offsets: np.ndarray
    """int64, shape (D + 1,): document i is ``ids[offsets[i]:offsets[i + 1]]``."""
    ids: np.ndarray
    """uint16 or int32, shape (tokens,)."""


def id_dtype(vocab_size: int, asked: str | None = None) -> np.dtype:
    """Return the dtype in which ids of a vocabulary are stored.

    Args:
        vocab_size: highest id + 1.
        asked: ``uint16`` or ``int32``, to insist on one; the narrowest that fits by default.
    Raises:
        ConfigError: the dtype asked for is neither, or cannot hold the ids.
    """
    narrow = vocab_size < UINT16_VOCAB_LIMIT
    if asked not in (None, "uint16", "int32"):
        raise ConfigError(f"token ids cannot be stored as {asked!r}; choose uint16 or int32")
    if asked == "uint16" and not narrow:
        raise ConfigError(
            f"uint16 asked for, but the vocabulary has {vocab_size:,} ids and uint16 shards hold fewer than "
            f"{UINT16_VOCAB_LIMIT:,}; store int32 or take a smaller vocabulary"
        )
    return np.dtype(asked or ("uint16" if narrow else "int32"))


class Encoder:
    """One vocabulary, opened; make it with `open_encoder`. Pickles as its path, since `kitoken` objects do not."""

    def __init__(self, folder: Path, info: TokenizerInfo, tokenizer: Tokenizer, definition: bytes) -> None:
        self.info = info
        self.dtype = id_dtype(info.vocab_size)
        self.folder = folder
        self._tokenizer = tokenizer
        chosen = choose_engine(definition, tokenizer)
        self.engine, self.engine_reason = chosen.name, chosen.reason
        self._kernel = chosen.kernel
        fast = chosen.encode
        self._encode_all = functools.partial(_library_ids, tokenizer) if fast is None else functools.partial(map, fast)
        _LOG.info("tokenizer %s (%s): engine %s, %s", info.name, info.sha256[:12], self.engine, self.engine_reason)

    def __reduce__(self) -> tuple[Callable[[str], Encoder], tuple[str]]:
        return open_encoder, (str(self.folder),)

    def encode_batch(self, views: Views | pa.Array | pa.ChunkedArray, *, append_eos: bool = True) -> EncodedBatch:
        """Encode documents.

        Args:
            views: D documents as text views or as an Arrow string array; nulls count as empty.
            append_eos: end every document, empty ones too, with the vocabulary's end-of-text id.
        Returns: offsets int64 (D + 1,) and ids in `dtype`; no id is a special token except the appended one.

        Raises:
            ConfigError: `append_eos` with a vocabulary that has no end-of-text token.
            DataError: a document is not valid UTF-8.
        """
        eos_id = self.info.eos_id
        if append_eos and eos_id is None:
            raise ConfigError(
                f"tokenizer {self.info.name!r} has no end-of-text token; set eos_token and adopt it again"
            )
        if self._kernel is not None:
            given = _views(views)
            _check_utf8(given)
            return EncodedBatch(
                *self._kernel.encode(given.offsets, given.data, eos_id if append_eos else None, self.dtype)
            )
        tail = [eos_id] if append_eos and eos_id is not None else []
        texts = _arrow_texts(views) if isinstance(views, pa.Array | pa.ChunkedArray) else _view_texts(views)
        # One narrow array a document, then one copy: as Python ints a 64 MB part would hold 600 MB of objects.
        # np.fromiter costs 11 ns a token here, array.array.extend 26, of about 280 for kitoken's encoding.
        parts = [np.empty(0, dtype=self.dtype)]
        for ids in self._encode_all(texts):
            ids.extend(tail)
            parts.append(np.fromiter(ids, dtype=self.dtype, count=len(ids)))
        offsets = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return EncodedBatch(offsets, np.concatenate(parts))

    def encode_text(self, text: str) -> np.ndarray:
        """Encode one string, without an end-of-text id: ids in `dtype`, shape (tokens,)."""
        if self._kernel is not None:
            data = np.frombuffer(text.encode(), dtype=np.uint8)
            return self._kernel.encode(np.array([0, len(data)], dtype=np.int64), data, None, self.dtype)[1]
        return np.array(next(iter(self._encode_all([text]))), dtype=self.dtype)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Return the text of ids, special tokens by name; bytes that are no UTF-8 become U+FFFD.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        values = np.asarray(ids, dtype=np.int64)
        if len(values) and (values.min() < 0 or values.max() >= self.info.vocab_size):
            worst = int(values.max() if values.max() >= self.info.vocab_size else values.min())
            raise DataError(
                f"id {worst} is outside the {self.info.vocab_size:,} ids of tokenizer {self.info.name!r}; "
                "the ids were made with another tokenizer"
            )
        return self._tokenizer.decode(values.tolist(), skip_special_tokens=False)

    def token_bytes(self) -> np.ndarray:
        """Return the UTF-8 bytes that each id stands for, int64, shape (vocab_size,); 0 for special tokens.

        In a byte-level vocabulary every character of a token's name is one byte, so partial characters count right.
        """
        sizes = np.zeros(self.info.vocab_size, dtype=np.int64)
        byte_level = json.loads(self._tokenizer.to_str())["decoder"]["type"] == "ByteLevel"
        added = self._tokenizer.get_added_tokens_decoder()
        for name, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if index in added:
                sizes[index] = 0 if added[index].special else len(added[index].content.encode())
            else:
                sizes[index] = len(name) if byte_level else len(self.decode([index]).encode())
        return sizes

    def token_texts(self) -> list[str | None]:
        """Return the text of every id by position, None for ids that the vocabulary skips."""
        known = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        return [self.decode([index]) if index in known else None for index in range(self.info.vocab_size)]


def open_encoder(path: str | Path, expected_sha256: str | None = None) -> Encoder:
    """Open a tokenizer; a process opens each vocabulary once.

    Args:
        path: the folder of a tokenizer with its card, or the ``tokenizer.json`` inside.
        expected_sha256: refuse any other vocabulary.
    Raises:
        ConfigError, IntegrityError: as `refinery.tokenization.info.load_info`; IntegrityError also when the installed
            library gives other ids for the card's probes than the one that made it, or the sha256 is not the expected.
    """
    folder = tokenizer_folder(path)
    info = load_info(folder)
    if expected_sha256 is not None and info.sha256 != expected_sha256:
        raise IntegrityError(
            f"{folder} holds tokenizer {info.name!r} with sha256 {info.sha256}, expected {expected_sha256}; "
            "give the tokenizer that made the shards"
        )
    return _open(str(folder.resolve()), info.sha256)


@functools.cache
def _open(folder: str, sha256: str) -> Encoder:
    path = Path(folder)
    info = load_info(path)
    definition = read_definition(path)
    tokenizer = plain_tokenizer(definition, str(path / TOKENIZER_FILE))
    for (text, expected), (_, ids) in zip(info.probes, probe_ids(tokenizer), strict=False):
        if tuple(tokenizer.encode(text, add_special_tokens=False).ids) != expected:
            raise IntegrityError(
                f"tokenizer {info.name!r} (sha256 {sha256[:12]}) encodes {text!r} as {list(ids)[:12]}, its card says "
                f"{list(expected)[:12]}: the installed tokenizers library differs; install the version in the card"
            )
    return Encoder(path, info, tokenizer, definition)


def _library_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    group: list[str] = []
    room = _LIBRARY_GROUP_BYTES
    for text in texts:
        group.append(text)
        room -= len(text)
        if room <= 0:
            yield from (encoding.ids for encoding in tokenizer.encode_batch_fast(group, add_special_tokens=False))
            group, room = [], _LIBRARY_GROUP_BYTES
    yield from (encoding.ids for encoding in tokenizer.encode_batch_fast(group, add_special_tokens=False))


def _check_column(column: pa.Array | pa.ChunkedArray) -> None:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"a text column must be string or large_string, not {column.type}; cast it first")


def _views(given: Views | pa.Array | pa.ChunkedArray) -> Views:
    if isinstance(given, pa.Array | pa.ChunkedArray):
        _check_column(given)
        return text_views(given)
    return given


def _check_utf8(views: Views) -> None:
    """Check every document: the kernel reads valid UTF-8 only."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(views.offsets)), pa.py_buffer(np.ascontiguousarray(views.data))]
    try:
        pa.Array.from_buffers(pa.large_string(), len(views.offsets) - 1, buffers).validate(full=True)
    except pa.ArrowInvalid:
        for _ in _view_texts(views):  # says which one
            pass
        raise


def _arrow_texts(column: pa.Array | pa.ChunkedArray) -> Iterator[str]:
    _check_column(column)
    for value in column:
        yield value.as_py() or ""


def _view_texts(views: Views) -> Iterator[str]:
    # Both engines take Python strings: one decode per document, 0.5-1.1 % of the encoder's time (benchmarks/encode.py).
    buffer = np.ascontiguousarray(views.data).data
    bounds = views.offsets.tolist()
    for index, (start, end) in enumerate(pairwise(bounds)):
        try:
            yield str(buffer[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"document {index} of the batch is not UTF-8 ({error}); clean it at ingest") from error
