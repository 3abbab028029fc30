from __future__ import annotations

import hashlib
import os
from pathlib import Path

# numba's compile cache does not see edits in other modules: one cache per state of the kernels' source is always right.
# Set before anything imports numba.
_ROOT = Path(__file__).parent.parent
_SOURCES = [_ROOT / "refinery" / "hashing.py", *sorted((_ROOT / "refinery" / "kernels").glob("*.py"))]
_STATE = hashlib.sha256(b"".join(p.read_bytes() for p in _SOURCES)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(_ROOT / ".cache" / "numba" / _STATE))

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

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


@pytest.fixture(scope="session")
def spark():
    """One local[2] session for the whole test run."""
    from refinery.recipe import Spark
    from refinery.stages.session import make_session

    session = make_session(Spark(master="local[2]", shuffle_partitions=4), "tests")
    yield session
    session.stop()
