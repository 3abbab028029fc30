"""The page of `refinery calibrate`: pairs of sentences by similarity, for a person who picks the threshold."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from refinery.io import storage
from refinery.kernels.sentence_guard import DUTY, NAMES, NEGATION, NUMBERS, ROLES
from refinery.report.html import render_page

_PIECE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|\w+|\s+|.", re.DOTALL)
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
    return render_page("calibration.html", {"found": found}, {"verdict": verdict, "sides": sides})


def verdict(bits: int) -> str:
    """Return in words why the guard spares a pair, empty where it does not."""
    return ", ".join(word for bit, word in VERDICTS.items() if bits & bit)


def sides(pair: Mapping[str, Any]) -> list[list[tuple[bool, str]]]:
    """Return both sentences of a pair as runs of text, each with whether it stands on this side only.

    Words are compared, in Han text characters.
    """
    left, right = (_PIECE.findall(pair[name]) for name in ("left", "right"))
    codes = difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    return [
        [(tag != "equal", "".join(left[a:b])) for tag, a, b, _, _ in codes if b > a],
        [(tag != "equal", "".join(right[a:b])) for tag, _, _, a, b in codes if b > a],
    ]
