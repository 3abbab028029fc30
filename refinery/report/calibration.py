"""The page of `refinery calibrate`: pairs of sentences by similarity, for a person who picks the threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from refinery import __version__
from refinery.io import storage
from refinery.kernels.sentence_guard import DUTY, NAMES, NEGATION, NUMBERS, ROLES
from refinery.report import visible

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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {"number": visible.number, "plain": visible.plain, "verdict": verdict}
    return environment.get_template("calibration.html").render(found=found, version=__version__)


def _finalize(value: Any) -> Any:
    """Make what is hidden in a stranger's text visible, in every value that the template prints."""
    return visible.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def verdict(bits: int) -> str:
    """Return in words why the guard spares a pair, empty where it does not."""
    return ", ".join(word for bit, word in VERDICTS.items() if bits & bit)
