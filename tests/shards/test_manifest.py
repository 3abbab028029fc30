from __future__ import annotations

import hashlib
import json

import pytest

from refinery.errors import ConfigError, IntegrityError
from refinery.shards import manifest as manifests
from refinery.shards.manifest import PackingInfo, StreamKey, TokenizerInfo, build_manifest, load_manifest
from tests.shards import datasets


def test_manifest_round_trips(shared_dataset):
    root, manifest = shared_dataset
    assert load_manifest(root) == manifest
    assert load_manifest(root / "manifest.json") == manifest
    assert [stream.name for stream in manifest.streams] == sorted(key.name for key in datasets.STREAMS)
    assert manifest.dtype_name == "uint16"


def test_totals_and_first_rows_follow_from_the_parts(shared_dataset):
    root, manifest = shared_dataset
    document = json.loads((root / "manifest.json").read_text())
    for entry, stream in zip(document["streams"], manifest.streams, strict=True):
        assert entry["rows"] == stream.rows == sum(part.rows for part in stream.parts)
        assert [part.first_row for part in stream.parts] == [0, stream.parts[0].rows]
        lengths, _, _, tokens = datasets.documents(stream.name, datasets.STREAMS[stream.key])
        assert entry["documents"] == len(lengths)
        assert entry["tokens"] == len(tokens)
        assert entry["utf8_bytes"] == datasets.TOKEN_BYTES[tokens].sum()


def test_time_and_commits_stay_outside_both_hashes(shared_dataset, tmp_path):
    _, manifest = shared_dataset
    other = datasets.build(tmp_path, unhashed={"created_at": "2030", "seconds": 1.5})
    assert other.content_hash == manifest.content_hash
    assert other.manifest_hash == manifest.manifest_hash
    assert load_manifest(tmp_path).unhashed == {"created_at": "2030", "seconds": 1.5}


def _edit(root, change):
    document = json.loads((root / "manifest.json").read_text())
    change(document)
    (root / "manifest.json").write_bytes(manifests.canonical_json(document))


def _rehash(document):
    hashed = {name: value for name, value in document.items() if name not in ("manifest_hash", "unhashed")}
    document["manifest_hash"] = hashlib.sha256(manifests.canonical_json(hashed)).hexdigest()


def test_edited_manifest_is_refused(own_dataset):
    root, _ = own_dataset
    _edit(root, lambda d: d["streams"][0]["parts"][0].update(rows=1))
    with pytest.raises(IntegrityError, match="manifest_hash"):
        load_manifest(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["streams"][0]["parts"][0].update(rows=1), "content_hash"),
        (lambda d: d["streams"][0].update(tokens=1), "totals"),
        (lambda d: d["streams"][0]["parts"][0].update(colour=1), "colour"),
        (lambda d: d.pop("packing"), "packing"),
        (lambda d: d["format"].update(reader_min=2), "upgrade"),
        (lambda d: d["format"].update(name="other"), "other"),
        (lambda d: d["streams"][0].update(role="spare"), "spare"),
        (lambda d: d["tokenizer"].update(sha256="00"), "content_hash"),
    ],
)
def test_contradictions_are_refused_even_with_a_fresh_self_hash(own_dataset, change, message):
    root, _ = own_dataset

    def both(document):
        change(document)
        _rehash(document)

    _edit(root, both)
    with pytest.raises(IntegrityError, match=message):
        load_manifest(root)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}"])
def test_files_that_are_no_manifest_are_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(IntegrityError):
        load_manifest(tmp_path)


def test_unfinished_dataset_is_refused(tmp_path):
    with pytest.raises(IntegrityError, match="never finished"):
        load_manifest(tmp_path)


def test_floats_and_wrong_probes_are_refused(shared_dataset):
    tokenizer = TokenizerInfo(sha256="", vocab_size=9, eos_id=0, bos_id=-1, pad_id=0)
    packing = PackingInfo(policy="best_fit", sequence_length=32, seed=1.5)
    with pytest.raises(ConfigError, match="packing/seed"):
        manifests.manifest_bytes(build_manifest(tokenizer, packing, {}))
    short = TokenizerInfo(sha256="", vocab_size=9, eos_id=0, bos_id=-1, pad_id=0, probe=(("a", (1,)),))
    with pytest.raises(ConfigError, match="probe"):
        build_manifest(short, packing, {})


def test_empty_streams_and_repeated_parts_are_refused(shared_dataset):
    _, manifest = shared_dataset
    key, part = manifest.streams[0].key, manifest.streams[0].parts[0]
    for parts in ([], [part, part]):
        with pytest.raises(ConfigError, match="empty"):
            build_manifest(manifest.tokenizer, manifest.packing, {key: parts})


@pytest.mark.parametrize(
    "fields",
    [("a/b", "pool", "en", 0, "train"), ("", "pool", "en", 0, "train"), ("..", "pool", "en", 0, "train"),
     ("a", "spare", "en", 0, "train"), ("a", "pool", "e n", 0, "train"), ("a", "pool", "en", -1, "train"),
     ("a", "pool", "en", 0, "test")],
)  # fmt: skip
def test_stream_names_are_safe_folders(fields):
    with pytest.raises(ConfigError):
        StreamKey(*fields)
    assert StreamKey("法律", "pool", "zh", 2, "train").name == "法律/pool/zh/w2/train"


def test_canonical_json_is_sorted_compact_utf8_in_any_json_library():
    value = {"b": [1, (2, None, True)], "a": {"法": '行\n\x00\x1f\x7f\u2028"\\', "B": -(2**53), "é": "😀"}}
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert manifests.canonical_json(value) == expected
