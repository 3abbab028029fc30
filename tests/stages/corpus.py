"""A small made-up corpus with planted copies, near copies and junk, and the recipe that runs it.

Text is drawn from word lists by a seeded generator, so two documents share a 5-gram only where one was planted.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refinery.recipe import Recipe, parse_recipe


def _words(text: str) -> list[str]:
    return text.split()


ENGLISH = _words(
    "the of and to that have with be harbour winter machine garden letter river captain window market silver "
    "teacher forest journey morning kitchen village theatre engine mountain doctor summer bridge paper island "
    "animal music family country evening station history language picture question answer number colour weather "
    "captain's bread orange friend animal corner island finger shoulder holiday distance pencil carpet basket "
    "candle ladder mirror blanket hammer pocket button bottle ticket railway harvest meadow valley castle desert "
    "planet rocket circle square triangle record student lesson chapter novel author poet painter singer dancer "
    "actor farmer baker tailor walked carried opened closed painted borrowed followed answered listened gathered "
    "measured repaired wondered"
)
GERMAN = _words(
    "der die das und ist nicht mit von ein auf Gesetz Vertrag Gericht Richter Anwalt Frist Antrag Verfahren "
    "Behörde Gemeinde Bürger Wohnung Miete Käufer Verkäufer Haftung Schaden Ersatz Anspruch Pflicht Recht Klage "
    "Urteil Berufung Zeuge Beweis Kosten Gebühr Steuer Erbe Testament Ehe Kind Sorge Unterhalt Arbeit Lohn "
    "Kündigung Betrieb Urlaub Straße Fahrzeug Verkehr Unfall Polizei Strafe Geldbuße Freiheit Würde Mensch Staat "
    "Land Bund Wahl Partei Parlament Minister Regierung Verordnung Absatz Satz Nummer Anlage Fassung Änderung "
    "Übergang größer schließlich"
)
CHINESE = (
    "的是在和有了不为这中合同当事人应当依照法律规定履行义务权利责任损害赔偿人民法院判决民事诉讼行政机关公司股东董事会"
    "注册资本保险劳动者用人单位工资社会保障土地承包经营权建设用地使用权抵押质押留置担保物权婚姻家庭继承遗嘱侵权产品环境"
    "污染动物饲养知识产权专利商标著作海洋河流森林草原矿产能源交通运输铁路航空邮政电信网络安全数据保护消费者食品药品医疗"
)
NEAR_PAIRS = 44
"""Planted pairs at a Jaccard of 0.85 or more."""
FAR_PAIRS = 8
"""Planted pairs well under the recipe's bound of 0.8."""
JUNK = {
    "words_min": " ".join(ENGLISH[:40]) + ".",
    "dup_lines": "\n".join(["the same line of the menu again and again"] * 30),
    "hashes": " ".join(word + " #" if i % 3 == 0 else word for i, word in enumerate(ENGLISH[:100])),
    "alpha_words": " ".join(f"{word} {n * 7919}" for n, word in enumerate(ENGLISH[:100])),
}


@dataclass
class Corpus:
    """Where the inputs lie and what was planted."""

    root: Path
    near: list[tuple[str, str]] = field(default_factory=list)
    """(original id, near copy id)."""
    far: list[tuple[str, str]] = field(default_factory=list)
    exact: list[tuple[str, str]] = field(default_factory=list)
    junk: dict[str, str] = field(default_factory=dict)
    """Document id -> name of the Gopher rule that has to cut it."""


def sentence_text(words: list[str]) -> str:
    """Write words as sentences on lines that do not repeat."""
    lines, i, n = [], 0, 0
    while i < len(words):
        size = 9 + (len(words) + 5 * n) % 6
        lines.append(" ".join(words[i : i + size]).capitalize() + ".")
        i, n = i + size, n + 1
    return "\n".join(lines)


def prose(rng: random.Random, vocabulary: list[str], count: int) -> list[str]:
    return [rng.choice(vocabulary) for _ in range(count)]


def chinese(rng: random.Random, count: int) -> str:
    """Draw Han characters and set them in clauses and lines."""
    out: list[str] = []
    for i in range(count):
        out.append(rng.choice(CHINESE))
        if i % 13 == 12:
            out.append("，" if i % 3 else "。\n")
    return "".join(out) + "。"


def edited(rng: random.Random, words: list[str], changes: int) -> list[str]:
    """Replace words at places far apart: each change takes five 5-grams away and brings five new ones."""
    changed = list(words)
    step = len(words) // changes
    for i in range(changes):
        changed[i * step + step // 2] = f"novelty{rng.randrange(10**6)}x"
    return changed


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _web(corpus: Corpus, rng: random.Random) -> Iterator[dict[str, Any]]:
    for n in range(NEAR_PAIRS):
        words = prose(rng, ENGLISH, 200 + 3 * n)
        yield {"id": f"w{n}", "text": sentence_text(words)}
        changes = 1 + n % 3
        yield {"id": f"w{n}-near", "text": sentence_text(edited(rng, words, changes))}
        corpus.near.append((f"w{n}", f"w{n}-near"))
    for n in range(FAR_PAIRS):
        words = prose(rng, ENGLISH, 180)
        yield {"id": f"f{n}", "text": sentence_text(words)}
        yield {"id": f"f{n}-far", "text": sentence_text(edited(rng, words, 10 + n))}
        corpus.far.append((f"f{n}", f"f{n}-far"))
    for n in range(6):
        text = sentence_text(prose(rng, ENGLISH, 120))
        yield {"id": f"e{n}", "text": text}
        yield {"id": f"e{n}-copy", "text": text}
        corpus.exact.append((f"e{n}", f"e{n}-copy"))
    for name, text in JUNK.items():
        corpus.junk[f"junk-{name}"] = name
        yield {"id": f"junk-{name}", "text": text}


def build_corpus(root: Path) -> Corpus:
    """Write the inputs under a folder; the same bytes every time."""
    corpus, rng = Corpus(root), random.Random(20261121)
    web = list(_web(corpus, rng))
    rng.shuffle(web)
    write_jsonl(root / "web" / "a.jsonl", web[: len(web) // 2])
    write_jsonl(root / "web" / "b.jsonl", web[len(web) // 2 :])
    write_jsonl(root / "laws.jsonl.gz", [{"id": f"zh{n}", "text": chinese(rng, 260 + 5 * n)} for n in range(36)])
    german = [{"id": f"de{n}", "text": sentence_text(prose(rng, GERMAN, 110 + n))} for n in range(24)]
    write_jsonl(root / "news.jsonl", german)
    replay = [{"id": f"r{n}", "text": sentence_text(prose(rng, ENGLISH, 130 + n))} for n in range(24)]
    write_jsonl(root / "replay.jsonl", replay)
    tokenizer = {"name": "tiny", "vocab_size": 600, "num_reserved": 4, "sample_bytes": 200_000, "seed": 1}
    (root / "bpe.yaml").write_text(yaml.safe_dump(tokenizer), encoding="utf-8")
    return corpus


def recipe_values(corpus: Corpus, workdir: Path) -> dict[str, Any]:
    """Return the recipe as plain values, ready to be changed by a test."""
    root = corpus.root
    return copy.deepcopy({
        "name": "small",
        "seed": 7,
        "workdir": str(workdir),
        "inputs": [
            {"source": "laws", "domain": "law", "role": "target", "format": "jsonl", "lang": "zh",
             "paths": [str(root / "laws.jsonl.gz")]},
            {"source": "web", "domain": "web", "role": "pool", "format": "jsonl", "lang": "en",
             "paths": [str(root / "web")]},
            {"source": "news", "domain": "news", "role": "pool", "format": "jsonl", "lang": "de",
             "paths": [str(root / "news.jsonl")]},
            {"source": "replay", "domain": "general", "role": "replay", "format": "jsonl", "lang": "en",
             "paths": [str(root / "replay.jsonl")]},
        ],
        "ingest": {"part_bytes": 40_000, "validation_frac": 0.15},
        "rules": {"presets": ["gopher"]},
        "dedup_documents": {"jaccard": 0.8},
        "tokenizer": {"train": str(root / "bpe.yaml")},
        "mix": {"stages": [{"domains": {"law": 0.3, "web": 0.4, "news": 0.2}, "replay": 0.1}]},
        "pack": {"sequence_length": 64, "shard_tokens": 8192},
        "spark": {"master": "local[2]", "shuffle_partitions": 3},
    })  # fmt: skip


def recipe_of(values: dict[str, Any]) -> Recipe:
    return parse_recipe(values)
