"""What NeMo Curator's Gopher filters cost on documents in memory, run in its own environment.

    nemo_rules.py TEXTS.jsonl[.gz] MEGABYTES

Seven quality filters and thirteen of repetition, each scoring and judging every document. Prints CPU seconds and bytes.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from nemo_curator.stages.text.filters.heuristic import repetition, string
from texts_in import read_texts


def _filters() -> list:
    quality = [
        string.WordCountFilter(), string.MeanWordLengthFilter(), string.SymbolsToWordsFilter(), string.BulletsFilter(),
        string.EllipsisFilter(), string.WordsWithoutAlphabetsFilter(), string.CommonEnglishWordsFilter(),
    ]  # fmt: skip
    segments = [
        repetition.RepeatedLinesFilter(0.7), repetition.RepeatedParagraphsFilter(0.7),
        repetition.RepeatedLinesByCharFilter(0.8), repetition.RepeatedParagraphsByCharFilter(0.8),
    ]  # fmt: skip
    tops = [repetition.RepeatingTopNGramsFilter(n, bound) for n, bound in ((2, 0.2), (3, 0.18), (4, 0.16))]
    pairs = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    return [*quality, *segments, *tops, *(repetition.RepeatingDuplicateNGramsFilter(n, bound) for n, bound in pairs)]


def main() -> None:
    texts, size = read_texts(Path(sys.argv[1]), float(sys.argv[2]) * 1e6)
    filters = _filters()
    for kind in filters:
        kind.keep_document(kind.score_document("A sentence to load what loads late.\n\n" * 20))
    begin = time.process_time()
    for text in texts:
        for kind in filters:
            kind.keep_document(kind.score_document(text))
    figures = {"version": version("nemo_curator"), "filters": len(filters), "bytes": size}
    print(json.dumps(figures | {"cpu_s": time.process_time() - begin}))


if __name__ == "__main__":
    main()
