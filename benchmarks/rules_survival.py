"""What the presets keep of text that should survive and of text that should not.

    REFINERY_SHARED=... python benchmarks/rules_survival.py

Chinese statutes, English novels and PEPs should pass; navigation text of a crawl, redirect stubs and a PNG read as text
should not. Prints the share kept and the commonest reasons.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from refinery.io.sources import InputSpec, RawDocument, plan_splits, read_split
from refinery.kernels.decide import decide
from refinery.kernels.preset import load_rules
from refinery.kernels.signals import signals
from refinery.kernels.text import views_of

SETS = (
    ("zh laws", "law/zh-laws.jsonl.gz", ("zh_web",), "zh", True),
    ("en novels", "books/en-eltec-novels.jsonl.gz", ("gopher", "fineweb"), "en", True),
    ("en PEPs", "docs/en-peps.jsonl.gz", ("gopher",), "en", True),
    ("crawl pages with navigation (WET)", "web/derived.warc.wet.gz", ("gopher", "fineweb"), "en", False),
    ("redirect stubs", "neardup/en-rust-book-redirect-stubs.jsonl.gz", ("gopher",), "en", False),
    ("a PNG read as text", "web/edge-cases/binary-as-text.txt", ("gopher",), None, False),
)


def texts(path: Path) -> Iterator[str]:
    """Yield the documents of one file."""
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
        return
    kind = "wet" if ".wet" in path.name else "text"
    spec = InputSpec(source="s", domain="d", role="pool", format=kind, paths=(str(path),))
    for split in plan_splits(spec, 1 << 26):
        yield from (r.text for r in read_split(spec, split) if isinstance(r, RawDocument))


def main() -> None:
    """Print one line per set."""
    root = Path(os.environ["REFINERY_SHARED"]) / "data"
    rows = []
    for name, file, presets, lang, wanted in SETS:
        documents = list(texts(root / file))
        rules = load_rules(presets)
        made = decide(signals(views_of(documents)), rules, [lang] * len(documents))
        reasons = Counter(rules[i].name for i in made.first_rule.tolist() if i >= 0)
        rows.append({"set": name, "presets": presets, "documents": len(documents), "should_pass": wanted,
                     "kept_frac": round(float(made.keep.mean()), 4), "reasons": reasons.most_common(4)})  # fmt: skip
        print(json.dumps(rows[-1], ensure_ascii=False))


if __name__ == "__main__":
    main()
