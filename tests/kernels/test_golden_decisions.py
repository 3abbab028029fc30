"""Decisions on a small set of texts written for this purpose: what each rule set says must not change unnoticed.

`tests/golden/decisions.jsonl` holds id, language, why it was written, the text, and for each list of presets the rules
that would cut it, the first one first. Made anew by running this file with REFINERY_WRITE_GOLDEN=1 set: then look at
the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refinery.kernels.decide import decide
from refinery.kernels.preset import load_rules
from refinery.kernels.segmentation import segment_han
from refinery.kernels.signals import signals
from refinery.kernels.signals_datatrove import datatrove_signals
from refinery.kernels.text import views_of

PATH = Path(__file__).parent.parent / "golden" / "decisions.jsonl"
PRESETS = {
    "en": (["gopher"], ["fineweb"], ["gopher_datatrove"], ["fineweb_datatrove"]),
    "zh": (["zh_web"], ["fineweb2_zh"], ["gopher"]),
    "fr": (["gopher"], ["fineweb"]),
    "de": (["gopher"], ["fineweb"]),
    "ru": (["gopher"], ["fineweb"]),
    "code": (["code"],),
}
DOCUMENTS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def decisions_of(document: dict[str, str]) -> dict[str, list[str]]:
    """Return for each list of presets the names of all rules that would cut."""
    views = views_of([document["text"]])
    columns = signals(views, segment_han(views).boundaries) | datatrove_signals(views)
    found = {}
    for presets in PRESETS[document["lang"]]:
        rules = load_rules(presets)
        bits = int(decide(columns, rules, [document["lang"]]).rule_bits[0])
        found["+".join(presets)] = [rule.name for k, rule in enumerate(rules) if bits >> k & 1]
    return found


def test_golden_file_is_written_on_request() -> None:
    if os.environ.get("REFINERY_WRITE_GOLDEN"):
        lines = [json.dumps(d | {"cut_by": decisions_of(d)}, ensure_ascii=False) for d in DOCUMENTS]
        PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert {d["lang"] for d in DOCUMENTS} == {"en", "zh", "fr", "de", "ru", "code"}
    assert len({d["id"] for d in DOCUMENTS}) == len(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d["id"])
def test_decisions_stand(document: dict[str, object]) -> None:
    assert decisions_of(document) == document["cut_by"]  # type: ignore[arg-type]


@pytest.mark.parametrize("lang", sorted(PRESETS))
def test_good_text_is_kept_and_each_language_has_text_that_is_not(lang: str) -> None:
    mine = [d for d in DOCUMENTS if d["lang"] == lang]
    (good,) = [d for d in mine if d["id"] == f"{lang}-good"]
    assert not any(good["cut_by"].values())
    assert sum(any(d["cut_by"].values()) for d in mine) >= 2
