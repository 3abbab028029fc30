"""What a vocabulary does to real text: compression, coverage of Chinese, and tokens that will never be trained.

A model learns nothing about a token that its data never contains; such tokens waste parameters and, met at inference,
give garbage ("glitch tokens"). Metrics follow the usual definitions: fertility = tokens per word, where each Han
character is a word, compression = UTF-8 bytes per token; only bits per byte compare models across vocabularies.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from refinery.errors import DataError
from refinery.tokenization.encode import Encoder
from refinery.tokenization.health_checks import han_coverage, merge_conflicts, white_space_and_digits
from refinery.tokenization.info import read_definition

REPORT_VERSION = 2
_HAN_RANGES = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_HAN = re.compile(f"[{_HAN_RANGES}]")
# What fertility counts: each Han character, and each other run of letters, digits and underscores.
_UNIT = re.compile(rf"[{_HAN_RANGES}]|[^\W{_HAN_RANGES}]+")
_LISTED = 50
_RARE = 3
"""Tokens that occur, but less often than this, are almost never used."""
_REFERENCE_LEAD = 1.05
_LONGEST_DRAWN = 24


@dataclass
class _Group:
    """Totals of one (domain, language)."""

    num_docs: int = 0
    num_bytes: int = 0
    num_chars: int = 0
    num_units: int = 0
    num_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "num_docs": self.num_docs,
            "num_bytes": self.num_bytes,
            "num_tokens": self.num_tokens,
            "bytes_per_token": _ratio(self.num_bytes, self.num_tokens),
            "chars_per_token": _ratio(self.num_chars, self.num_tokens),
            "fertility": _ratio(self.num_tokens, self.num_units),
        }


@dataclass
class _Tally:
    """All that one pass over the samples collects."""

    groups: dict[tuple[str, str], _Group] = field(default_factory=dict)
    han: Counter[str] = field(default_factory=Counter)
    uses: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    num_docs_with: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    others: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Tokens of other vocabularies by (name, domain, language)."""
    num_roundtrip_failures: int = 0
    first_failure: str | None = None


def health(
    encoder: Encoder,
    samples: Iterable[tuple[str, str, str]],
    num_common_han: int = 3000,
    references: Mapping[str, Tokenizer] | None = None,
) -> dict[str, Any]:
    """Examine a vocabulary on text, best held out from its training sample.

    Args:
        encoder: the opened vocabulary.
        samples: (domain, language, text) of each document; the two only name the rows of the tables.
        num_common_han: of the samples' Han characters, how many of the most frequent to look up as single tokens.
        references: other vocabularies by name (`refinery.tokenization.info.plain_tokenizer`), to compare with.
    Returns: a report that `json` can write: tables by group, Han coverage, token use, longest tokens, a verdict.

    Raises:
        DataError: there is no sample text.
    """
    tally = _count(encoder, samples, references or {})
    texts = encoder.token_texts()
    total = _total(tally.groups.values())
    if not total.num_tokens:
        raise DataError("the health report needs text: every sample is empty; give documents of each domain")
    special = set(encoder.info.special_ids.values())
    report = {
        "version": REPORT_VERSION,
        "tokenizer": {"name": encoder.info.name, "sha256": encoder.info.sha256, "vocab_size": encoder.info.vocab_size},
        "engine": {"name": encoder.engine, "reason": encoder.engine_reason},
        "special_ids": encoder.info.special_ids,
        "by_domain_and_language": [
            {"domain": domain, "language": lang, **group.as_json()}
            for (domain, lang), group in sorted(tally.groups.items())
        ],
        "by_language": _merged(tally.groups, by=1, label="language"),
        "by_domain": _merged(tally.groups, by=0, label="domain"),
        "total": total.as_json(),
        "references": _compared(tally, total, references or {}),
        "han": han_coverage(encoder, tally.han, num_common_han, _LISTED),
        "tokens": _token_use(encoder, tally, texts, special),
        "white_space_and_digits": white_space_and_digits(encoder, texts),
        "merges": merge_conflicts(encoder),
        "plots": _plots(encoder, tally, special),
        "longest_tokens": _longest(texts, special),
        "roundtrip_failures": tally.num_roundtrip_failures,
        "first_roundtrip_failure": tally.first_failure,
    }
    report["verdict"] = _verdict(report)
    return report


def _count(encoder: Encoder, samples: Iterable[tuple[str, str, str]], references: Mapping[str, Tokenizer]) -> _Tally:
    size = encoder.info.vocab_size
    tally = _Tally(uses=np.zeros(size, dtype=np.int64), num_docs_with=np.zeros(size, dtype=np.int64))
    for domain, lang, text in samples:
        ids = encoder.encode_text(text)
        group = tally.groups.setdefault((domain, lang), _Group())
        han = _HAN.findall(text)
        group.num_docs += 1
        group.num_bytes += len(text.encode())
        group.num_chars += len(text)
        group.num_units += len(_UNIT.findall(text))
        group.num_tokens += len(ids)
        for name, other in references.items():
            key = (name, domain, lang)
            tally.others[key] += len(other.encode(text, add_special_tokens=False).ids)
        tally.han.update(han)
        distinct, counts = np.unique(ids, return_counts=True)
        tally.uses[distinct] += counts
        tally.num_docs_with[distinct] += 1
        if encoder.decode(ids) != text:
            tally.num_roundtrip_failures += 1
            tally.first_failure = tally.first_failure or text[:80]
    return tally


def _token_use(encoder: Encoder, tally: _Tally, texts: list[str | None], special: set[int]) -> dict[str, Any]:
    ordinary = [index for index, text in enumerate(texts) if text is not None and index not in special]
    unused = [index for index in ordinary if not tally.uses[index]]
    one_document = [index for index in ordinary if tally.num_docs_with[index] == 1 and tally.uses[index] >= 10]
    one_document.sort(key=lambda index: (-int(tally.uses[index]), index))
    unreachable = _unreachable(encoder, texts, ordinary)
    parents = _merge_parts(encoder)
    # Used by no text, though both halves are alive elsewhere, is a rare token; with a dead half it is a dead branch.
    dead = [index for index in unused if any(not tally.uses[part] for part in parents.get(index, ()))]
    used = int(tally.uses.sum())
    broken = [index for index in ordinary if "\ufffd" in (texts[index] or "")]
    rare = [index for index in ordinary if 0 < tally.uses[index] < _RARE]
    return {
        "num_ordinary": len(ordinary),
        "num_rare": len(rare),
        "rare": _listed(rare, texts),
        "num_part_characters": len(broken),
        "part_character_frac_of_text": _ratio(int(tally.uses[broken].sum()), used),
        "num_unused": len(unused),
        "unused_frac": _ratio(len(unused), len(ordinary)),
        "unused": _listed(unused, texts),
        "num_unreachable": len(unreachable),
        "unreachable": _listed(unreachable, texts),
        "num_glitch_candidates": len(set(unreachable) | set(dead)),
        "glitch_candidates": _listed(sorted(set(unreachable) | set(dead)), texts),
        "num_one_document": len(one_document),
        "one_document": _listed(one_document, texts),
    }


def _compared(tally: _Tally, total: _Group, references: Mapping[str, Tokenizer]) -> list[dict[str, Any]]:
    """Return bytes per token of other vocabularies on the same text, in all and by language."""
    rows = []
    for name, other in references.items():
        languages: Counter[str] = Counter()
        for (_, _, lang), tokens in ((key, n) for key, n in tally.others.items() if key[0] == name):
            languages[lang] += tokens
        sizes: Counter[str] = Counter()
        for (_, lang), group in tally.groups.items():
            sizes[lang] += group.num_bytes
        rows.append(
            {
                "name": name,
                "vocab_size": other.get_vocab_size(with_added_tokens=True),
                "num_tokens": sum(languages.values()),
                "bytes_per_token": _ratio(total.num_bytes, sum(languages.values())),
                "by_language": [
                    {"language": lang, "bytes_per_token": _ratio(sizes[lang], languages[lang])}
                    for lang in sorted(languages)
                ],
            }
        )
    return rows


def _plots(encoder: Encoder, tally: _Tally, special: set[int]) -> dict[str, Any]:
    """Return what the page draws: uses by rank (log-spaced), tokens by bytes, in the vocabulary and in the text."""
    ordinary = np.array([index not in special for index in range(len(tally.uses))])
    uses = np.sort(tally.uses[ordinary])[::-1]
    uses = uses[uses > 0]
    ranks = np.unique(np.geomspace(1, max(1, len(uses)), 60).astype(np.int64))
    lengths = np.minimum(encoder.token_bytes(), _LONGEST_DRAWN)
    return {
        "rank_uses": [[int(rank), int(uses[rank - 1])] for rank in ranks if len(uses)],
        "tokens_by_bytes": np.bincount(lengths[ordinary], minlength=_LONGEST_DRAWN + 1).tolist(),
        "uses_by_bytes": np.bincount(lengths, weights=tally.uses, minlength=_LONGEST_DRAWN + 1).astype(int).tolist(),
    }


def _unreachable(encoder: Encoder, texts: list[str | None], ordinary: list[int]) -> list[int]:
    """Return tokens of whole characters whose own text does not encode to them.

    Such a token can come only out of a longer pretoken, if at all: it is cut by the split pattern, or merges of higher
    priority always take its parts. Tokens of broken UTF-8 cannot be asked this way and are left out.
    """
    found = []
    for index in ordinary:
        text = texts[index] or ""
        if text and "\ufffd" not in text:
            ids = encoder.encode_text(text)
            if len(ids) != 1 or ids[0] != index:
                found.append(index)
    return found


def _merge_parts(encoder: Encoder) -> dict[int, tuple[int, int]]:
    """Return id of each merged token -> ids of the two tokens that its merge joins."""
    model = json.loads(read_definition(encoder.folder))["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        return {}
    parts: dict[int, tuple[int, int]] = {}
    for merge in model.get("merges", ()):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right in vocab:
            parts.setdefault(vocab[left + right], (vocab[left], vocab[right]))
    return parts


def _longest(texts: list[str | None], special: set[int]) -> list[dict[str, Any]]:
    # One byte stands for a broken piece: U+FFFD itself would make every lone byte three bytes long.
    lengths = [0 if text is None else len(text.replace("\ufffd", "?").encode()) for text in texts]
    order = [index for index, text in enumerate(texts) if text and index not in special]
    order.sort(key=lambda index: (-lengths[index], index))
    return _listed(order[:_LISTED], texts)


def _listed(indices: list[int], texts: list[str | None]) -> list[dict[str, Any]]:
    return [{"id": index, "text": _visible(texts[index] or "")} for index in indices[:_LISTED]]


def _visible(text: str) -> str:
    """Return text that a table can show: control and format characters as escapes, at most 80 characters."""
    shown = "".join(f"\\u{ord(c):04x}" if unicodedata.category(c)[0] == "C" else c for c in text[:80])
    return shown + ("…" if len(text) > 80 else "")


def _verdict(report: dict[str, Any]) -> dict[str, Any]:
    """Say in one word whether to use the vocabulary, with the reasons; bounds are ours, stated in each reason."""
    failures, warnings = [], []
    if report["roundtrip_failures"]:
        failures.append(f"{report['roundtrip_failures']} documents do not decode to themselves; the bound is 0")
    unused = report["tokens"]["unused_frac"]
    if unused is not None and unused > 0.2:
        warnings.append(
            f"{unused:.1%} of the tokens never occur in this text (over 20 %): smaller vocabulary, more text?"
        )
    if report["tokens"]["num_unreachable"]:
        warnings.append(f"{report['tokens']['num_unreachable']} tokens are not reached by their own text")
    covered = report["han"]["single_token_frac_of_text"]
    if covered is not None and report["han"]["num_distinct"] >= 500 and covered < 0.95:
        warnings.append(f"{covered:.1%} of the Han text is in characters with a token of their own (under 95 %)")
    merges = report["merges"]
    if merges["num_unknown"] or merges["num_repeated"]:
        warnings.append(
            f"{merges['num_unknown']} merges name tokens that are not there, "
            f"{merges['num_repeated']} make a token again"
        )
    if merges["exceeds_32_bits"]:
        warnings.append(
            f"a pair was counted {merges['largest_pair_count']:,} times: trainers with 32-bit counts would not agree"
        )
    ours = report["total"]["bytes_per_token"]
    warnings.extend(
        f"{other['name']} packs {other['bytes_per_token'] / ours - 1:.1%} more bytes into a token of the same text"
        for other in report["references"]
        if (other["bytes_per_token"] or 0) > _REFERENCE_LEAD * ours and other["vocab_size"] <= _same_size(report)
    )
    word = "unfit" if failures else "look" if warnings else "good"
    return {"word": word, "reasons": failures + warnings}


def _same_size(report: dict[str, Any]) -> int:
    # A larger vocabulary packs more into a token; only those of about this size or smaller put this one to shame.
    return int(1.1 * report["tokenizer"]["vocab_size"])


def _merged(groups: dict[tuple[str, str], _Group], by: int, label: str) -> list[dict[str, Any]]:
    table = []
    for value in sorted({key[by] for key in groups}):
        total = _total(group for key, group in groups.items() if key[by] == value)
        table.append({label: value, **total.as_json()})
    return table


def _total(groups: Iterable[_Group]) -> _Group:
    total = _Group()
    for group in groups:
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(group, name))
    return total


def _ratio(above: float, below: float) -> float | None:
    return round(above / below, 6) if below else None
