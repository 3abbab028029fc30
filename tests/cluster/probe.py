"""Job that says which code runs where: prints one JSON line per fact, `NAME VALUE`."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import refinery
from refinery.recipe import load_recipe
from refinery.stages.part_tasks import run_part_tasks
from refinery.stages.session import make_session


def describe(part: int) -> dict[str, Any]:
    """Return where an executor's Python takes things from."""
    session = importlib.import_module("refinery.stages.session")
    langid = importlib.import_module("refinery.kernels.langid")
    preset = importlib.import_module("refinery.kernels.preset")
    hashing = importlib.import_module("refinery.hashing")
    hashing.splitmix64(part)
    return {
        "refinery": importlib.import_module("refinery").__file__,
        "session": session.__file__,
        "python": sys.executable,
        "main": getattr(sys.modules["__main__"], "__file__", ""),
        "presets": preset.preset_names(),
        "language_model": str(langid.find_model()),
        "compiled_in": str(hashing.splitmix64._cache._impl.locator.get_cache_path()),
    }


if __name__ == "__main__":
    spark = make_session(load_recipe(sys.argv[1]).spark, "probe")
    facts = {
        "master": spark.sparkContext.master,
        "locality_wait": spark.sparkContext.getConf().get("spark.locality.wait"),
        "driver": refinery.__file__,
        "executors": run_part_tasks(spark, range(4), describe),
    }
    spark.stop()
    sys.stdout.write("".join(f"{name} {json.dumps(value)}\n" for name, value in facts.items()))
