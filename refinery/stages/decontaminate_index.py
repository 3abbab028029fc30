"""The evals of a recipe: read, written beside the run, and indexed once in every process that scans."""

from __future__ import annotations

import functools
import glob
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import EVAL_ITEMS
from refinery.errors import ConfigError
from refinery.hashing import sha256_hex
from refinery.io import parts as part_files
from refinery.io.read_evals import EvalFile, EvalItem, EvalSpec, find_evals, read_eval
from refinery.kernels.contamination import (
    ALGORITHM_VERSION,
    EVAL_UNITS,
    IndexSize,
    NgramIndex,
    WordPositions,
    build_index,
    index_size,
    word_positions,
)
from refinery.kernels.text import text_views
from refinery.kernels.word_scan import table_digest
from refinery.recipe import Decontaminate, Recipe

NAME = "decontaminate"
ITEMS_PART = 0
"""The items of all evals are one part: an index holds them all in memory anyway."""
_BYTES_PER_WORD = 24
"""Of `WordPositions`."""


class IndexSettings(NamedTuple):
    """What of the recipe the index depends on."""

    ngram: int
    min_item_words: int
    min_item_bytes: int


@dataclass(frozen=True)
class UnitIndex:
    """The items of one unit."""

    index: NgramIndex
    first_id: int
    """Where the unit's n-gram ids begin among those of all units."""


@dataclass(frozen=True)
class EvalIndex:
    """All evals, ready to scan with."""

    items: pa.Table
    """The columns of `EVAL_ITEMS`; row i is item i."""
    units: tuple[UnitIndex, ...]
    item_words: np.ndarray
    """int64, shape (I,): words of each item in its own unit."""
    words: dict[str, WordPositions]
    """Unit -> the words of all items, read in that unit."""

    @property
    def num_ngrams(self) -> int:
        """N-grams and whole short items of all units."""
        return sum(u.index.num_ngrams for u in self.units)

    @property
    def num_bytes(self) -> int:
        """Memory of the n-grams, tables and bit maps."""
        return sum(u.index.num_bytes for u in self.units)


class ExpectedIndex(NamedTuple):
    """What the evals of a recipe will take in a process that scans, from above."""

    num_items: int
    num_ngrams: int
    """N-grams, those that items share counted each time, and whole short items."""
    size: IndexSize
    held_bytes: int
    """The items and the places of their words, held beside the index."""


def read_evals(section: Decontaminate) -> tuple[pa.Table, list[EvalFile]]:
    """Read all evals of a recipe into one table of items, in the order of the recipe.

    Raises:
        ConfigError: see `refinery.io.read_evals.read_eval`.
    """
    specs = []
    for given in section.evals:
        if isinstance(given, str):
            specs.append(EvalSpec(paths=(given,)))
        else:
            specs.append(EvalSpec(**given.model_dump()))
    items: list[EvalItem] = []
    told: list[EvalFile] = []
    for spec, name, files in find_evals(specs):
        found, files_told = read_eval(spec, name, files)
        items += found
        told += files_told
    columns = {name: [item[i] for item in items] for i, name in enumerate(EvalItem._fields)}
    table = pa.table({"item_number": np.arange(len(items)), **columns})
    return table.select(EVAL_ITEMS.names).cast(EVAL_ITEMS), told


def expected_index(section: Decontaminate) -> ExpectedIndex:
    """Read the evals of a recipe and return the most that their index can take, without building it.

    Raises:
        ConfigError: as `read_evals`.
    """
    items, _ = read_evals(section)
    parts, num_ngrams, num_words = [IndexSize(0, 0, 0)], 0, 0
    units = [unit for unit in EVAL_UNITS if pc.any(pc.equal(items.column("unit"), unit)).as_py()]
    for unit in units:
        texts = items.filter(pc.equal(items.column("unit"), unit)).column("text")
        words = np.diff(word_positions(text_views(texts), unit).offsets)
        places = int(np.maximum(words - section.ngram + 1, 0).sum())
        shorts = int(((words < section.ngram) & (words >= section.min_item_words)).sum())
        parts.append(index_size(places, places, shorts))
        num_ngrams, num_words = num_ngrams + places + shorts, num_words + int(words.sum())
    size = IndexSize(*(sum(column) for column in zip(*parts, strict=True)))
    held = items.get_total_buffer_size() + _BYTES_PER_WORD * num_words * len(units)  # every unit reads all items
    return ExpectedIndex(items.num_rows, num_ngrams, size, held)


def items_digest(items: pa.Table, settings: IndexSettings) -> str:
    """Return what the index is a function of: items, settings, normalisation."""
    rows = sha256_hex("\0".join(str(v) for c in items.column_names for v in items.column(c).to_pylist()).encode())
    return fingerprint_of("eval_index", ALGORITHM_VERSION, list(settings), table_digest("words"), rows)


def write_items(workdir: str, items: pa.Table, digest: str) -> part_files.PartFile:
    """Write the items where tasks and the report read them."""
    path = part_files.part_path(workdir, NAME, "items", ITEMS_PART)
    return part_files.found_part(path, digest) or part_files.write_part(path, items, EVAL_ITEMS, digest)


@functools.lru_cache(maxsize=1)
def stored_index(workdir: str, digest: str, settings: IndexSettings) -> EvalIndex:
    """Return the index of a run's items, built once per process and state of the items (the digest)."""
    items = part_files.read_part(workdir, NAME, "items", ITEMS_PART)
    if items_digest(items, settings) != digest:
        raise ConfigError(
            f"the eval items in {workdir} are not those of this run; run `refinery {NAME} RECIPE --force`"
        )
    return index_items(items, settings)


def index_items(items: pa.Table, settings: IndexSettings) -> EvalIndex:
    """Index a table of items."""
    item_words = np.zeros(items.num_rows, dtype=np.int64)
    units: list[UnitIndex] = []
    words: dict[str, WordPositions] = {}
    first_id = 0
    sizes = pc.binary_length(items.column("text")).to_numpy()
    for unit in EVAL_UNITS:
        mine = np.flatnonzero(pc.equal(items.column("unit"), unit).to_numpy())
        if not len(mine):
            continue
        words[unit] = word_positions(text_views(items.column("text")), unit)
        counts = np.diff(words[unit].offsets)
        item_words[mine] = counts[mine]
        long_enough = (counts[mine] >= settings.ngram) | (sizes[mine] >= settings.min_item_bytes)
        numbers = mine[long_enough]
        views = text_views(items.column("text").take(pa.array(numbers)))
        index = build_index(views, numbers, unit, settings.ngram, settings.min_item_words)
        units.append(UnitIndex(index, first_id))
        first_id += index.num_ngrams
    return EvalIndex(items, tuple(units), item_words, words)


def indexed_counts(index: EvalIndex, common: np.ndarray) -> dict[str, dict[str, int]]:
    """Return per eval how many items and n-grams are looked for.

    Args:
        index: the index.
        common: int64, sorted: n-gram ids that the corpus is full of.
    Raises:
        ConfigError: an eval has no n-gram at all.
    """
    evals = index.items.column("eval").to_numpy(zero_copy_only=False)
    looked_for = np.zeros(index.items.num_rows, dtype=bool)
    whole = np.zeros(index.items.num_rows, dtype=bool)
    findable = np.zeros(index.items.num_rows, dtype=bool)
    ngrams: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for unit in index.units:
        owners = unit.index.posting_items
        ids = np.repeat(np.arange(unit.index.num_ngrams), np.diff(unit.index.posting_offsets))
        looked_for[owners] = True
        whole[owners[ids >= unit.index.first_short]] = True
        gone = np.isin(ids + unit.first_id, common)
        findable[owners[~gone]] = True
        for name in np.unique(evals[owners].astype(str)):
            mine = evals[owners] == name
            ngrams[name] += len(np.unique(ids[mine]))
            lost[name] += len(np.unique(ids[mine & gone]))
    counted: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(evals.tolist()):
        mine = evals == name
        if not ngrams[name]:
            raise ConfigError(
                f"eval {name} yields no n-gram: none of its {int(mine.sum())} texts has enough words "
                f"(the longest has {int(index.item_words[mine].max())}); lower min_item_words or name longer fields"
            )
        counted[name] = {
            "items": int(mine.sum()),
            "items_too_short": int((mine & ~looked_for).sum()),
            "items_matched_whole": int((mine & whole).sum()),
            "items_common": int((mine & looked_for & ~findable).sum()),
            "ngrams": ngrams[name],
            "ngrams_common": lost[name],
        }
    return counted


def eval_warnings(recipe: Recipe, files: list[EvalFile], counted: list[dict[str, Any]]) -> list[str]:
    """Return what is doubtful about the evals of a recipe.

    Args:
        recipe: the recipe: an eval may be one of its inputs.
        files: what was read: records may lack text.
        counted: one row per eval with ``eval`` and ``items_common``: texts that stand in so many documents that
            nothing of them counts.
    """
    warnings = [
        f"eval {row['eval']}: every n-gram of {row['items_common']} of its texts stands in more than max_documents "
        "documents, so they cannot be hits; look for them, and raise max_documents if they are no boilerplate"
        for row in counted
        if row["items_common"]
    ]
    for file in files:
        if file.records_without_text:
            warnings.append(
                f"eval {file.eval}: {file.records_without_text} of {file.records} records lack text in a field"
            )
        warnings += [
            f"eval {file.eval}: its file {Path(file.path).name} is also an input of source {i.source}, so that source "
            "is the eval"
            for i in recipe.inputs
            if any(_covers(path, file.path) for path in i.paths)
        ]
    return warnings


def _covers(path: str, file: str) -> bool:
    """Say whether an input's path (a file, folder or glob) leads to a file."""
    if "://" in path or "://" in file:
        return path == file
    target = Path(file).resolve()
    place = Path(path).expanduser()
    if place.is_dir():
        return target.is_relative_to(place.resolve())
    found = [str(place)] if place.exists() else glob.glob(str(place), recursive=True)  # noqa: PTH207 - may be absolute
    return any(Path(one).resolve() == target for one in found)
