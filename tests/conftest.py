from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("refinery", max_examples=50, deadline=None)
settings.load_profile("refinery")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real development text; tests that use it skip where it is absent."""
    root = os.environ.get("REFINERY_SHARED", "")
    candidates = [Path(root)] if root else [Path(__file__).parent.parent.parent / "shared"]
    for candidate in candidates:
        if (candidate / "data").is_dir():
            return candidate / "data"
    pytest.skip("development data not present (set REFINERY_SHARED)")
