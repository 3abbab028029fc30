"""An S3 bucket as input and as work folder, against a server that speaks S3: the same bytes as on a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.stages.corpus import build_corpus, recipe_values
from tests.stages.runs import need_stage, run_stages

pytestmark = pytest.mark.spark
STAGES = ("ingest", "rules", "dedup_documents")


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a fresh server; the environment names server and credentials, as a user's would."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    server = pytest.importorskip("moto.server", reason="moto is not installed (extra s3-test)")
    moto = server.ThreadedMotoServer(port=0)
    moto.start()
    patch = pytest.MonkeyPatch()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
    }.items():  # fmt: skip
        patch.setenv(name, value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    fs.mkdir("bucket")
    yield fs
    patch.undo()
    moto.stop()


def _refinery(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "refinery.cli", *map(str, arguments)]
    root = str(Path(__file__).parent.parent.parent)
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=dict(os.environ))


def test_bucket_as_input_and_work_folder(spark, bucket, tmp_path):
    corpus = build_corpus(tmp_path / "corpus")
    local = recipe_values(corpus, tmp_path / "run")
    run_stages(spark, local, STAGES)
    bucket.put(f"{tmp_path}/corpus/", "bucket/corpus/", recursive=True)

    def in_bucket(path: str) -> str:
        return path.replace(str(tmp_path), "s3://bucket")

    inputs = [{**i, "paths": [in_bucket(p) for p in i["paths"]]} for i in local["inputs"]]
    stored = {k: v for k, v in local.items() if k not in ("tokenizer", "mix", "pack", "train")}
    stored |= {"inputs": inputs, "workdir": "s3://bucket/run", "spark": {"master": "local[2]", "shuffle_partitions": 2}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(stored), encoding="utf-8")
    done = _refinery("run", recipe, "--to", "dedup_documents", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = {row["stage"]: row["content_hash"] for row in json.loads(done.stdout)["stages"]}
    assert found == {name: need_stage(local["workdir"], name).content_hash for name in STAGES}
    names = [n for n in bucket.find("bucket/run") if n.endswith(".parquet")]
    assert len(names) == len(list((tmp_path / "run").rglob("*.parquet")))
    assert not [n for n in bucket.find("bucket/run") if n.endswith(".tmp")]


def test_missing_input_in_a_bucket_is_a_clear_error(bucket, tmp_path):
    values = {
        "name": "none", "seed": 1, "workdir": str(tmp_path / "run"),
        "inputs": [{"source": "a", "domain": "b", "format": "jsonl", "paths": ["s3://bucket/nothing/*.jsonl"]}],
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = _refinery("ingest", recipe)
    assert done.returncode == 2
    assert "s3://bucket/nothing/*.jsonl" in done.stderr
