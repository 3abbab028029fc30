"""Find the key at which the documents with the smallest keys reach a budget, without sorting anything globally.

Passes over narrow columns: a histogram of the high key bits, then of the next ones inside the bucket in which the
budget is met, until that holds few rows, which are looked at one by one. So the answer is exact and the driver's memory
bounded, however keys are spread. Documents of equal key stay together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from refinery.stages.part_tasks import map_parts

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

EVERYTHING = 2**64 - 1
"""Limit of a group that is taken whole."""
MAX_ROWS = 200_000
"""Rows of one open bucket that the driver takes."""
_KEY_BITS = 64
_LEVEL_BITS = 16
_ROWS = pa.schema([("group", pa.string()), ("key", pa.int64()), ("amount", pa.int64()), ("rows", pa.int64())])


class KeyColumns(NamedTuple):
    """What a part contributes: documents that take part, aligned."""

    groups: np.ndarray
    """object, shape (docs,): group names."""
    keys: np.ndarray
    """uint64, shape (docs,): smaller is taken first."""
    amounts: np.ndarray
    """int64, shape (docs,): tokens or bytes."""


class _Open(NamedTuple):
    """Where a group's budget is met: among the keys whose first `bits` bits are `prefix`."""

    bits: int
    prefix: int
    needed: int
    """Amount still wanted of these keys."""


ReadColumns = Callable[[int], KeyColumns]


def budget_limits(
    spark: SparkSession, parts: Sequence[int], read: ReadColumns, budgets: Mapping[str, int]
) -> dict[str, int]:
    """Return for each group the largest key that is taken, so that at least its budget is.

    Args:
        spark: the session.
        parts: part numbers.
        read: columns of one part.
        budgets: group -> amount wanted; groups with less than that get `EVERYTHING`.
    """
    limits: dict[str, int] = {}
    small: dict[str, _Open] = {}
    large = {name: _Open(0, 0, budget) for name, budget in sorted(budgets.items())}
    while large:
        sums = _collect(spark, parts, functools.partial(_histogram, read, large))
        found = {name: _narrowed(large[name], sums.get(name, {})) for name in large}
        limits |= {name: EVERYTHING for name, one in found.items() if one is None}
        large = {}
        for name, one in found.items():
            if one is None:
                continue
            opened, rows = one
            if opened.bits == _KEY_BITS:
                limits[name] = opened.prefix
            elif rows <= MAX_ROWS:
                small[name] = opened
            else:
                large[name] = opened
    if small:
        rows_of = _collect(spark, parts, functools.partial(_one_bucket, read, small))
        for name, opened in small.items():
            keys, amounts = zip(*sorted((k, a) for k, (a, _) in rows_of[name].items()), strict=True)
            limits[name] = keys[int(np.searchsorted(np.cumsum(amounts), opened.needed))]
    return limits


def _narrowed(opened: _Open, sums: Mapping[int, tuple[int, int]]) -> tuple[_Open, int] | None:
    """Return the bucket in which the budget is met and its rows; None where all of it is too little."""
    below = 0
    for bucket in sorted(sums):
        amount, rows = sums[bucket]
        if below + amount >= opened.needed:
            return _Open(opened.bits + _LEVEL_BITS, bucket, opened.needed - below), rows
        below += amount
    return None


def _collect(
    spark: SparkSession, parts: Sequence[int], task: Callable[[int], Iterator[pa.RecordBatch]]
) -> dict[str, dict[int, tuple[int, int]]]:
    """Return group -> key -> (amount, rows), summed over the parts."""
    found: dict[str, dict[int, tuple[int, int]]] = {}
    frame = map_parts(spark, parts, task, _ROWS).groupBy("group", "key").sum("amount", "rows")
    for row in frame.collect():
        found.setdefault(row["group"], {})[row["key"] % 2**64] = (row["sum(amount)"], row["sum(rows)"])
    return found


def _inside(columns: KeyColumns, name: str, opened: _Open) -> np.ndarray:
    mine = columns.groups == name
    if opened.bits:
        mine &= (columns.keys >> np.uint64(_KEY_BITS - opened.bits)) == np.uint64(opened.prefix)
    return mine


def _histogram(read: ReadColumns, wanted: Mapping[str, _Open], part: int) -> Iterator[pa.RecordBatch]:
    columns = read(part)
    for name, opened in wanted.items():
        mine = _inside(columns, name, opened)
        shift = np.uint64(_KEY_BITS - opened.bits - _LEVEL_BITS)
        yield _batch(name, columns.keys[mine] >> shift, columns.amounts[mine])


def _one_bucket(read: ReadColumns, wanted: Mapping[str, _Open], part: int) -> Iterator[pa.RecordBatch]:
    columns = read(part)
    for name, opened in wanted.items():
        mine = _inside(columns, name, opened)
        yield _batch(name, columns.keys[mine], columns.amounts[mine])


def _batch(name: str, keys: np.ndarray, amounts: np.ndarray) -> pa.RecordBatch:
    """Return the sums per key of one part."""
    values, inverse, rows = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.zeros(len(values), dtype=np.int64)
    np.add.at(sums, inverse, amounts.astype(np.int64))
    arrays = [pa.array([name] * len(values), pa.string()), pa.array(values.view(np.int64)), pa.array(sums)]
    return pa.RecordBatch.from_arrays([*arrays, pa.array(rows.astype(np.int64))], schema=_ROWS)
