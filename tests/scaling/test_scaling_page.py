"""The page docs/scaling.md is executed: every block, in order, in a folder with small shards."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from refinery.cli import app
from refinery.errors import ConfigError
from refinery.shards.manifest import StreamKey
from refinery.shards.plan import first_plan, plan_bytes
from refinery.trainer.__main__ import main as train
from tests.shards import datasets

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
STREAMS = {
    StreamKey("law", "target", "zh", 0, "train"): 900,
    StreamKey("web", "pool", "en", 0, "train"): 900,
    StreamKey("law", "target", "zh", 0, "validation"): 60,
    StreamKey("web", "pool", "en", 0, "validation"): 60,
}


def _learnable(stream: str, count: int, vocab: int = datasets.VOCAB):
    """Documents whose next token mostly follows from the last two: more width and more tokens both help."""
    lengths, tie, offsets, tokens = datasets_documents(stream, count, vocab)
    rng = np.random.default_rng(11)
    follow = rng.integers(1, 200, (200, 4))
    draws = np.random.default_rng(len(stream)).random(len(tokens))
    for i in range(2, len(tokens)):
        if draws[i] < 0.85:
            tokens[i] = follow[tokens[i - 1] % 200, tokens[i - 2] % 4]
        else:
            tokens[i] = tokens[i] % 199 + 1
    tokens[offsets[1:] - 1] = datasets.EOS
    return lengths, tie, offsets, tokens


datasets_documents = datasets.documents


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "documents", _learnable)
    monkeypatch.chdir(tmp_path)
    manifest = datasets.build(tmp_path / "shards", STREAMS)
    names = [key.name for key in STREAMS if key.split == "train"]
    plan = first_plan(manifest, 3, [(4000, dict.fromkeys(names, 0.5))])
    (tmp_path / "shards" / "plan").mkdir()
    (tmp_path / "shards" / "plan" / "main.json").write_bytes(plan_bytes(plan))
    return tmp_path


def _execute(line: str) -> str:
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "refinery.trainer"]:
        assert train(words[3:]) == 0
        return ""
    assert words[0] == "refinery"
    streams = ["--stream", "law/target/zh/w0/validation"] if words[1:3] == ["plan", "fit"] else []
    done = CliRunner().invoke(app, [*words[1:], *streams])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_page_runs(folder):
    text = PAGE.read_text(encoding="utf-8")
    shown = []
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), {})
            continue
        for line in filter(None, block.splitlines()):
            try:
                shown.append((line, _execute(line)))
            except ConfigError as error:
                raise AssertionError(f"{line}: {error}") from error
    answers = dict(shown)
    plans = [out for line, out in answers.items() if line.startswith("refinery plan --")]
    assert len(plans) == 4
    assert all("expected loss" in out and "hours at" in out for out in plans)
    assert any("epochs, worth" in out for out in plans)
    assert any("inference saved" in out for out in plans)
    assert "continue: N =" in plans[-1]
    assert (folder / "fit.html").is_file()
