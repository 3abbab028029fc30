"""Job that says which GPU each task was given, with and without asking for one: prints `NAME VALUE` lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from pyspark.sql import SparkSession

from refinery.errors import ConfigError
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.task_resources import gpu_profile, task_gpu


def given(part: int) -> dict[str, Any]:
    """Return the GPU of this task, and the process that it runs in."""
    return {"gpu": task_gpu(), "process": os.getpid()}


if __name__ == "__main__":
    spark = SparkSession.builder.appName("gpu probe").getOrCreate()
    try:
        profile = gpu_profile(spark, 0.5)
        facts: dict[str, Any] = {
            "asked": run_part_tasks(spark, range(6), given, profile=profile),
            "not_asked": run_part_tasks(spark, range(3), given),
        }
    except ConfigError as error:
        facts = {"refused": str(error)}
    spark.stop()
    sys.stdout.write("".join(f"{name} {json.dumps(value)}\n" for name, value in facts.items()))
