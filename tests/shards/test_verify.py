from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from refinery.cli import app
from refinery.errors import ConfigError, IntegrityError
from refinery.shards import verify
from refinery.shards.verify import LEVELS, find_problems, verify_dataset
from tests.shards import datasets

IDS = dict(datasets.PROBE)


def _file(root, manifest, suffix):
    return root / (manifest.streams[-1].parts[0].path + suffix)


def _flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("level", LEVELS)
def test_sound_dataset_passes_every_level(shared_dataset, level):
    root, manifest = shared_dataset
    assert verify_dataset(root, level, IDS.__getitem__) == manifest


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".seg", ".rows.parquet"])
def test_flipped_byte_is_found_by_the_full_level(own_dataset, suffix):
    root, manifest = own_dataset
    path = _file(root, manifest, suffix)
    _flip(path, path.stat().st_size // 2)
    with pytest.raises(IntegrityError, match=path.name):
        verify_dataset(root, "full")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".seg", ".rows.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_truncated_and_missing_files_are_found_at_start(own_dataset, suffix, damage):
    root, manifest = own_dataset
    path = _file(root, manifest, suffix)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=path.name):
        verify_dataset(root)


@pytest.mark.parametrize("suffix", [".idx", ".seg"])
def test_damaged_header_is_found_at_start(own_dataset, suffix):
    root, manifest = own_dataset
    path = _file(root, manifest, suffix)
    for position in (0, 9, 18):
        _flip(path, position)
        assert find_problems(root, manifest)
        _flip(path, position)
    assert find_problems(root, manifest) == []


def test_stale_or_missing_checksum_is_found_at_start(own_dataset):
    root, _ = own_dataset
    checksum = root / "manifest.sha256"
    checksum.write_text("00  manifest.json\n")
    with pytest.raises(IntegrityError, match=r"manifest\.sha256"):
        verify_dataset(root)
    checksum.unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.sha256"):
        verify_dataset(root)


def test_another_tokenizer_is_refused(shared_dataset):
    root, _ = shared_dataset
    with pytest.raises(IntegrityError, match="another tokenizer"):
        verify_dataset(root, "start", lambda text: [1])


def test_sample_finds_ids_beyond_the_vocabulary(own_dataset):
    root, manifest = own_dataset
    path = _file(root, manifest, ".bin")
    body = np.fromfile(path, dtype="<u2")
    body[3] = datasets.VOCAB
    body.tofile(path)
    assert find_problems(root, manifest, "start") == []
    findings = find_problems(root, manifest, "sample")
    assert [finding.path for finding in findings] == [str(path.relative_to(root))]
    assert "vocabulary" in findings[0].problem


def test_sample_finds_segments_that_do_not_tile(own_dataset):
    root, manifest = own_dataset
    path = _file(root, manifest, ".seg")
    raw = path.read_bytes()
    rows, segments = int.from_bytes(raw[8:16], "little"), int.from_bytes(raw[16:24], "little")
    _flip(path, 24 + 8 * (rows + 1) + 8 * segments)
    assert "add up" in find_problems(root, manifest, "sample")[0].problem


def test_audit_recounts_what_hashes_cannot_know(own_dataset, monkeypatch):
    root, manifest = own_dataset
    part = manifest.streams[-1].parts[0]
    for column in ("tokens", "loss_tokens", "padding_tokens", "documents", "eos_count", "utf8_bytes"):
        wrong = type(part)(**{name: getattr(part, name) for name in part.__slots__} | {column: 1})
        with verify.ShardReader(root, manifest) as reader:
            stream = len(manifest.streams) - 1
            assert any("1" in str(f) for f in verify._audit_problems(reader, root, stream, wrong))
            assert verify._audit_problems(reader, root, stream, part) == []


def test_unknown_level_is_refused(shared_dataset):
    with pytest.raises(ConfigError, match="deep"):
        find_problems(*shared_dataset, "deep")


def test_foreign_index_pairs_are_checked(own_dataset):
    root, manifest = own_dataset
    prefix = _file(root, manifest, "")
    assert verify.verify_foreign(prefix) == []
    body = prefix.with_name(prefix.name + ".bin")
    body.write_bytes(body.read_bytes()[:-2])
    assert "promises" in verify.verify_foreign(prefix)[0].problem
    index = prefix.with_name(prefix.name + ".idx")
    _flip(index, 34)
    assert {finding.path for finding in verify.verify_foreign(prefix)} == {body.name, index.name}
    index.write_bytes(b"no index")
    assert "header" in verify.verify_foreign(prefix)[0].problem
    index.unlink()
    assert verify.verify_foreign(prefix)[0].problem == "missing"


def test_the_command_takes_foreign_pairs_by_any_of_their_names(own_dataset, tmp_path_factory):
    root, manifest = own_dataset
    part = manifest.streams[0].parts[0]
    prefix = tmp_path_factory.mktemp("foreign") / "their.data"
    for suffix in (".bin", ".idx"):
        (prefix.parent / (prefix.name + suffix)).write_bytes((root / (part.path + suffix)).read_bytes())
    for name in ("their.data", "their.data.bin", "their.data.idx"):
        said = CliRunner().invoke(app, ["verify", str(prefix.parent / name), "--json"])
        assert json.loads(said.output) == {
            "sequences": part.rows, "documents": part.rows, "tokens": part.rows * datasets.L, "dtype": "uint16",
        }  # fmt: skip
    body = prefix.parent / "their.data.bin"
    body.write_bytes(body.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match="the index promises"):
        CliRunner().invoke(app, ["verify", str(body)], catch_exceptions=False)
    body.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        CliRunner().invoke(app, ["verify", str(prefix)], catch_exceptions=False)
