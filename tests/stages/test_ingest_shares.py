"""ingest: one large file that cannot be entered in the middle fills several parts; one task, without a session."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from refinery.io import parts as part_files
from refinery.recipe import parse_recipe
from refinery.stages.ingest import plan
from refinery.stages.ingest_part import ingest_part


def _words(number: int) -> str:
    return " ".join(hashlib.sha256(f"{number} {k}".encode()).hexdigest() for k in range(20))


def _recipe(folder: Path, path: Path, part_bytes: int, **changes):
    return parse_recipe({
        "name": "shares", "seed": 1, "workdir": str(folder / "run"),
        "ingest": {"part_bytes": part_bytes, "validation_frac": 0.1},
        "inputs": [{"source": "made", "domain": "web", "format": "jsonl", "paths": [str(path)], **changes}],
    })  # fmt: skip


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """3,000 documents of 1.3 kB, every 500th line broken."""
    path = tmp_path / "large.jsonl.gz"
    with gzip.open(path, "wt") as out:
        for number in range(3000):
            out.write((json.dumps({"id": str(number), "text": _words(number)}) if number % 500 else "{broken") + "\n")
    return path


def _documents(task, parts):
    tables = [part_files.read_part(task.workdir, "ingest", "documents", p) for p in parts]
    return [row for table in tables for row in table.select(["doc_key", "text", "text_hash", "split"]).to_pylist()]


def test_shares_hold_every_document_once_and_stay_small(tmp_path: Path, large: Path) -> None:
    task = plan(_recipe(tmp_path, large, 1 << 20))
    parts = range(len(task.splits))
    assert task.leaders() == [0]
    result = ingest_part(task, ["print"] * len(parts), 0)
    rows = _documents(task, parts)
    assert [row["text"] for row in rows] == [_words(n) for n in range(3000) if n % 500]
    results = [result, *result["shares"]]
    assert [r["documents"]["part"] for r in results] == list(parts)
    sizes = [sum(c["bytes"] for c in r["counts"] if c["kind"] == "kept") for r in results]
    assert max(sizes) < (1 << 20) + 2000
    assert sum(sizes) == sum(len(row["text"]) for row in rows)
    assert sum(sum(r["bad"].values()) for r in results) == 6
    assert sorted(place[1] for r in results for place in r["bad_listed"])[0] == 0
    assert sum(map(bool, sizes)) >= 4


def test_parts_are_the_same_documents_as_without_shares(tmp_path: Path, large: Path) -> None:
    cut, whole = (plan(_recipe(tmp_path / name, large, size)) for name, size in (("a", 1 << 20), ("b", 1 << 30)))
    assert (len(whole.splits), len(cut.splits) > 4) == (1, True)
    for task in (cut, whole):
        ingest_part(task, ["print"] * len(task.splits), 0)
    assert _documents(cut, range(len(cut.splits))) == _documents(whole, [0])


def test_a_lost_share_is_made_again_to_the_same_bytes(tmp_path: Path, large: Path) -> None:
    task = plan(_recipe(tmp_path, large, 1 << 20))
    prints = [f"print {p}" for p in range(len(task.splits))]
    before = ingest_part(task, prints, 0)
    paths = [Path(part_files.part_path(task.workdir, "ingest", "documents", p)) for p in range(len(prints))]
    data = [path.read_bytes() for path in paths]
    times = [path.stat().st_mtime_ns for path in paths]
    paths[2].unlink()
    after = ingest_part(task, prints, 0)
    assert [path.read_bytes() for path in paths] == data
    assert [path.stat().st_mtime_ns == t for path, t in zip(paths, times, strict=True)].count(False) == 1
    assert before["shares"] == after["shares"]


def test_a_plan_of_many_files_is_small(tmp_path: Path) -> None:
    """What every task carries: 2,000 files here, a few bytes each; a million would be some 15 MB."""
    for number in range(2000):
        (tmp_path / f"file-{number:06d}.txt").write_text(f"text {number}")
    task = plan(_recipe(tmp_path, tmp_path / "*.txt", 1 << 20, format="text"))
    assert sum(len(packed) for _, packed in task.splits) < 2000 * 40
    docs = 0
    for part in task.leaders():
        docs += ingest_part(task, ["print"] * len(task.splits), part)["documents"]["rows"]
    assert docs == 2000
