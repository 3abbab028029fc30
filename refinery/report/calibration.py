"""The page of `refinery calibrate`: pairs of sentences by similarity, for a person who picks the threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from refinery.io import storage
from refinery.kernels.sentence_guard import DUTY, NAMES, NEGATION, NUMBERS, ROLES
from refinery.report.html import render_page

VERDICTS = {NUMBERS: "numbers", NEGATION: "negation", DUTY: "duty", NAMES: "names", ROLES: "roles"}


def write_calibration(workdir: str, found: Mapping[str, Any]) -> str:
    """Write ``report/calibration.html`` and ``report/calibration.json`` and return the path of the page.

    Raises:
        TransientError: the disk refused.
    """
    path = storage.join(workdir, "report", "calibration.html")
    body = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    storage.write_atomic(storage.join(workdir, "report", "calibration.json"), body.encode())
    storage.write_atomic(path, render(found).encode())
    return path


def render(found: Mapping[str, Any]) -> str:
    """Return the page as HTML; every text on it is a stranger's and escaped."""
    return render_page("calibration.html", {"found": found}, {"verdict": verdict})


def verdict(bits: int) -> str:
    """Return in words why the guard spares a pair, empty where it does not."""
    return ", ".join(word for bit, word in VERDICTS.items() if bits & bit)
