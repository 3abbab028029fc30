"""What dolma's taggers gopher_v1 and c4_v1 cost on documents in memory, run in dolma's own environment.

    dolma_rules.py TEXTS.jsonl[.gz] MEGABYTES

Prints CPU seconds of both taggers on every document and the bytes; taggers only tag, dropping comes later there.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from dolma.core.data_types import Document
from dolma.core.registry import TaggerRegistry
from texts_in import read_texts


def main() -> None:
    texts, size = read_texts(Path(sys.argv[1]), float(sys.argv[2]) * 1e6)
    taggers = [TaggerRegistry.get(name)() for name in ("gopher_v1", "c4_v1")]
    for tagger in taggers:
        tagger.predict(Document(source="warm", id="warm", text="A sentence to load what loads late. " * 20))
    begin = time.process_time()
    for number, text in enumerate(texts):
        for tagger in taggers:
            tagger.predict(Document(source="s", id=str(number), text=text))
    print(json.dumps({"version": version("dolma"), "bytes": size, "cpu_s": time.process_time() - begin}))


if __name__ == "__main__":
    main()
