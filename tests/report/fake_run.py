"""A finished run's folder, written without Spark: two parts, one document for every fate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import PartEntry, StageManifest, merge_counts
from refinery.contracts.runs import LossPoint, RunRecord, write_run_record
from refinery.contracts.tables import CLUSTERS, DECISIONS, DOCUMENTS, SELECTION, TOKENS
from refinery.hashing import hex_key, key_prefix_uint64
from refinery.io import parts as part_files
from refinery.kernels import packing
from refinery.recipe import Recipe, parse_recipe
from refinery.shards.format import Segments
from refinery.shards.manifest import PackingInfo, StreamKey, TokenizerInfo, build_manifest
from refinery.shards.writer import ShardSpec, write_manifest, write_shard
from refinery.stages.decisions import decisions_table
from refinery.stages.tallies import tally

LONG = "the model reads the law and the law reads the model again and again until nothing is left to read " * 30
HOSTILE = "<script>alert('x')</script> \u202egnirts\u202c a\u200bb \x07 & <img src=http://evil.example/x.png> "
TEXTS = [
    [
        ("hostile", HOSTILE + LONG, "train"),
        ("copy", HOSTILE + LONG, "train"),
        ("short", "too short <b>", "train"),
        ("near", "one two three four five six seven eight nine ten changed here", "train"),
        ("original", "one two three four five six seven eight nine ten as it was here", "train"),
        ("surplus", "good text that the budget does not need at all today my friend", "train"),
    ],
    [
        ("law", "第一条 为了 保护 公民 的 合法 权益 制定 本法 律 " * 4, "train"),
        ("law-short", "短", "train"),
        ("law-held-out", "第二条 任何 人 不得 违反 本法 的 规定 否则 承担 责任 " * 3, "validation"),
    ],
]
LABELS = [("web", "web", "pool", "en"), ("statutes", "law", "target", "zh")]
KEYS = {name: hex_key(LABELS[p][0], name) for p, docs in enumerate(TEXTS) for name, _, _ in docs}
RULES = [
    {"name": "gopher.words_min", "signal": "num_words", "min": 5.0, "max": None, "source": "table A1"},
    {"name": "gopher.words_max", "signal": "num_words", "min": None, "max": 100_000.0, "source": "table A1"},
    {"name": "mine.alpha", "signal": "alpha_frac", "min": 0.2, "max": None, "source": "mine"},
]
TWINS = {"copy": ("exact", "hostile", 1.0), "near": ("near", "original", 0.8125)}
SEQUENCE_LENGTH = 32


def recipe(workdir: Path, **changed) -> Recipe:
    sections = {
        "name": "fake<b>run",
        "seed": 1,
        "workdir": str(workdir),
        "inputs": [
            {"source": source, "domain": domain, "role": role, "format": "jsonl", "lang": lang}
            for source, domain, role, lang in LABELS
        ],
        "rules": {"presets": ["gopher"]},
        "dedup_documents": {},
        "tokenizer": {"path": "somewhere"},
        "mix": {"stages": [{"domains": {"web": 0.7, "law": 0.3}}]},
        "pack": {"sequence_length": SEQUENCE_LENGTH},
        "train": {},
        "report": {"samples": 3},
    }
    sections["name"] = "fake-run"
    return parse_recipe({k: v for k, v in {**sections, **changed}.items() if v is not None})


def words_of(text: str) -> int:
    return len(text.split())


def write(workdir: Path, upto: str = "train") -> Recipe:
    """Write the stages up to one, all of them by default."""
    writers = [ingest, rules, dedup, tokenize, mix, pack, train]
    names = ["ingest", "rules", "dedup_documents", "tokenize", "mix", "pack", "train"]
    for writer in writers[: names.index(upto) + 1]:
        writer(workdir)
    return recipe(workdir)


def commit(workdir: Path, stage: str, tables: dict, counts: list, **more) -> None:
    entries = []
    for table, (schema, values) in tables.items():
        for part, rows in values.items():
            path = part_files.part_path(str(workdir), stage, table, part)
            written = part_files.write_part(path, rows, schema, "print")
            entries.append(PartEntry(table, part, written.rows, written.content_hash, written.num_bytes))
    volatile = {"seconds": 2.0, "part_seconds": 0.5, "host": "box", "git_commit": "abc", "finished_at": "2026-01-01"}
    manifest = StageManifest(
        stage=stage,
        fingerprint="f",
        algorithm_version=1,
        recipe_slice=more.get("recipe_slice", {}),
        inputs={},
        parts=entries,
        counts=merge_counts(counts),
        facts=more.get("facts", {}),
        volatile=volatile,
    ).sealed()
    path = workdir / stage / "_stage.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(manifest.to_json())


def documents(part: int) -> pa.Table:
    source, domain, role, lang = LABELS[part]
    rows = [
        {
            "doc_id": part << 32 | row,
            "doc_key": KEYS[name],
            "key_base": None,
            "text": text,
            "text_hash": hex_key(text),
            "source": source,
            "domain": domain,
            "role": role,
            "split": split,
            "lang": lang,
            "url": f"http://example.org/{name}?a=1&b=<2>",
            "date": None,
            "license": None,
            "meta": None,
            "num_bytes": len(text.encode()),
            "num_chars": len(text),
        }
        for row, (name, text, split) in enumerate(TEXTS[part])
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


def names(part: int) -> list[str]:
    return [name for name, _, _ in TEXTS[part]]


def entered(part: int, stage: str) -> np.ndarray:
    gone = {"rules": set(), "dedup_documents": {"short", "law-short"}, "mix": {"short", "law-short", "copy", "near"}}
    return np.array([name not in gone[stage] for name in names(part)])


def ingest(workdir: Path) -> None:
    facts = {
        "bad_records": {"web": {"bad_json": 2}},
        "bad_listed": [["web", "a<b>.jsonl", 17, "bad_json"]],
        "pii_masked": {"email": 3},
    }
    tables = {"documents": (DOCUMENTS, {p: documents(p) for p in (0, 1)})}
    commit(workdir, "ingest", tables, [tally(documents(p), None, None) for p in (0, 1)], facts=facts)


def decide(workdir: Path, stage: str, reasons: dict[str, str], extra: dict | None = None, **more) -> None:
    decided, counts = {}, []
    for part in (0, 1):
        mine = pa.array([reasons.get(n) for n in names(part)], pa.string())
        because = pa.array([KEYS[TWINS[n][1]] if n in TWINS else None for n in names(part)], pa.string())
        bits = np.array([0b001 if n in ("short", "law-short") else 0 for n in names(part)], dtype=np.int64)
        if stage == "rules":
            bits |= np.array([0b100 if n == "law-short" else 0 for n in names(part)])
        at = entered(part, stage)
        is_dedup = stage == "dedup_documents"
        decided[part] = decisions_table(
            pa.chunked_array([documents(part).column("doc_id").combine_chunks()]),
            at,
            mine,
            stage,
            because if is_dedup else None,
            bits if stage == "rules" else None,
        )
        tokens = np.array([words_of(t) for _, t, _ in TEXTS[part]]) if stage == "mix" else None
        counts.append(tally(documents(part), at, mine, tokens))
    commit(workdir, stage, {"decisions": (DECISIONS, decided), **(extra or {})}, counts, **more)


def rules(workdir: Path) -> None:
    schema = pa.schema([("doc_id", pa.int64()), ("num_words", pa.int64()), ("alpha_frac", pa.float32())])
    signals = {
        p: pa.table(
            {
                "doc_id": documents(p).column("doc_id"),
                "num_words": [words_of(t) for _, t, _ in TEXTS[p]],
                "alpha_frac": pa.array([0.1 if n == "law-short" else 0.9 for n in names(p)], pa.float32()),
            }
        )
        for p in (0, 1)
    }
    facts = {
        "rule_names": [r["name"] for r in RULES],
        "cut_by_rule": [2, 0, 1],
        "cut_by_rule_alone": [1, 0, 0],
    }
    reasons = dict.fromkeys(["short", "law-short"], "gopher.words_min")
    more = {"facts": facts, "recipe_slice": {"rules": RULES}}
    decide(workdir, "rules", reasons, {"signals": (schema, signals)}, **more)


def dedup(workdir: Path) -> None:
    rows = []
    for row, name in enumerate(names(0)):
        if name in TWINS:
            reason, twin, jaccard = TWINS[name]
            rows.append((row, KEYS[twin], 2, False, f"dedup_documents.{reason}", KEYS[twin], jaccard))
        elif name in {twin for _, twin, _ in TWINS.values()}:
            rows.append((row, KEYS[name], 2, True, None, None, None))
    columns = list(zip(*rows, strict=True))
    clusters = pa.table([pa.array(c) for c in columns], names=CLUSTERS.names).cast(CLUSTERS)
    facts = {
        "num_clusters": 2,
        "largest_cluster": 2,
        "cluster_sizes": [[2, 2], [3, 0], [4, 0]],
        "num_verified_edges": 1,
    }
    reasons = {name: f"dedup_documents.{reason}" for name, (reason, _, _) in TWINS.items()}
    more = {"facts": facts, "recipe_slice": {"jaccard": 0.8}}
    decide(workdir, "dedup_documents", reasons, {"clusters": (CLUSTERS, {0: clusters})}, **more)


def tokenize(workdir: Path) -> None:
    tables, counts = {}, []
    for part in (0, 1):
        at = entered(part, "mix")
        tokens = np.array([words_of(t) for _, t, _ in TEXTS[part]])
        counted = [int(t) if a else None for t, a in zip(tokens, at, strict=True)]
        tables[part] = pa.table(
            {
                "doc_id": documents(part).column("doc_id"),
                "num_tokens": pa.array(counted, pa.int64()),
                "ids": pa.nulls(len(at), pa.large_binary()),
            }
        )
        counts.append(tally(documents(part), at, None, tokens))
    commit(workdir, "tokenize", {"tokens": (TOKENS, tables)}, counts, facts={"vocab_size": 600})
    line = {"num_docs": 1, "num_bytes": 90, "num_tokens": 30, "bytes_per_token": 3.0, "fertility": 1.0}
    health = {
        "tokenizer": {"name": "words", "vocab_size": 600},
        "by_domain_and_language": [{"domain": "law", "language": "zh", **line}],
        "total": line,
        "han": {"num_distinct": 0},
        "tokens": {
            "num_ordinary": 590,
            "num_unused": 10,
            "unused_frac": 0.02,
            "num_unreachable": 0,
            "num_one_document": 3,
        },
        "longest_tokens": [{"id": 5, "text": "<script>"}],
        "roundtrip_failures": 0,
        "verdict": {"word": "look", "reasons": ["too few <texts>"]},
    }
    (workdir / "tokenize" / "health.json").write_text(json.dumps(health))


def stream(part: int, split: str = "train") -> StreamKey:
    _, domain, role, lang = LABELS[part]
    return StreamKey(domain, role, lang, 0, split)


def mix(workdir: Path) -> None:
    reasons = {"surplus": "mix.over_ceiling"}
    chosen = {}
    for part in (0, 1):
        at = entered(part, "mix")
        values = [
            stream(part, split).name if ok and name not in reasons else None
            for (name, _, split), ok in zip(TEXTS[part], at, strict=True)
        ]
        ids = documents(part).column("doc_id")
        chosen[part] = pa.table({"doc_id": ids, "stream": pa.array(values, pa.string())})
    streams = [
        {"stream": stream(0).name, "domain": "web", "tokens": 140, "unique_tokens": 200, "epochs": 0.7},
        {"stream": stream(1).name, "domain": "law", "tokens": 60, "unique_tokens": 10, "epochs": 6.0},
    ]
    facts = {
        "asked_shares": {"web": 0.7, "law": 0.3, "replay": 0.0},
        "budget_tokens": 200,
        "natural_shares": {"web": 0.95, "law": 0.05},
        "phases": [{"share": 1.0, "streams": {}}],
        "streams": streams,
        "domain_heavy": [],
        "share_caps": [{"domain": "law", "share": 0.3, "cap": 0.5, "reason": "it is <law>"}],
        "epoch_values": {str(n): 0.5 for n in range(5, 17)},
    }
    decide(workdir, "mix", reasons, {"selection": (SELECTION, chosen)}, facts=facts)


def pack(workdir: Path) -> None:
    root = workdir / "pack" / "shards"
    entries, packed = {}, []
    for part, split in ((0, "train"), (1, "train"), (1, "validation")):
        mine = [
            (KEYS[n], words_of(t))
            for n, t, s in TEXTS[part]
            if s == split and entered(part, "mix")[names(part).index(n)]
        ]
        mine = sorted(m for m in mine if m[0] != KEYS["surplus"])
        key = stream(part, split)
        hashes = key_prefix_uint64([k for k, _ in mine])
        lengths = np.array([n for _, n in mine], dtype=np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        tokens = np.ones(offsets[-1], dtype=np.int32)
        tokens[offsets[1:] - 1] = 0
        plan = packing.plan_rows(lengths, hashes, SEQUENCE_LENGTH, "best_fit")
        rows = packing.write_rows(plan, offsets, tokens, 0)
        segments = Segments(plan.row_ptr, plan.segment_hashes(hashes), plan.length, plan.flags)
        sizes = packing.row_bytes(plan, rows, np.full(600, 3))
        spec = ShardSpec(sequence_length=SEQUENCE_LENGTH, vocab_size=600, eos_id=0, pad_id=0)
        entries[key] = [write_shard(root / key.name, "part-00000", rows, segments, sizes, spec)]
        entry = entries[key][0]
        packed.append({"stream": key.name, **{c: getattr(entry, c) for c in _PACKED}})
    manifest = build_manifest(
        TokenizerInfo(sha256="ab" * 32, vocab_size=600, eos_id=0, bos_id=-1, pad_id=0, probe=()),
        PackingInfo(policy="best_fit", sequence_length=SEQUENCE_LENGTH, seed=1),
        entries,
    )
    write_manifest(root, manifest)
    realised = [
        {
            "stream": stream(part).name,
            "rows": rows,
            "loss_tokens": tokens,
            "epochs": 1.0,
            "first_repeat_row": -1,
            "full_epochs": 1,
            "rows_of_last_epoch": rows,
        }
        for part, rows, tokens in ((0, 20, 150), (1, 10, 50))
    ]
    facts = {
        "shard_content_hash": manifest.content_hash,
        "documents_cut": 1,
        "dropped_tokens": 0,
        "streams": packed,
        "realised": realised,
    }
    more = {"facts": facts, "recipe_slice": {"policy": "best_fit", "sequence_length": SEQUENCE_LENGTH}}
    commit(workdir, "pack", {}, [], **more)


_PACKED = ("rows", "tokens", "loss_tokens", "padding_tokens", "documents", "utf8_bytes")


def train(workdir: Path) -> None:
    commit(workdir, "train", {}, [])
    name = stream(1, "validation").name
    losses = [(0, 8.0, 3.0), (10, 7.0, 2.5)]
    points = tuple(
        LossPoint(
            step=step,
            tokens=step * 64,
            stream=name,
            loss_nats=nats,
            bits_per_byte=bits,
            target_tokens=29,
            learning_rate=0.001,
            replay_frac=0.0,
        )
        for step, nats, bits in losses
    )
    record = RunRecord(
        name="fake",
        status="finished",
        init="scratch",
        num_params=1000,
        num_non_embedding_params=500,
        steps=10,
        tokens=640,
        sequence_length=SEQUENCE_LENGTH,
        final_train_loss_nats=7.1,
        num_skipped_steps=0,
        train_flops=1e6,
        seconds=3.0,
        points=points,
        stream_tokens={stream(0).name: 640},
        hardware={"device": "cpu"},
    )
    write_run_record(record, workdir / "train" / "run.json")
    steps = [{"kind": "train", "step": s, "loss": 8.0 - s / 10, "tokens_per_second": 100.0 * s} for s in range(1, 11)]
    text = "".join(json.dumps(step) + "\n" for step in steps) + '{"kind": "train", "st'
    (workdir / "train" / "metrics.jsonl").write_text(text)
    (workdir / "train" / "forgetting.json").write_text(json.dumps({name: {"best_nats": 7.0}}))
