"""Repeated lines and contained documents: what is found on real text, beside plain Python, and how fast.

    REFINERY_SHARED=FOLDER python benchmarks/repeats.py [--bytes N] [--part lines|containment] [--out FILE]

Prints JSON: MB per CPU second of line hashing on one thread (compilation left out) with its growth from 1x to 16x,
beside the same rule in plain Python with SHA-1, CCNet's hash, and whether both name the same repeated lines; and, from
a run of dedup_sentences over two editions of a book, one a file a section and one a file a chapter, the pairs of the
containment report against a comparison of every pair. Exits 1 when a bound is missed: 60 MB/s, exponent 1.05, the same
repeated lines, 99 % of the pairs found and none too many.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from refinery.io import parts as part_files
from refinery.kernels.lines import line_spans
from refinery.kernels.shingles import shingle_sets
from refinery.kernels.text import views_of
from refinery.recipe import parse_recipe
from refinery.stages.pipeline import run_recipe
from refinery.stages.workspace import Run

MIN_LETTERS = 10
MIN_FRAC, MIN_NGRAMS = 0.5, 100


def read_texts(path: Path, max_bytes: int) -> list[str]:
    """Return the texts of a JSON lines file, up to some bytes, from the start again where it is shorter."""
    with gzip.open(path, "rb") as lines:
        whole = [json.loads(line).get("text") or "" for line in lines]
    texts, total, at = [], 0, 0
    while total < max_bytes:
        texts.append(whole[at % len(whole)])
        total += len(texts[-1].encode())
        at += 1
    return texts


def plain_key(line: str) -> tuple[bytes, int]:
    """Return the SHA-1 of a line after normalisation, and its letters."""
    kept, letters = [], 0
    for char in line.lower():
        category = unicodedata.category(char)
        if category[0] in "PSC" and not char.isspace():
            continue
        letters += category[0] == "L"
        kept.append("0" if category == "Nd" else char)
    return hashlib.sha1(" ".join("".join(kept).split()).encode()).digest()[:8], letters


def plain_repeats(texts: list[str]) -> set[str]:
    """Return the lines that stand in several texts, by plain Python."""
    found: Counter[bytes] = Counter()
    lines: dict[bytes, set[str]] = {}
    for text in texts:
        mine = {}
        for line in text.split("\n"):
            key, letters = plain_key(line)
            if letters >= MIN_LETTERS:
                mine.setdefault(key, set()).add(line.strip())
        found.update(mine.keys())
        for key, said in mine.items():
            lines.setdefault(key, set()).update(said)
    return {line for key, count in found.items() if count > 1 for line in lines[key]}


def kernel_repeats(texts: list[str]) -> set[str]:
    """Return the same from the kernel's hashes."""
    views = views_of(texts)
    spans = line_spans(views)
    owner = np.repeat(np.arange(len(texts)), np.diff(spans.doc_offsets))
    long = spans.num_letters >= MIN_LETTERS
    pairs = np.unique(np.stack([owner[long].astype(np.uint64), spans.hashes[long]], axis=1), axis=0)
    hashes, counts = np.unique(pairs[:, 1], return_counts=True)
    often = np.isin(spans.hashes, hashes[counts > 1]) & long
    first = views.offsets[:-1][owner]
    return {
        bytes(views.data[first[i] + spans.starts[i] : first[i] + spans.ends[i]]).decode().strip()
        for i in np.flatnonzero(often).tolist()
    }


def lines(data: Path, num_bytes: int) -> dict:
    """Speed, growth and agreement of the line hashes."""
    report: dict = {}
    for language, name in (("en", "docs/en-peps.jsonl.gz"), ("zh", "law/zh-laws.jsonl.gz")):
        texts = read_texts(data / name, num_bytes)
        some = texts[: max(2, len(texts) // 16)]
        start = time.process_time()
        plain = plain_repeats(some)
        plain_seconds = time.process_time() - start
        some_bytes = sum(len(t.encode()) for t in some)
        line_spans(views_of(["compile"]))
        points = []
        for share in (16, 8, 4, 2, 1):
            views = views_of(texts[: max(1, len(texts) // share)])
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                line_spans(views)
                best = min(best, time.process_time() - start)
            points.append((int(views.offsets[-1]), best))
        slope = np.polyfit(np.log([p[0] for p in points]), np.log([p[1] for p in points]), 1)[0]
        report[language] = {
            "num_bytes": points[-1][0],
            "mb_per_second": round(points[-1][0] / 1e6 / points[-1][1], 1),
            "exponent": round(float(slope), 3),
            "plain_python_mb_per_second": round(some_bytes / 1e6 / plain_seconds, 2),
            "repeated_lines": len(plain),
            "same_repeated_lines": kernel_repeats(some) == plain,
        }
    return report


def containment(data: Path) -> dict:
    """Pairs that the report finds against every pair compared."""
    files = [data / "neardup" / f"en-rust-book-{edition}.jsonl.gz" for edition in ("src", "nostarch")]
    with tempfile.TemporaryDirectory() as folder:
        recipe = parse_recipe(
            {
                "name": "containment",
                "workdir": f"{folder}/run",
                "inputs": [
                    {"source": path.name.split(".")[0], "domain": "book", "format": "jsonl", "paths": [str(path)]}
                    for path in files
                ],
                "ingest": {"validation_frac": 0.0, "part_bytes": 1_000_000},
                "dedup_sentences": {"exact": False, "containment": {"min_frac": MIN_FRAC, "min_ngrams": MIN_NGRAMS}},
            }
        )
        start = time.monotonic()
        done = run_recipe(Run(recipe), stages=["ingest", "dedup_sentences"])
        seconds = time.monotonic() - start
        rows = part_files.read_part(recipe.workdir, "dedup_sentences", "containment", 0).to_pylist()
        numbers = part_files.part_numbers(recipe.workdir, "ingest", "documents")
        columns = ["doc_key", "text", "source", "url", "meta"]
        documents = [
            row for p in numbers
            for row in part_files.read_part(recipe.workdir, "ingest", "documents", p, columns).to_pylist()
        ]  # fmt: skip
    sets = shingle_sets(views_of([d["text"] for d in documents]), 13, "words")
    grams = [set(sets.hashes[a:z].tolist()) for a, z in zip(sets.offsets[:-1], sets.offsets[1:], strict=True)]
    large = [i for i, g in enumerate(grams) if len(g) >= MIN_NGRAMS]
    true = {}
    for i in large:
        for j in large:
            if i < j and (n := len(grams[i] & grams[j])) >= MIN_FRAC * min(len(grams[i]), len(grams[j])):
                true[frozenset((documents[i]["doc_key"], documents[j]["doc_key"]))] = n
    found = {frozenset((r["a_key"], r["b_key"])) for r in rows}
    facts = done["dedup_sentences"].facts["containment"]
    by_key = {d["doc_key"]: d["source"] for d in documents}
    return {
        "documents": len(documents),
        "documents_asked": facts["num_documents"],
        "pairs_of_documents": len(large) * (len(large) - 1) // 2,
        "pairs_compared": facts["num_compared"],
        "pairs_true": len(true),
        "pairs_found": len(found),
        "recall": round(len(found & set(true)) / max(1, len(true)), 4),
        "found_that_are_not": len(found - set(true)),
        "sections_inside_chapters": sum(by_key[r["a_key"]] != by_key[r["b_key"]] for r in rows),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=16_000_000)
    parser.add_argument("--part", choices=["lines", "containment"])
    parser.add_argument("--out")
    given = parser.parse_args()
    data = Path(os.environ.get("REFINERY_SHARED", ""), "data")
    if not (data / "neardup").is_dir():
        sys.exit("set REFINERY_SHARED to the folder of development data")
    report: dict = {"benchmark": "repeats"}
    bounds: dict[str, bool] = {}
    if given.part != "containment":
        report["lines"] = lines(data, given.bytes)
        bounds["speed"] = all(r["mb_per_second"] >= 60 for r in report["lines"].values())
        bounds["exponent"] = all(r["exponent"] <= 1.05 for r in report["lines"].values())
        bounds["same lines"] = all(r["same_repeated_lines"] for r in report["lines"].values())
    if given.part != "lines":
        report["containment"] = containment(data)
        bounds["recall"] = report["containment"]["recall"] >= 0.99
        bounds["exact"] = report["containment"]["found_that_are_not"] == 0
    report["missed"] = [name for name, held in bounds.items() if not held]
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if given.out:
        Path(given.out).write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if report["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
