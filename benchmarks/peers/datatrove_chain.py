"""datatrove's Gopher repetition, Gopher quality, C4 and FineWeb filters on JSON lines, one process, CPU seconds.

    python datatrove_chain.py FILE LIMIT_MB LANGUAGE WORDS

WORDS is ``own`` (its word tokenizer of the language) or ``split`` (`str.split`, not a shipped setting). Every filter
sees every document. Prints bytes, CPU seconds after one warm-up document, and how many documents all filters kept.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from typing import Any

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


def kept(filters: list[Any], text: str) -> bool:
    answers = [one.filter(Document(text=text, id="0")) for one in filters]
    return all(answer is True or (isinstance(answer, tuple) and answer[0]) for answer in answers)


def main() -> None:
    path, limit_bytes, language, words = sys.argv[1], float(sys.argv[2]) * 1e6, sys.argv[3], sys.argv[4]
    if words == "split":
        for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
            module.split_into_words = lambda text, _: text.split()
        c4_filters.split_into_sentences = lambda text, _: text.split(". ")
    filters = [
        GopherRepetitionFilter(language=language), GopherQualityFilter(language=language),
        C4QualityFilter(filter_no_terminal_punct=False, language=language), FineWebQualityFilter(language=language),
    ]  # fmt: skip
    texts, size = [], 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= limit_bytes:
                break
    kept(filters, texts[0])
    begin = time.process_time()
    count = sum(kept(filters, text) for text in texts)
    seconds = time.process_time() - begin
    print(json.dumps({"docs": len(texts), "bytes": size, "cpu_s": seconds, "kept": count}))


if __name__ == "__main__":
    main()
