"""Documents for the scripts of this folder; standard library only, since each peer has an environment of its own."""

import gzip
import json
from pathlib import Path


def read_texts(path: Path, limit_bytes: float) -> tuple[list[str], int]:
    """Return the texts of JSON lines, packed or not, until they hold `limit_bytes` of UTF-8, and what they hold."""
    texts, size = [], 0
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= limit_bytes:
                break
    return texts, size
