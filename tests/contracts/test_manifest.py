from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.contracts.manifest import (
    CountRow,
    PartEntry,
    StageManifest,
    canonical_json,
    fingerprint_of,
    merge_counts,
    stage_manifest_from_json,
)
from refinery.errors import IntegrityError

COUNT = CountRow("dropped", "rules.words_min", "laws", "law", "target", "zh", "train", 3, 300, 70)


def _manifest(**changes):
    values = {
        "stage": "rules", "fingerprint": "f", "algorithm_version": 1, "recipe_slice": {"a": [1, "法"]},
        "inputs": {"ingest": "h"},
        "parts": [PartEntry("decisions", 0, 10, "c0", 100), PartEntry("signals", 0, 10, "c1", 9)],
        "counts": [COUNT], "facts": {"names": ["x"], "frac": 0.25}, "volatile": {"seconds": 1.5},
    }  # fmt: skip
    return StageManifest(**{**values, **changes}).sealed()


def test_round_trip():
    manifest = _manifest()
    found = stage_manifest_from_json(manifest.to_json(), "p")
    assert dataclasses.asdict(found) == dataclasses.asdict(manifest)
    assert found.part_hashes("decisions") == {0: "c0"}
    assert found.part_hashes("nothing") == {}


def test_content_hash_covers_outputs_and_nothing_that_may_differ():
    base = _manifest().content_hash
    same = {"volatile": {"seconds": 99}, "fingerprint": "g", "recipe_slice": {}, "inputs": {}, "algorithm_version": 2}
    for name, value in same.items():
        assert _manifest(**{name: value}).content_hash == base, name
    other = {"parts": [], "counts": [dataclasses.replace(COUNT, docs=4)], "facts": {"names": ["y"]}}
    for name, value in other.items():
        assert _manifest(**{name: value}).content_hash != base, name


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body["counts"][0].update(tokens=71),
        lambda body: body["parts"].pop(),
        lambda body: body["parts"][0].update(content_hash="c9"),
        lambda body: body["facts"].update(frac=0.5),
        lambda body: body.update(version=2),
        lambda body: body.update(format="refinery.shards"),
        lambda body: body.pop("format"),
        lambda body: body.pop("stage"),
        lambda body: body.update(colour="red"),
        lambda body: body["counts"][0].pop("lang"),
        lambda body: body.update(content_hash=""),
    ],
)
def test_a_damaged_manifest_is_refused(damage):
    body = json.loads(_manifest().to_json())
    damage(body)
    with pytest.raises(IntegrityError, match=r"^path/_stage.json: .*--force"):
        stage_manifest_from_json(json.dumps(body), "path/_stage.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\ufffd"])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(IntegrityError):
        stage_manifest_from_json(text, "p")


COUNTS = st.builds(
    CountRow, st.sampled_from(["kept", "dropped", "cut"]), st.sampled_from(["", "r1", "r2"]), st.sampled_from("ab"),
    st.sampled_from("xy"), st.just("pool"), st.just(""), st.just("train"), st.integers(0, 9), st.integers(0, 9),
    st.integers(0, 9),
)  # fmt: skip


@given(st.lists(st.lists(COUNTS.map(dataclasses.asdict), max_size=4), max_size=4), st.randoms())
def test_merged_counts_do_not_depend_on_the_order_of_parts(groups, rng):
    merged = merge_counts(groups)
    shuffled = [list(group) for group in groups]
    rng.shuffle(shuffled)
    assert merge_counts(shuffled) == merged
    for name in ("docs", "bytes", "tokens"):
        assert sum(getattr(c, name) for c in merged) == sum(c[name] for group in groups for c in group)
    keys = [(c.kind, c.reason, c.source, c.domain) for c in merged]
    assert len(set(keys)) == len(keys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_canonical_json_is_one_text_per_value(value):
    turned = dict(reversed(list(value.items())))
    assert canonical_json(turned) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value
    assert fingerprint_of(value) == fingerprint_of(turned)


def test_fingerprints_tell_fields_apart():
    assert fingerprint_of("a", "b") != fingerprint_of("ab") != fingerprint_of(["a", "b"])
    assert fingerprint_of(1) != fingerprint_of("1") != fingerprint_of(None)
    with pytest.raises(ValueError, match="Out of range"):
        fingerprint_of(float("nan"))
