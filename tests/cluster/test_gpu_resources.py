"""GPUs as Spark resources, on a real standalone cluster whose discovery script makes them up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refinery.stages.task_resources import gpu_profile, task_gpu
from tests.cluster.standalone import Cluster, free_ports, standalone_cluster

pytestmark = pytest.mark.spark
PROBE = Path(__file__).parent / "gpu_probe.py"


def announce_gpus(cluster: Cluster) -> str:
    """Start a worker that says it has GPUs 3 and 5; return the script that says so."""
    script = cluster.scratch / "gpus.sh"
    script.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["3", "5"]}\'\n', encoding="ascii")
    script.chmod(0o755)
    conf = cluster.scratch / "conf" / "spark-defaults.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    lines = [("spark.worker.resource.gpu.amount", "2"), ("spark.worker.resource.gpu.discoveryScript", str(script))]
    conf.write_text("".join(f"{key} {value}\n" for key, value in lines), encoding="ascii")
    port, web_port = free_ports(2)
    cluster.start("gpu-worker", [
        "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--port", str(port), "--webui-port",
        str(web_port), "--cores", "2", "--memory", "1g", "--work-dir", str(cluster.work / "gpu-worker"),
        "--properties-file", str(conf), cluster.master,
    ])  # fmt: skip
    return str(script)


def test_tasks_that_ask_get_the_gpus_that_the_script_names(archive, tmp_path):
    with standalone_cluster(tmp_path / "cluster", 0) as cluster:
        script = announce_gpus(cluster)
        cluster.await_workers(1)
        conf = ("spark.executor.resource.gpu.amount=1", f"spark.executor.resource.gpu.discoveryScript={script}")
        told = cluster.submit(PROBE, [], archive, *conf)
        asked, others = json.loads(told["asked"]), json.loads(told["not_asked"])
        assert {row["gpu"] for row in asked} <= {"3", "5"}
        assert len({row["process"] for row in asked}) <= 4, "workers are kept, and with them the model that they opened"
        assert {row["gpu"] for row in others} <= {None, "3", "5"}
        refused = cluster.submit(PROBE, [], archive)
        assert "announce no GPU" in refused["refused"]


def test_a_local_master_asks_for_nothing(spark):
    assert gpu_profile(spark, 0.5) is None
    assert gpu_profile(spark, 0.0) is None
    assert task_gpu() is None
