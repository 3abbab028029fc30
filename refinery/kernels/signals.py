"""Signals: every number that a rule can ask about a document, computed in one go and kept.

Signals are facts, thresholds are policy (`refinery.kernels.decide`). `signals_catalog.SIGNALS` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numba
import numpy as np
import pyarrow as pa

from refinery.errors import DataError
from refinery.kernels.char_classes import class_table, stop_words_zh
from refinery.kernels.repetition import ngram_repetition, table_capacity
from refinery.kernels.signals_catalog import SIGNALS, Count, SignalSpec
from refinery.kernels.signals_chars import scan_chars
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS
from refinery.kernels.signals_lines import scan_lines
from refinery.kernels.signals_words import scan_words
from refinery.kernels.text import TextViews
from refinery.kernels.words import boundary_flags, split_words

__all__ = ["MAX_DOCUMENT_BYTES", "SIGNALS", "SignalSpec", "signal_batch", "signals"]

ALGORITHM_VERSION = 2
"""Raised whenever a signal's definition changes: stored signals of another version are computed anew."""

MAX_DOCUMENT_BYTES = 2**30
"""Positions inside one document are int32; the scratch is about 60 bytes per byte of the longest document touched."""

NGRAM_SIGNALS = frozenset(s.name for s in SIGNALS if Count.NGRAM_2 <= s.numerator <= Count.NGRAM_10)
"""Signals over repeated n-grams of words."""

CHARACTER_SIGNALS = frozenset(s.name for s in SIGNALS if max(s.numerator, s.denominator) <= Count.SENTENCES)
"""Signals over characters and sentences alone."""

Passes = Literal["characters", "words", "ngrams"]
"""How far a document is counted: `CHARACTER_SIGNALS`; all but `NGRAM_SIGNALS`; all."""

_PASSES: tuple[Passes, ...] = ("characters", "words", "ngrams")
_CHARACTERS, _WORDS, _NGRAMS = range(3)
_NUM_CODE_POINTS = 0x110000


def signals(
    views: TextViews, boundaries: np.ndarray | None = None, *, passes: Passes = "ngrams"
) -> dict[str, np.ndarray]:
    """Return the signals of `SIGNALS`, each an array of shape (docs,) and the dtype its spec names.

    Args:
        views: the documents.
        boundaries: optional word segmentation of Han and kana text, as in `words.word_spans`.
        passes: how far to count; n-grams take half of the time, characters a tenth.

    Raises:
        DataError: a document is longer than `MAX_DOCUMENT_BYTES`.
        SchemaError: `boundaries` has another length than the text.
    """
    lengths = np.diff(views.offsets)
    longest = int(lengths.max(initial=0))
    if longest > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"document {int(lengths.argmax())} of the batch has {longest} bytes; signals take at most "
            f"{MAX_DOCUMENT_BYTES}; lower max_document_bytes at ingest so that such documents are cut or dropped"
        )
    counts = np.zeros((views.num_docs, len(Count)), dtype=np.float64)
    flags = boundary_flags(views, boundaries)
    far = _PASSES.index(passes)
    _count_batch(views.offsets, views.data, class_table(), flags, stop_words_zh(), longest, counts, far)
    return {spec.name: _column(spec, counts) for spec in SIGNALS if far >= _pass_of(spec.name)}


def _pass_of(name: str) -> int:
    """Return the pass that counts a signal."""
    return _CHARACTERS if name in CHARACTER_SIGNALS else _NGRAMS if name in NGRAM_SIGNALS else _WORDS


def signal_batch(columns: Mapping[str, np.ndarray]) -> pa.RecordBatch:
    """Return the signals as a record batch of `signal_schema`; null where one was left out."""
    num_docs = len(columns[SIGNALS[0].name])
    schema = signal_schema()
    arrays = [
        pa.array(columns[field.name]) if field.name in columns else pa.nulls(num_docs, field.type) for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def signal_schema() -> pa.Schema:
    """Return the Arrow schema of `signal_batch`: `SIGNALS`, then `DATATROVE_SIGNALS`, which may be null."""
    columns = [(spec.name, spec.dtype) for spec in SIGNALS] + [(spec.name, spec.dtype) for spec in DATATROVE_SIGNALS]
    return pa.schema([pa.field(name, pa.from_numpy_dtype(dtype)) for name, dtype in columns])


def _column(spec: SignalSpec, counts: np.ndarray) -> np.ndarray:
    numerator = counts[:, spec.numerator]
    if spec.denominator == Count.ONE:
        return numerator.astype(spec.dtype)
    denominator = counts[:, spec.denominator]
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return ratio.astype(spec.dtype)


@numba.njit(cache=True, nogil=True)
def _count_batch(  # noqa: PLR0913, PLR0917 - compiled inner kernel
    offsets: np.ndarray,
    data: np.ndarray,
    classes: np.ndarray,
    boundaries: np.ndarray,
    stop_zh: np.ndarray,
    longest: int,
    counts: np.ndarray,
    passes: int,
) -> None:
    """Fill ``counts`` (float64, shape (docs, len(Count))); all scratch is allocated here, once, and touched lazily."""
    room = longest + 2
    histogram = np.zeros(_NUM_CODE_POINTS, dtype=np.int32)
    seen = np.empty(min(room + 0x80, _NUM_CODE_POINTS), dtype=np.int32)
    starts, ends = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    num_chars, char_ends = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    kinds = np.empty(room, dtype=np.uint8)
    keys = np.empty(room, dtype=np.uint64)
    integers = np.empty((6, room), dtype=np.int32)
    table = np.empty(table_capacity(room), dtype=np.int32)
    for doc in range(len(offsets) - 1):
        start, end = offsets[doc], offsets[doc + 1]
        row = counts[doc]
        row[Count.ONE] = 1
        scan_chars(data, start, end, classes, histogram, seen, row)
        if passes == _CHARACTERS:
            continue
        scan_lines(data, start, end, classes, keys, num_chars, integers, table, row)
        words, symbols = split_words(data, start, end, classes, boundaries, starts, ends, num_chars, kinds)
        row[Count.SYMBOLS] = symbols
        row[Count.TOKENS] = words + symbols
        scan_words(
            data, start, end, classes, stop_zh, words, starts, ends, num_chars, kinds, keys, char_ends, row
        )
        if passes == _NGRAMS:
            ngram_repetition(keys, words, char_ends, integers, table, row[Count.NGRAM_2 : Count.NGRAM_10 + 1])
