from __future__ import annotations

import pytest

from tests.shards import datasets


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory):
    """(root, manifest) of a data set that no test changes."""
    root = tmp_path_factory.mktemp("shards")
    return root, datasets.build(root)


@pytest.fixture
def own_dataset(tmp_path):
    """(root, manifest) of a data set that the test may damage."""
    return tmp_path, datasets.build(tmp_path)
