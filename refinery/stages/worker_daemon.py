"""Python worker daemon that imports the heavy libraries once; every forked worker then starts warm."""

from __future__ import annotations

import importlib

PRELOADED = ("numpy", "pyarrow", "pyarrow.parquet", "numba", "xxhash", "orjson")


def preload() -> None:
    """Import what every part task needs; a missing library is left to the task that needs it."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue


if __name__ == "__main__":
    from pyspark.daemon import manager

    preload()
    manager()
