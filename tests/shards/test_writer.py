from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash

from refinery.errors import ConfigError, IntegrityError, SchemaError, TransientError
from refinery.kernels import packing
from refinery.shards import writer
from refinery.shards.format import SUFFIXES, Segments
from refinery.shards.row_table import read_rows_table
from refinery.shards.writer import ShardSpec, write_shard
from tests.shards import datasets


def _part():
    plan, rows, segments = datasets.pack(*datasets.documents("x", 60))
    return rows, segments, packing.row_bytes(plan, rows, datasets.TOKEN_BYTES)


def test_entry_counts_and_hashes_what_lies_on_disk(tmp_path):
    lengths, tie, offsets, tokens = datasets.documents("x", 60)
    entry = datasets.write_part(tmp_path, "part-00000", (lengths, tie, offsets, tokens))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted("part-00000" + s for s in SUFFIXES)
    for suffix, facts in entry.files.items():
        raw = (tmp_path / f"part-00000{suffix}").read_bytes()
        assert facts.num_bytes == len(raw)
        assert facts.sha256 == hashlib.sha256(raw).hexdigest()
        assert facts.xxh3_128 == xxhash.xxh3_128_hexdigest(raw)
    assert entry.tokens == lengths.sum()
    assert entry.documents == 60
    assert entry.eos_count == 60
    assert entry.utf8_bytes == datasets.TOKEN_BYTES[tokens].sum()
    assert entry.max_token_id == tokens.max()
    assert entry.rows * datasets.L == entry.tokens + entry.padding_tokens
    table = read_rows_table(tmp_path / "part-00000.rows.parquet")
    assert table.column_names == ["row", "loss_tokens", "utf8_bytes", "loss_bytes", "num_docs"]
    assert sum(table["loss_tokens"].to_pylist()) == entry.loss_tokens
    assert sum(table["utf8_bytes"].to_pylist()) == entry.utf8_bytes


def test_same_input_gives_the_same_bytes(tmp_path):
    one = datasets.write_part(tmp_path / "a", "part", datasets.documents("x", 60))
    two = datasets.write_part(tmp_path / "b", "part", datasets.documents("x", 60))
    assert one == two


def test_int32_is_used_for_large_vocabularies(tmp_path):
    rows, segments, row_bytes = _part()
    spec = ShardSpec(sequence_length=datasets.L, vocab_size=150_000, eos_id=0, pad_id=0)
    rows = rows.astype(np.int64)
    rows[0, 0] = 149_999
    entry = write_shard(tmp_path, "p", rows, segments, row_bytes, spec)
    body = np.fromfile(tmp_path / "p.bin", dtype="<i4").reshape(rows.shape)
    assert (body == rows).all()
    assert entry.max_token_id == 149_999


@pytest.mark.parametrize("bad", [datasets.VOCAB, 65_536 + 5, -1])
def test_ids_outside_the_vocabulary_are_refused_before_narrowing(tmp_path, bad):
    rows, segments, row_bytes = _part()
    rows = rows.astype(np.int64)
    rows[3, 1] = bad
    with pytest.raises(IntegrityError, match="vocabulary"):
        write_shard(tmp_path, "p", rows, segments, row_bytes, datasets.SPEC)
    assert list(tmp_path.iterdir()) == []


def test_contradicting_input_is_refused(tmp_path):
    rows, segments, row_bytes = _part()
    with pytest.raises(SchemaError):
        write_shard(tmp_path, "p", rows[:, :-1], segments, row_bytes, datasets.SPEC)
    with pytest.raises(SchemaError):
        write_shard(tmp_path, "p", rows[:-1], segments, row_bytes, datasets.SPEC)
    with pytest.raises(SchemaError):
        write_shard(tmp_path, "p", rows.astype(np.float32), segments, row_bytes, datasets.SPEC)
    shorter = Segments(segments.row_ptr, segments.doc_hash, segments.seg_len + 1, segments.flags)
    with pytest.raises(IntegrityError, match="add up"):
        write_shard(tmp_path, "p", rows, shorter, row_bytes, datasets.SPEC)
    row = int(np.flatnonzero(segments.padding_tokens)[0])
    damaged = rows.copy()
    damaged[row, -1] = 5
    with pytest.raises(IntegrityError, match="padding"):
        write_shard(tmp_path, "p", damaged, segments, row_bytes, datasets.SPEC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_call", [1, 3, 4])
def test_full_disk_leaves_no_final_file(tmp_path, monkeypatch, failing_call):
    calls, real = [], os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(TransientError, match="no space left"):
        datasets.write_part(tmp_path, "p", datasets.documents("x", 60))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["fsync:1", "fsync:4", "replace:1", "replace:4", "fsync:5"])
def test_killed_writer_leaves_no_bin_or_a_whole_part(tmp_path, moment):
    """``.bin`` is renamed last, so its name says that the part is whole; the rest is what sweep removes."""
    name, _, number = moment.partition(":")
    code = (
        "import os, pathlib\n"
        f"owner = os if {name!r} == 'fsync' else pathlib.Path\n"
        f"real = getattr(owner, {name!r})\n"
        "calls = []\n"
        "def dies(*args):\n"
        "    calls.append(args)\n"
        f"    return os.kill(os.getpid(), 9) if len(calls) == {number} else real(*args)\n"
        "from tests.shards import datasets\n"
        "docs = datasets.documents('x', 60)\n"
        f"setattr(owner, {name!r}, dies)\n"
        f"datasets.write_part(pathlib.Path({str(tmp_path)!r}), 'p', docs)\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == -9
    whole = moment == "fsync:5"
    assert (tmp_path / "p.bin").exists() == whole
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert bool(left) != whole
    assert writer.sweep_temporary(tmp_path) == len(left)
    entry = datasets.write_part(tmp_path, "p", datasets.documents("x", 60))  # the next attempt is not in its way
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted("p" + s for s in SUFFIXES)
    assert (tmp_path / "p.bin").stat().st_size == entry.files[".bin"].num_bytes


def test_second_writer_on_a_folder_is_refused(tmp_path):
    with writer.lock_folder(tmp_path), pytest.raises(ConfigError, match=str(os.getpid())), writer.lock_folder(tmp_path):
        pass
    with writer.lock_folder(tmp_path):
        pass


def test_blocks_that_are_too_few_or_too_many_leave_no_file(tmp_path):
    rows, segments, (utf8, loss) = _part()
    for blocks in ([(rows[:-1], utf8[:-1], loss[:-1])], [(rows, utf8, loss), (rows[:1], utf8[:1], loss[:1])], []):
        with pytest.raises(SchemaError, match="due"):
            writer.write_blocks(tmp_path, "p", blocks, segments, datasets.SPEC)
        assert list(tmp_path.iterdir()) == []


def test_an_error_while_rows_are_made_leaves_no_file(tmp_path):
    rows, segments, (utf8, loss) = _part()

    def blocks():
        yield rows[:1], utf8[:1], loss[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write_blocks(tmp_path, "p", blocks(), segments, datasets.SPEC)
    assert list(tmp_path.iterdir()) == []
