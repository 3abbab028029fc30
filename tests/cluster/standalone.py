"""A real standalone Spark cluster from the installed pyspark, on 127.0.0.1: one master, workers, and how to submit.

pip's pyspark has no start scripts for master and worker; ``spark-class`` starts both. Every daemon leads its own
process group, so a worker and its executor can be killed together, the way a machine goes down.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from refinery.stages.java import find_java_home
from refinery.stages.session import JAVA_OPTIONS

ROOT = Path(__file__).parent.parent.parent
SPARK_HOME = Path(pyspark.__file__).parent
START_SECONDS = 90
SUBMIT_SECONDS = 900


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; all are held until all are known, so none comes twice."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def clean_environment(scratch: Path) -> dict[str, str]:
    """Return an environment in which nothing points at the checkout or at settings of this machine."""
    kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"}}
    for name in ("conf", "local"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    return {
        **kept,
        "JAVA_HOME": find_java_home(),
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_CONF_DIR": str(scratch / "conf"),
        "SPARK_LOCAL_DIRS": str(scratch / "local"),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "512m",
        "SPARK_DAEMON_JAVA_OPTS": JAVA_OPTIONS,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"],
        "TOKENIZERS_PARALLELISM": "false",
    }


@dataclass
class Cluster:
    """The daemons, where they log, and the master's address."""

    scratch: Path
    port: int
    web_port: int
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def master(self) -> str:
        return f"spark://127.0.0.1:{self.port}"

    @property
    def work(self) -> Path:
        """Folder of the workers' folders; each holds one folder per application and executor."""
        return self.scratch / "work"

    def start(self, name: str, arguments: Sequence[str]) -> None:
        with (self.scratch / f"{name}.log").open("wb") as log:
            self.daemons[name] = subprocess.Popen(
                [SPARK_HOME / "bin" / "spark-class", *arguments], env=clean_environment(self.scratch), cwd=self.scratch,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def start_worker(self, name: str) -> None:
        """Start a worker of one core."""
        port, web_port = free_ports(2)
        self.start(name, [
            "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--port", str(port),
            "--webui-port", str(web_port), "--cores", "1", "--memory", "1g", "--work-dir", str(self.work / name),
            self.master,
        ])  # fmt: skip

    def await_workers(self, count: int) -> None:
        """Wait until the master counts so many living workers."""
        deadline = time.monotonic() + START_SECONDS
        while self.alive_workers() != count:
            dead = [name for name, process in self.daemons.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"cluster did not start ({dead} ended):\n{self.logs()}")
            time.sleep(0.3)

    def alive_workers(self) -> int:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            connection = http.client.HTTPConnection("127.0.0.1", self.web_port, timeout=5)
            connection.request("GET", "/json/")
            return int(json.loads(connection.getresponse().read())["aliveworkers"])
        return -1

    def kill(self, name: str) -> None:
        """Kill a worker and its executors with -9 and forget it."""
        process = self.daemons.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

    def stop(self) -> None:
        """Stop workers, then the master; whatever does not go in time is killed."""
        for name in sorted(self.daemons, reverse=True):  # workers before the master
            process = self.daemons[name]
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)
        self.daemons.clear()

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in self.scratch.glob("*.log"))

    def submit_process(self, script: Path, arguments: Sequence[str], archive: Path, *conf: str) -> subprocess.Popen:
        """Start ``spark-submit`` in a folder and an environment that do not know the checkout."""
        shared = (
            f"spark.executor.extraJavaOptions={JAVA_OPTIONS}",
            f"spark.executorEnv.NUMBA_CACHE_DIR={os.environ['NUMBA_CACHE_DIR']}",
        )
        flags = [flag for each in (*shared, *conf) for flag in ("--conf", each)]
        return subprocess.Popen(
            [SPARK_HOME / "bin" / "spark-submit", "--master", self.master, "--py-files", archive,
             "--driver-memory", "600m", "--executor-memory", "600m", "--executor-cores", "1",
             "--driver-java-options", JAVA_OPTIONS, *flags, script, *arguments],
            env=clean_environment(self.scratch), cwd=self.scratch, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=(self.scratch / f"submit-{time.monotonic_ns()}.log").open("w"),
            start_new_session=True,
        )  # fmt: skip

    def submit(self, script: Path, arguments: Sequence[str], archive: Path, *conf: str) -> dict[str, str]:
        """Run a job to its end and return its lines ``stage hash``."""
        return self.await_job(self.submit_process(script, arguments, archive, *conf))

    def await_job(self, process: subprocess.Popen) -> dict[str, str]:
        try:
            out, _ = process.communicate(timeout=SUBMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode != 0:
            raise RuntimeError(f"spark-submit ended with {process.returncode}\n{out}\n{self.logs()}")
        return dict(line.split(" ", 1) for line in out.splitlines() if " " in line)


@contextlib.contextmanager
def standalone_cluster(scratch: Path, num_workers: int = 2) -> Iterator[Cluster]:
    """Run a cluster for a while; its logs and the workers' folders lie in `scratch`."""
    scratch.mkdir(parents=True, exist_ok=True)
    port, web_port = free_ports(2)
    cluster = Cluster(scratch, port, web_port)
    try:
        cluster.start("master", [
            "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port),
            "--webui-port", str(web_port),
        ])  # fmt: skip
        for number in range(num_workers):
            cluster.start_worker(f"worker-{number}")
        cluster.await_workers(num_workers)
        yield cluster
    finally:
        cluster.stop()
