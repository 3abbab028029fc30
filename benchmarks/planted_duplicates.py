"""Documents with planted near-duplicates, and the truth about them.

    python benchmarks/planted_duplicates.py --bytes N --out FILE.jsonl [--seed N] [--copies F]

Real English and Chinese documents (REFINERY_SHARED/data; synthetic text from a seed without it, and said so) are cut
at paragraphs to at most 16 kB. A share of them is copied one to four times, each copy by one operation at a known
rate: ``edit`` replaces words (characters of Chinese), ``delete`` and ``insert`` take them out and put others in,
``wrap`` puts boilerplate around the text, ``same`` changes nothing but white space. Each line: id, text, lang, family,
op, rate.

The truth is not taken from the plan but computed: `true_pairs` finds every pair of documents whose sets of word 5-grams
(each Han character a word) have a Jaccard similarity at or above a bound, natural pairs included, exactly: two sets of
similarity J share one of the (1 - J) |S| + 1 rarest elements of each (prefix filtering, Chaudhuri, Ganti and Kaushik,
ICDE 2006).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from refinery.kernels.jaccard import pair_jaccard
from refinery.kernels.lsh import counted_pairs
from refinery.kernels.shingles import shingle_sets
from refinery.kernels.text import views_of

FILES = {
    "en": (
        *("docs/en-peps.jsonl.gz", "books/en-eltec-novels.jsonl.gz", "neardup/en-rust-book-src.jsonl.gz"),
        *("neardup/en-rust-book-2021.jsonl.gz", "dialogue/en-schema-guided.jsonl.gz"),
        *("neardup/en-spdx-licence-texts.jsonl.gz", "neardup/en-rust-book-redirect-stubs.jsonl.gz"),
        *("code/registry-packages.jsonl.gz", "junk/spamassassin-emails.jsonl.gz"),
    ),
    "zh": (
        *("law/zh-laws.jsonl.gz", "docs/zh-oi-wiki.jsonl.gz", "docs/zh-rust-book.jsonl.gz"),
        *("books/zh-classic-novels.jsonl.gz", "encyclopaedia/zh-wikipedia-paragraphs.jsonl.gz"),
        "dialogue/zh-crosswoz.jsonl.gz",
    ),
}
MAX_BYTES = 16_000
RATES = {"edit": (0.005, 0.01, 0.02, 0.035), "delete": (0.01, 0.02, 0.05), "insert": (0.01, 0.02, 0.05)}
_TOKEN = re.compile(r"[\u3400-\u9fff]|\s+|[^\s\u3400-\u9fff]+")
_HEAD = {"en": "Home | About | News | Contact | Search this site", "zh": "首页 关于我们 新闻中心 联系方式 站内搜索"}
_FOOT = {
    "en": "Copyright all rights reserved. Terms of use and privacy. Share this page with friends by mail or print it.",
    "zh": "版权所有 未经许可不得转载 网站地图 隐私政策 友情链接 打印本页 关闭窗口",
}


def _pieces(text: str) -> Iterator[str]:
    """Cut a document at blank lines into pieces of at most about `MAX_BYTES`."""
    piece: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        length = len(paragraph.encode())
        if piece and size + length > MAX_BYTES:
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph[: MAX_BYTES // 2])
        size += length
    if piece:
        yield "\n\n".join(piece)


def real_texts(language: str) -> Iterator[str]:
    """Yield pieces of the real files in turn; nothing without REFINERY_SHARED."""
    root = Path(os.environ.get("REFINERY_SHARED", ""), "data")
    sources = [_lines(root / name) for name in FILES[language] if (root / name).is_file()]
    while sources:
        for source in list(sources):
            piece = next(source, None)
            if piece is None:
                sources.remove(source)
            elif len(piece) > 200:
                yield piece


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from _pieces(json.loads(line).get("text") or "")


def synthetic_texts(language: str, seed: int) -> Iterator[str]:
    """Yield text of invented words, or of Han characters drawn at random."""
    rng = np.random.default_rng([seed, language == "zh"])
    words = ["".join(rng.choice(list("etaoinshrdlucm"), int(rng.integers(2, 10)))) for _ in range(20_000)]
    while True:
        if language == "zh":
            letters = [chr(c) for c in rng.integers(0x4E00, 0x4E00 + 3500, int(rng.integers(200, 2500)))]
            yield "".join(letter + ("。\n\n" if k % 60 == 59 else "") for k, letter in enumerate(letters))
        else:
            places = (rng.pareto(1.0, int(rng.integers(150, 1800))) * 20).astype(np.int64) % len(words)
            yield "".join(words[p] + (".\n\n" if k % 60 == 59 else " ") for k, p in enumerate(places.tolist()))


def altered(rng: random.Random, text: str, language: str, op: str, rate: float) -> str:
    """Return a copy of a text, changed by one operation at a rate per word."""
    if op == "same":
        return text.replace("\n", " \n") + "\n"
    if op == "wrap":
        return f"{_HEAD[language]}\n\n{text}\n\n{_FOOT[language]}"
    out = []
    for token in _TOKEN.findall(text):
        if token.isspace() or rng.random() >= rate:
            out.append(token)
        elif op != "delete":
            other = chr(rng.randrange(0x4E00, 0x9000)) if language == "zh" else f"word{rng.randrange(10**6)}"
            out.append(other if op == "edit" else f"{token} {other}")
    return "".join(out)


def planted(num_bytes: int, seed: int = 1, copies: float = 0.2, zh_share: float = 0.45) -> tuple[bool, list[dict]]:
    """Return (the texts are real, rows of the collection in random order).

    Args:
        num_bytes: UTF-8 bytes aimed at, copies included; real text that does not suffice is filled up with synthetic.
        seed: of everything drawn.
        copies: share of the originals that are copied.
        zh_share: share of the bytes that is Chinese.
    """
    rng = random.Random(seed)
    rows: list[dict] = []
    all_real = True
    for language, share in (("en", 1 - zh_share), ("zh", zh_share)):
        left = int(num_bytes * share)
        texts, real = real_texts(language), True
        number = 0
        while left > 0:
            text = next(texts, None)
            if text is None:
                texts, real, all_real = synthetic_texts(language, seed), False, False
                continue
            family = f"{language}{number}"
            number += 1
            made = [("original", 0.0, text)]
            if rng.random() < copies:
                for _ in range(rng.choice((1, 1, 2, 4))):
                    op = rng.choice(("edit", "edit", "delete", "insert", "wrap", "same"))
                    rate = rng.choice(RATES.get(op, (0.0,)))
                    made.append((op, rate, altered(rng, text, language, op, rate)))
            for k, (op, rate, body) in enumerate(made):
                row = {"id": f"{family}-{k}", "text": body, "lang": language, "family": family, "op": op, "rate": rate}
                rows.append({**row, "real": real})
                left -= len(body.encode())
    rng.shuffle(rows)
    return all_real, rows


def true_pairs(texts: Iterable[str], bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of texts whose shingle sets have a Jaccard of at least `bound`: (rows i < j, Jaccard)."""
    sets = shingle_sets(views_of(list(texts)))
    offsets, hashes = sets.offsets, sets.hashes
    values, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((values[places], counts[places], owner))  # rarest first inside each set
    sizes = np.diff(offsets)
    prefix = np.where(sizes > 0, sizes - np.ceil(bound * sizes - 1e-9).astype(np.int64) + 1, 0)
    position = np.arange(len(hashes)) - np.repeat(offsets[:-1], sizes)
    chosen = order[position < np.repeat(prefix, sizes)]
    elements, owners = places[chosen], owner[chosen]
    shared = counts[elements] > 1
    elements, owners = elements[shared], owners[shared]
    by_element = np.argsort(elements, kind="stable")
    elements, owners = elements[by_element], owners[by_element]
    found = []
    same = np.arange(len(elements))
    for step in range(1, len(elements)):  # neighbours at distance `step` in the same list, until no list is so long
        same = same[same + step < len(elements)]
        same = same[elements[same + step] == elements[same]]
        if not len(same):
            break
        found.append(np.stack([owners[same], owners[same + step]], axis=1))
        if sum(map(len, found)) > 5_000_000:
            found = [counted_pairs(np.concatenate(found))[0]]
    rows = counted_pairs(np.concatenate(found))[0] if found else np.empty((0, 2), np.int64)
    jaccard = pair_jaccard(offsets, hashes, rows[:, 0], rows[:, 1], bound)
    real = ~np.isnan(jaccard)
    return rows[real], jaccard[real]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=50_000_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--copies", type=float, default=0.2)
    arguments = parser.parse_args()
    real, rows = planted(arguments.bytes, arguments.seed, arguments.copies)
    with arguments.out.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    sizes = {lang: sum(len(r["text"].encode()) for r in rows if r["lang"] == lang) for lang in ("en", "zh")}
    print(json.dumps({"real": real, "documents": len(rows), "bytes": sizes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
