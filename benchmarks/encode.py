"""Encoding speed of `kitoken` and `tokenizers` on one vocabulary, with their ids compared document by document.

    python benchmarks/encode.py [--tokenizer DIR] [--train-bytes N] [--encode-bytes N] [--compare-bytes N] [--out FILE]

Text comes from the folder in REFINERY_SHARED (``*.jsonl.gz`` with a ``text`` field); without it, from the sources of
Python's standard library, which is code only and says so. Speeds are UTF-8 bytes per CPU second of the whole process;
both engines run on one thread. Training and encoding use different documents, by hash. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import kitoken  # thread settings must come before the libraries read them
import tokenizers

from refinery.hashing import hex_key
from refinery.kernels.text import views_of
from refinery.tokenization.encode import Encoder, open_encoder
from refinery.tokenization.info import plain_tokenizer, read_definition, tokenizer_folder
from refinery.tokenization.recipe import TokenizerRecipe
from refinery.tokenization.train import train_bpe

_GROUPS = {
    "zh": ("law/zh", "docs/zh", "books/zh", "encyclopaedia/zh"),
    "en": ("books/en", "docs/en"),
    "code": ("code/",),
}


def _shared_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.jsonl.gz")):
        where = path.relative_to(folder).as_posix()
        group = next((name for name, starts in _GROUPS.items() if where.startswith(starts)), "other")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line).get("text")
                if text:
                    yield group, text


def _library_texts() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield "code", path.read_text(encoding="utf-8", errors="replace")


def _documents() -> tuple[str, list[tuple[str, str]]]:
    shared = os.environ.get("REFINERY_SHARED")
    if shared and Path(shared, "data").is_dir():
        texts, name = _shared_texts(Path(shared, "data")), "shared data"
    elif shared and Path(shared).is_dir():
        texts, name = _shared_texts(Path(shared)), "shared data"
    else:
        texts, name = _library_texts(), "Python standard library (code only)"
    # By hash: a prefix of this order is a fair mix, whatever the order of files.
    return name, sorted(texts, key=lambda pair: hex_key(pair[1]))


def _take(documents: list[tuple[str, str]], num_bytes: int, group: str | None = None) -> list[str]:
    taken, total = [], 0
    for name, text in documents:
        if group in (None, name):
            size = len(text.encode("utf-8", "replace"))
            if total + size > num_bytes and taken:
                break
            taken.append(text)
            total += size
    return taken


def _speeds(encoder: Encoder, texts: list[str]) -> dict[str, object]:
    views = views_of(texts)
    num_bytes = int(views.offsets[-1])
    library = plain_tokenizer(read_definition(encoder.folder), "benchmark")
    plain = [views.doc(index) for index in range(views.num_docs)]
    started = time.process_time()
    for start in range(0, len(plain), 64):
        for encoding in library.encode_batch_fast(plain[start : start + 64], add_special_tokens=False):
            len(encoding.ids)
    library_seconds = time.process_time() - started
    engine = kitoken.Kitoken.from_tokenizers(_definition_without_special(encoder))
    started = time.process_time()
    for text in plain:
        engine.encode(text)
    kitoken_seconds = time.process_time() - started
    started = time.process_time()
    batch = encoder.encode_batch(views)
    ours_seconds = time.process_time() - started
    started = time.process_time()
    for index in range(views.num_docs):
        views.doc(index)
    decode_seconds = time.process_time() - started
    return {
        "num_bytes": num_bytes,
        "num_docs": views.num_docs,
        "bytes_per_token": round(num_bytes / max(1, len(batch.ids) - views.num_docs), 3),
        "tokenizers_encode_batch_fast_mb_per_cpu_second": round(num_bytes / 1e6 / library_seconds, 2),
        "kitoken_bare_mb_per_cpu_second": round(num_bytes / 1e6 / kitoken_seconds, 2),
        "encode_batch_mb_per_cpu_second": round(num_bytes / 1e6 / ours_seconds, 2),
        "utf8_decode_frac_of_encode_batch": round(decode_seconds / ours_seconds, 4),
        "ratio_to_tokenizers": round(library_seconds / ours_seconds, 2),
    }


def _definition_without_special(encoder: Encoder) -> bytes:
    parsed = json.loads(read_definition(encoder.folder))
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if not token["special"]]
    return json.dumps(parsed).encode()


def _differences(encoder: Encoder, texts: list[str]) -> dict[str, int]:
    library = plain_tokenizer(read_definition(encoder.folder), "benchmark")
    views = views_of(texts)
    batch = encoder.encode_batch(views, append_eos=False)
    different = lossy = 0
    for index in range(views.num_docs):
        text = views.doc(index)
        ids = batch.ids[batch.offsets[index] : batch.offsets[index + 1]].tolist()
        different += ids != library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        lossy += encoder.decode(ids) != text
    return {
        "compared_docs": views.num_docs,
        "compared_bytes": int(views.offsets[-1]),
        "different": different,
        "lossy": lossy,
    }


def _train(documents: list[tuple[str, str]], num_bytes: int, folder: Path) -> dict[str, object]:
    recipe = TokenizerRecipe(name="benchmark", vocab_size=32768, sample_bytes=max(num_bytes, 1))
    texts = _take(documents, num_bytes)
    started, wall = time.process_time(), time.perf_counter()
    info = train_bpe(iter(texts), recipe, folder)
    return {
        "sample_bytes": info.origin["sample_bytes"],
        "vocab_size": info.vocab_size,
        "cpu_seconds": round(time.process_time() - started, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding speed of two engines on one vocabulary.")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; trains one when absent")
    parser.add_argument("--train-bytes", type=int, default=20_000_000)
    parser.add_argument("--encode-bytes", type=int, default=10_000_000)
    parser.add_argument("--compare-bytes", type=int, default=20_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    name, documents = _documents()
    train = [pair for pair in documents if int(hex_key(pair[1])[-1], 16) % 2]
    held_out = [pair for pair in documents if not int(hex_key(pair[1])[-1], 16) % 2]
    result: dict[str, object] = {"text": name, "training": None}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tokenizer
        if folder is None:
            folder = Path(temporary)
            result["training"] = _train(train, options.train_bytes, folder)
        encoder = open_encoder(tokenizer_folder(folder))
        result["engine"] = f"{encoder.engine}: {encoder.engine_reason}"
        result["ids"] = _differences(encoder, _take(held_out, options.compare_bytes))
        groups: dict[str, object] = {"mix": _speeds(encoder, _take(held_out, options.encode_bytes))}
        for group in sorted({pair[0] for pair in held_out} - {"other"}):
            groups[group] = _speeds(encoder, _take(held_out, options.encode_bytes // 2, group))
        result["speed"] = groups
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result["versions"] = {
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
        "kitoken": version("kitoken"),
    }
    result["hardware"] = {"machine": platform.machine(), "cpu_count": os.cpu_count(), "system": platform.platform()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result["commit"] = commit.stdout.strip() or None
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
