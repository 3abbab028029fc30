from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pytest

from refinery.process_memory import peak_resident_bytes, return_freed_memory, system_allocator


def test_the_peak_stays_after_the_memory_is_gone():
    before = peak_resident_bytes()
    held = np.ones(before + 100_000_000, dtype=np.uint8)
    after = peak_resident_bytes()
    del held
    assert after >= before + 50_000_000
    assert peak_resident_bytes() >= after - 16_000_000  # the kernel counts pages per processor and adds them up late


def test_a_child_does_not_report_the_peak_of_its_parent():
    held = np.ones(400_000_000, dtype=np.uint8)
    code = "import sys; from refinery.process_memory import peak_resident_bytes as peak; sys.stdout.write(str(peak()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(done.stdout) < held.nbytes


def test_freed_memory_is_given_back():
    held = [np.ones(8_000_000, dtype=np.uint8) for _ in range(40)]
    full = psutil.Process().memory_info().rss
    del held
    return_freed_memory()
    assert psutil.Process().memory_info().rss < full - 200_000_000


def test_kept_memory_is_used_again_without_new_pages():
    code = """
import resource, sys
import numpy as np
from refinery.process_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(8_000_000, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
faults()
print(faults())
"""
    run = [sys.executable, "-c", code]
    kept, given_back = (
        int(subprocess.run([*run, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    )
    assert kept < 1000
    assert kept < given_back or given_back < 1000  # an allocator without the setting may keep memory anyhow


def test_arrow_takes_its_memory_from_the_c_library_for_a_while() -> None:
    before = pa.default_memory_pool().backend_name

    def fail() -> None:
        with system_allocator():
            assert pa.default_memory_pool().backend_name == "system"
            kept.append(pa.array(["text"] * 100))
            raise ZeroDivisionError

    kept: list[pa.Array] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert pa.default_memory_pool().backend_name == before
    assert kept[0].to_pylist() == ["text"] * 100
