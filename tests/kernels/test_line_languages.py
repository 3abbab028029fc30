from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.hashing import hash_bytes_int
from refinery.kernels import line_languages as ll
from refinery.kernels.text import views_of
from tests.kernels.test_langid import SENTENCES, model  # noqa: F401 - the fixture

lines_of_text = st.lists(
    st.text(st.sampled_from("abcdefé中文かなЖшאב 1.😀\t"), max_size=60), max_size=6
).map("\n".join)


def _script(letter: str) -> int | None:
    if not letter.isalpha():
        return None
    code = ord(letter)
    if 0x4E00 <= code <= 0x9FFF:
        return 0
    if 0x3041 <= code <= 0x30FF:
        return 1
    if code < 0x250:
        return 2
    return 3 if 0x400 <= code <= 0x52F else 4


def _reference_scripts(text: str) -> list[int]:
    total = [0] * 5
    for line in text.split("\n"):
        counts = [0] * 5
        for letter in line:
            script = _script(letter)
            if script is not None:
                counts[script] += 1
        lead, most = 0, counts[0]
        candidates = [(1, counts[0] + counts[1] if counts[1] else 0), (2, counts[2]), (3, counts[3]), (4, counts[4])]
        for script, count in candidates:
            if count > most:
                lead, most = script, count
        total[lead] += sum(counts)
    return total


def _reference_choice(text: str, most: int) -> list[bytes]:
    found = []
    for place, line in enumerate(text.split("\n")):
        letters = sum((3 if _script(c) in (0, 1) else 1) for c in line if c.isalpha())
        if letters >= ll.MIN_LINE_LETTERS:
            raw = line.encode()
            found.append((hash_bytes_int(raw, int(ll._SEED)), place, raw))
    return [raw for _, _, raw in sorted(found)[:most]]


@given(st.lists(lines_of_text, max_size=4))
def test_scripts_equal_the_reference(texts):
    assert ll.line_scripts(views_of(texts)).letters.tolist() == [_reference_scripts(t) for t in texts]


@given(st.lists(lines_of_text, max_size=4), st.integers(1, 3))
def test_choice_equals_the_reference(texts, most):
    chosen = ll.choose_lines(views_of(texts), most)
    expected = [(d, raw) for d, text in enumerate(texts) for raw in _reference_choice(text, most)]
    got = [(int(d), chosen.lines.doc(k)) for k, d in enumerate(chosen.doc)]
    assert got == [(d, raw.decode().replace("\t", " ")) for d, raw in expected]
    assert chosen.num_bytes.tolist() == [len(raw) for _, raw in expected]


def test_choice_does_not_depend_on_the_batch_or_the_order_of_lines():
    lines = [f"{s} {k}" for k in range(4) for s in SENTENCES.values()]
    text = "\n".join(lines)
    alone = ll.choose_lines(views_of([text]))
    among = ll.choose_lines(views_of(["x", text, "y" * 50]))
    turned = ll.choose_lines(views_of(["\n".join(reversed(lines))]))
    wanted = {alone.lines.doc(k) for k in range(2)}
    assert {among.lines.doc(k) for k in range(len(among.doc)) if among.doc[k] == 1} == wanted
    assert {turned.lines.doc(k) for k in range(2)} == wanted


def test_long_lines_are_cut_between_characters():
    chosen = ll.choose_lines(views_of(["中" * 1000]))
    assert chosen.num_bytes.tolist() == [3000]
    assert chosen.lines.doc(0) == "中" * (ll.MAX_LINE_BYTES // 3)


def test_other_script_counts_lines_not_letters():
    texts = ["中文 with some words\n中中中中中中中中中中", "中中中中中\nabcde", "ひらがなと漢字\n漢字", "", "12 34"]
    fracs = ll.line_scripts(views_of(texts)).other_script_frac()
    assert fracs.dtype == np.float32
    assert fracs.tolist() == pytest.approx([10 / 25, 0.5, 0.0, 0.0, 0.0])


def test_weights_share_out_the_document():
    chosen = ll.choose_lines(views_of(["a" * 60 + "\n" + "b" * 40, "c" * 50]))
    weights = chosen.weights(np.array([101, 50]))
    assert weights[chosen.doc == 0].sum() == pytest.approx(101)
    assert weights[chosen.doc == 1].tolist() == [50]
    assert sorted(weights[chosen.doc == 0].tolist()) == pytest.approx([40.4, 60.6])


def test_interval_covers_a_planted_share():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        weights = rng.integers(40, 400, 300).astype(float)
        other = rng.random(300) < 0.02
        low, high = ll.share_interval(weights[other].sum(), weights.sum(), (weights**2).sum())
        covered += low <= 0.02 <= high
    assert covered >= 0.9 * 400
    assert ll.share_interval(0, 0, 0) == (0.0, 1.0)


def test_a_planted_admixture_is_estimated(model):  # noqa: F811
    german = [f"{SENTENCES['de']} {k}" for k in range(95)]
    french = [f"{SENTENCES['fr']} {k}" for k in range(5)]
    texts = ["\n".join(german[k % 95] for k in range(d, d + 20)) for d in range(300)]
    texts = [t + "\n" + french[d % 5] if d % 5 == 0 else t for d, t in enumerate(texts)]
    views = views_of(texts)
    chosen = ll.choose_lines(views)
    label, confidence = ll.line_languages(model, chosen)
    sums: dict = {}
    for name, weight in zip(label.tolist(), chosen.weights(np.diff(views.offsets)).tolist(), strict=True):
        row = sums.setdefault(model.languages[name].as_py(), {"lines": 0, "bytes": 0.0, "squares": 0.0})
        row["lines"], row["bytes"], row["squares"] = row["lines"] + 1, row["bytes"] + weight, row["squares"] + weight**2
    rows = {r["language"]: r for r in ll.shares_by_language(sums)}
    true = sum(len(f.encode()) for d, f in enumerate(french * 60) if d % 5 == 0) / sum(len(t.encode()) for t in texts)
    assert set(rows) == {"de", "fr"}
    assert rows["fr"]["low"] <= true <= rows["fr"]["high"]
    assert confidence.min() > ll.OTHER_CONFIDENCE
    assert sum(r["share"] for r in rows.values()) == pytest.approx(1)
