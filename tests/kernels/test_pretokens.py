from __future__ import annotations

from collections import Counter

import numpy as np

from refinery.kernels.pretokens import PretokenCounter, PretokenCounts, split_by_hash
from refinery.kernels.text import views_of
from refinery.tokenization.char_classes import char_classes


def _as_dict(counted: PretokenCounts) -> dict[bytes, int]:
    words = [bytes(counted.data[a:b]) for a, b in zip(counted.offsets[:-1], counted.offsets[1:], strict=True)]
    assert len(set(words)) == len(words)
    return dict(zip(words, counted.counts.tolist(), strict=True))


def test_counts_split_into_buckets_and_summed_are_the_counts_of_all() -> None:
    texts = ["the cat, the mat", "中文字符在此 the", *(f"word{number} {number}" for number in range(500))]
    parts = []
    for chunk in (texts[:2], texts[2:300], texts[100:]):
        counter = PretokenCounter(char_classes(), 3)
        counter.add(views_of(chunk))
        parts.append(counter.counts())
    expected: Counter[bytes] = Counter()
    for part in parts:
        expected.update(_as_dict(part))
    found: dict[bytes, int] = {}
    for blocks in zip(*(split_by_hash(part, 7) for part in parts), strict=True):
        summed = PretokenCounter(np.zeros(0, np.uint8), 0)
        for block in blocks:
            summed.add_counted(block)
        bucket = _as_dict(summed.counts())
        assert not found.keys() & bucket.keys(), "a pretoken in two buckets"
        found |= bucket
    assert found == dict(expected)
