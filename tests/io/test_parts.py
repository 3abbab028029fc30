from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refinery.contracts.tables import BANDS, DECISIONS, DOCUMENTS, SHINGLES
from refinery.errors import IntegrityError, SchemaError, TransientError
from refinery.io import storage
from refinery.io.parts import found_part, part_numbers, part_path, read_batches, read_part, write_part


def _bands(count, base=0):
    ids = pa.array(range(base, base + count), pa.int64())
    held = pa.array([False] * count, pa.bool_())
    return pa.table({"key": ids, "doc_id": ids, "tie": ids, "scope": ids, "held": held})


def _path(tmp_path, part=0):
    return part_path(str(tmp_path), "stage", "bands", part)


def test_round_trip_with_facts(tmp_path):
    written = write_part(_path(tmp_path), _bands(10), BANDS, "print", {"counts": [1, 2], "name": "Gesetz 法"})
    found = found_part(_path(tmp_path), "print")
    assert found == written
    assert found.result == {"counts": [1, 2], "name": "Gesetz 法"}
    assert (found.rows, found.num_bytes) == (10, Path(_path(tmp_path)).stat().st_size)
    assert read_part(str(tmp_path), "stage", "bands", 0).equals(_bands(10).cast(BANDS))
    assert read_part(str(tmp_path), "stage", "bands", 0, ["tie", "key"]).column_names == ["tie", "key"]
    assert read_part(str(tmp_path), "stage", "bands", 0).schema.metadata is None


def test_long_rows_come_in_shorter_batches_and_all_of_them(tmp_path, monkeypatch):
    write_part(_path(tmp_path), _bands(1000), BANDS, "p")
    monkeypatch.setattr("refinery.io.parts.BATCH_BYTES", 1600)  # 8 bytes a row and column, and what Parquet adds
    for columns, most in ((["key"], 200), (["key", "doc_id", "tie", "scope"], 50)):
        batches = list(read_batches(str(tmp_path), "stage", "bands", 0, columns, 300))
        assert 1 < max(batch.num_rows for batch in batches) <= most
        assert pa.Table.from_batches(batches).equals(_bands(1000).cast(BANDS).select(columns))
    monkeypatch.undo()
    assert [b.num_rows for b in read_batches(str(tmp_path), "stage", "bands", 0, ["key"], 300)][:3] == [300, 300, 300]
    write_part(_path(tmp_path, 1), _bands(0), BANDS, "p")
    assert sum(b.num_rows for b in read_batches(str(tmp_path), "stage", "bands", 1, ["key"], 300)) == 0


def test_equal_rows_give_equal_bytes_however_they_were_sliced(tmp_path):
    whole = write_part(_path(tmp_path), _bands(1000), BANDS, "p")
    data = Path(_path(tmp_path)).read_bytes()
    pieces = pa.concat_tables([_bands(1), _bands(499, 1), _bands(0), _bands(500, 500)])
    assert write_part(_path(tmp_path, 1), pieces, BANDS, "p") == whole
    assert Path(_path(tmp_path, 1)).read_bytes() == data


@pytest.mark.parametrize("chunk_rows", [1024, 2048, 1000, 4095])
def test_pages_and_row_groups_do_not_depend_on_chunks(tmp_path, chunk_rows):
    count = 9000
    texts = pa.array(["word " * (k * 7919 % 257) for k in range(count)], pa.large_string())  # 6 MB: several pages
    numbers, labels = pa.array(range(count), pa.int64()), pa.array([f"s{k % 3}" for k in range(count)])
    rows = {f.name: numbers if pa.types.is_integer(f.type) else labels for f in DOCUMENTS}
    whole = pa.table({**rows, "text": texts}, schema=DOCUMENTS)
    chunks = [whole.slice(at, chunk_rows).combine_chunks() for at in range(0, count, chunk_rows)]
    pieces = pa.concat_tables([*chunks[:1], chunks[0].slice(0, 0), *chunks[1:]])
    assert pieces.column("text").num_chunks > 2
    assert write_part(_path(tmp_path, 1), pieces, DOCUMENTS, "p") == write_part(_path(tmp_path), whole, DOCUMENTS, "p")
    assert Path(_path(tmp_path, 1)).read_bytes() == Path(_path(tmp_path)).read_bytes()


def test_content_hash_covers_rows_not_fingerprints(tmp_path):
    one = write_part(_path(tmp_path), _bands(10), BANDS, "one", {"seconds": 1})
    two = write_part(_path(tmp_path, 1), _bands(10), BANDS, "two", {"seconds": 2, "more": list(range(50))})
    other = write_part(_path(tmp_path, 2), _bands(10, 1), BANDS, "one", {"seconds": 1})
    assert one.content_hash == two.content_hash != other.content_hash
    empty = [
        write_part(_path(tmp_path, 3 + i), s.empty_table(), s, "p").content_hash
        for i, s in enumerate((BANDS, SHINGLES))
    ]
    assert empty[0] != empty[1], "the schema is content, too"


def test_another_fingerprint_is_not_found(tmp_path):
    write_part(_path(tmp_path), _bands(3), BANDS, "old")
    assert found_part(_path(tmp_path), "new") is None
    assert found_part(_path(tmp_path, 9), "old") is None


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all" * 50])
def test_a_broken_file_is_not_found_and_not_read(tmp_path, damage):
    write_part(_path(tmp_path), _bands(300), BANDS, "p")
    Path(_path(tmp_path)).write_bytes(damage)
    assert found_part(_path(tmp_path), "p") is None
    with pytest.raises(IntegrityError, match="damaged"):
        read_part(str(tmp_path), "stage", "bands", 0)


def test_a_cut_off_file_is_not_found(tmp_path):
    write_part(_path(tmp_path), _bands(3000), BANDS, "p")
    path = Path(_path(tmp_path))
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 1, len(data) - 9):
        path.write_bytes(data[:size])
        assert found_part(_path(tmp_path), "p") is None


def test_a_foreign_parquet_file_is_not_found(tmp_path):
    path = Path(_path(tmp_path))
    path.parent.mkdir(parents=True)
    pq.write_table(_bands(3), path)
    assert found_part(str(path), "p") is None


def test_missing_part_and_missing_column_are_told_apart(tmp_path):
    with pytest.raises(IntegrityError, match="missing; run `refinery stage RECIPE` again"):
        read_part(str(tmp_path), "stage", "bands", 4)
    write_part(_path(tmp_path), _bands(3), BANDS, "p")
    with pytest.raises(SchemaError, match="lacks columns"):
        read_part(str(tmp_path), "stage", "bands", 0, ["key", "nothing"])


def test_rows_that_do_not_fit_their_schema_are_refused(tmp_path):
    with pytest.raises(SchemaError, match="lacks columns"):
        write_part(_path(tmp_path), _bands(3).drop(["tie"]), BANDS, "p")
    for key in (pa.array(["a"]), pa.array([None], pa.int64())):
        with pytest.raises(SchemaError, match="does not fit"):
            write_part(_path(tmp_path), _bands(1).set_column(0, "key", key), BANDS, "p")
    assert not Path(_path(tmp_path)).exists()


def test_part_numbers_ignore_what_is_no_part(tmp_path):
    for part in (10, 0, 3):
        write_part(_path(tmp_path, part), _bands(1), BANDS, "p")
    folder = Path(_path(tmp_path)).parent
    (folder / ".part-00000007.parquet.abc.tmp").write_bytes(b"")
    (folder / "_SUCCESS").write_bytes(b"")
    assert part_numbers(str(tmp_path), "stage", "bands") == [0, 3, 10]
    assert part_numbers(str(tmp_path), "stage", "nothing") == []


def test_nulls_and_unicode_survive(tmp_path):
    table = pa.table({
        "doc_id": [1, 2, 3], "keep": [True, False, None], "drop_reason": [None, "rules.a", None],
        "rule_bits": [0, -1, 2**62],
        "stage": [None, "rules", None], "because_of": [None, "法\0\r\n", ""],
    })  # fmt: skip
    write_part(part_path(str(tmp_path), "rules", "decisions", 0), table, DECISIONS, "p")
    assert read_part(str(tmp_path), "rules", "decisions", 0).to_pylist() == table.to_pylist()


class TestStorage:
    def test_write_atomic_replaces_whole_files(self, tmp_path):
        path = str(tmp_path / "a" / "b.bin")
        storage.write_atomic(path, b"one")
        storage.write_atomic(path, memoryview(b"second"))
        assert storage.read_bytes(path) == b"second"
        assert storage.list_names(str(tmp_path / "a")) == ["b.bin"]

    def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(self, tmp_path, monkeypatch):
        path = str(tmp_path / "b.bin")
        storage.write_atomic(path, b"one")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(TransientError, match=r"No space left.*free space"):
            storage.write_atomic(path, b"second")
        assert storage.read_bytes(path) == b"one"
        assert storage.list_names(str(tmp_path)) == ["b.bin"]

    def test_urls(self):
        path = "memory://bucket/run/stage/part"
        storage.write_atomic(path, b"one")
        assert storage.exists(path)
        assert storage.read_bytes(path) == b"one"
        assert storage.list_names("memory://bucket/run/stage") == ["part"]
        assert storage.list_names("memory://bucket/nothing") == []
        with storage.open_input(path) as file:
            file.seek(1)
            assert file.read() == b"ne"
        storage.remove(path)
        storage.remove(path)
        assert not storage.exists(path)

    def test_parts_on_an_object_store(self):
        workdir = "memory://bucket/run"
        path = part_path(workdir, "stage", "bands", 2)
        written = write_part(path, _bands(5), BANDS, "p", {"a": 1})
        assert found_part(path, "p") == written
        assert part_numbers(workdir, "stage", "bands") == [2]
        assert read_part(workdir, "stage", "bands", 2, ["key"]).num_rows == 5

    def test_file_urls_are_local(self, tmp_path):
        assert storage.is_local(f"file://{tmp_path}")
        storage.write_atomic(f"file://{tmp_path}/x", b"1")
        assert (tmp_path / "x").read_bytes() == b"1"
        assert not storage.is_local("s3://bucket")
        assert storage.join("s3://bucket/run/", "a", "b") == "s3://bucket/run/a/b"

    def test_sweep_takes_temporaries_of_every_writer(self, tmp_path):
        """Parts and manifests, shards, and half-written checkpoints, which are folders."""
        for name in ("a/.part-0.parquet.1f.tmp", "a/b/.part-00000.bin.tmp-12-ab", ".run.json.tmp"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"half")
        (tmp_path / "train" / ".step-00000010.tmp").mkdir(parents=True)
        (tmp_path / "train" / ".step-00000010.tmp" / "model.bin").write_bytes(b"half")
        kept = ["a/part-0.parquet", "a/.part-00000.entry.json", "a/notes.tmp", "a/b.tmp-1"]
        for name in kept:
            (tmp_path / name).write_bytes(b"whole")
        assert storage.sweep_temporaries(str(tmp_path)) == 4
        left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
        assert left == sorted(kept)
        assert not list((tmp_path / "train").iterdir())
        assert storage.sweep_temporaries(str(tmp_path / "missing")) == 0
        assert storage.sweep_temporaries("memory://bucket") == 0
