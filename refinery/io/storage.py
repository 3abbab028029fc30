"""Files by path or URL, written so that a reader sees a whole file or none.

Local files: temporary name in the same folder, fsync, atomic rename. Object stores (any fsspec URL): one PUT, which is
atomic by itself. Temporary names carry a random attempt id, so two attempts of one task never share a file.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import fsspec

from refinery.errors import TransientError


def is_local(path: str) -> bool:
    """Say whether a path is on the local file system."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str) -> Path:
    """Return a local path, without its ``file://``."""
    return Path(path.removeprefix("file://"))


def join(root: str, *names: str) -> str:
    """Join path segments with ``/`` under a root path or URL."""
    return "/".join([root.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Say whether a file exists."""
    if is_local(path):
        return local_path(path).exists()
    fs, inner = _store(path)
    return bool(fs.exists(inner))


def _store(path: str) -> tuple[Any, str]:
    """Return (file system, path in it) without its cache of listings: other processes write the files we look for."""
    return fsspec.core.url_to_fs(path, use_listings_cache=False)  # type: ignore[no-any-return]


def read_bytes(path: str) -> bytes:
    """Read a whole file."""
    if is_local(path):
        return local_path(path).read_bytes()
    fs, inner = _store(path)
    return bytes(fs.cat_file(inner))


def open_input(path: str) -> Any:
    """Open a file for random-access reads (closing is the caller's)."""
    if is_local(path):
        return local_path(path).open("rb")
    fs, inner = _store(path)
    return fs.open(inner, "rb")


def list_names(folder: str) -> list[str]:
    """Return the sorted names in a folder; a missing folder is empty."""
    if is_local(folder):
        path = local_path(folder)
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    fs, inner = _store(folder)
    if not fs.exists(inner):
        return []
    return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(inner, detail=False))


def write_atomic(path: str, data: bytes | memoryview) -> None:
    """Write a file so that it is whole or absent.

    Raises:
        TransientError: the disk or the store refused (full, unreachable); no partial file stays under the name.
    """
    if not is_local(path):
        try:
            fs, inner = _store(path)
            fs.pipe_file(inner, bytes(data))
        except OSError as error:
            raise TransientError(f"could not write {path} ({len(data)} bytes): {error}; try again") from error
        return
    target = local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TransientError(
            f"could not write {path} ({len(data)} bytes): {error}; free space on that disk and run again"
        ) from error


def remove(path: str) -> None:
    """Remove a file if it is there."""
    if is_local(path):
        local_path(path).unlink(missing_ok=True)
        return
    fs, inner = _store(path)
    if fs.exists(inner):
        fs.rm_file(inner)


def sweep_temporaries(folder: str) -> int:
    """Remove temporary files and folders that a killed attempt left in a local folder tree; return how many.

    Names: ``.NAME.tmp`` (parts, manifests, checkpoints) and ``.NAME.tmp-ATTEMPT`` (shards).
    """
    if not is_local(folder) or not local_path(folder).is_dir():
        return 0
    leftovers = [p for pattern in (".*.tmp", ".*.tmp-*") for p in local_path(folder).rglob(pattern)]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)
