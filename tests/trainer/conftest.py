from __future__ import annotations

import pytest
import torch

from refinery.trainer.memory import MemorySource
from tests.trainer.tiny_runs import memory_source


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def source() -> MemorySource:
    return memory_source()
