"""What single settings add to a forecast: the index of evals, embeddings, repeated lines, the containment report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refinery.forecast_costs import (
    CONTAINMENT,
    INDEX_BUILD_BYTES_PER_NGRAM,
    LINES,
    SENTENCES_PER_CORE_SECOND,
)
from refinery.recipe import Recipe
from refinery.stages.decontaminate_index import expected_index

_SENTENCE_BYTES = 120
"""Of an ordinary sentence, to tell their number from bytes."""


@dataclass(frozen=True, kw_only=True)
class EvalIndexForecast:
    """The index of a recipe's evals, from above: n-grams that several items share are counted each time."""

    num_items: int
    num_ngrams: int
    bitmap_bytes: int
    """The prefilter that every word of the text asks."""
    table_bytes: int
    """The hash table behind it."""
    index_bytes: int
    """Both, and where the n-grams stand in the items."""
    process_bytes: int
    """Of one process that scans: the index, the items and their words, and what building it takes for a moment."""


def eval_index_of(recipe: Recipe, stages: Sequence[str]) -> EvalIndexForecast | None:
    """Read the evals of a recipe and say how large their index will be; None where nothing is decontaminated.

    Raises:
        ConfigError: an eval is missing, empty or unreadable: better now than after the stages before it.
    """
    section = recipe.decontaminate
    if section is None or "decontaminate" not in stages:
        return None
    found = expected_index(section)
    return EvalIndexForecast(
        num_items=found.num_items,
        num_ngrams=found.num_ngrams,
        bitmap_bytes=found.size.bitmap_bytes,
        table_bytes=found.size.table_bytes,
        index_bytes=found.size.num_bytes,
        process_bytes=int(found.size.num_bytes + found.held_bytes + INDEX_BUILD_BYTES_PER_NGRAM * found.num_ngrams),
    )


def sentence_extras(recipe: Recipe, text_bytes: float, lanes: int) -> tuple[float, float]:
    """Return the (seconds, bytes of disk) that settings of dedup_sentences add to its plain cost."""
    section, seconds, disk = recipe.dedup_sentences, 0.0, 0.0
    if section is None:
        return seconds, disk
    if section.embeddings != "off":
        number = min(section.embeddings.max_sentences, text_bytes / _SENTENCE_BYTES)
        seconds += 20.0 + number / SENTENCES_PER_CORE_SECOND / lanes
    for cost, asked in ((LINES, section.lines != "off"), (CONTAINMENT, section.containment != "off")):
        if asked:
            seconds += cost.fixed_seconds + text_bytes / 1e6 / cost.mb_per_core_second / lanes
            disk += text_bytes * cost.disk_per_text_byte
    return seconds, disk
