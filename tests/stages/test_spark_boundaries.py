from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import refinery
from refinery.errors import ConfigError
from refinery.stages import dedup_local
from refinery.stages.session import read_table
from tests.stages.corpus import recipe_values
from tests.stages.runs import run_stages

ROOT = Path(refinery.__file__).parent
ONLY_IN = {
    "read": ("stages/session.py",),
    "mapInArrow": ("stages/part_tasks.py",),
    "applyInArrow": ("stages/part_tasks.py",),
    "mapInPandas": (),
    "applyInPandas": (),
    "getOrCreate": ("stages/session.py",),
}


def _spark_attributes(path):
    """Yield (attribute, line) of Spark's ways to read and to run Python; `.read` only of something named spark."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in ONLY_IN:
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if node.attr != "read" or name in ("spark", "session", "_spark"):
                yield node.attr, node.lineno


def test_spark_reads_and_python_functions_have_one_home():
    found = [
        f"{path.relative_to(ROOT)}:{line} {attribute}"
        for path in sorted(ROOT.rglob("*.py"))
        for attribute, line in _spark_attributes(path)
        if str(path.relative_to(ROOT)) not in ONLY_IN[attribute]
    ]
    assert found == []
    homes = {attribute for path in sorted(ROOT.rglob("*.py")) for attribute, _ in _spark_attributes(path)}
    assert homes == {"read", "mapInArrow", "applyInArrow", "getOrCreate"}, "the check sees what it looks for"


def _executions(spark):
    found = spark._jsparkSession.sharedState().statusStore().executionsList()
    return {found.apply(i).executionId(): found.apply(i).physicalPlanDescription() for i in range(found.size())}


def _scanned_columns(plan):
    """Return the column names of every file scan of a physical plan."""
    schemas = re.findall(r"ReadSchema: struct<([^\n]*)>", plan)
    assert not any("..." in schema for schema in schemas), "a schema that is cut short proves nothing"
    return {column.partition(":")[0].strip() for schema in schemas for column in schema.split(",")}


@pytest.mark.spark
def test_no_scan_reads_a_text_column(spark, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(dedup_local, "ONE_PROCESS_ROWS", 0)  # a small run would not need Spark for its keys and pairs
    before = max(_executions(spark), default=-1)
    spark.conf.set("spark.sql.maxMetadataStringLength", "100000")
    try:
        run_stages(spark, recipe_values(corpus, tmp_path / "run"))
        plans = [plan for number, plan in _executions(spark).items() if number > before]
        scanned = [columns for plan in plans if (columns := _scanned_columns(plan))]
        assert len(scanned) >= 4, "dedup and ingest scan narrow tables"
        assert set().union(*scanned) >= {"key", "exact_key", "doc_key", "shingles"}
        assert not any("text" in columns for columns in scanned)
        last = max(_executions(spark))
        spark.read.parquet(str(tmp_path / "run" / "ingest" / "documents")).select("doc_id", "text").collect()
        control = [plan for number, plan in _executions(spark).items() if number > last]
        assert any("text" in _scanned_columns(plan) for plan in control), "the check would see it"
    finally:
        spark.conf.unset("spark.sql.maxMetadataStringLength")


@pytest.mark.spark
def test_text_columns_are_refused(spark, done):
    with pytest.raises(ConfigError, match="must not enter the JVM"):
        read_table(spark, done["workdir"], "ingest", "documents", ["doc_id", "text"])
