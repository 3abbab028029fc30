"""``refinery health``: files in, report and page out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refinery.cli import app
from refinery.errors import ConfigError, DataError
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_bpe

_TEXT = "The quick brown fox jumps over the lazy dog, and so on. 第一条　为了规范合同行为，保护当事人的合法权益。\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = TokenizerRecipe(name="<b>odd</b>", vocab_size=300, num_reserved=0, sample_bytes=100_000)
    out = tmp_path_factory.mktemp("health") / "made"
    train_bpe([_TEXT * 5], recipe, out)
    return out


def test_the_command_writes_a_report_and_a_page(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"text": _TEXT, "domain": "web<script>", "lang": "en"},
        {"text": _TEXT * 3, "domain": "law", "lang": "zh"},
        {"text": _TEXT * 9, "domain": "law", "lang": "zh"},
    ]
    with gzip.open(tmp_path / "held.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    arguments = ["health", str(folder), "--text", str(tmp_path / "held.jsonl.gz"), "--reference", str(bare)]
    arguments += ["--out", str(tmp_path / "out"), "--max-bytes", "100", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    body = json.loads(result.stdout)
    assert body == json.loads((tmp_path / "out" / "health.json").read_text(encoding="utf-8"))
    assert {row["domain"]: row["num_docs"] for row in body["by_domain"]} == {"law": 1, "web<script>": 1}
    assert body["references"][0]["bytes_per_token"] == body["total"]["bytes_per_token"]
    tiny = next(row for row in body["parameter_costs"] if row["preset"] == "tiny")
    assert tiny["vocabulary_params"] == 300 * 128
    page = (tmp_path / "out" / "health.html").read_text(encoding="utf-8")
    assert "<b>odd" not in page
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert "6,763" in page
    plain = CliRunner().invoke(app, ["health", str(bare), "--text", str(tmp_path / "held.jsonl.gz")])
    assert "bare: 300 tokens" in plain.stdout


def test_text_is_needed_and_must_be_text(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text to examine"):
        CliRunner().invoke(app, ["health", str(folder)], catch_exceptions=False)
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no text in 'text'"):
        CliRunner().invoke(app, ["health", str(folder), "--text", str(tmp_path / "bad.jsonl")], catch_exceptions=False)
