"""The vocabulary that ships: intact, loadable, fit, and made again byte for byte where its texts are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refinery.hashing import sha256_hex
from refinery.tokenization.encode import open_encoder
from refinery.tokenization.info import load_info
from refinery.tokenization.recipe import load_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tokenizer" / "bpe-32k-zh-en"


def test_its_files_belong_together() -> None:
    info = load_info(FOLDER)
    assert info.sha256 == sha256_hex((FOLDER / "tokenizer.json").read_bytes())
    assert info.sha256 in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert info.origin["recipe_sha256"] == load_recipe(FOLDER / "vocabulary.yaml").sha256
    report = json.loads((FOLDER / "health.json").read_text(encoding="utf-8"))
    assert report["tokenizer"]["sha256"] == info.sha256
    assert report["roundtrip_failures"] == 0
    assert report["verdict"]["word"] != "unfit"
    assert info.sha256[:16] in (FOLDER / "health.html").read_text(encoding="utf-8")


def test_it_loads_here_and_in_transformers() -> None:
    encoder = open_encoder(FOLDER)
    text = "第一条　为了保护民事主体的合法权益，in Python: len('汉字') == 2\n"
    ids = encoder.encode_text(text)
    assert encoder.decode(ids) == text
    assert (encoder.info.vocab_size, encoder.dtype.name, encoder.engine) == (32768, "uint16", "kernel")
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(str(FOLDER))
    assert loaded.encode(text, add_special_tokens=False) == ids.tolist()
    assert (loaded.eos_token_id, len(loaded)) == (0, 32768)


def test_no_text_of_unclear_licence_is_in_its_recipe() -> None:
    paths = re.findall(r"data/([\w/.-]+)\.jsonl\.gz", (FOLDER / "recipe.yaml").read_text(encoding="utf-8"))
    assert len(paths) == 7
    assert not [path for path in paths if path.startswith(("news/", "junk/", "html/", "web/"))]


@pytest.mark.slow
@pytest.mark.skipif("REFINERY_SHARED" not in os.environ, reason="REFINERY_SHARED names no folder of real text")
def test_it_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refinery.cli", "run", "tokenizer/bpe-32k-zh-en/recipe.yaml", "--to", "tokenize"]
    environment = {**os.environ, "REFINERY_WORKDIR": str(tmp_path / "run")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    made = tmp_path / "run" / "tokenize" / "tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json", "info.json"):
        assert (made / name).read_bytes() == (FOLDER / name).read_bytes(), name
