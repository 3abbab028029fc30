"""Where shard bytes lie: local files by ``pread``, or any fsspec file system by ranged reads with a local cache.

Both have two methods, ``read_into`` and ``close``; `ShardReader` knows no more of them. Remote blocks are kept as files
in a cache folder of bounded size, the least recently used go first, and what is kept serves the next run too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from refinery.errors import ConfigError, IntegrityError, TransientError

BLOCK_BYTES = 1 << 20
"""Ranged reads fetch whole blocks: one request for what lies together, and a row of 8 KiB is not asked for alone."""


class ShardFiles(Protocol):
    """Files of a data set by path relative to its manifest."""

    def read_into(self, relative: str, offset: int, target: memoryview) -> int:
        """Read into ``target`` from a byte offset; return the bytes read, fewer at the end of the file."""

    def close(self) -> None:
        """Give back handles; the next read opens them again."""


class LocalFiles:
    """Local files, with a bounded number of open handles."""

    def __init__(self, locate: Callable[[str], Path], max_open_files: int) -> None:
        """Prepare to read.

        Args:
            locate: turns a relative path into a local one.
            max_open_files: handles kept open; the least recently used one is closed.
        """
        if max_open_files < 1:
            raise ConfigError(f"max_open_files {max_open_files} must be at least 1")
        self._locate = locate
        self._max_open_files = max_open_files
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read_into(self, relative: str, offset: int, target: memoryview) -> int:
        """Read; see `ShardFiles`. Raises: IntegrityError: the file is missing."""
        handle, done = self._handle(relative), 0
        while done < len(target):
            count = os.preadv(handle, [target[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def close(self) -> None:
        """Close all handles."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _handle(self, relative: str) -> int:
        handle = self._handles.get(relative)
        if handle is not None:
            self._handles.move_to_end(relative)
            return handle
        while len(self._handles) >= self._max_open_files:
            os.close(self._handles.popitem(last=False)[1])
        try:
            handle = os.open(self._locate(relative), os.O_RDONLY)
        except FileNotFoundError as error:
            raise missing(relative) from error
        self._handles[relative] = handle
        return handle


class RangedFiles:
    """Files of an object store, or of any fsspec file system, by ranged reads."""

    def __init__(
        self,
        fs: Any,
        root: str,
        cache: Path,
        *,
        cache_bytes: int,
        sizes: dict[str, int],
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """Prepare to read; blocks that an earlier run left in the cache are used.

        Args:
            fs: fsspec file system.
            root: folder of the manifest on it.
            cache: local folder for blocks; other files in it are left alone.
            cache_bytes: most bytes of blocks that it holds.
            sizes: bytes of every file by relative path: no block is asked for beyond the end.
            block_bytes: size of a block.
        Raises: ConfigError: a cache that does not hold one block.
        """
        if not 0 < block_bytes <= cache_bytes:
            raise ConfigError(f"a cache of {cache_bytes:,} bytes does not hold a block of {block_bytes:,}: enlarge it")
        self._fs, self._root, self._cache, self._sizes = fs, root.rstrip("/"), cache, sizes
        self._cache_bytes, self._block_bytes = cache_bytes, block_bytes
        self._lock = threading.Lock()
        cache.mkdir(parents=True, exist_ok=True)
        found = sorted((f.stat().st_mtime_ns, f.name, f.stat().st_size) for f in cache.glob("*.block"))
        self._kept: OrderedDict[str, int] = OrderedDict((name, size) for _, name, size in found)
        self._held = sum(self._kept.values())
        self._shrink("")

    @property
    def held_bytes(self) -> int:
        """Bytes of blocks in the cache."""
        return self._held

    def read_into(self, relative: str, offset: int, target: memoryview) -> int:
        """Read; see `ShardFiles`. Raises: IntegrityError: missing or shorter. TransientError: the store failed."""
        size = self._sizes.get(relative)
        if size is None:
            raise missing(relative)
        end = min(offset + len(target), size)
        done = 0
        while offset + done < end:
            block = (offset + done) // self._block_bytes
            data = self._block(relative, block, size)
            inside = offset + done - block * self._block_bytes
            piece = data[inside : inside + end - offset - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def close(self) -> None:
        """Do nothing: blocks stay for the next run."""

    def _block(self, relative: str, block: int, size: int) -> bytes:
        """Return a block, from the cache or from the store."""
        begin = block * self._block_bytes
        end = min(begin + self._block_bytes, size)
        label = f"{self._fs.protocol}:{self._root}/{relative}:{size}:{begin}-{end}"
        name = hashlib.sha256(label.encode()).hexdigest()[:32] + ".block"
        path = self._cache / name
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                with contextlib.suppress(FileNotFoundError):  # another process shrank a shared cache
                    data = path.read_bytes()
                    if len(data) == end - begin:
                        os.utime(path)
                        return data
                self._held -= self._kept.pop(name)
        data = self._fetch(relative, begin, end)
        with self._lock:
            self._keep(path, data)
        return data

    def _fetch(self, relative: str, begin: int, end: int) -> bytes:
        try:
            data = bytes(self._fs.cat_file(f"{self._root}/{relative}", start=begin, end=end))
        except FileNotFoundError as error:
            raise missing(relative) from error
        except OSError as error:
            raise TransientError(f"{relative}: bytes {begin}..{end - 1} cannot be read ({error}): try again") from error
        if len(data) != end - begin:
            raise IntegrityError(
                f"{relative}: {len(data)} bytes came for {begin}..{end - 1}: truncated; restore it or pack again"
            )
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        """Put a block into the cache; without room on disk the run goes on without it."""
        temporary = path.with_suffix(f".tmp-{uuid.uuid4().hex[:8]}")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return
        self._held += len(data) - self._kept.pop(path.name, 0)
        self._kept[path.name] = len(data)
        self._shrink(path.name)

    def _shrink(self, newest: str) -> None:
        while self._held > self._cache_bytes:
            name = next(iter(self._kept))
            if name == newest:
                return
            self._held -= self._kept.pop(name)
            (self._cache / name).unlink(missing_ok=True)


def missing(relative: str) -> IntegrityError:
    """Return the error for a listed file that is not there."""
    return IntegrityError(f"{relative}: missing, but listed in the manifest: restore it or pack again")
