"""Sentence spans: speed, and boundary F1 beside pysbd on the same paragraphs.

    python benchmarks/sentences.py [--paragraphs 250] [--bytes 20000000] [--show 0] [--out FILE]

Reads development text below REFINERY_SHARED/data. Paragraphs are lines of 200 to 1500 characters, chosen by hash; both
sides get one at a time. A boundary is a position between two non-space characters inside a paragraph. pysbd
(pip install pysbd) is the reference, not the truth: --show N prints the first N differences per source. Two numbers:
``f1_all`` over every boundary, and ``f1`` over those outside quotations and not at an ellipsis, where the two differ by
convention (pysbd looks into no quotation, and behind ``...`` it knows Latin capitals only); Chinese on 。！？, since
pysbd does not end a sentence at ；. Speed is UTF-8 bytes per CPU second of one thread, best of three, compilation left
out. In German statutes pysbd ends sentences behind "Abs.", "Nr." or "Art." before a number and at days of the month
("vom | 5. April"), which nobody does: there ``f1`` leaves those positions out on both sides, and
``f1_with_all_of_pysbd`` does not. Exits 1 below 50 MB/s, when the F1 of a source is below 0.95, or when that of a
language over all its sources is, nothing left out of pysbd; 2 without pysbd. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import xxhash

from refinery.kernels.sentences import normalised_hash, sentence_spans
from refinery.kernels.text import views_of

_NO_ENDS = {
    # before, behind: no sentence of a statute ends between these
    "law/de-gesetze.jsonl.gz": (re.compile(r"(Abs|Nr|Art)\.$"), re.compile(r"\d")),
}
_DAYS = re.compile(r"\d{1,2}\.(?:Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)")
_SOURCES = {
    "en": ("neardup/en-rust-book-src.jsonl.gz", "docs/en-peps.jsonl.gz", "books/en-eltec-novels.jsonl.gz"),
    "de": ("docs/de-rust-book.jsonl.gz", "law/de-gesetze.jsonl.gz"),
    "fr": ("docs/fr-rust-book.jsonl.gz", "books/fr-eltec-novels.jsonl.gz"),
    "ru": ("neardup/ru-novels-variants.jsonl.gz",),
    "zh": ("law/zh-laws.jsonl.gz", "encyclopaedia/zh-wikipedia-paragraphs.jsonl.gz", "docs/zh-rust-book.jsonl.gz"),
}
_QUOTED = re.compile(
    r"""“[^”]*”|《[^》]*》|「[^」]*」|（[^）]*）|„[^“”]*[“”]|«[^»]*»|"[^"]*"|‘[^’]*’|\([^)]*\)|`[^`]*`"""
)


def _texts(path: Path, num_bytes: int) -> list[str]:
    texts, total = [], 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            total += len(texts[-1].encode())
            if total > num_bytes:
                break
    return texts


def _paragraphs(texts: list[str], count: int) -> list[str]:
    """Return unwrapped paragraphs of prose: consecutive plain lines are joined first."""
    blocks = {
        " ".join(block.split())
        for text in texts
        for block in text.replace("\r", "").split("\n\n" if "\n\n" in text else "\n")
        if not block.startswith((" ", "\t", "|", "#", "-", "*", "<", ">", "[", "`", "{", ".")) and "\n\t" not in block
        and "```" not in block and "\n " not in block and "\n- " not in block and "\n| " not in block
    }  # fmt: skip
    fit = [block for block in blocks if 200 <= len(block) <= 1500]
    return sorted(fit, key=lambda block: xxhash.xxh3_64_intdigest(block.encode()))[:count]


Sides = tuple[list[set[int]], list[set[int]]]
"""Boundaries of ours and of theirs, paragraph by paragraph."""


def _boundaries(sentences: list[str]) -> set[int]:
    ends, at = set(), 0
    for sentence in sentences:
        at += len("".join(sentence.split()))
        ends.add(at)
    return ends - {0, at}


def _ours(text: str) -> list[str]:
    spans = sentence_spans(views_of([text]))
    raw = text.encode()
    return [raw[a:b].decode() for a, b in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)]


def _comparable(ends: set[int], text: str, language: str) -> set[int]:
    dense = "".join(text.split())
    inside = {k for match in _QUOTED.finditer(dense) for k in range(match.start(), match.end() + 1)}
    outside = {k for k in ends if k not in inside and "…" not in dense[k - 2 : k] and ".." not in dense[k - 3 : k]}
    return {k for k in outside if dense[k - 1] in "。！？"} if language == "zh" else outside


def _f1(ours: list[set[int]], theirs: list[set[int]]) -> tuple[float, float, float]:
    right = sum(len(a & b) for a, b in zip(ours, theirs, strict=True))
    precision, recall = (right / max(sum(map(len, side)), 1) for side in (ours, theirs))
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def _without_no_ends(ends: set[int], text: str, name: str) -> set[int]:
    """Leave out where a source's own conventions forbid an end: behind an abbreviated number word, around a day."""
    if name not in _NO_ENDS:
        return ends
    dense = "".join(text.split())
    days = {k for match in _DAYS.finditer(dense) for k in range(match.start(), match.end())}
    before, behind = _NO_ENDS[name]
    return {k for k in ends if k not in days and not (before.search(dense[:k]) and behind.match(dense[k:]))}


def _compare(language: str, name: str, paragraphs: list[str], show: int) -> tuple[dict[str, float], Sides]:
    import pysbd  # noqa: PLC0415 - optional peer

    segmenter = pysbd.Segmenter(language=language, clean=False)
    ours = [_boundaries(_ours(text)) for text in paragraphs]
    theirs = [_boundaries([s for s in segmenter.segment(text) if s]) for text in paragraphs]
    f1_all = _f1(ours, theirs)[2]
    ours = [_comparable(ends, text, language) for ends, text in zip(ours, paragraphs, strict=True)]
    theirs = [_comparable(ends, text, language) for ends, text in zip(theirs, paragraphs, strict=True)]
    whole = (ours, theirs)
    ours = [_without_no_ends(ends, text, name) for ends, text in zip(ours, paragraphs, strict=True)]
    theirs = [_without_no_ends(ends, text, name) for ends, text in zip(theirs, paragraphs, strict=True)]
    precision, recall, f1 = _f1(ours, theirs)
    for a, b, text in zip(ours, theirs, paragraphs, strict=True):
        dense = "".join(text.split())
        for k in sorted(a ^ b)[: max(show, 0)]:
            print(language, "ours " if k in a else "pysbd", dense[max(0, k - 30) : k], "|", dense[k : k + 20])
            show -= 1
    told = {
        "paragraphs": len(paragraphs), "boundaries": sum(map(len, theirs)), "precision": precision, "recall": recall,
        "f1": f1, "f1_with_all_of_pysbd": _f1(*whole)[2], "f1_all": f1_all,
    }  # fmt: skip
    return told, whole


def _speed(texts: list[str]) -> dict[str, float]:
    views = views_of(texts)
    spans = sentence_spans(views)
    normalised_hash(views, spans)
    split_seconds = hash_seconds = float("inf")
    for _ in range(3):
        began = time.thread_time()
        spans = sentence_spans(views)
        middle = time.thread_time()
        normalised_hash(views, spans)
        split_seconds = min(split_seconds, middle - began)
        hash_seconds = min(hash_seconds, time.thread_time() - middle)
    size = len(views.data) / 1e6
    return {
        "megabytes": size, "sentences": len(spans.ends), "bytes_per_sentence": 1e6 * size / max(len(spans.ends), 1),
        "split_mb_s": size / split_seconds, "hash_mb_s": size / hash_seconds,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paragraphs", type=int, default=250)
    parser.add_argument("--bytes", type=int, default=20_000_000)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    root = Path(os.environ.get("REFINERY_SHARED", ".")) / "data"
    report: dict[str, object] = {"machine": platform.processor() or platform.machine()}
    with_peer = importlib.util.find_spec("pysbd") is not None
    passed = True
    for language, names in _SOURCES.items():
        sides: Sides = ([], [])
        for name in names:
            texts = _texts(root / name, options.bytes)
            row: dict[str, object] = {**_speed(texts)}
            passed &= row["split_mb_s"] >= 50
            if with_peer:
                told, compared = _compare(language, name, _paragraphs(texts, options.paragraphs), options.show)
                row |= told
                passed &= told["f1"] >= 0.95
                sides[0].extend(compared[0])
                sides[1].extend(compared[1])
            report[f"{language} {name}"] = row
        if with_peer:
            report[f"{language} f1"] = _f1(*sides)[2]
            passed &= report[f"{language} f1"] >= 0.95
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if not with_peer:
        sys.stderr.write("pysbd is not installed, so no boundary was compared: pip install pysbd\n")
        return 2
    return int(not passed)


if __name__ == "__main__":
    raise SystemExit(main())
