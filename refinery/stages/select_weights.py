"""select, the part tasks: counts of n-grams, weights and order keys, decisions."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.contracts.manifest import fingerprint_of
from refinery.contracts.tables import DECISIONS, IMPORTANCE
from refinery.hashing import key_prefix_uint64, keyed_uniform
from refinery.io import parts as part_files
from refinery.io.survivors import Survivors, keep_mask, read_labels, read_survivors
from refinery.kernels import dsir, dsir_compat, ngrams
from refinery.kernels.preparation import preparation_digest
from refinery.kernels.text import text_views
from refinery.stages.budget_cut import KeyColumns
from refinery.stages.chinese_words import boundaries_of, with_words
from refinery.stages.decisions import decisions_table, located
from refinery.stages.tallies import TALLY_COLUMNS, tally

STAGE = "select"
FORMAT_VERSION = 2
GROUP = "pool"
MAX_SAMPLED = 1_000_000
"""Documents whose weights the driver looks at; quantiles of a larger pool are those of a sample by hash."""


@dataclass(frozen=True)
class SelectTask:
    """Everything a part task of this stage needs."""

    workdir: str
    seed: int
    settings: dict[str, Any]
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    targets: dict[str, float]
    """Target domain -> share of what is kept."""
    log_ratios: bytes = b""
    """float64, shape (targets, buckets)."""
    knots: dict[str, tuple[bytes, bytes]] | None = None
    """Target -> (uint64 keys, float64 places), where there are several targets."""
    sample_rate: float = 1.0
    limit: int = -1
    """Largest order key that stays."""

    def tables(self) -> np.ndarray:
        """Return the log ratios."""
        return np.frombuffer(self.log_ratios).reshape(len(self.targets), -1)

    @property
    def segmented(self) -> bool:
        """Whether Chinese counts by words; data-selection's features know nothing of it."""
        return self.settings["segment_chinese"] and self.settings["compat"] is None

    def words(self, piece: Survivors, mask: np.ndarray, *more: Any) -> tuple[Any, ...]:
        """Return the arguments of a feature kernel: text, whatever stands between, and word boundaries."""
        if self.segmented:
            views, boundaries = boundaries_of(piece, mask)
            return views, *more, boundaries
        return text_views(piece.table.column("text").filter(pa.array(mask))), *more

    def features(self) -> ModuleType:
        """Return the kernel that makes n-grams: our own, or data-selection's."""
        return dsir_compat if self.settings["compat"] == "dsir" else ngrams

    @property
    def final_table(self) -> str:
        """Name of the table that `weigh_part` writes: with several targets, keys are balanced after it."""
        return "weights" if len(self.targets) > 1 else "importance"

    def identity(self) -> list[Any]:
        """Return what a document's weight and key depend on besides its text."""
        kernel = self.features()
        names = ("compat", "temperature", "chunk_words", "length", "min_words")
        chosen = {name: self.settings[name] for name in names}
        digest = preparation_digest("segmented" if self.segmented else "words")
        return [kernel.FORMAT_VERSION, digest, self.seed, chosen, self.targets, self.log_ratios.hex()]


def count_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Count the n-grams of one part's target and pool documents."""
    size = task.settings["num_buckets"]
    counts = {name: np.zeros(size, np.int64) for name in [*(f"target:{t}" for t in task.targets), "raw"]}
    docs = dict.fromkeys(task.targets, 0)
    kernel = task.features()
    for piece in survivors_of(task, part, ["role", "domain", "split", "text"]):
        for name, mine in sides_of(task, piece.table).items():
            counts[name] += kernel.bucket_counts(*task.words(piece, mine, size))
            if name != "raw":
                docs[name.removeprefix("target:")] += int(mine.sum())
    return {"docs": docs, **{name: base64.b64encode(c.tobytes()).decode() for name, c in counts.items()}}


def survivors_of(task: SelectTask, part: int, columns: list[str]) -> Iterator[Survivors]:
    """Read a part's documents, with stored word boundaries where there are any."""
    columns = with_words(task.workdir, part, columns, task.upto, wanted=task.segmented)
    return read_survivors(task.workdir, part, columns, task.upto, task.slice_rows)


def sides_of(task: SelectTask, table: pa.Table) -> dict[str, np.ndarray]:
    """Return bool masks of the training documents of the pool (``raw``) and of each target (``target:NAME``)."""
    train = pc.equal(table.column("split"), "train")
    masks = {"raw": pc.and_(train, pc.equal(table.column("role"), "pool"))}
    for name in task.targets:
        mine = pc.and_(pc.equal(table.column("role"), "target"), pc.equal(table.column("domain"), name))
        masks[f"target:{name}"] = pc.and_(train, mine)
    return {name: mask.to_numpy(zero_copy_only=False) for name, mask in masks.items()}


def sum_counts(results: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return the sum of partial counts: int64, shape (buckets,)."""
    return np.sum([np.frombuffer(base64.b64decode(r[name]), dtype=np.int64) for r in results], axis=0)


def order_keys(keys: np.ndarray) -> np.ndarray:
    """Map float64 selection keys to uint64 that sort the other way round: the largest key becomes the smallest."""
    bits = (keys + 0.0).view(np.uint64)  # + 0.0 turns -0.0 into 0.0
    negative = (bits >> np.uint64(63)).astype(bool)
    ascending = np.where(negative, ~bits, bits | np.uint64(1 << 63))
    return ~ascending


def weigh_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Write log importance weights and order keys of one part's pool documents."""
    path = part_files.part_path(task.workdir, STAGE, task.final_table, part)
    print_ = fingerprint_of("weights", FORMAT_VERSION, task.identity(), task.sample_rate, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        ids = part_files.read_part(task.workdir, "ingest", "documents", part, ["doc_id"]).column("doc_id")
        weights, orders = np.full(len(ids), np.nan), np.zeros(len(ids), dtype=np.uint64)
        names, short = np.full(len(ids), None, dtype=object), np.zeros(len(ids), dtype=bool)
        for piece in survivors_of(task, part, ["role", "text_hash", "text"]):
            pool = pc.equal(piece.table.column("role"), "pool").to_numpy(zero_copy_only=False)
            rows = piece.rows[pool]
            weights[rows], orders[rows], names[rows], short[rows] = _weighed(task, piece, pool)
        empty = np.isnan(weights)
        columns = {"doc_id": ids, "log_weight": pa.array(weights, mask=empty)}
        columns |= {"order_key": pa.array(orders.view(np.int64), mask=empty | short), "target": pa.array(names)}
        result = _summary(task, part, weights, orders, names, ~(empty | short))
        found = part_files.write_part(path, pa.table(columns).cast(IMPORTANCE), IMPORTANCE, print_, result)
    return {**found.result, task.final_table: located(part, found)}


def _weighed(
    task: SelectTask, piece: Survivors, pool: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return weight, order key, target and "too short" of each document."""
    kernel = task.features()
    views, *boundaries = task.words(piece, pool)
    found = [kernel.weight_sums(views, np.ascontiguousarray(ratios), *boundaries) for ratios in task.tables()]
    by_target = np.stack([_scaled(task, one) for one in found])
    which = dsir.assign_targets(by_target, list(task.targets.values()))
    weights = dsir.round_weights(by_target[which, np.arange(views.num_docs)])
    hashes = key_prefix_uint64(piece.table.column("text_hash").filter(pa.array(pool)).to_pylist())
    keys = order_keys(dsir.gumbel_keys(weights, task.seed, hashes, task.settings["temperature"]))
    names = np.array(list(task.targets), dtype=object)[which]
    return weights, keys, names, found[0].num_words < task.settings["min_words"]


def _scaled(task: SelectTask, found: ngrams.WeightSums) -> np.ndarray:
    """Return log weights as `length` and `chunk_words` ask for them."""
    chunk = task.settings["chunk_words"]
    if task.settings["length"] == "mean":
        return dsir.mean_weights(found, chunk or dsir.CHUNK_WORDS)
    return found.sums if chunk is None else dsir.chunk_weights(found, chunk)


def _summary(
    task: SelectTask, part: int, weights: np.ndarray, orders: np.ndarray, names: np.ndarray, weighed: np.ndarray
) -> dict[str, Any]:
    """Return what the driver needs of a part: moments, a sample of the weights, and of the keys of each target."""
    documents = read_labels(task.workdir, part, ["split", "domain", "num_bytes"], task.upto)
    sizes = documents.column("num_bytes").to_numpy()
    mine = weighed & _decided(task, documents)
    sampled = weighed & (keyed_uniform(task.seed, "select.sample", orders) < task.sample_rate)
    result: dict[str, Any] = {
        "moments": dsir.weight_moments(weights[weighed]),
        "sample": base64.b64encode(weights[sampled].tobytes()).decode(),
        "docs": int(mine.sum()),
        "bytes": int(sizes[mine].sum()),
        "short": int((~np.isnan(weights) & ~weighed).sum()),
    }
    if len(task.targets) > 1:
        for name in task.targets:
            rows = np.flatnonzero(sampled & mine & (names == name))
            result[f"keys:{name}"] = base64.b64encode(orders[rows].tobytes()).decode()
            result[f"sizes:{name}"] = base64.b64encode(sizes[rows].astype(np.int64).tobytes()).decode()
    return result


def _decided(task: SelectTask, documents: pa.Table) -> np.ndarray:
    """Return bool: documents that the budget counts: split train, domain not exempt."""
    return pc.equal(documents.column("split"), "train").to_numpy(zero_copy_only=False) & ~_exempt(task, documents)


def balance_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Write one part's final keys where there are several targets: all on one scale."""
    path = part_files.part_path(task.workdir, STAGE, "importance", part)
    knots = task.knots or {}
    shown = {name: fingerprint_of(k.hex(), p.hex()) for name, (k, p) in knots.items()}
    print_ = fingerprint_of("balanced", FORMAT_VERSION, task.identity(), shown, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        table = part_files.read_part(task.workdir, STAGE, "weights", part)
        valid = table.column("order_key").is_valid().to_numpy(zero_copy_only=False)
        orders = table.column("order_key").fill_null(0).to_numpy().view(np.uint64).copy()
        names = np.array(table.column("target").to_pylist(), dtype=object)
        curves = {n: (np.frombuffer(k, dtype=np.uint64), np.frombuffer(p)) for n, (k, p) in knots.items()}
        largest = max(float(places[-1]) for _, places in curves.values())
        for name, (keys, places) in curves.items():
            rows = np.flatnonzero(valid & (names == name))
            orders[rows] = dsir.balanced_keys(orders[rows], keys, places, largest)
        column = pa.array(orders.view(np.int64), mask=~valid)
        table = table.set_column(table.column_names.index("order_key"), "order_key", column)
        found = part_files.write_part(path, table.cast(IMPORTANCE), IMPORTANCE, print_)
    return {"importance": located(part, found)}


def order_columns(task: SelectTask, part: int) -> KeyColumns:
    """Return order keys and bytes (or ones, for a budget of documents) of the documents that the budget counts."""
    documents = read_labels(task.workdir, part, ["split", "domain", "num_bytes"], task.upto)
    orders = part_files.read_part(task.workdir, STAGE, "importance", part, ["order_key"]).column("order_key")
    mine = orders.is_valid().to_numpy(zero_copy_only=False) & _decided(task, documents)
    keys = orders.fill_null(0).to_numpy().view(np.uint64)[mine]
    sizes = documents.column("num_bytes").to_numpy()[mine]
    amounts = np.ones(len(keys), dtype=np.int64) if task.settings["keep_docs"] is not None else sizes
    return KeyColumns(np.full(len(keys), GROUP, dtype=object), keys, amounts)


def _exempt(task: SelectTask, documents: pa.Table) -> np.ndarray:
    domains = pa.array(task.settings["exempt_domains"], pa.string())
    return pc.is_in(documents.column("domain"), domains).to_numpy(zero_copy_only=False)


def decide_part(task: SelectTask, part: int) -> dict[str, Any]:
    """Write one part's decisions, and count the n-grams of what stays of the pool."""
    path = part_files.part_path(task.workdir, STAGE, "decisions", part)
    settings = {name: task.settings[name] for name in ("exempt_domains", "keep_docs")}
    knots = fingerprint_of({n: [k.hex(), p.hex()] for n, (k, p) in (task.knots or {}).items()})
    asked = [task.identity(), task.limit, settings, knots]
    print_ = fingerprint_of("decided", FORMAT_VERSION, asked, task.upstream[part])
    found = part_files.found_part(path, print_)
    if found is None:
        documents = read_labels(task.workdir, part, ["doc_id", *TALLY_COLUMNS], task.upto)
        entered = keep_mask(task.workdir, part, documents.num_rows, task.upto)
        table = part_files.read_part(task.workdir, STAGE, "importance", part)
        ranked = table.column("order_key").is_valid().to_numpy(zero_copy_only=False)
        weighed = table.column("log_weight").is_valid().to_numpy(zero_copy_only=False)
        over = table.column("order_key").fill_null(0).to_numpy().view(np.uint64) > np.uint64(task.limit)
        spared = _exempt(task, documents)
        low, short = ranked & over & ~spared, weighed & ~ranked & ~spared
        reasons = pc.if_else(
            pa.array(short),
            pa.scalar(f"{STAGE}.short"),
            pc.if_else(pa.array(low), pa.scalar(f"{STAGE}.low_importance"), pa.scalar(None, pa.string())),
        )
        decided = decisions_table(documents.column("doc_id"), entered, reasons, STAGE)
        kept = weighed & ~low & ~short
        names = np.array(table.column("target").to_pylist(), dtype=object)
        sizes = documents.column("num_bytes").to_numpy()
        result = {
            "counts": tally(documents, entered, reasons),
            "selected": _count_rows(task, part, kept),
            "picked": {
                n: [int((kept & (names == n)).sum()), int(sizes[kept & (names == n)].sum())] for n in task.targets
            },
        }
        found = part_files.write_part(path, decided, DECISIONS, print_, result)
    return {**found.result, "decisions": located(part, found)}


def _count_rows(task: SelectTask, part: int, chosen: np.ndarray) -> str:
    counts = np.zeros(task.settings["num_buckets"], dtype=np.int64)
    for piece in survivors_of(task, part, ["text"]):
        counts += task.features().bucket_counts(*task.words(piece, chosen[piece.rows], len(counts)))
    return base64.b64encode(counts.tobytes()).decode()
