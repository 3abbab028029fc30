"""Do the presets that stand for datatrove's filters decide as they do? Eleven kinds of English documents.

    python benchmarks/datatrove_presets.py [--docs N] [--max-chars N] [--out FILE]

Needs the folder REFINERY_SHARED/data. Takes up to N documents of each set, cut to --max-chars, and compares what
`gopher_datatrove` and `fineweb_datatrove` decide with its GopherRepetition, GopherQuality and FineWeb filters
(its own words, its own environment: `peers.py`). Prints agreement by filter and every class of disagreement with a
document, and both speeds. Exits 1 when a filter agrees on less than 99 %. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import run_peer
from rules_agreement import compare

from refinery.io.sources import InputSpec, RawDocument, plan_splits, read_split
from refinery.kernels.clean import clean_text
from refinery.kernels.decide import decide
from refinery.kernels.preset import Rule, load_rules
from refinery.kernels.signals import signals
from refinery.kernels.signals_datatrove import datatrove_signals
from refinery.kernels.text import views_of

_JSONL = (
    "books/en-eltec-novels.jsonl.gz", "docs/en-peps.jsonl.gz", "neardup/en-rust-book-src.jsonl.gz",
    "neardup/en-rust-book-2021.jsonl.gz", "neardup/en-spdx-licence-texts.jsonl.gz", "junk/spamassassin-emails.jsonl.gz",
    "dialogue/en-schema-guided.jsonl.gz", "code/registry-packages.jsonl.gz",
)  # fmt: skip
_WEB = ("web/derived.warc.wet.gz", "web/readability-pages.repacked.warc.gz")
_NEWS, _NEWS_ITEMS = "news/ag_news_test.csv", 10
_BOUND = 0.99


def _documents(data: Path, count: int, max_chars: int) -> list[tuple[str, str]]:
    """Return (name, text) of up to `count` documents of each set, evenly spread over it."""
    found: list[tuple[str, str]] = []
    for name in _JSONL:
        with gzip.open(data / name, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        found += [(f"{name}:{row['id']}", row["text"]) for row in _spread(rows, count)]
    for name in _WEB:
        found += [(f"{name}:{r.url}", r.text) for r in _spread(_read(data / name, "warc"), count)]
    options = {"header": False, "columns": ["c", "t", "text"], "text_fields": ["t", "text"], "joiner": "\n"}
    news = _read(data / _NEWS, "csv", **options)[: count * _NEWS_ITEMS]
    for at in range(0, len(news), _NEWS_ITEMS):  # ten items each, else the rule on length decides all
        found.append((f"{_NEWS}:{at}", "\n\n".join(r.text for r in news[at : at + _NEWS_ITEMS])))
    cleaned = [(name, clean_text(text)[:max_chars]) for name, text in found]
    return [(name, text) for name, text in cleaned if text.strip()]


def _spread(rows: list[Any], count: int) -> list[Any]:
    return rows[:: max(1, len(rows) // count)][:count]


def _read(path: Path, kind: str, **options: Any) -> list[RawDocument]:
    spec = InputSpec(source="s", domain="d", role="pool", format=kind, paths=(str(path),), options=options)
    records = (r for split in plan_splits(spec, 1 << 30) for r in read_split(spec, split))
    return [r for r in records if isinstance(r, RawDocument)]


def _rules() -> dict[str, tuple[Rule, ...]]:
    gopher = load_rules(["gopher_datatrove"])
    quality = [k for k, rule in enumerate(gopher) if "GopherQualityFilter" in rule.source]
    # the peer's script sets the paper's bound for repeated lines, 0.1
    fineweb = tuple(r._replace(max=0.1) if r.name.endswith("dup_line_chars") else r
                    for r in load_rules(["fineweb_datatrove"]))  # fmt: skip
    return {"gopher_repetition": gopher[: quality[0]], "gopher_quality": gopher[quality[0] :], "fineweb": fineweb}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", type=int, default=100)
    parser.add_argument("--max-chars", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = Path(os.environ.get("REFINERY_SHARED", "")) / "data"
    if not data.is_dir():
        sys.stderr.write("set REFINERY_SHARED to the folder that holds data/\n")
        return 2
    documents = _documents(data, options.docs, options.max_chars)
    names, texts = [d[0] for d in documents], [d[1] for d in documents]
    views = views_of(texts)
    columns = signals(views)
    datatrove_signals(views_of(["warm up"]))
    begin = time.process_time()
    columns |= datatrove_signals(views)
    seconds = time.process_time() - begin
    with tempfile.TemporaryDirectory() as name:
        given, kept = Path(name) / "in.jsonl", Path(name) / "out.json"
        given.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        peer = run_peer("datatrove", "datatrove_rules.py", given, kept)["result"]
        theirs = json.loads(kept.read_text(encoding="utf-8"))
    three = sum(peer["cpu_s"][kind] for kind in _rules())
    figures = {
        "documents": len(texts),
        "bytes": len(views.data),
        "datatrove": peer["version"],
        "mb_per_cpu_s": {"ours": round(len(views.data) / 1e6 / seconds, 1),
                         "datatrove": round(len(views.data) / 1e6 / three, 3)},
        "filters": {
            kind: compare(names, theirs[kind], decide(columns, rules, ["en"] * len(texts)).reasons(rules))
            for kind, rules in _rules().items()
        },
    }  # fmt: skip
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if all(f["agreement"] >= _BOUND for f in figures["filters"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
