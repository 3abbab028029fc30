from __future__ import annotations

from pathlib import Path

import pytest

from tests.report import fake_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished run; tests read it and write nothing but the report."""
    folder = tmp_path_factory.mktemp("run")
    fake_run.write(folder)
    return folder
