from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.standalone import ROOT, standalone_cluster
from tests.stages.corpus import build_corpus, recipe_values


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The archive of `make dist`."""
    path = tmp_path_factory.mktemp("dist") / "refinery.zip"
    subprocess.run([sys.executable, ROOT / "jobs" / "_archive.py", path], check=True)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One master and two workers of one core each; gone before the next module, for three idle JVMs hold a gigabyte."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def some_stages(tmp_path_factory):
    """Values of a recipe on about 200 documents; `workdir` is for the test to set."""
    folder = tmp_path_factory.mktemp("cluster-input")
    values = recipe_values(build_corpus(folder), folder / "unset")
    return {
        **values,
        "screen": {"languages": ["en", "de", "zh"], "min_confidence": 0.1},
        # neither of the two may win over what is submitted
        "spark": {**values["spark"], "master": "local[7]", "conf": {"spark.locality.wait": "7s"}},
    }


@pytest.fixture(scope="session")
def all_stages(some_stages):
    """The same with every stage up to pack."""
    return {
        **some_stages,
        "quality": {"positives": ["laws"], "negatives": ["news"], "keep_token_frac": 0.95, "epoch": 2, "dim": 8},
        "select": {"target": "law", "keep_frac": 0.95},
        "dedup_sentences": {"exact": True},
    }
