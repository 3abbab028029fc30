"""Speed of MinHash signatures, beside datasketch, rensa and datatrove on the same documents.

    python benchmarks/minhash.py [--en FILE] [--zh FILE] [--bytes N] [--peer-bytes N] [--repeats N] [--out FILE]

Files are ``.jsonl`` or ``.jsonl.gz`` with a ``text`` field; the defaults lie in the folder REFINERY_SHARED/data, and
without it synthetic text is made from a seed (and said so). Speeds are UTF-8 bytes per CPU second of the process, on
one thread, the best of the repeats, compilation left out. Both sides make word 5-grams; for Chinese a character is a
word on both sides, so datasketch gets the better tokens of the two that its users take. Its time includes making the
5-grams in Python, as ours includes the scan; ``datasketch_kernel`` leaves that out. ``segmented`` and
``stored_words``: words of Chinese, segmentation included, or from stored boundaries. rensa runs in an environment of
its own (`peers.py`); it splits Chinese at punctuation, so only its English speed compares; so does datatrove, whose
signature step runs with its default words, from a file to a file. Exits 1 when a bound is missed: 100 MB/s for
English, 60 for Chinese (characters, stored boundaries), 20 with segmentation included; 20 times datasketch's fastest
path (xxh32), and for 112 hashes of English 8 times rensa and 200 times datatrove. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xxhash
from datasketch import MinHash
from peers import PeerError, run_peer

from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import band_keys
from refinery.kernels.minhash import MinHashConfig, estimate_jaccard, signatures, signatures_of_text
from refinery.kernels.segmentation import segment_han
from refinery.kernels.shingles import shingle_hashes, shingle_sets
from refinery.kernels.text import TextViews, views_of

_DEFAULTS = {"en": "docs/en-peps.jsonl.gz", "zh": "docs/zh-oi-wiki.jsonl.gz"}
_FLOORS_MB_S = {"en": 100.0, "zh": 60.0}
_PEER_RATIO = 20.0
_RENSA_RATIO = 8.0
_DATATROVE_RATIO = 200.0
_SEGMENTED_FLOORS = {"text_segmented_to_signatures": 20.0, "stored_words_to_signatures": 60.0}
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


def _read(path: Path, num_bytes: int) -> list[str]:
    texts, total = [], 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            texts.append(json.loads(line).get("text") or "")
            total += len(texts[-1].encode())
            if total >= num_bytes:
                break
    return texts


def _synthetic(language: str, num_bytes: int) -> list[str]:
    rng = np.random.default_rng(20261121)
    if language == "zh":
        letters = [chr(0x4E00 + k) for k in range(3500)] + ["，", "。", "\n"]
        return ["".join(rng.choice(letters, 1500)) for _ in range(num_bytes // 4500 + 1)]
    words = ["".join(rng.choice(list("etaoinshrdlucm"), int(rng.integers(2, 10)))) for _ in range(20_000)]
    places = (rng.pareto(1.0, (num_bytes // 6500 + 1, 1000)) * 20).astype(np.int64) % len(words)
    return [" ".join(words[k] for k in row) for row in places]


def _texts(language: str, given: str | None, num_bytes: int) -> tuple[str, list[str]]:
    shared = os.environ.get("REFINERY_SHARED")
    path = Path(given) if given else Path(shared or "", "data", _DEFAULTS[language])
    if given or (shared and path.is_file()):
        return path.name, _read(path, num_bytes)
    return "synthetic", _synthetic(language, num_bytes)


def _speed(work: Callable[[], object], num_bytes: int, repeats: int) -> float:
    """Return MB per CPU second, the best of the repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return num_bytes / 1e6 / best


def _grams(text: str) -> list[bytes]:
    words = _WORD.findall(text.lower())
    return [" ".join(words[k : k + 5]).encode() for k in range(len(words) - 4)]


def _xxh32(data: bytes) -> int:
    return xxhash.xxh32_intdigest(data)


def _peer(grams: list[list[bytes]], num_hashes: int, hashfunc: Callable[[bytes], int] | None) -> None:
    options = {"hashfunc": hashfunc} if hashfunc else {}
    for gram_list in grams:
        MinHash(num_perm=num_hashes, **options).update_batch(gram_list)


def _measure_peer(texts: list[str], num_hashes: int) -> dict[str, float]:
    num_bytes = sum(len(text.encode()) for text in texts)
    grams = [_grams(text) for text in texts]

    def whole(hashfunc: Callable[[bytes], int] | None) -> Callable[[], None]:
        return lambda: _peer([_grams(text) for text in texts], num_hashes, hashfunc)

    return {
        "datasketch_default": _speed(whole(None), num_bytes, 1),
        "datasketch_xxh32": _speed(whole(_xxh32), num_bytes, 2),
        "datasketch_xxh32_kernel": _speed(lambda: _peer(grams, num_hashes, _xxh32), num_bytes, 2),
    }


def _measure_ours(views: TextViews, num_hashes: int, repeats: int) -> dict[str, float]:
    config = MinHashConfig(num_hashes=num_hashes)
    offsets, hashes = shingle_hashes(views)
    values = signatures_of_text(views, config).values
    num_bytes = len(views.data)
    return {
        "text_to_signatures": _speed(lambda: signatures_of_text(views, config), num_bytes, repeats),
        "text_to_shingles": _speed(lambda: shingle_hashes(views), num_bytes, repeats),
        "text_to_sets": _speed(lambda: shingle_sets(views), num_bytes, repeats),
        "shingles_to_signatures": _speed(lambda: signatures(offsets, hashes, num_hashes, 1), num_bytes, repeats),
        "signatures_to_band_keys": _speed(lambda: band_keys(values, num_hashes // 8), num_bytes, repeats),
    }


def _measure_words(views: TextViews, num_hashes: int, repeats: int) -> dict[str, float]:
    """Words of Chinese instead of characters."""
    config = MinHashConfig(num_hashes=num_hashes)
    stored = segment_han(views).boundaries
    signatures_of_text(views_of(["中文"]), config, np.ones(6, dtype=np.uint8))
    work = {
        "text_segmented_to_signatures": lambda: signatures_of_text(views, config, segment_han(views).boundaries),
        "stored_words_to_signatures": lambda: signatures_of_text(views, config, stored),
    }
    return {name: _speed(call, len(views.data), repeats) for name, call in work.items()}


def _measure_installed(texts: list[str], num_hashes: int) -> dict[str, float]:
    """Return the speed of the peers that have environments of their own, as far as they can be installed."""
    told: dict[str, float] = {}
    num_bytes = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.jsonl")
        rows = [json.dumps({"id": str(k), "text": text}) + "\n" for k, text in enumerate(texts)]
        path.write_text("".join(rows), encoding="utf-8")
        try:
            told["rensa"] = float(run_peer("minhash", "minhash_speed.py", path, num_hashes)["result"]["mb_per_cpu_s"])
            if num_hashes == 112:
                made = run_peer("datatrove", "datatrove_minhash.py", path, Path(folder, "out"), "default")["result"]
                told["datatrove"] = num_bytes / 1e6 / made["steps"]["signatures"]
        except PeerError as error:
            print(f"a peer was not measured: {error}", file=sys.stderr)
    return told


def _estimator(views: TextViews, num_hashes: int) -> dict[str, float]:
    """Compare the estimate with the exact Jaccard of each document and its copy without every 40th word."""
    copies = []
    for index in range(min(views.num_docs, 200)):
        words = _WORD.findall(views.doc(index))[:1000]
        copies += [" ".join(words), " ".join(word for k, word in enumerate(words) if k % 40)]
    pairs = views_of(copies)
    sets = shingle_sets(pairs)
    left, right = np.arange(0, len(copies), 2), np.arange(1, len(copies), 2)
    exact = pair_jaccard(sets.offsets, sets.hashes, left, right)
    values = signatures_of_text(pairs, MinHashConfig(num_hashes=num_hashes)).values
    usable = (exact > 0) & (exact < 1)
    error = (estimate_jaccard(values[left], values[right]) - exact)[usable]
    sigma = np.sqrt(exact * (1 - exact) / num_hashes)[usable]
    return {
        "num_pairs": int(usable.sum()),
        "mean_exact_jaccard": round(float(exact[usable].mean()), 4),
        "mean_error": round(float(error.mean()), 5),
        "rms_error_in_sigma": round(float(np.sqrt(np.mean((error / sigma) ** 2))), 3),
    }


def _machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    packages = {name: version(name) for name in ("numba", "numpy", "datasketch", "xxhash")}
    return {"cpu": models[0] if models else platform.processor(), "python": platform.python_version(), **packages} | {
        "commit": commit
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--en")
    parser.add_argument("--zh")
    parser.add_argument("--bytes", type=int, default=20_000_000)
    parser.add_argument("--peer-bytes", type=int, default=3_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    report: dict = {"benchmark": "minhash", "machine": _machine(), "unit": "MB per CPU second", "results": []}
    missed = []
    for language, given in (("en", arguments.en), ("zh", arguments.zh)):
        name, texts = _texts(language, given, arguments.bytes)
        views = views_of(texts)
        peer_texts, total = [], 0
        for text in texts:
            peer_texts.append(text)
            total += len(text.encode())
            if total >= arguments.peer_bytes:
                break
        for num_hashes in (112, 256):
            signatures_of_text(views_of(texts[:1]), MinHashConfig(num_hashes=num_hashes))
            ours = _measure_ours(views, num_hashes, arguments.repeats)
            peer = _measure_peer(peer_texts, num_hashes)
            speed = ours["text_to_signatures"]
            ratio = speed / peer["datasketch_xxh32"]
            if speed < _FLOORS_MB_S[language] or ratio < _PEER_RATIO:
                missed.append(f"{language} {num_hashes} hashes: {speed:.0f} MB/s, {ratio:.0f} x datasketch")
            extra: dict[str, float] = {}
            if language == "zh":
                extra = _measure_words(views, num_hashes, arguments.repeats)
                missed += [f"{k} {extra[k]:.0f} MB/s" for k, floor in _SEGMENTED_FLOORS.items() if extra[k] < floor]
            if language == "en":
                extra = _measure_installed(peer_texts, num_hashes)
                for peer_name, times in (("rensa", _RENSA_RATIO), ("datatrove", _DATATROVE_RATIO)):
                    if num_hashes == 112 and speed < times * extra.get(peer_name, 0):
                        missed.append(f"{speed:.0f} MB/s is {speed / extra[peer_name]:.1f} x {peer_name}")
                extra |= {f"times_{k}": speed / value for k, value in extra.items()}
            report["results"].append(
                {"language": language, "input": name, "num_bytes": len(views.data), "num_docs": views.num_docs}
                | {"num_hashes": num_hashes, "estimator": _estimator(views, num_hashes)}
                | {key: round(value, 3) for key, value in (ours | extra | peer).items()}
                | {"times_datasketch_xxh32": round(ratio, 1)}
                | {"times_datasketch_default": round(speed / peer["datasketch_default"], 1)}
            )
    report["missed"] = missed
    text = json.dumps(report, indent=1)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
