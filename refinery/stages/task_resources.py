"""GPUs as Spark resources: what a task asks for, and which one it was given.

On a cluster executors announce GPUs (``spark.executor.resource.gpu.amount`` and a discovery script, as Spark's
configuration guide has it). A stage asks for a share of one per task with a resource profile, so that only tasks that
use a GPU wait for one. A local master has no such scheduling: there all tasks share the machine's GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refinery.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

GPU = "gpu"


def gpu_profile(spark: SparkSession, amount: float) -> ResourceProfile | None:
    """Return the resource profile of tasks that take a share of a GPU, None where nothing is to be asked for.

    Args:
        spark: the session.
        amount: GPUs per task, 0 to 1; 0.25 lets four tasks share one.

    Raises:
        ConfigError: the cluster's executors announce no GPU.
    """
    conf = spark.sparkContext.getConf()
    if amount <= 0 or conf.get("spark.master", "").startswith("local"):
        return None
    if float(conf.get(f"spark.executor.resource.{GPU}.amount", "0")) <= 0:
        raise ConfigError(
            f"embeddings.gpu_amount is {amount}, but executors announce no GPU; submit with "
            "--conf spark.executor.resource.gpu.amount=1 and a discovery script, or set gpu_amount: 0"
        )
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests  # noqa: PLC0415

    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource(GPU, amount)).build


def task_gpu() -> str | None:
    """Return the address of the GPU that Spark gave to the running task, None outside a task or without one."""
    from pyspark import TaskContext  # noqa: PLC0415

    context = TaskContext.get()
    given = context.resources().get(GPU) if context is not None else None
    return given.addresses[0] if given is not None and given.addresses else None
