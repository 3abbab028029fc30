"""Find the key at which the documents with the smallest keys reach a budget, without sorting anything globally.

Two passes over narrow columns: a histogram of the high key bits, then the one bucket in which the budget is met,
exactly. Documents of equal key stay together.
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
_BUCKET_BITS = 16
_ROWS = pa.schema([("group", pa.string()), ("key", pa.int64()), ("amount", pa.int64())])


class KeyColumns(NamedTuple):
    """What a part contributes: documents that take part, aligned."""

    groups: np.ndarray
    """object, shape (docs,): group names."""
    keys: np.ndarray
    """uint64, shape (docs,): smaller is taken first."""
    amounts: np.ndarray
    """int64, shape (docs,): tokens or bytes."""


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
    if not budgets:
        return {}
    names = tuple(sorted(budgets))
    sums: dict[str, dict[int, int]] = {name: {} for name in names}
    coarse = map_parts(spark, parts, functools.partial(_histogram, read, names), _ROWS)
    for row in coarse.groupBy("group", "key").sum("amount").collect():
        sums[row["group"]][row["key"]] = row["sum(amount)"]
    limits: dict[str, int] = {}
    open_buckets: dict[str, tuple[int, int]] = {}
    for name in names:
        below = 0
        for bucket in sorted(sums[name]):
            if below + sums[name][bucket] >= budgets[name]:
                open_buckets[name] = (bucket, budgets[name] - below)
                break
            below += sums[name][bucket]
        else:
            limits[name] = EVERYTHING
    wanted = {name: bucket for name, (bucket, _) in open_buckets.items()}
    rows: dict[str, list[tuple[int, int]]] = {name: [] for name in wanted}
    for row in map_parts(spark, parts, functools.partial(_one_bucket, read, wanted), _ROWS).collect():
        rows[row["group"]].append((row["key"] % 2**64, row["amount"]))
    for name, (_, needed) in open_buckets.items():
        keys, amounts = zip(*sorted(rows[name]), strict=True)
        limits[name] = keys[int(np.searchsorted(np.cumsum(amounts), needed))]
    return limits


def _histogram(read: ReadColumns, names: tuple[str, ...], part: int) -> Iterator[pa.RecordBatch]:
    columns = read(part)
    buckets = (columns.keys >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
    for name in names:
        mine = columns.groups == name
        values, inverse = np.unique(buckets[mine], return_inverse=True)
        sums = np.zeros(len(values), dtype=np.int64)
        np.add.at(sums, inverse, columns.amounts[mine])
        yield _batch(name, values, sums)


def _one_bucket(read: ReadColumns, wanted: Mapping[str, int], part: int) -> Iterator[pa.RecordBatch]:
    columns = read(part)
    buckets = (columns.keys >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
    for name, bucket in wanted.items():
        mine = (columns.groups == name) & (buckets == bucket)
        yield _batch(name, columns.keys[mine].view(np.int64), columns.amounts[mine])


def _batch(name: str, keys: np.ndarray, amounts: np.ndarray) -> pa.RecordBatch:
    arrays = [pa.array([name] * len(keys), pa.string()), pa.array(keys), pa.array(amounts.astype(np.int64))]
    return pa.RecordBatch.from_arrays(arrays, schema=_ROWS)
