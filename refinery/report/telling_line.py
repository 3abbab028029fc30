"""The line of a document that shows best why a rule cut it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from refinery.kernels.signals import signals
from refinery.kernels.signals_datatrove import datatrove_signals
from refinery.kernels.text import views_of
from refinery.report.samples import RuleBound

MAX_LINES = 2000
"""Lines looked at per document: an explanation is no place for a 20 MB log file."""


def telling_lines(text: str, bounds: Sequence[RuleBound]) -> list[tuple[int, str] | None]:
    """Return for each rule the (number from 1, line) that is furthest out, None where no single line tells.

    Every line is measured as a document of its own, by the rule's own signal: the longest line for a rule on line
    length, the line with most hashes for one on hashes. For repeated lines and paragraphs it is the one that takes
    most characters over its copies. Ties go to the longer line, then to the earlier one. Too few words, and whatever
    is the same on every line, is no single line's doing.
    """
    lines = text.split("\n")[:MAX_LINES]
    filled = [k for k, line in enumerate(lines) if line.strip()]
    if not filled or not bounds:
        return [None] * len(bounds)
    views = views_of([lines[k] for k in filled])
    columns = signals(views)
    if any(bound.signal.startswith("datatrove_") for bound in bounds):  # their kernels take half a minute to compile
        columns |= datatrove_signals(views)
    return [_telling(lines, filled, columns, bound) for bound in bounds]


def _telling(
    lines: list[str], filled: list[int], columns: dict[str, np.ndarray], bound: RuleBound
) -> tuple[int, str] | None:
    signal = bound.signal.removeprefix("datatrove_")
    if signal.startswith("dup_") and ("line" in signal or "paragraph" in signal):
        return _most_repeated([lines[k] for k in filled], filled)
    if bound.signal not in columns or (bound.max is None and signal.startswith("num_")):
        return None
    values = np.nan_to_num(columns[bound.signal].astype(np.float64))
    if values.min() == values.max():
        return None
    outness = values if bound.max is not None else -values
    best = max(range(len(filled)), key=lambda k: (outness[k], len(lines[filled[k]]), -k))
    return filled[best] + 1, lines[filled[best]]


def _most_repeated(lines: list[str], numbers: list[int]) -> tuple[int, str] | None:
    counts = Counter(line.strip() for line in lines)
    line, count = max(counts.items(), key=lambda item: (item[1] > 1, item[1] * len(item[0])))
    if count < 2:
        return None
    first = next(k for k, candidate in zip(numbers, lines, strict=True) if candidate.strip() == line)
    return first + 1, line
