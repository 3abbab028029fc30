"""The one module that makes Spark sessions, and the one place that reads tables into Spark."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from refinery.contracts.tables import TEXT_COLUMNS
from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.stages.archive_cache import LOCATORS
from refinery.stages.java import find_java_home
from refinery.stages.part_tasks import map_parts

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
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 2**20),  # pairs of long documents carry both shingle sets
    "spark.sql.adaptive.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.python.daemon.module": "refinery.stages.worker_daemon",
    "spark.task.maxFailures": "4",
}

# C1 and the serial collector halve start-up on small boxes; text never enters the JVM, so peak speed is not missed.
# C1 alone gets 48 MB of code cache, which a few hundred different plans in one session fill.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC -Djava.net.preferIPv4Stack=true"
LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")


def make_session(settings: Spark, name: str) -> SparkSession:
    """Start (or join) a Spark session.

    Under ``spark-submit`` the submitted master wins, and so does every setting that was submitted; the recipe's and
    ours fill in the rest. Settings never change results, only how work is spread.

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

    wanted = {**SETTINGS, "spark.sql.shuffle.partitions": str(settings.shuffle_partitions)}
    given: dict[str, str] = {}
    builder = SparkSession.builder.appName(f"refinery {name}")
    if submitted:
        given = _submitted_settings()
        wanted |= _archive_settings(_code_archive(), given.get("spark.master", ""))
    else:
        builder = builder.master(_with_retries(settings.master))
        wanted |= {"spark.driver.memory": settings.driver_memory, "spark.driver.extraJavaOptions": _java_options()}
    for key, value in {**wanted, **settings.conf}.items():
        if key not in given:
            builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        raise ConfigError(f"Spark did not start ({error}); `refinery doctor` checks Java and memory") from error
    # What fails reaches the driver as an exception; the JVM's stack traces beside it only hide the message.
    session.sparkContext.setLogLevel("OFF" if local else "ERROR")
    return session


def _java_options() -> str:
    quiet = f" -Dlog4j2.configurationFile={LOG_SETTINGS.as_uri()}" if LOG_SETTINGS.is_file() else ""  # not in a zip
    return JAVA_OPTIONS + quiet


def _submitted_settings() -> dict[str, str]:
    """Return what ``spark-submit`` was given, by flag, ``--conf`` or its defaults file."""
    from pyspark import SparkConf, SparkContext  # noqa: PLC0415

    SparkContext._ensure_initialized()  # joins the JVM that spark-submit started: only it knows
    return dict(SparkConf().getAll())


def _code_archive() -> Path | None:
    """Return the zip that this code was imported from, or None if it is installed."""
    return next((folder for folder in Path(__file__).absolute().parents if folder.is_file()), None)


def _archive_settings(archive: Path | None, master: str) -> dict[str, str]:
    """Return what executors need to run the code of an archive that ``--py-files`` shipped.

    Spark puts the archive on the path of each task, but starts the worker daemon without it: the daemon would not be
    found, or an installed copy of another version would be, and every task forked from it would run that copy.
    Executors fetch the archive into their own folder, where they also start Python, so its name is its path; YARN
    sets the path itself. Compiled kernels go where the submission says by ``spark.executorEnv.NUMBA_CACHE_DIR``, else
    into the executor's own folder, which can always be written but goes with the application.
    """
    if archive is None:
        return {}
    found = {"spark.executorEnv.NUMBA_CACHE_LOCATOR_CLASSES": LOCATORS}
    if master.startswith("local"):
        return {**found, "spark.executorEnv.PYTHONPATH": str(archive)}
    found["spark.executorEnv.NUMBA_CACHE_DIR"] = ".numba"
    return found if master.startswith("yarn") else {**found, "spark.executorEnv.PYTHONPATH": archive.name}


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
    if not storage.is_local(workdir):
        return _read_stored(spark, workdir, stage, table, list(columns), parts)
    folder = storage.join(workdir, stage, table)
    if parts is None:
        return spark.read.parquet(_spark_url(folder)).select(*columns)
    paths = [_spark_url(storage.join(folder, f"part-{p:08d}.parquet")) for p in parts]
    return spark.read.parquet(*paths).select(*columns)


def _read_stored(
    spark: SparkSession, workdir: str, stage: str, table: str, columns: list[str], parts: Sequence[int] | None
) -> DataFrame:
    """Read narrow columns from an object store, in part tasks: Spark needs no jar and no credentials of its own."""
    numbers = list(parts) if parts is not None else part_files.part_numbers(workdir, stage, table)
    if not numbers:
        raise ConfigError(f"{workdir} has no parts of {stage}/{table}; run `refinery {stage} RECIPE` first")
    schema = part_files.part_schema(workdir, stage, table, numbers[0])
    task = functools.partial(_narrow_rows, workdir, stage, table, columns)
    return map_parts(spark, numbers, task, pa.schema([schema.field(name) for name in columns]))


def _narrow_rows(workdir: str, stage: str, table: str, columns: list[str], part: int) -> Iterator[pa.RecordBatch]:
    yield from part_files.read_batches(workdir, stage, table, part, columns, part_files.NARROW_ROW_GROUP_ROWS)


def _spark_url(path: str) -> str:
    return f"file://{storage.local_path(path).resolve()}"
