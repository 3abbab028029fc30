"""Where numba keeps the compiled kernels of code that runs from an archive.

numba's own place for them depends on the archive's path, and every Spark application gets the archive at a path of its
own: each would compile everything again, on every executor. Nor does numba see that a function of another module, which
it compiled into a kernel, has changed. Here the place depends on the sources of all kernels and on nothing else, so
applications, executors and the driver share what is compiled, and changed kernels start anew.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numba
import xxhash
from numba.core.caching import ZipCacheLocator

LOCATORS = ",".join(
    [
        f"{__name__}.ArchiveCacheLocator",
        "UserProvidedCacheLocator",
        "InTreeCacheLocator",
        "UserWideCacheLocator",
        "IPythonCacheLocator",
    ]
)
"""Value of ``NUMBA_CACHE_LOCATOR_CLASSES``: ours for archives, numba's own for all else."""

KERNELS = ("refinery/hashing.py", "refinery/kernels/")


class ArchiveCacheLocator(ZipCacheLocator):
    """``NUMBA_CACHE_DIR/refinery-KERNELS/FOLDER``; numba's user folder where that variable is not set."""

    def __init__(self, py_func: Callable[..., object], py_file: str) -> None:
        super().__init__(py_func, py_file)
        root = Path(numba.config.CACHE_DIR or Path.home() / ".cache" / "numba")  # type: ignore[attr-defined]
        folder = PurePosixPath(self._internal_path).parent
        self._cache_path = str(root / f"refinery-{_kernels_of(self._zip_path)}" / folder)


@functools.cache
def _kernels_of(archive: str) -> str:
    digest = xxhash.xxh3_128()
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            if name.startswith(KERNELS):
                digest.update(name.encode() + opened.read(name))
    return digest.hexdigest()


def use_archive_cache() -> None:
    """Make this process use the place; before the first kernel is imported, for numba asks at that moment."""
    numba.config.CACHE_LOCATOR_CLASSES = LOCATORS  # type: ignore[attr-defined]
