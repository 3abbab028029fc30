"""Questions put to a vocabulary that need no text: Chinese characters, white space, digits, merges, counts."""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import Any

import numpy as np

from refinery.tokenization.encode import Encoder
from refinery.tokenization.info import read_definition

_GB2312_ROWS = range(16, 88)
_CELLS = 94
_MAX_INT32 = 2**31 - 1
_MERGED_LENGTHS = 16


@functools.cache
def gb2312_characters() -> tuple[str, ...]:
    """Return the 6,763 Chinese characters of GB 2312-80: rows 16 to 55 by frequency of use, 56 to 87 the rarer ones."""
    cells = (bytes((0xA0 + row, 0xA1 + cell)) for row in _GB2312_ROWS for cell in range(_CELLS))
    return tuple(text for text in (cell.decode("gb2312", "ignore") for cell in cells) if text)


def tokens_of_each(encoder: Encoder, characters: tuple[str, ...] | list[str]) -> np.ndarray:
    """Return into how many tokens each character alone is cut, int64, shape (characters,)."""
    return np.array([len(encoder.encode_text(char)) for char in characters], dtype=np.int64)


def han_coverage(encoder: Encoder, han: Counter[str], num_common: int, listed: int) -> dict[str, Any]:
    """Count which Han characters are one token, and into how many pieces of bytes the others fall.

    Args:
        encoder: the opened vocabulary.
        han: the text's Han characters with their counts.
        num_common: how many of the most frequent to report on their own.
        listed: how many characters a list names at most.
    """
    # Ties by code point, so that the report does not depend on the order of documents.
    order = sorted(han, key=lambda char: (-han[char], char))
    pieces = tokens_of_each(encoder, order)
    weights = np.array([han[char] for char in order], dtype=np.int64)
    common = pieces[:num_common]
    standard = gb2312_characters()
    standard_pieces = tokens_of_each(encoder, standard)
    return {
        "num_distinct": len(order),
        "num_distinct_single_token": int((pieces == 1).sum()),
        "num_looked_up": len(common),
        "num_single_token": int((common == 1).sum()),
        "single_token_frac": _ratio(int((common == 1).sum()), len(common)),
        "single_token_frac_of_text": _ratio(int(weights[pieces == 1].sum()), int(weights.sum())),
        "pieces_of_distinct": _histogram(pieces),
        "most_common_without_token": [order[index] for index in np.flatnonzero(common > 1)[:listed]],
        "gb2312": {
            "num_characters": len(standard),
            "num_single_token": int((standard_pieces == 1).sum()),
            "single_token_frac": _ratio(int((standard_pieces == 1).sum()), len(standard)),
            "pieces": _histogram(standard_pieces),
        },
    }


def white_space_and_digits(encoder: Encoder, texts: list[str | None]) -> dict[str, Any]:
    """Count the tokens of runs of spaces, tabs, line ends and digits, 1 to 16 long, in code-like surroundings."""

    def run(unit: str, before: str, after: str) -> list[int]:
        around = len(encoder.encode_text(before + after)) if before or after else 0
        return [
            len(encoder.encode_text(before + unit * length + after)) - around
            for length in range(1, _MERGED_LENGTHS + 1)
        ]

    digits = "1234567890123456"
    found = [text for text in texts if text]
    return {
        "tokens_of_spaces": run(" ", "", "\n"),
        "tokens_of_tabs": run("\t", "", "\n"),
        "tokens_of_line_ends": run("\n", "", ""),
        "tokens_of_digits": [len(encoder.encode_text(digits[:length])) for length in range(1, len(digits) + 1)],
        "tokens_of_indented_line": len(encoder.encode_text("        return x\n")),
        "most_digits_in_a_token": max((len(text) for text in found if text.isdecimal()), default=0),
        "num_white_space_tokens": sum(1 for text in found if text.isspace()),
        "num_digit_tokens": sum(1 for text in found if text.isdecimal()),
    }


def merge_conflicts(encoder: Encoder) -> dict[str, Any]:
    """Check the merges against the vocabulary, and the counts they were learnt from against 32 bits.

    Returns: tokens with more than one merge, merges that name a token which is not there, merges whose halves come
        later than themselves, and whether a trainer with 32-bit counts would have overflowed (None: not known).
    """
    model = json.loads(read_definition(encoder.folder))["model"]
    vocab = model.get("vocab")
    largest = encoder.info.origin.get("largest_pair_count")
    overflow = None if largest is None else bool(largest > _MAX_INT32)
    if not isinstance(vocab, dict):
        return {"num_merges": 0, "num_unknown": 0, "num_repeated": 0, "num_late": 0, "exceeds_32_bits": overflow}
    made: dict[str, int] = {}
    unknown = repeated = late = 0
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    first = {left + right: rank for rank, (left, right) in reversed(list(enumerate(pairs)))}
    for rank, (left, right) in enumerate(pairs):
        whole = left + right
        unknown += any(name not in vocab for name in (left, right, whole))
        repeated += whole in made
        made[whole] = rank
        late += any(first.get(half, -1) > rank for half in (left, right))
    return {
        "num_merges": len(pairs),
        "num_unknown": unknown,
        "num_repeated": repeated,
        "num_late": late,
        "largest_pair_count": largest,
        "exceeds_32_bits": overflow,
    }


def _histogram(pieces: np.ndarray) -> dict[str, int]:
    lengths, counts = np.unique(pieces, return_counts=True)
    return {str(length): int(count) for length, count in zip(lengths, counts, strict=True)}


def _ratio(above: float, below: float) -> float | None:
    return round(above / below, 6) if below else None
