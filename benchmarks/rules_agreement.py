"""Do our rules keep and drop what datatrove's filters do, on the same English documents, and at what price?

    python benchmarks/rules_agreement.py [--docs N] [--max-chars N] [--out FILE]

Needs the folder REFINERY_SHARED/data. Takes N documents of each of several English sets, cut to --max-chars at a line
end. For each filter of FineWeb's chain it prints the share of documents on which both sides agree, and every class of
disagreement (their reason, our reason) with its count and one document. C4's rules cut lines: there the text
of a document that both keep has to be the same too, outer white space aside; `c4` has the rule on terminal punctuation,
`c4_fineweb` not. Speeds are bytes per CPU second: our signals,
which serve all filters at once, and datatrove's chain, with its own words and with `str.split`. Exits 1 when a filter
agrees on less than 99 %, or the speed is under 150 times datatrove's (20 times with `str.split`). Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from peers import run_peer

from refinery.kernels.clean import clean_text
from refinery.kernels.cuts import apply_cuts
from refinery.kernels.decide import decide
from refinery.kernels.line_rules import find_lines
from refinery.kernels.preset import Rule, load_preset, load_rules
from refinery.kernels.signals import signals
from refinery.kernels.text import text_views, views_of

_SETS = ("books/en-eltec-novels.jsonl.gz", "docs/en-peps.jsonl.gz", "neardup/en-rust-book-src.jsonl.gz",
         "neardup/en-rust-book-2021.jsonl.gz", "neardup/en-spdx-licence-texts.jsonl.gz")  # fmt: skip
_BOUND, _RATIO, _RATIO_SPLIT = 0.99, 150.0, 20.0
_REPETITION = ("gopher.dup_", "gopher.top_")


def _documents(data: Path, count: int, max_chars: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in _SETS:
        with gzip.open(data / name, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        step = max(1, len(rows) // count)
        for row in rows[::step][:count]:
            text = clean_text(row["text"])
            if len(text) > max_chars:
                text = text[: text.rfind("\n", 0, max_chars) if "\n" in text[:max_chars] else max_chars]
            if text.strip():
                found.append((f"{name.rpartition('/')[2]}:{row['id']}", text))
    return found


def _filter_of(rule: Rule) -> str:
    preset = rule.name.partition(".")[0]
    if preset != "gopher":
        return preset
    return "gopher_repetition" if rule.name.startswith(_REPETITION) else "gopher_quality"


def _lines_of(texts: list[str], preset: str) -> tuple[list[str | None], list[str]]:
    """Return why each document goes by a preset with line rules, and the text that these leave."""
    rules = load_preset(preset)
    views = views_of(texts)
    found = find_lines(views, rules.lines, np.full(len(texts), (1 << len(rules.lines)) - 1, dtype=np.int64))
    cut = found.is_cut
    left = apply_cuts(views, np.arange(len(texts)), found.docs[cut], found.starts[cut], found.ends[cut])
    columns = signals(text_views(left), passes="words")
    columns[f"{preset}.num_line_sentences"] = columns["num_sentences"] + found.open_lines
    decided = decide(columns, rules.rules).reasons(rules.rules)
    tripped = [next((rules.lines[r].name for r in np.flatnonzero(row)), None) for row in found.trips]
    return [a or b for a, b in zip(tripped, decided, strict=True)], left.to_pylist()


def _ours(texts: list[str]) -> tuple[dict[str, list[str | None]], float]:
    views = views_of(texts)
    signals(views_of(texts[:2]))
    start = time.process_time()
    columns = signals(views)
    seconds = time.process_time() - start
    rules = load_rules(["gopher", "fineweb"])
    reasons: dict[str, list[str | None]] = {}
    for name in ("gopher_repetition", "gopher_quality", "fineweb"):
        mine = [r for r in rules if _filter_of(r) == name]
        reasons[name] = decide(columns, mine, ["en"] * len(texts)).reasons(mine)
    return reasons, seconds


def _with_texts(reasons: list[str | None], texts: list[str | None], others: list[str | None]) -> list[str | None]:
    """Return the reasons, with "other text" where both sides keep a document and leave it different."""
    return [
        "other text" if reason is None and text is not None and other is not None and text.strip() != other.strip()
        else reason
        for reason, text, other in zip(reasons, texts, others, strict=True)
    ]  # fmt: skip


def compare(ids: list[str], theirs: list[str | None], ours: list[str | None]) -> dict[str, Any]:
    """Return how often two verdicts agree on keeping a document, and every class of disagreement with an example."""
    classes: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for name, their, our in zip(ids, theirs, ours, strict=True):
        if (their is None) != (our is None):
            key = (their or "kept", our or "kept")
            classes[key] += 1
            example.setdefault(key, name)
    agreed = 1 - sum(classes.values()) / len(ids)
    rows = [{"datatrove": a, "ours": b, "docs": n, "example": example[a, b]} for (a, b), n in classes.most_common()]
    return {"agreement": round(agreed, 4), "dropped_by_datatrove": sum(r is not None for r in theirs),
            "dropped_by_us": sum(r is not None for r in ours), "disagreements": rows}  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", type=int, default=120)
    parser.add_argument("--max-chars", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = Path(os.environ.get("REFINERY_SHARED", "")) / "data"
    if not data.is_dir():
        sys.stderr.write("set REFINERY_SHARED to the folder that holds data/\n")
        return 2
    documents = _documents(data, options.docs, options.max_chars)
    ids, texts = [d[0] for d in documents], [d[1] for d in documents]
    ours, seconds = _ours(texts)
    size = sum(len(t.encode()) for t in texts)
    with tempfile.TemporaryDirectory() as name:
        given, kept = Path(name) / "in.jsonl", Path(name) / "out.json"
        given.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        default = run_peer("datatrove", "datatrove_rules.py", given, kept)["result"]
        theirs = json.loads(kept.read_text(encoding="utf-8"))
        their_texts = json.loads(Path(f"{kept}.texts").read_text(encoding="utf-8"))
        split = run_peer("datatrove", "datatrove_rules.py", given, kept, "--words", "split")["result"]
        theirs_split = json.loads(kept.read_text(encoding="utf-8"))
    for name, left in their_texts.items():
        reasons, mine = _lines_of(texts, name)
        ours[name] = _with_texts(reasons, [t if r is None else None for t, r in zip(mine, reasons, strict=True)], left)
    speed = size / seconds / 1e6
    chain, chain_split = (size / (sum(r["cpu_s"].values()) - r["cpu_s"]["c4"]) / 1e6 for r in (default, split))
    figures = {
        "documents": len(texts),
        "bytes": size,
        "datatrove": default["version"],
        "mb_per_cpu_s": {"ours": round(speed, 1), "datatrove": round(chain, 3), "split_words": round(chain_split, 2)},
        "ratio": round(speed / chain, 1),
        "ratio_split": round(speed / chain_split, 1),
        "filters": {name: compare(ids, theirs[name], ours[name]) for name in theirs},
        "agreement_with_split_words": {
            name: compare(ids, theirs_split[name], ours[name])["agreement"] for name in theirs_split
        },
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    agree = all(f["agreement"] >= _BOUND for f in figures["filters"].values())
    return 0 if agree and figures["ratio"] >= _RATIO and figures["ratio_split"] >= _RATIO_SPLIT else 1


if __name__ == "__main__":
    sys.exit(main())
