"""Python worker daemon that imports what tasks need once; every forked worker then starts warm.

After each task Spark's daemon calls ``gc.collect()``. With numba, pyarrow and pandas loaded a full collection walks
half a million objects: 57 ms of CPU a task, more than many part tasks take. ``gc.freeze`` moves everything that is
imported before the fork out of the collector's sight; `part_tasks` does the same for what a task imports itself.
"""

from __future__ import annotations

import gc
import importlib

PRELOADED = (
    "numpy",
    "pandas",
    "pyarrow",
    "pyarrow.compute",
    "pyarrow.parquet",
    "numba",
    "numba.np.arrayobj",
    "fsspec",
    "xxhash",
    "orjson",
    "pydantic",
    "yaml",
    "pyspark.sql.pandas.serializers",
    "pyspark.sql.pandas.types",
    "refinery.io.survivors",
    "refinery.recipe",
)


def preload() -> None:
    """Import what every part task needs; a missing library is left to the task that needs it."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    freeze_imports()


def freeze_imports() -> None:
    """Take everything that lives now out of garbage collection: modules, code and type objects never die."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    from pyspark.daemon import manager

    preload()
    manager()
