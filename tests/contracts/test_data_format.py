"""A reader written from `docs/data-format.md` alone, beside the code: nothing of refinery reads the bytes here."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from refinery.hashing import hex_key, keyed_uint64
from refinery.shards.order import rows_for, slot_permutation
from refinery.shards.plan import append_stage, first_plan, plan_bytes
from refinery.shards.reader import ShardReader
from tests.shards import datasets

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def stage_seed(seed: int, name: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode())


def key(seed: int, name: str, i: int) -> int:
    return splitmix64(stage_seed(seed, f"order:{name}") ^ splitmix64(i))


def permute(secret: int, n: int, x: int) -> int:
    bits = max(2, (n - 1).bit_length())
    high = bits // 2
    low = bits - high
    while True:
        left, right, widths = x >> low, x & ((1 << low) - 1), [high, low]
        for r in range(6):
            m = splitmix64(((secret + r * 0xD1B54A32D192ED03) & MASK) ^ right)
            left, right = right, left ^ (m & ((1 << widths[0]) - 1))
            widths.reverse()
        x = (left << low) | right
        if x < n:
            return x


def drawn(weights: list[int], a: int) -> list[int]:
    left, rem, counts = a, sum(weights), []
    for w in weights:
        following = (left * (rem - w) + rem // 2) // rem
        counts.append(left - following)
        left, rem = following, rem - w
    return counts


def row_of(plan: dict, rows_of: dict[str, int], k: int) -> tuple[str, int, int]:
    """Return (stream, epoch, row) of row k, by the section "Order"."""
    earlier: dict[str, int] = {}
    for stage in plan["stages"]:
        ordered = sorted(stage["weights"].items(), key=lambda item: (-item[1], item[0]))
        names, weights = [n for n, _ in ordered], [w for _, w in ordered]
        inside = k - stage["start_row"]
        if inside < stage["num_rows"]:
            before, after = drawn(weights, inside), drawn(weights, inside + 1)
            i = next(i for i in range(len(names)) if before[i] != after[i])
            q, n = before[i] + earlier.get(names[i], 0), rows_of[names[i]]
            return names[i], q // n, permute(key(plan["seed"], names[i], q // n), n, q % n)
        for name, count in zip(names, drawn(weights, stage["num_rows"]), strict=True):
            earlier[name] = earlier.get(name, 0) + count
    raise AssertionError(k)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("shards")
    return root, datasets.build(root)


def plan_for(manifest):
    law, web, general = "law/target/zh/w0/train", "web/pool/en/w0/train", "general/replay/en/w1/train"
    plan = first_plan(manifest, 2**40 + 7, [(150, {law: 0.5, web: 0.5})])
    return append_stage(plan, 130, 400, {law: 3, web: 500, general: 77})


def test_manifest_hashes_are_what_the_page_says(dataset) -> None:
    root, manifest = dataset
    raw = (root / "manifest.json").read_bytes()
    assert (root / "manifest.sha256").read_text().split()[0] == hashlib.sha256(raw).hexdigest()
    body = json.loads(raw)
    hashed = {k: v for k, v in body.items() if k not in ("manifest_hash", "unhashed")}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(canonical).hexdigest() == body["manifest_hash"]
    parts = [
        [p["path"], p["rows"], [p["files"][s]["sha256"] for s in (".bin", ".idx", ".seg")]]
        for stream in body["streams"]
        for p in stream["parts"]
    ]
    content = [parts, body["tokenizer"]["sha256"], body["tokenizer"]["vocab_size"], body["packing"]]
    canonical = json.dumps([*content, body["tokens"]["dtype"]], sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical).hexdigest() == body["content_hash"] == manifest.content_hash


def test_byte_tables(dataset) -> None:
    root, manifest = dataset
    for stream in manifest.streams:
        for part in stream.parts:
            check_part(root / part.path, part.rows, manifest.sequence_length)


def check_part(path: Path, rows: int, length: int) -> None:
    tokens = np.frombuffer(path.with_name(path.name + ".bin").read_bytes(), "<u2").reshape(rows, length)
    idx = path.with_name(path.name + ".idx").read_bytes()
    assert idx[:9] == b"MMIDIDX\0\0"
    assert struct.unpack_from("<QBQQ", idx, 9) == (1, 8, rows, rows + 1)
    assert set(struct.unpack_from(f"<{rows}i", idx, 34)) == {length}
    assert list(struct.unpack_from(f"<{rows}q", idx, 34 + 4 * rows)) == [r * length * 2 for r in range(rows)]
    assert list(struct.unpack_from(f"<{rows + 1}q", idx, 34 + 12 * rows)) == list(range(rows + 1))
    seg = path.with_name(path.name + ".seg").read_bytes()
    assert seg[:8] == b"RFNSEG1\0"
    num_rows, num = struct.unpack_from("<QQ", seg, 8)
    assert num_rows == rows
    assert len(seg) == 32 + 8 * rows + 13 * num
    row_ptr = struct.unpack_from(f"<{rows + 1}q", seg, 24)
    hashes = struct.unpack_from(f"<{num}Q", seg, 32 + 8 * rows)
    lengths = struct.unpack_from(f"<{num}i", seg, 32 + 8 * rows + 8 * num)
    flags = seg[32 + 8 * rows + 12 * num :]
    for r in range(rows):
        mine = range(row_ptr[r], row_ptr[r + 1])
        assert sum(lengths[s] for s in mine) == length
        end = 0
        for s in mine:
            end += lengths[s]
            assert (hashes[s] == 0) == bool(flags[s] & 4)
            if flags[s] & 2:
                assert tokens[r, end - 1] == datasets.EOS


def test_order(dataset) -> None:
    _, manifest = dataset
    plan = plan_for(manifest)
    written = json.loads(plan_bytes(plan))
    rows_of = {s.name: s.rows for s in manifest.streams}
    refs = rows_for(plan, manifest, 0, plan.total_rows)
    names = [s.name for s in manifest.streams]
    ours = [(names[i], int(e), int(r)) for i, e, r in zip(refs.stream_index, refs.epoch, refs.row, strict=True)]
    assert ours == [row_of(written, rows_of, k) for k in range(plan.total_rows)]
    assert {epoch for _, epoch, _ in ours} >= {0, 1}
    slots = [permute(key(plan.seed, "slots", 96), 24, s) for s in range(24)]
    assert slot_permutation(plan.seed, 96, 24).tolist() == slots
    without = {k: v for k, v in written.items() if k != "plan_hash"}
    canonical = json.dumps(without, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical).hexdigest() == written["plan_hash"]


def test_rows_lie_where_the_page_says(dataset) -> None:
    root, manifest = dataset
    name, _, row = row_of(json.loads(plan_bytes(plan_for(manifest))), {s.name: s.rows for s in manifest.streams}, 41)
    stream = manifest.stream(name)
    part = max((p for p in stream.parts if p.first_row <= row), key=lambda p: p.first_row)
    raw = (root / f"{part.path}.bin").read_bytes()
    start = (row - part.first_row) * manifest.row_bytes
    out = np.empty((1, manifest.sequence_length), dtype=np.uint16)
    with ShardReader(root, manifest) as reader:
        reader.read_rows(reader.stream_index(name), np.array([row]), out)
    assert out.tobytes() == raw[start : start + manifest.row_bytes]


def test_keys_and_draws() -> None:
    fields = ["laws", "id-1"]
    raw = b"".join(len(f.encode()).to_bytes(8, "little") + f.encode() for f in fields)
    doc_key = xxhash.xxh3_128_hexdigest(raw)
    assert hex_key(*fields) == doc_key
    prefix = int(doc_key[:16], 16)
    drawn_here = splitmix64(splitmix64(prefix) ^ stage_seed(7, "pack"))
    assert keyed_uint64(7, "pack", np.array([prefix], dtype=np.uint64)).tolist() == [drawn_here]
