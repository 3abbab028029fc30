from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import jinja2
import pytest

import refinery
from refinery.report.html import render_page

FACTS = {
    "body": {"num_runs": 8, "unit": "nats", "objective": 1e-3, "law": {}, "intervals_95": {}, "standard_errors": {},
             "params_range": (1.0, 2.0), "tokens_range": (1.0, 2.0)},
    "form": "E", "curves": "", "sizes": ["<script>alert(1)</script>", "a\u202eb"], "residuals": "", "spread": 0.1,
    "short": str, "max_extrapolation": 10.0,
}  # fmt: skip


def test_what_a_stranger_wrote_is_escaped_and_hidden_characters_are_shown():
    page = render_page("fit.html", FACTS)
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "U+202E" in page
    assert "\u202e" not in page


def test_a_value_that_nobody_gave_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="sizes"):
        render_page("fit.html", {k: v for k, v in FACTS.items() if k != "sizes"})


def test_pages_are_made_from_a_zip_of_the_package(tmp_path):
    package = Path(refinery.__file__).parent
    archive = tmp_path / "refinery.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in [package / "__init__.py", *(package / "report").rglob("*")]:
            if file.is_file() and "__pycache__" not in file.parts:
                target.write(file, Path("refinery") / file.relative_to(package))
    code = "from refinery.report import html; print(html.__file__); print(html.render_page('base.html', {}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(archive)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "refinery.zip" in done.stdout.splitlines()[0]
    assert "<!doctype html>" in done.stdout
