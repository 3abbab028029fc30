"""Speed of rules that cut lines: the kernel beside datatrove's C4QualityFilter, and the rules stage with and without.

    python benchmarks/line_rules.py FILE.jsonl.gz [--limit-mb N] [--peer-mb N]

FILE is JSON lines with `text`. Prints JSON: MB of UTF-8 per CPU second of `find_lines` for each preset with line rules,
of datatrove's filter on the first --peer-mb (environment of `peers.py`), the ratio, and of the stage's part task (read,
facts, decisions, write) for `[gopher]`, for `[c4, gopher]` and for `[gopher, c4_fineweb, fineweb]`. Exits 1 when the
stage is under 30 MB/s of the text that it counts: the last recipe has rules on both sides of the cuts, so that its
signals are of two texts, and has to make 15 MB/s of what came in.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from peers import run_peer

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import DOCUMENTS
from refinery.hashing import hex_key
from refinery.io import parts as part_files
from refinery.kernels.clean import clean_text, text_hash
from refinery.kernels.line_rules import find_lines
from refinery.kernels.preset import load_preset, preset_names
from refinery.kernels.text import views_of
from refinery.recipe import parse_recipe
from refinery.stages import rules
from refinery.stages.workspace import Run, commit_stage, part_entries

BOUND_MB_S = 30.0
TEXTS_COUNTED = {"gopher": 1, "c4+gopher": 1, "gopher+c4_fineweb+fineweb": 2}
"""Recipe -> texts that its signals are of: what came in, what line rules left, or both."""


def _texts(path: Path, limit_bytes: int) -> list[str]:
    texts: list[str] = []
    size = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(clean_text(json.loads(line)["text"]))
            size += len(texts[-1].encode())
            if size >= limit_bytes:
                break
    return texts


def _kernel_mb_s(texts: list[str], preset: str) -> float:
    lines, views = load_preset(preset).lines, views_of(texts)
    masks = np.full(len(texts), (1 << len(lines)) - 1, dtype=np.int64)
    best = math.inf
    for _ in range(4):
        begin = time.process_time()
        find_lines(views, lines, masks)
        best = min(best, time.process_time() - begin)
    return len(views.data) / 1e6 / best


def _written(folder: str, texts: list[str]) -> dict[str, Any]:
    """Write the texts as one part of the ingest stage; return the recipe without rules."""
    rows = [
        {
            "doc_id": n, "doc_key": hex_key("file", str(n)), "text": text, "text_hash": text_hash(text),
            "source": "file", "domain": "web", "role": "pool", "split": "train", "num_bytes": len(text.encode()),
            "num_chars": len(text),
        }
        for n, text in enumerate(texts)
    ]  # fmt: skip
    path = part_files.part_path(folder, "ingest", "documents", 0)
    file = part_files.write_part(path, pa.Table.from_pylist(rows, schema=DOCUMENTS), DOCUMENTS, "ingest")
    source = {"source": "file", "domain": "web", "format": "jsonl", "paths": []}
    values = {"name": "lines", "workdir": folder, "inputs": [source]}
    told = {"part": 0, "rows": file.rows, "content_hash": file.content_hash, "num_bytes": file.num_bytes}
    entries = part_entries("documents", [{"documents": told}], "documents")
    commit_stage(Run(parse_recipe(values)), StageManifest("ingest", "print", 1, {}, {}, entries, []), 0.0)
    return values


def _stage_mb_s(texts: list[str]) -> dict[str, float]:
    size = sum(len(text.encode()) for text in texts) / 1e6
    best: dict[str, float] = {}
    for _ in range(5):
        for name in TEXTS_COUNTED:
            with tempfile.TemporaryDirectory() as folder:
                values = {**_written(folder, texts), "rules": {"presets": name.split("+")}}
                task = rules.rules_task(Run(parse_recipe(values)))
                begin = time.process_time()
                rules.rules_part(task, 0)
                best[name] = max(best.get(name, 0.0), size / (time.process_time() - begin))
    return best


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--limit-mb", type=float, default=24.0)
    parser.add_argument("--peer-mb", type=float, default=1.0)
    options = parser.parse_args()
    texts = _texts(options.path, int(options.limit_mb * 1e6))
    given = _texts(options.path, int(options.peer_mb * 1e6))
    kernel = {name: round(_kernel_mb_s(texts, name), 1) for name in preset_names() if load_preset(name).lines}
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in.jsonl", Path(name) / "out.json"
        source.write_text("".join(json.dumps({"text": t}) + "\n" for t in given), encoding="utf-8")
        peer = run_peer("datatrove", "datatrove_rules.py", source, out)["result"]
    theirs = peer["bytes"] / 1e6 / peer["cpu_s"]["c4"]
    stage = {name: round(speed, 1) for name, speed in _stage_mb_s(texts).items()}
    figures = {
        "documents": len(texts), "kernel_mb_per_cpu_s": kernel, "datatrove_c4_mb_per_cpu_s": round(theirs, 3),
        "times_datatrove_c4": round(kernel["c4"] / theirs, 1), "stage_mb_per_cpu_s": stage,
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    return 0 if all(speed * TEXTS_COUNTED[name] >= BOUND_MB_S for name, speed in stage.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
