"""Resident memory of this process: its peak, and giving back or keeping what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_resident_bytes() -> int:
    """Return the peak of this process's resident set, in bytes, to within a few MB.

    Of this program alone: on Linux ``ru_maxrss`` is carried over fork and exec, so that a small program that a large
    one started reports the peak of the large one; the mark in ``/proc`` begins anew. Elsewhere ``ru_maxrss``, whose
    unit is a byte on macOS.
    """
    try:
        found = _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def return_freed_memory() -> None:
    """Give back to the system what Arrow and, where it can (glibc), the C library keep of freed memory.

    glibc keeps arrays of up to 32 MB for itself: after sorting some million rows, hundreds of MB.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def system_allocator() -> Iterator[None]:
    """Let Arrow take its memory from the C library meanwhile.

    For a task that fills and drops large buffers once: Arrow's own allocator asks the system for more pages than it
    fills, and each is cleared at its first touch. A part of ingest takes a tenth less CPU time so, on a virtual
    machine where page faults are dear; stages that read more than they write show no difference.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def keep_freed_memory() -> None:
    """Let the C library, where it can (glibc), keep freed memory for the next array instead of giving it back.

    For a process that allocates the same arrays over and over: an array of 128 kB or more is else mapped anew and
    its pages are cleared at their first touch. A training step of `tiny` on a CPU had 7,900 such faults in 2,048
    tokens, and takes a tenth less time without them.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, 32 << 20)  # glibc takes no more
        set_option(_TRIM_THRESHOLD, 2**31 - 1)
