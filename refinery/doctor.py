"""What a machine needs for a run, whether it is there, and what to do if not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from typing import Any

import psutil

from refinery.errors import ConfigError
from refinery.stages.java import find_java_home, java_version

MINIMUM_MEMORY_BYTES = 4 * 2**30
MINIMUM_DISK_BYTES = 5 * 2**30
_PACKAGES = ("pyspark", "pyarrow", "numpy", "numba", "tokenizers", "kitoken", "torch", "pandas")


def checks() -> list[dict[str, Any]]:
    """Return one row per check: name, found, ok, needed (a run fails without it), remedy."""
    return [_python(), _java(), _memory(), _disk(), _cores(), *_packages(), _compiler(), _gpu()]


def _row(name: str, found: str, ok: bool, remedy: str, *, needed: bool = True) -> dict[str, Any]:
    return {"name": name, "found": found, "ok": ok, "needed": needed, "remedy": remedy}


def _python() -> dict[str, Any]:
    return _row("Python", platform.python_version(), sys.version_info >= (3, 11), "use Python 3.11 or newer")


def _java() -> dict[str, Any]:
    try:
        home = find_java_home()
    except ConfigError as error:
        return _row("Java", "none", False, str(error))
    return _row("Java", f"{java_version(os.path.join(home, 'bin', 'java'))} in {home}", True, "")  # noqa: PTH118


def _memory() -> dict[str, Any]:
    total = psutil.virtual_memory().total
    remedy = f"{MINIMUM_MEMORY_BYTES / 2**30:.0f} GiB are needed; lower ingest.part_bytes and spark.driver_memory"
    return _row("memory", f"{total / 2**30:.1f} GiB", total >= MINIMUM_MEMORY_BYTES, remedy)


def _disk() -> dict[str, Any]:
    free = shutil.disk_usage(os.getcwd()).free  # noqa: PTH109
    return _row(
        "disk here", f"{free / 2**30:.1f} GiB free", free >= MINIMUM_DISK_BYTES, "set workdir to a disk with more room"
    )


def _cores() -> dict[str, Any]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _row("cores", str(count), True, "")


def _packages() -> list[dict[str, Any]]:
    rows = []
    for name in _PACKAGES:
        try:
            version = importlib.metadata.version(name)
            rows.append(_row(name, version, True, ""))
        except importlib.metadata.PackageNotFoundError:
            rows.append(_row(name, "not installed", False, f"pip install {name} -c constraints.txt"))
    return rows


def _compiler() -> dict[str, Any]:
    found = shutil.which("g++") or shutil.which("c++")
    return _row("compiler", found or "none", found is not None, "only fasttext's source build wants one", needed=False)


def _gpu() -> dict[str, Any]:
    remedy = "everything runs on the CPU; a CUDA device and the extra `gpu` make embeddings and training fast"
    if importlib.util.find_spec("torch") is None:
        return _row("GPU", "torch is not installed", False, remedy, needed=False)
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return _row("GPU", "none", False, remedy, needed=False)
    return _row("GPU", torch.cuda.get_device_name(0), True, "", needed=False)
