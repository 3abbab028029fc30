"""The one module that makes Spark sessions, and the one place that reads tables into Spark."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refinery.contracts.tables import TEXT_COLUMNS
from refinery.errors import ConfigError
from refinery.io import storage
from refinery.stages.java import find_java_home

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from refinery.recipe import Spark

SETTINGS: dict[str, str] = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.speculation": "false",  # part tasks write files; two live attempts would only waste work
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.sql.adaptive.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.python.daemon.module": "refinery.stages.worker_daemon",
    "spark.task.maxFailures": "4",
}

# C1 and the serial collector halve start-up on small boxes; text never enters the JVM, so peak speed is not missed.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djava.net.preferIPv4Stack=true"
LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")


def make_session(settings: Spark, name: str) -> SparkSession:
    """Start (or join) a Spark session.

    Under ``spark-submit`` the submitted master and settings win; otherwise the recipe's do. Settings never change
    results, only how work is spread.

    Raises:
        ConfigError: no usable Java, or the session does not start.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    local = settings.master.startswith("local") and not submitted
    if not submitted:
        os.environ["JAVA_HOME"] = find_java_home()
    if local:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession  # noqa: PLC0415

    builder = SparkSession.builder.appName(f"refinery {name}")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    if not submitted:
        builder = builder.master(_with_retries(settings.master)).config("spark.driver.memory", settings.driver_memory)
        builder = builder.config(
            "spark.driver.extraJavaOptions", f"{JAVA_OPTIONS} -Dlog4j2.configurationFile={LOG_SETTINGS.as_uri()}"
        )
    builder = builder.config("spark.sql.shuffle.partitions", str(settings.shuffle_partitions))
    for key, value in settings.conf.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        raise ConfigError(f"Spark did not start ({error}); `refinery doctor` checks Java and memory") from error
    # What fails reaches the driver as an exception; the JVM's stack traces beside it only hide the message.
    session.sparkContext.setLogLevel("OFF" if local else "ERROR")
    return session


def _with_retries(master: str) -> str:
    """Give local masters the retries that clusters have: ``local[2]`` would fail a job at its first lost worker."""
    if master == "local":
        return "local[1,4]"
    if master.startswith("local[") and "," not in master:
        return master[:-1] + ",4]"
    return master


def read_table(
    spark: SparkSession,
    workdir: str,
    stage: str,
    table: str,
    columns: Sequence[str],
    parts: Sequence[int] | None = None,
) -> DataFrame:
    """Read narrow columns of a table into Spark.

    Args:
        spark: the session.
        workdir: the run's folder.
        stage: the stage that wrote the table.
        table: its name.
        columns: the columns wanted; text columns are refused, for text never enters the JVM.
        parts: part numbers to read; all files if None.
    Raises:
        ConfigError: a text column was asked for.
    """
    wide = sorted(TEXT_COLUMNS & set(columns))
    if wide:
        raise ConfigError(f"columns {wide} of {stage}/{table} must not enter the JVM; read them in a part task")
    folder = storage.join(workdir, stage, table)
    if parts is None:
        return spark.read.parquet(_spark_url(folder)).select(*columns)
    paths = [_spark_url(storage.join(folder, f"part-{p:08d}.parquet")) for p in parts]
    return spark.read.parquet(*paths).select(*columns)


def _spark_url(path: str) -> str:
    return f"file://{storage.local_path(path).resolve()}" if storage.is_local(path) else path.replace("s3://", "s3a://")
