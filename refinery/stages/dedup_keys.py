"""What document dedup needs of each document: exact key, URL key, signature, band keys, and its place in the order.

One pass over the text of a part; everything after it is narrow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import BANDS, EXACT_KEYS, PART_SHIFT, RUN_SHIFT, SHINGLES, SIGNATURES
from refinery.hashing import key_prefix_uint64, stage_seed
from refinery.io import parts as part_files
from refinery.io.survivors import WORDS, Survivors, read_survivors
from refinery.kernels.clean import text_hashes
from refinery.kernels.lsh import band_keys, parse_bands
from refinery.kernels.minhash import MinHashConfig, signatures_of_text
from refinery.kernels.segmentation import segment_han
from refinery.kernels.shingles import shingle_sets, words_hash
from refinery.kernels.text import TextViews, text_views
from refinery.kernels.urls import url_keys

NAME = "dedup_documents"
ALGORITHM_VERSION = 5
SHORT_PREFIX = "words:"
"""Exact keys of documents too short for a shingle."""

_ROLE_PRIORITY = {"target": 1, "replay": 2, "pool": 3}
_KEY_SETTINGS = ("ngram", "unit", "chinese", "bands", "seed", "scope", "dump_field", "dump_pattern", "url", "keep")


@dataclass(frozen=True)
class IndexRun:
    """A finished run whose documents count as already there."""

    number: int
    """From 1, oldest first; it stands above RUN_SHIFT in the ids of this run's documents."""
    workdir: str
    upto: tuple[str, ...]
    parts: tuple[int, ...]
    segmented: frozenset[int] = frozenset()
    """Parts whose word boundaries the rules stage stored."""


@dataclass(frozen=True)
class DedupTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    """Part -> hash of its documents and of the decisions before this stage."""
    index: tuple[IndexRun, ...] = ()
    segmented: frozenset[int] = frozenset()
    """Parts whose word boundaries the rules stage stored."""

    @property
    def num_bands(self) -> int:
        """Bands of the LSH index."""
        return parse_bands(self.settings["bands"]).num_bands

    @property
    def num_hashes(self) -> int:
        """Length of a signature."""
        return parse_bands(self.settings["bands"]).num_hashes

    def file_numbers(self) -> dict[int, int]:
        """Return ``doc_id >> PART_SHIFT`` -> number of the file that holds the part's candidates, over all runs."""
        numbers = {part: part for part in self.upstream}
        free = max(self.upstream, default=-1) + 1
        for run in self.index:
            for part in run.parts:
                numbers[run.number << (RUN_SHIFT - PART_SHIFT) | part] = free
                free += 1
        return numbers


def keys_part(task: DedupTask, part: int) -> dict[str, Any]:
    """Write the exact keys, signatures and band keys of one part's surviving documents."""
    print_ = fingerprint_of(
        "keys", ALGORITHM_VERSION, {k: task.settings[k] for k in _KEY_SETTINGS}, task.upstream[part]
    )
    schemas = {"bands": BANDS, "signatures": SIGNATURES, "exact_keys": EXACT_KEYS}
    paths = {name: part_files.part_path(task.workdir, NAME, name, part) for name in schemas}
    found = {name: part_files.found_part(path, print_) for name, path in paths.items()}
    last = found["exact_keys"]
    if last is not None and all(found.values()):
        return {**last.result, "skipped": True}
    tables: dict[str, list[pa.Table]] = {name: [schema.empty_table()] for name, schema in schemas.items()}
    quality = None
    if "quality" in task.upto:
        quality = part_files.read_part(task.workdir, "quality", "quality", part, ["score"]).column("score")
    columns = ["doc_id", "doc_key", "text", "text_hash", "role", "split", "source", "date", "num_bytes"]
    columns += ["url"] if task.settings["url"] else []
    if task.settings["scope"] == "dump":
        columns += [c for c in (task.settings["dump_field"].partition(".")[0],) if c not in columns]
    facts = {"num_without_shingles": 0, "num_without_dump": 0, "num_band_rows": 0}
    columns += _words_column(task, task.segmented, part)
    for piece in read_survivors(task.workdir, part, columns, task.upto, task.slice_rows):
        scores = quality.take(pa.array(piece.rows)) if quality is not None else pa.nulls(len(piece.rows), pa.float32())
        whole = replace(piece, table=piece.table.append_column("quality", scores))
        for name, table in _keys_of(task, whole, facts).items():
            tables[name].append(table)
    for name, schema in schemas.items():
        part_files.write_part(paths[name], pa.concat_tables(tables[name]), schema, print_, facts)
    return {**facts, "skipped": False}


def _keys_of(task: DedupTask, piece: Survivors, facts: dict[str, int]) -> dict[str, pa.Table]:
    table = piece.table
    views = text_views(table.column("text"))
    config = MinHashConfig(
        num_hashes=task.num_hashes,
        shingle_size=task.settings["ngram"],
        unit=task.settings["unit"],
        seed=stage_seed(task.seed, "minhash"),
    )
    signed = signatures_of_text(views, config, _boundaries(task.settings, piece, views))
    doc_ids = table.column("doc_id").to_numpy()
    valid = signed.num_shingles > 0
    facts["num_without_shingles"] += int((~valid).sum())
    scopes = _scopes(task.settings, table, facts)
    priority = _priority(table)
    urls = url_keys(table.column("url").to_pylist()) if task.settings["url"] else [None] * table.num_rows
    exact = pa.table(
        {
            "doc_id": doc_ids,
            "exact_key": _exact_keys(views, _text_hashes(piece, views), valid, task.settings["unit"]),
            "url_key": pa.array(urls, pa.int64()),
            "scope": scopes,
            "num_shingles": signed.num_shingles,
            "priority": priority,
            **{name: table.column(name) for name in ("quality", "num_bytes", "date", "source", "doc_key")},
        }
    ).cast(EXACT_KEYS)
    keys = band_keys(signed.values[valid], task.num_bands).view(np.int64)
    ties = bucket_order(exact, task.settings["keep"])[valid]
    many = task.num_bands
    facts["num_band_rows"] += keys.size
    bands = pa.table(
        {
            "key": keys.ravel(),
            "doc_id": np.repeat(doc_ids[valid], many),
            "tie": np.repeat(ties, many),
            "scope": np.repeat(scopes[valid], many),
            "held": np.repeat(priority[valid] == 0, many),
        }
    ).cast(BANDS)
    data = pa.py_buffer(np.ascontiguousarray(signed.values[valid], dtype="<u4"))
    offsets = pa.py_buffer(np.arange(int(valid.sum()) + 1, dtype=np.int32) * np.int32(4 * task.num_hashes))
    binary = pa.Array.from_buffers(pa.binary(), int(valid.sum()), [None, offsets, data])
    signatures = pa.table({"doc_id": doc_ids[valid], "signature": binary}).cast(SIGNATURES)
    return {"exact_keys": exact, "bands": bands, "signatures": signatures}


def _words_column(task: DedupTask, segmented: frozenset[int], part: int) -> list[str]:
    """Return the column of word boundaries if the recipe asks for words and they are stored."""
    return [WORDS] if task.settings["chinese"] == "words" and part in segmented else []


def _boundaries(settings: dict[str, Any], piece: Survivors, views: TextViews) -> np.ndarray | None:
    """Return the segmentation of Chinese where the recipe asks for words; None where a character is a word."""
    if settings["chinese"] != "words":
        return None
    return piece.boundaries(views) if WORDS in piece.table.column_names else segment_han(views).boundaries


def _text_hashes(piece: Survivors, views: TextViews) -> pa.ChunkedArray:
    """Return the identity of each text as it is now: those of ingest, unless earlier cuts shortened one."""
    if not piece.is_cut:
        return piece.table.column("text_hash")
    return pa.chunked_array([pa.array(text_hashes(views), pa.string())])


def _exact_keys(views: TextViews, text_hashes: pa.ChunkedArray, has_shingles: np.ndarray, unit: str) -> pa.Array:
    """Return text hashes; documents too short for a shingle get the hash of their normalised words instead."""
    if has_shingles.all():
        return text_hashes
    short = words_hash(views, unit)
    keys = text_hashes.to_pylist()
    for i in np.flatnonzero(~has_shingles & (short.num_words > 0)).tolist():
        keys[i] = f"{SHORT_PREFIX}{short.hashes[i, 0]:016x}{short.hashes[i, 1]:016x}"
    return pa.array(keys, pa.string())


def _priority(table: pa.Table) -> np.ndarray:
    """Return the first key of the keep order: validation 0, then target, replay, pool."""
    roles = np.array([_ROLE_PRIORITY[r] for r in table.column("role").to_pylist()], dtype=np.int64)
    validation = pc.equal(table.column("split"), "validation").to_numpy(zero_copy_only=False)
    return np.where(validation, 0, roles)


def _scopes(settings: dict[str, Any], table: pa.Table, facts: dict[str, int]) -> np.ndarray:
    """Return int64 per document; equal where documents are compared with each other. 0: with all."""
    if settings["scope"] == "global":
        return np.zeros(table.num_rows, dtype=np.int64)
    if settings["scope"] == "source":
        values = table.column("source").to_pylist()
    else:
        values = dump_names(settings["dump_field"], settings["dump_pattern"], table)
        facts["num_without_dump"] += values.count(None)
    hashed = {v: xxhash.xxh3_64_intdigest(f"scope:{v or ''}".encode()) for v in set(values)}
    return np.array([hashed[v] for v in values], dtype=np.uint64).view(np.int64)


def dump_names(field_name: str, pattern: str | None, table: pa.Table) -> list[str | None]:
    """Return the dump of each document: a column, or a value inside ``meta``, cut by the pattern; None: it has none."""
    column, *path = field_name.split(".")
    values = table.column(column).to_pylist()
    if path:
        values = [_inside(value, path) for value in values]
    if pattern is None:
        return [str(v) if v is not None else None for v in values]
    found = [re.search(pattern, str(v)) if v is not None else None for v in values]
    return [m and (m.group(1) if m.re.groups else m.group()) for m in found]


def _inside(meta: str | None, path: Sequence[str]) -> Any:
    value = orjson.loads(meta) if meta else None
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


_ORDER_BITS = 30
_LAST = (1 << _ORDER_BITS) - 1


def bucket_order(exact: pa.Table, keep: Sequence[str]) -> np.ndarray:
    """Return int64 per document, smaller for documents that the keep order would rather keep.

    Of a giant bucket only the first few are compared with all others, and a document goes only over an edge to a kept
    one: so those few had better be the ones that stay. The first rule of the policy to 30 bits, then the key; that is
    coarser than the keep order, which is why it decides about comparisons only.
    """
    rule = next((r for r in keep if r not in ("source_order", "smallest_key")), None)
    if rule == "quality":
        score = pc.fill_null(exact.column("quality"), -1.0).to_numpy().astype(np.float64)
        code = np.where(score < 0, _LAST, np.round((1.0 - np.clip(score, 0, 1)) * (_LAST - 1)))
    elif rule == "longest":
        code = _LAST - np.minimum(exact.column("num_bytes").to_numpy(), _LAST)
    elif rule == "newest":
        digits = pc.replace_substring_regex(pc.utf8_slice_codeunits(exact.column("date"), 0, 10), r"\D", "")
        days = [int(d.ljust(8, "0")) if d else 0 for d in digits.to_pylist()]
        code = np.maximum(0, 99_999_999 - np.array(days, dtype=np.int64))
    else:
        code = np.zeros(exact.num_rows)
    keys = key_prefix_uint64(exact.column("doc_key").to_pylist()) >> np.uint64(33)
    priority = exact.column("priority").to_numpy()
    return priority << 61 | code.astype(np.int64) << 31 | keys.astype(np.int64)


def shingles_part(task: DedupTask, fingerprint: str, place: int) -> dict[str, Any]:
    """Write the shingle sets of one part's candidates: sorted unique uint32, little-endian bytes.

    Args:
        task: of the running stage.
        fingerprint: what the candidates are a function of.
        place: ``doc_id >> PART_SHIFT``: a part of this run or of an earlier one.
    """
    number = task.file_numbers()[place]
    wanted = part_files.read_part(task.workdir, NAME, "candidates", number).column("doc_id").to_numpy()
    path = part_files.part_path(task.workdir, NAME, "shingles", number)
    print_ = fingerprint_of("shingles", fingerprint, place, xxhash.xxh3_64_hexdigest(wanted.tobytes()))
    found = part_files.found_part(path, print_)
    if found is not None:
        return found.result
    run = next((r for r in task.index if r.number == place >> (RUN_SHIFT - PART_SHIFT)), None)
    part = place & ((1 << (RUN_SHIFT - PART_SHIFT)) - 1)
    rows = wanted & ((1 << RUN_SHIFT) - 1)
    tables = [SHINGLES.empty_table()]
    if run is not None and part in part_files.part_numbers(run.workdir, NAME, "shingles"):
        stored = part_files.read_part(run.workdir, NAME, "shingles", part)
        stored = stored.filter(pc.is_in(stored.column("doc_id"), pa.array(rows)))
        tables.append(stored)
        rows = rows[~np.isin(rows, stored.column("doc_id").to_numpy())]
    if len(rows):
        home = task if run is None else run
        columns = ["doc_id", "text", *_words_column(task, home.segmented, part)]
        for piece in read_survivors(home.workdir, part, columns, home.upto, task.slice_rows):
            mine = np.isin(piece.table.column("doc_id").to_numpy(), rows, assume_unique=True)
            if mine.any():
                tables.append(_shingle_table(task, Survivors(piece.rows[mine], piece.table.filter(pa.array(mine)))))
    whole = pa.concat_tables([t.cast(SHINGLES) for t in tables]).sort_by("doc_id")
    if run is not None:
        ids = whole.column("doc_id").to_numpy() | (run.number << RUN_SHIFT)
        whole = whole.set_column(0, "doc_id", pa.array(ids))
    result = {"num_texts": len(rows), "run": 0 if run is None else run.number}
    return part_files.write_part(path, whole, SHINGLES, print_, result).result


def _shingle_table(task: DedupTask, piece: Survivors) -> pa.Table:
    views = text_views(piece.table.column("text"))
    boundaries = _boundaries(task.settings, piece, views)
    sets = shingle_sets(views, task.settings["ngram"], task.settings["unit"], boundaries)
    data = pa.py_buffer(np.ascontiguousarray(sets.hashes, dtype="<u4"))
    offsets = pa.py_buffer((sets.offsets * 4).astype(np.int64))
    binary = pa.Array.from_buffers(pa.large_binary(), piece.table.num_rows, [None, offsets, data])
    return pa.table({"doc_id": piece.table.column("doc_id"), "shingles": binary}).cast(SHINGLES)
