from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.format import decode_seg
from refinery.shards.plan import first_plan
from refinery.shards.prefetch import Prefetcher
from refinery.shards.reader import ShardReader
from tests.shards import datasets
from tests.shards.test_plan import SHARES


def _whole_stream(root, stream):
    bodies = [np.fromfile(root / (part.path + ".bin"), dtype="<u2") for part in stream.parts]
    return np.concatenate(bodies).reshape(-1, datasets.L)


def _whole_segments(root, stream):
    out = []
    for part in stream.parts:
        segments = decode_seg((root / (part.path + ".seg")).read_bytes(), "x")
        for r in range(segments.num_rows):
            s = segments.row(r)
            out.append((segments.doc_hash[s].tolist(), segments.seg_len[s].tolist(), segments.flags[s].tolist()))
    return out


@pytest.mark.parametrize("max_open_files", [1, 256])
def test_rows_and_segments_equal_the_files(shared_dataset, max_open_files):
    root, manifest = shared_dataset
    rng = np.random.default_rng(1)
    with ShardReader(root, manifest, max_open_files) as reader:
        for index, stream in enumerate(manifest.streams):
            whole, documents = _whole_stream(root, stream), _whole_segments(root, stream)
            for rows in (np.arange(stream.rows), rng.integers(0, stream.rows, 50), np.arange(0)):
                out = np.zeros((len(rows), datasets.L), dtype=np.uint16)
                reader.read_rows(index, rows, out)
                assert (out == whole[rows]).all()
                segments = reader.segments(index, rows)
                for i, row in enumerate(rows):
                    s = segments.row(i)
                    got = (segments.doc_hash[s].tolist(), segments.seg_len[s].tolist(), segments.flags[s].tolist())
                    assert got == documents[row]
        assert len(reader._files._handles) <= max_open_files


def test_kept_documents_come_back_whole(shared_dataset):
    root, manifest = shared_dataset
    with ShardReader(root, manifest) as reader:
        for index, stream in enumerate(manifest.streams):
            rows = np.empty((stream.rows, datasets.L), dtype=np.uint16)
            reader.read_rows(index, np.arange(stream.rows), rows)
            segments = reader.segments(index, np.arange(stream.rows))
            pieces, position = {}, 0
            flat = rows.reshape(-1)
            for doc_hash, length, flag in zip(segments.doc_hash, segments.seg_len, segments.flags, strict=True):
                if flag != 4:
                    pieces.setdefault(int(doc_hash), []).append(flat[position : position + length].tolist())
                position += length
            lengths, tie, offsets, tokens = datasets.documents(stream.name, datasets.STREAMS[stream.key])
            assert len(pieces) == len(lengths)
            for d, key in enumerate(tie.tolist()):
                expected = tokens[offsets[d] : offsets[d + 1]].tolist()
                cut = [expected[s : s + datasets.L] for s in range(0, len(expected), datasets.L)]
                assert sorted(pieces[key]) == sorted(cut)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_read_disjoint_slots_of_the_same_step(shared_dataset, world_size):
    root, manifest = shared_dataset
    plan = first_plan(manifest, 3, [(400, SHARES)])
    with ShardReader(root, manifest) as reader:
        whole = reader.batch(plan, 64, 32)
        assert whole.segments.problem(datasets.L) == ""
        for i in range(32):
            stream = manifest.streams[whole.refs.stream_index[i]]
            assert (whole.tokens[i] == _whole_stream(root, stream)[whole.refs.row[i]]).all()
            s = whole.segments.row(i)
            assert whole.segments.seg_len[s].tolist() == _whole_segments(root, stream)[whole.refs.row[i]][1]
        parts = [reader.batch(plan, 64, 32, slice(rank, None, world_size)) for rank in range(world_size)]
        joined = np.empty_like(whole.tokens)
        for rank, part in enumerate(parts):
            joined[rank::world_size] = part.tokens
        assert (joined == whole.tokens).all()
        assert sorted(np.concatenate([part.k for part in parts]).tolist()) == list(range(64, 96))
        buffer = np.zeros((40, datasets.L), dtype=np.uint16)
        again = reader.batch(plan, 64, 32, out=buffer)
        assert np.shares_memory(again.tokens, buffer)
        assert (buffer[:32] == whole.tokens).all()
        labels = whole.labels()
        assert (labels != -100).sum(axis=1).tolist() == whole.segments.loss_tokens.tolist()


def test_steps_of_any_size_read_the_same_rows(shared_dataset):
    root, manifest = shared_dataset
    plan = first_plan(manifest, 3, [(400, SHARES)])

    def seen(batch_rows):
        with ShardReader(root, manifest) as reader:
            batches = [reader.batch(plan, k, batch_rows) for k in range(0, 192, batch_rows)]
        return sorted(
            (int(k), row.tobytes()) for batch in batches for k, row in zip(batch.k, batch.tokens, strict=True)
        )

    assert seen(8) == seen(64) == seen(96)


def test_wrong_buffers_and_rows_are_refused(shared_dataset):
    root, manifest = shared_dataset
    with ShardReader(root, manifest) as reader:
        for out in (
            np.empty((4, datasets.L + 1), np.uint16),
            np.empty((4, datasets.L), np.int32),
            np.empty((3, datasets.L), np.uint16),
            np.empty((datasets.L, 4), np.uint16).T,
        ):
            with pytest.raises(ConfigError, match="buffer"):
                reader.read_rows(0, np.arange(4), out)
        out = np.empty((1, datasets.L), np.uint16)
        for row in (-1, manifest.streams[0].rows):
            with pytest.raises(ConfigError, match="rows"):
                reader.read_rows(0, np.array([row]), out)
        assert reader.stream_index(manifest.streams[1].name) == 1
    with pytest.raises(ConfigError):
        ShardReader(root, manifest, 0)


def test_truncated_and_missing_files_are_refused_while_reading(own_dataset):
    root, manifest = own_dataset
    path = root / (manifest.streams[0].parts[0].path + ".bin")
    path.write_bytes(path.read_bytes()[:-10])
    rows = np.arange(manifest.streams[0].parts[0].rows)
    out = np.empty((len(rows), datasets.L), np.uint16)
    with ShardReader(root, manifest) as reader, pytest.raises(IntegrityError, match="truncated"):
        reader.read_rows(0, rows, out)
    side = path.with_suffix(".seg")
    whole = side.read_bytes()
    for size in (10, 30, len(whole) - 1):
        side.write_bytes(whole[:size])
        with ShardReader(root, manifest) as reader, pytest.raises(IntegrityError, match=r"\.seg"):
            reader.segments(0, rows)
    path.unlink()
    with ShardReader(root, manifest) as reader, pytest.raises(IntegrityError, match="missing"):
        reader.read_rows(0, rows, out)


def test_prefetcher_keeps_order_and_stays_ahead():
    started, gate = [], threading.Event()

    def read(request):
        started.append(request)
        if len(started) == 4:
            gate.set()
        return request * 10

    with Prefetcher(read, range(6), ahead=2) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 0
        assert gate.wait(5)
        assert list(iterator) == [10, 20, 30, 40, 50]


def test_prefetcher_raises_where_the_result_would_have_come():
    def read(request):
        if request == 2:
            raise IntegrityError("broken row")
        return request

    values = iter(Prefetcher(read, range(5)))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(IntegrityError, match="broken row"):
        next(values)


def test_prefetcher_over_endless_requests_can_be_closed():
    def endless():
        k = 0
        while True:
            yield k
            k += 1

    ahead = Prefetcher(lambda k: k, endless())
    assert next(iter(ahead)) == 0
    ahead.close()
    assert not ahead._thread.is_alive()
    with pytest.raises(ConfigError):
        Prefetcher(lambda k: k, [], ahead=0)


def test_reading_needs_neither_torch_nor_spark_nor_pyarrow():
    code = (
        "import sys\n"
        "import refinery.shards.reader, refinery.shards.prefetch\n"
        "sys.exit(bool({'torch', 'pyspark', 'pyarrow', 'pandas'} & set(sys.modules)))\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
