"""Encode texts with tiktoken and a vocabulary given as ``tokenizer.json``; prints CPU seconds and the ids' hash.

python encode_tiktoken.py DEFINITION PATTERN_FILE TEXTS.jsonl
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import tiktoken


def _bytes_of(alphabet: list[str]) -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet."""
    own = {char: ord(char) for char in alphabet if ord(char) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(sorted(set(alphabet) - set(own)), others, strict=True))


def main() -> None:
    definition, pattern, texts = (Path(argument) for argument in sys.argv[1:4])
    parsed = json.loads(definition.read_text(encoding="utf-8"))
    special = {token["content"] for token in parsed["added_tokens"]}
    vocab = {name: index for name, index in parsed["model"]["vocab"].items() if name not in special}
    byte_of = _bytes_of([name for name in vocab if len(name) == 1])
    ranks = {bytes(byte_of[char] for char in name): index for name, index in vocab.items()}
    encoding = tiktoken.Encoding(
        "peer", pat_str=pattern.read_text(encoding="utf-8"), mergeable_ranks=ranks, special_tokens={}
    )
    lines = texts.read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    encoding.encode_ordinary("warm")
    digest = hashlib.sha256()
    spent = 0.0
    for text in documents:
        started = time.process_time()
        ids = encoding.encode_ordinary(text)
        spent += time.process_time() - started
        digest.update(json.dumps(ids).encode())
    sys.stdout.write(json.dumps({"cpu_s": spent, "ids_sha256": digest.hexdigest()}) + "\n")


if __name__ == "__main__":
    main()
