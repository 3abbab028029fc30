from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from refinery.errors import ConfigError, IntegrityError, TransientError
from refinery.shards.files import RangedFiles
from refinery.shards.plan import first_plan, plan_bytes
from refinery.shards.reader import ShardReader
from refinery.shards.remote import load_remote_plan, open_remote
from tests.shards.test_plan import SHARES

BLOCK = 1024


@pytest.fixture
def asked(monkeypatch):
    """Ranges that fsspec's memory file system is asked for: (path, start, end)."""
    ranges, real = [], MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **kwargs):
        ranges.append((path, start, end))
        return real(self, path, start=start, end=end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return ranges


@pytest.fixture
def remote(shared_dataset, asked):
    """(url, local root, manifest, plan) of a data set on a counting object store."""
    root, manifest = shared_dataset
    plan = first_plan(manifest, 3, [(200, SHARES)])
    fs = fsspec.filesystem("memory")
    for file in root.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"/bucket/set/{file.relative_to(root)}", file.read_bytes())
    fs.pipe_file("/bucket/set/plan/main.json", plan_bytes(plan))
    yield "memory://bucket/set", root, manifest, plan
    fs.rm("/bucket", recursive=True)


def _same(ours, theirs):
    assert np.array_equal(ours.tokens, theirs.tokens)
    for name in ("row_ptr", "doc_hash", "seg_len", "flags"):
        assert np.array_equal(getattr(ours.segments, name), getattr(theirs.segments, name))


def test_rows_equal_the_local_ones_and_come_by_bounded_ranges(remote, asked, tmp_path):
    url, root, manifest, plan = remote
    assert load_remote_plan(url) == plan
    with open_remote(url, tmp_path / "cache", cache_bytes=1 << 20, block_bytes=BLOCK) as reader, \
            ShardReader(root, manifest) as local:  # fmt: skip
        assert reader.manifest.content_hash == manifest.content_hash
        asked.clear()
        for k in range(0, 200, 40):
            _same(reader.batch(plan, k, 40), local.batch(plan, k, 40))
    ranges = [(start, end) for path, start, end in asked if not path.endswith(".json")]
    assert ranges
    assert all(start is not None and end - start <= BLOCK and start % BLOCK == 0 for start, end in ranges)
    assert len(set(asked)) == len(asked), "a block that is kept is not asked for again"


def test_cache_stays_bounded_and_serves_the_next_reader(remote, asked, tmp_path):
    url, root, manifest, plan = remote
    cache = tmp_path / "cache"
    with open_remote(url, cache, cache_bytes=4 * BLOCK, block_bytes=BLOCK) as reader, \
            ShardReader(root, manifest) as local:  # fmt: skip
        for k in range(0, 200, 8):
            _same(reader.batch(plan, k, 8), local.batch(plan, k, 8))
            assert sum(f.stat().st_size for f in cache.glob("*.block")) <= 4 * BLOCK
    with open_remote(url, cache, cache_bytes=1 << 20, block_bytes=BLOCK) as reader:
        first = reader.batch(plan, 0, 8)
        asked.clear()
    with open_remote(url, cache, cache_bytes=1 << 20, block_bytes=BLOCK) as reader:
        asked.clear()
        _same(reader.batch(plan, 0, 8), first)
    assert asked == []


def test_least_recently_used_blocks_go_first(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/lru/a.bin", bytes(range(256)) * 16)
    files = RangedFiles(fs, "/lru", tmp_path, cache_bytes=2 * BLOCK, sizes={"a.bin": 4096}, block_bytes=BLOCK)
    target = memoryview(bytearray(10))

    def read(block):
        assert files.read_into("a.bin", block * BLOCK, target) == 10
        return {f.name for f in tmp_path.glob("*.block")}

    only_0 = read(0)
    both = read(1)
    read(0)  # 0 is now younger than 1
    assert read(2) & both == only_0
    assert files.held_bytes == 2 * BLOCK
    fs.rm("/lru", recursive=True)


def test_reads_stop_at_the_end_of_the_file_and_cross_blocks(tmp_path):
    fs = fsspec.filesystem("memory")
    body = bytes(i % 251 for i in range(3000))
    fs.pipe_file("/ends/a.bin", body)
    files = RangedFiles(fs, "/ends", tmp_path, cache_bytes=8 * BLOCK, sizes={"a.bin": 3000}, block_bytes=BLOCK)
    for offset, size in ((0, 3000), (1000, 100), (2990, 50), (3000, 5), (1023, 2)):
        target = bytearray(size)
        count = files.read_into("a.bin", offset, memoryview(target))
        assert bytes(target[:count]) == body[offset : offset + size]
    fs.rm("/ends", recursive=True)


def test_damaged_cached_block_is_fetched_again(remote, tmp_path):
    url, _, _, plan = remote
    cache = tmp_path / "cache"
    with open_remote(url, cache, cache_bytes=1 << 20, block_bytes=BLOCK) as reader:
        before = reader.batch(plan, 0, 8)
        for file in cache.glob("*.block"):
            file.write_bytes(file.read_bytes()[:-1])
        _same(reader.batch(plan, 0, 8), before)
        for file in cache.glob("*.block"):
            file.unlink()
        _same(reader.batch(plan, 0, 8), before)


@pytest.mark.parametrize("damage", ["missing", "shorter", "manifest", "checksum", "no_manifest"])
def test_what_contradicts_the_manifest_is_refused_at_opening(remote, tmp_path, damage):
    url, _, manifest, _ = remote
    fs = fsspec.filesystem("memory")
    part = f"/bucket/set/{manifest.streams[0].parts[0].path}.bin"
    if damage == "missing":
        fs.rm(part)
    elif damage == "shorter":
        fs.pipe_file(part, fs.cat_file(part)[:-2])
    elif damage == "no_manifest":
        fs.rm("/bucket/set/manifest.json")
    else:
        name = "/bucket/set/manifest.json" if damage == "manifest" else "/bucket/set/manifest.sha256"
        fs.pipe_file(name, fs.cat_file(name).replace(b"0", b"1"))
    with pytest.raises(IntegrityError):
        open_remote(url, tmp_path, cache_bytes=1 << 20)


def test_a_store_that_fails_may_be_tried_again(remote, tmp_path, monkeypatch):
    url, _, _, plan = remote
    with open_remote(url, tmp_path, cache_bytes=1 << 20, block_bytes=BLOCK) as reader:
        def broken(self, path, start=None, end=None, **kwargs):
            raise OSError("connection reset")

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "cat_file", broken)
            with pytest.raises(TransientError, match="try again"):
                reader.batch(plan, 0, 4)
        assert len(reader.batch(plan, 0, 4).tokens) == 4


def test_a_cache_below_one_block_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not hold a block"):
        RangedFiles(fsspec.filesystem("memory"), "/", tmp_path, cache_bytes=10, sizes={}, block_bytes=11)


def test_opening_remote_data_needs_neither_torch_nor_spark_nor_pyarrow():
    code = (
        "import sys\n"
        "import refinery.shards.remote\n"
        "sys.exit(bool({'torch', 'pyspark', 'pyarrow', 'pandas'} & set(sys.modules)))\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def test_s3_by_ranged_reads(shared_dataset, tmp_path):
    """Against a server that speaks S3, where the dev extras have one."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    root, manifest = shared_dataset
    plan = first_plan(manifest, 3, [(60, SHARES)])
    moto = server.ThreadedMotoServer(port=0)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
        fs = fsspec.filesystem("s3", **options)
        fs.mkdir("shards")
        fs.put(str(root) + "/", "shards/set/", recursive=True)
        with open_remote("s3://shards/set", tmp_path, cache_bytes=1 << 20, storage_options=options) as reader, \
                ShardReader(root, manifest) as local:  # fmt: skip
            _same(reader.batch(plan, 0, 60), local.batch(plan, 0, 60))
    finally:
        moto.stop()
