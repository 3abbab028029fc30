"""Small data sets for the tests of `refinery.shards`."""

from __future__ import annotations

import numpy as np

from refinery.hashing import hash_bytes_int
from refinery.kernels import packing
from refinery.shards.format import Segments
from refinery.shards.manifest import (
    LineageStage,
    PackingInfo,
    StreamKey,
    TokenizerInfo,
    build_manifest,
)
from refinery.shards.writer import ShardSpec, write_manifest, write_shard

L = 32
VOCAB = 600
EOS = 0
SPEC = ShardSpec(sequence_length=L, vocab_size=VOCAB, eos_id=EOS, pad_id=EOS)
TOKEN_BYTES = np.where(np.arange(VOCAB) == EOS, 0, np.arange(VOCAB) % 7 + 1)
PROBE = tuple((f"text {i}", (i, i + 1)) for i in range(8))
STREAMS = {
    StreamKey("law", "target", "zh", 0, "train"): 120,
    StreamKey("web", "pool", "en", 0, "train"): 300,
    StreamKey("general", "replay", "en", 1, "train"): 40,
    StreamKey("law", "target", "zh", 0, "validation"): 20,
}


def documents(stream: str, count: int, vocab: int = VOCAB):
    """Lengths, hashes and tokens (EOS last) of `count` documents, functions of the stream's name."""
    rng = np.random.default_rng(hash_bytes_int(stream.encode(), 1))
    lengths = np.clip(rng.lognormal(2.6, 1.0, count), 1, 150).astype(np.int64)
    tie = rng.integers(1, 2**63, count).astype(np.uint64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = rng.integers(1, vocab, offsets[-1]).astype(np.int32)
    tokens[offsets[1:] - 1] = EOS
    return lengths, tie, offsets, tokens


def pack(lengths, tie, offsets, tokens, length=L, policy="best_fit"):
    plan = packing.plan_rows(lengths, tie, length, policy)
    rows = packing.write_rows(plan, offsets, tokens, EOS)
    segments = Segments(plan.row_ptr, plan.segment_hashes(tie), plan.length, plan.flags)
    return plan, rows, segments


def write_part(folder, name, docs, spec=SPEC):
    plan, rows, segments = pack(*docs, length=spec.sequence_length)
    return write_shard(folder, name, rows, segments, packing.row_bytes(plan, rows, TOKEN_BYTES), spec)


def build(root, streams=STREAMS, parts_of_stream=2, unhashed=None):
    """Write a data set; returns its manifest."""
    entries = {}
    for key, count in streams.items():
        docs = documents(key.name, count)
        entries[key] = []
        for part in range(parts_of_stream):
            mine = np.flatnonzero(docs[1] % np.uint64(parts_of_stream) == part)
            lengths = docs[0][mine]
            offsets = np.concatenate(([0], np.cumsum(lengths)))
            tokens = np.concatenate([docs[3][docs[2][d] : docs[2][d + 1]] for d in mine])
            part_docs = (lengths, docs[1][mine], offsets, tokens)
            entries[key].append(write_part(root / key.name, f"part-{part:05d}", part_docs))
    manifest = build_manifest(
        TokenizerInfo(sha256="ab" * 32, vocab_size=VOCAB, eos_id=EOS, bos_id=-1, pad_id=EOS, probe=PROBE),
        PackingInfo(policy="best_fit", sequence_length=L, seed=7),
        entries,
        [LineageStage(stage="ingest", content_hash="cd" * 32, documents=480, utf8_bytes=9000, tokens=-1)],
        unhashed or {"created_at": "2026-01-01T00:00:00Z"},
    )
    write_manifest(root, manifest)
    return manifest
