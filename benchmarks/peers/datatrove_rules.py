"""What FineWeb's chain of datatrove filters keeps, and what it costs, run in datatrove's own environment.

    datatrove_rules.py IN.jsonl OUT.json [--words default|split]

IN: one {"text"} a line. OUT: filter -> a reason per document, null where it keeps it; every filter sees the whole text.
OUT.texts: filter -> the text that it leaves of each document, for the filters that cut lines.
Prints CPU seconds of the chain on all documents (each filter on each document) and the bytes.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)


def _filters() -> dict:
    return {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(),
        "c4_fineweb": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(char_duplicates_ratio=0.1),
    }


def _use_plain_words() -> None:
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter, c4_filters):
        for name in ("split_into_words",):
            if hasattr(module, name):
                setattr(module, name, lambda text, language=None: text.split())


def main() -> None:
    if sys.argv[3:] == ["--words", "split"]:
        _use_plain_words()
    with Path(sys.argv[1]).open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    filters = _filters()
    for kind in filters.values():
        kind.filter(Document(text="One sentence to load what loads late. " * 20, id="warm"))
    reasons: dict = {name: [] for name in filters}
    left: dict = {name: [] for name in filters if name.startswith("c4")}
    seconds = {}
    for name, kind in filters.items():
        start = time.process_time()
        for number, text in enumerate(texts):
            document = Document(text=text, id=str(number))
            try:
                verdict = kind.filter(document)
            except ZeroDivisionError:
                verdict = (False, "datatrove divides by zero")
            kept, reason = (verdict, "") if isinstance(verdict, bool) else verdict
            reasons[name].append(None if kept else reason or name)
            if name in left:
                left[name].append(document.text if kept else None)
        seconds[name] = round(time.process_time() - start, 3)
    Path(sys.argv[2]).write_text(json.dumps(reasons), encoding="utf-8")
    Path(sys.argv[2] + ".texts").write_text(json.dumps(left), encoding="utf-8")
    size = sum(len(text.encode()) for text in texts)
    print(json.dumps({"version": version("datatrove"), "bytes": size, "cpu_s": seconds}))


if __name__ == "__main__":
    main()
