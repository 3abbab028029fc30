from __future__ import annotations

import shutil

import pytest

from tests.shards import datasets
from tests.stages.corpus import build_corpus, recipe_values
from tests.stages.runs import run_stages


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory):
    """(root, manifest) of a packed data set that no test changes."""
    root = tmp_path_factory.mktemp("shards")
    return root, datasets.build(root)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The small corpus; no test changes it."""
    return build_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def own_corpus(tmp_path):
    """A corpus that the test may change."""
    return build_corpus(tmp_path / "corpus")


@pytest.fixture(scope="session")
def done(spark, corpus, tmp_path_factory):
    """Values of a recipe that was run from ingest to pack; no test changes its folder."""
    folder = tmp_path_factory.mktemp("done")
    values = recipe_values(corpus, folder / "run")
    run_stages(spark, values)
    yield values
    shutil.rmtree(folder, ignore_errors=True)
