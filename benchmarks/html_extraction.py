r"""Main-text extraction against hand-checked pages: token F1 per page, mean and median, by extractor.

    REFINERY_SHARED=... python benchmarks/html_extraction.py [--extractor resiliparse|trafilatura]

Pages and reference: mozilla/readability's test pages (`html/readability-pages.jsonl.gz`). Tokens are `\w+` runs and
single Han or kana characters; F1 is over multisets, so order does not count.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import time
from collections import Counter
from pathlib import Path

from refinery.io.read_html import extract_text

TOKEN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+")


def token_f1(found: str, expected: str) -> float:
    """Return F1 of two texts as bags of tokens."""
    left, right = Counter(TOKEN.findall(found)), Counter(TOKEN.findall(expected))
    common = sum((left & right).values())
    total = sum(left.values()) + sum(right.values())
    return 2 * common / total if total else 1.0


def main() -> None:
    """Print one line per extractor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extractor", default="resiliparse")
    given = parser.parse_args()
    path = Path(os.environ["REFINERY_SHARED"]) / "data" / "html" / "readability-pages.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        pages = [json.loads(line) for line in lines]
    scores, started = [], time.process_time()
    for page in pages:
        found = extract_text(page["html"], {"extractor": given.extractor})
        expected = re.sub(r"<[^>]+>", " ", page["expected_main_html"])
        scores.append((token_f1(found, html_unescape(expected)), page.get("id", "")))
    seconds = time.process_time() - started
    values = [score for score, _ in scores]
    size = sum(len(page["html"].encode()) for page in pages)
    print(
        json.dumps(
            {
                "extractor": given.extractor,
                "pages": len(pages),
                "mean_f1": round(statistics.mean(values), 4),
                "median_f1": round(statistics.median(values), 4),
                "below_0.5": sum(v < 0.5 for v in values),
                "mb_html_per_cpu_second": round(size / 1e6 / seconds, 1),
                "worst": sorted(scores)[:5],
            },
            indent=1,
        )
    )


def html_unescape(text: str) -> str:
    """Undo HTML entities."""
    import html  # noqa: PLC0415

    return html.unescape(text)


if __name__ == "__main__":
    main()
