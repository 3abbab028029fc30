"""ingest: what it repairs, converts, masks and cuts, each counted; one part task at a time, without a session."""

from __future__ import annotations

import builtins
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io.charset import simplified_converter
from refinery.kernels.chinese_script import is_traditional
from refinery.kernels.clean import cut_to_bytes
from refinery.recipe import parse_recipe
from refinery.stages.ingest import ingest_part, plan

BROKEN = "Le cafÃ© du thÃ©Ã¢tre est prÃ¨s de la mÃ©diathÃ¨que."
TRADITIONAL = "國家發展為了人民，皇后與後面的規定說明了學習的權利。"


def _ingested(folder, texts, **settings):
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps({"id": str(k), "text": t}) + "\n" for k, t in enumerate(texts)))
    values = {
        "name": "cleaning", "seed": 1, "workdir": str(folder / "run"), "ingest": settings,
        "inputs": [{"source": "made", "domain": "web", "format": "jsonl", "paths": [str(path)]}],
    }  # fmt: skip
    task = plan(parse_recipe(values))
    result = ingest_part(task, ["print"], 0)
    return part_files.read_part(task.workdir, "ingest", "documents", 0).column("text").to_pylist(), result["counts"]


def test_mojibake_is_repaired_unless_it_is_to_be_kept(tmp_path):
    fine = "Le café du théâtre, déjà près."
    texts, _ = _ingested(tmp_path, [BROKEN, fine])
    assert texts == ["Le café du théâtre est près de la médiathèque.", fine]
    (tmp_path / "kept").mkdir()
    assert _ingested(tmp_path / "kept", [BROKEN], mojibake="keep")[0] == [BROKEN]


def test_traditional_becomes_simplified_on_demand_and_japanese_stays(tmp_path):
    pytest.importorskip("opencc")
    japanese = "國家の發展について、學習の權利を說明する。"
    (tmp_path / "a").mkdir()
    assert _ingested(tmp_path / "a", [TRADITIONAL])[0] == [TRADITIONAL]
    texts, _ = _ingested(tmp_path, [TRADITIONAL, japanese, "plain"], chinese="simplified")
    assert texts == ["国家发展为了人民，皇后与后面的规定说明了学习的权利。", japanese, "plain"]


def test_missing_opencc_is_a_clear_error(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "opencc":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"refinery\[chinese\]"):
        simplified_converter()


def test_is_traditional():
    assert is_traditional(TRADITIONAL)
    assert not any(is_traditional(t) for t in ("国家发展为了人民", "國", "plain", "", "國家發展の權利"))


def test_long_documents_are_dropped_or_cut_and_counted(tmp_path):
    lines = "\n".join(f"line {k:04d} of it" for k in range(200))
    short = "short enough"
    texts, counts = _ingested(tmp_path, [lines, short], max_document_bytes=1024)
    assert texts == [short]
    assert [(c["kind"], c["reason"], c["docs"], c["bytes"]) for c in counts if c["kind"] != "kept"] == [
        ("dropped", "ingest.too_long", 1, len(lines))
    ]
    (tmp_path / "cut").mkdir()
    texts, counts = _ingested(tmp_path / "cut", [lines, short], max_document_bytes=1024, long_documents="cut")
    assert len(texts) == 2
    assert lines.startswith(texts[0] + "\n")
    assert 896 <= len(texts[0]) <= 1024
    cut = [c for c in counts if c["kind"] == "cut"]
    assert [(c["reason"], c["docs"], c["bytes"]) for c in cut] == [("ingest.too_long", 1, len(lines) - len(texts[0]))]
    assert sum(c["bytes"] for c in counts) == len(lines) + len(short)


@given(st.text(alphabet="aé中😀\n ", max_size=80), st.integers(1, 60))
def test_cut_is_a_beginning_within_the_bound(text, max_bytes):
    kept = cut_to_bytes(text.encode(), max_bytes).decode()
    assert text.startswith(kept)
    assert len(kept.encode()) <= max_bytes or kept == text
    if len(text.encode()) <= max_bytes:
        assert kept == text
