"""The held-out documents of an ablation, and the training documents without their twins.

Every arm, the raw one included, is measured on the same text: validation documents (and a user's own set) that pass
the recipe's screen and rules, one of each group of near-duplicates. Whatever stands in a group with one of them leaves
the training documents of every arm, so that no arm wins by having seen what it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from refinery.contracts.manifest import StageManifest, fingerprint_of, merge_counts
from refinery.contracts.tables import DOCUMENTS, PART_SHIFT
from refinery.errors import DataError, IntegrityError
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.io.survivors import keep_mask, read_survivors
from refinery.kernels.text import text_views
from refinery.recipe import DedupDocuments, Recipe
from refinery.shards.manifest import FileHash, PartEntry, StreamKey
from refinery.stages import dedup_documents, ingest, rules, screen
from refinery.stages.ablate_arms import recipe_with
from refinery.stages.decisions import located
from refinery.stages.pack import PackTask, pack_shard, read_entry
from refinery.stages.tallies import TALLY_COLUMNS, tally
from refinery.stages.workspace import Run, commit_stage, need_stage, part_entries, up_to_date
from refinery.tokenization.encode import open_encoder
from refinery.tokenization.info import load_info

VERSION = 1
MANY_LANGUAGES = "mul"
"""Language of a held-out stream: one stream per domain, whatever its languages (ISO 639-2)."""
_CHECKS = (("screen", screen.run), ("rules", rules.run))


def divide(run: Run, root: Path, recipe: Recipe, own: Sequence[str]) -> tuple[Run, Run]:
    """Ingest once, then divide into training documents and clean held-out ones.

    Args:
        run: gives the session.
        root: folder of the ablation.
        recipe: with the user's own set among its inputs.
        own: sources of the user's set: held out whole, and taken as they are.
    Returns: (run whose ingest holds the training documents, run whose stages hold the held-out ones).

    Raises:
        DataError: nothing is left to validate on.
    """
    compare = recipe.dedup_documents or DedupDocuments()
    source = _run_like(run, recipe_with(recipe, root / "source", ("dedup_documents",), dedup_documents=compare))
    ingest.run(source)
    dedup_documents.run(source)
    clusters = _clusters(source.workdir)
    candidates = _candidates(source.workdir, set(own), clusters)
    held = _run_like(run, _held_out_recipe(recipe, root / "heldout", own))
    _write_subset(source, held, candidates, "validation")
    for name, stage in _CHECKS:
        if name in held.recipe.stages():
            stage(held)
    clean = _clean_rows(held, candidates)
    if not any(len(rows) for rows in clean.values()):
        raise DataError(
            f"no held-out document passes screen and rules (of {sum(map(len, candidates.values()))}); raise "
            "ingest.validation_frac, or give a set of your own with --heldout"
        )
    training = _training_rows(source.workdir, set(own), clean, clusters)
    trained = _run_like(run, recipe_with(recipe, root / "train", ()))
    _write_subset(source, trained, training, "train")
    return trained, held


def _run_like(run: Run, recipe: Recipe) -> Run:
    other = Run(recipe, progress=run.progress, slice_rows=run.slice_rows)
    other.use_session(run.spark)
    return other


def _held_out_recipe(recipe: Recipe, folder: Path, own: Sequence[str]) -> Recipe:
    """Return the recipe that cleans held-out documents; the user's set is exempt."""
    exempt = {i.domain for i in recipe.inputs if i.source in own}
    sections: dict[str, Any] = {}
    if recipe.screen is not None:
        domains = tuple(sorted({*recipe.screen.exempt_domains, *exempt}))
        sections["screen"] = recipe.screen.model_copy(update={"exempt_domains": domains})
    if recipe.rules is not None:
        by_domain = {**recipe.rules.by_domain, **dict.fromkeys(exempt, ())}
        sections["rules"] = recipe.rules.model_copy(update={"by_domain": by_domain})
    return recipe_with(recipe, folder, ("screen", "rules"), **sections)


def _clusters(workdir: str) -> dict[int, str]:
    """Return document -> its group of duplicates, of the documents that have any."""
    found: dict[int, str] = {}
    for part in part_files.part_numbers(workdir, "dedup_documents", "clusters"):
        table = part_files.read_part(workdir, "dedup_documents", "clusters", part, ["doc_id", "cluster_id"])
        found |= dict(zip(table.column("doc_id").to_pylist(), table.column("cluster_id").to_pylist(), strict=True))
    return found


def _labelled(workdir: str, own: set[str]) -> Iterator[tuple[int, pa.Table, np.ndarray]]:
    """Yield part, its narrow columns and which rows may be held out."""
    for part in sorted(need_stage(workdir, "ingest").part_hashes("documents")):
        table = part_files.read_part(workdir, "ingest", "documents", part, ["doc_id", "doc_key", "split", "source"])
        mine = np.isin(table.column("source").to_numpy(), list(own)) if own else np.zeros(table.num_rows, bool)
        yield part, table, mine | (table.column("split").to_numpy() == "validation")


def _candidates(workdir: str, own: set[str], clusters: dict[int, str]) -> dict[int, np.ndarray]:
    """Return the rows to hold out by part: of a group one only, the user's first, then by key."""
    best: dict[str, tuple[bool, str, int]] = {}
    rows: list[tuple[int, str | None]] = []
    for _, table, wanted in _labelled(workdir, own):
        for row in table.filter(pa.array(wanted)).to_pylist():
            group = clusters.get(row["doc_id"])
            rows.append((row["doc_id"], group))
            if group is not None:
                mine = (row["source"] not in own, row["doc_key"], row["doc_id"])
                best[group] = min(best.get(group, mine), mine)
    chosen = sorted(doc for doc, group in rows if group is None or best[group][2] == doc)
    return _by_part(chosen)


def _by_part(doc_ids: Sequence[int]) -> dict[int, np.ndarray]:
    ids = np.array(doc_ids, dtype=np.int64)
    return {int(p): ids[ids >> PART_SHIFT == p] & 0xFFFFFFFF for p in np.unique(ids >> PART_SHIFT)}


def _clean_rows(held: Run, candidates: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return the rows, in numbers of the source, of held-out documents that pass screen and rules."""
    upto = [name for name, _ in _CHECKS if name in held.recipe.stages()]
    return {p: rows[keep_mask(held.workdir, p, len(rows), upto)] for p, rows in candidates.items()}


def _training_rows(
    workdir: str, own: set[str], clean: dict[int, np.ndarray], clusters: dict[int, str]
) -> dict[int, np.ndarray]:
    """Return the rows to train on by part: neither held out nor a twin of a clean held-out document."""
    ids = [(part << PART_SHIFT) | int(row) for part, rows in clean.items() for row in rows]
    seen = {clusters[doc] for doc in ids if doc in clusters}
    twins = _by_part(sorted(doc for doc, group in clusters.items() if group in seen))
    chosen = {}
    for part, _, held_out in _labelled(workdir, own):
        mask = ~held_out
        mask[twins.get(part, np.empty(0, np.int64))] = False
        if mask.any():
            chosen[part] = np.flatnonzero(mask)
    return chosen


def _write_subset(source: Run, target: Run, chosen: dict[int, np.ndarray], split: str) -> StageManifest:
    """Write some rows of an ingest as the ingest of another run, as one split; parts without rows are left out."""
    started = time.monotonic()
    before = need_stage(source.workdir, "ingest")
    hashes = before.part_hashes("documents")
    prints = {p: fingerprint_of("subset", VERSION, hashes[p], rows.tolist(), split) for p, rows in chosen.items()}
    fingerprint = fingerprint_of("subset", VERSION, prints)
    done = up_to_date(target.workdir, "ingest", fingerprint)
    if done is not None:
        return done
    results = [_subset_part(source.workdir, target.workdir, p, chosen[p], (prints[p], split)) for p in sorted(chosen)]
    manifest = StageManifest(
        stage="ingest",
        fingerprint=fingerprint,
        algorithm_version=VERSION,
        recipe_slice=before.recipe_slice,
        inputs={"ingest": before.content_hash},
        parts=part_entries("documents", results, "documents"),
        counts=merge_counts(r["counts"] for r in results),
        facts=before.facts,
    )
    return commit_stage(target, manifest, started)


def _subset_part(source: str, target: str, part: int, rows: np.ndarray, key: tuple[str, str]) -> dict[str, Any]:
    path = part_files.part_path(target, "ingest", "documents", part)
    found = part_files.found_part(path, key[0])
    if found is None:
        table = part_files.read_part(source, "ingest", "documents", part).take(pa.array(rows))
        numbers = (part << PART_SHIFT) | np.arange(len(rows), dtype=np.int64)
        replaced = {"doc_id": pa.array(numbers), "split": pa.array([key[1]] * len(rows), pa.string())}
        for name, column in replaced.items():
            table = table.set_column(table.column_names.index(name), name, column)
        result = {"counts": tally(table.select(list(TALLY_COLUMNS)), None, None)}
        found = part_files.write_part(path, table, DOCUMENTS, key[0], result)
    return {**found.result, "documents": located(part, found)}


def write_heldout_shards(
    held: Run, tokenizer: Path, max_rows: int
) -> tuple[Path, dict[StreamKey, list[PartEntry]], dict[str, int]]:
    """Pack the clean held-out documents, one validation stream per domain.

    Args:
        held: from `divide`.
        tokenizer: the vocabulary of all arms.
        max_rows: rows of tokens per domain; of larger domains the documents with the smallest keys.
    Returns: (folder of the streams, manifest entries, documents per stream).
    """
    pack = held.recipe.pack
    settings = pack.model_dump(mode="json") if pack else {}
    documents = _held_out_tokens(held, tokenizer, max_rows * settings["sequence_length"])
    sha256 = load_info(str(tokenizer)).sha256
    chosen = sorted((stream, keys) for stream, (keys, _) in documents.items())
    made = fingerprint_of("heldout", VERSION, settings, sha256, chosen)
    streams = dict.fromkeys(documents, 1)
    task = PackTask(held.workdir, held.recipe.seed, settings, made, str(tokenizer), sha256, streams, frozenset())
    entries: dict[StreamKey, list[PartEntry]] = {}
    for stream, (keys, ids) in sorted(documents.items()):
        shard = f"{stream}/part-00000"
        body = read_entry(task, shard)
        if body is None:
            rows = {"shard": [shard] * len(keys), "doc_key": keys, "ids": pa.array(ids, pa.binary())}
            pack_shard(task, pa.table(rows))
            body = read_entry(task, shard)
        if body is None:
            raise IntegrityError(f"held-out shard {shard} is not there after it was written; look at the disk")
        files = {suffix: FileHash(**facts) for suffix, facts in body["entry"]["files"].items()}
        domain, role, lang, bucket, split = stream.rsplit("/", 4)
        key = StreamKey(domain=domain, role=role, lang=lang, weight_bucket=int(bucket[1:]), split=split)
        entries[key] = [PartEntry(**{**body["entry"], "files": files})]
    return task.folder, entries, {stream: len(keys) for stream, (keys, _) in documents.items()}


def _held_out_tokens(held: Run, tokenizer: Path, max_tokens: int) -> dict[str, tuple[list[str], list[bytes]]]:
    """Return keys and ids of the documents of each held-out stream, cut to a budget by hash of the key."""
    encoder = open_encoder(str(tokenizer))
    upto = [name for name, _ in _CHECKS if name in held.recipe.stages()]
    found: dict[str, list[tuple[str, bytes]]] = {}
    for part in sorted(need_stage(held.workdir, "ingest").part_hashes("documents")):
        columns = ["doc_key", "domain", "role", "text"]
        for piece in read_survivors(held.workdir, part, columns, upto, held.slice_rows):
            encoded = encoder.encode_batch(text_views(piece.table.column("text")))
            ids = encoded.ids.astype(encoder.dtype.newbyteorder("<"), copy=False)
            names = piece.table.select(["domain", "role", "doc_key"]).to_pylist()
            for i, row in enumerate(names):
                key = StreamKey(
                    domain=row["domain"], role=row["role"], lang=MANY_LANGUAGES, weight_bucket=0, split="validation"
                )
                body = ids[encoded.offsets[i] : encoded.offsets[i + 1]].tobytes()
                found.setdefault(key.name, []).append((row["doc_key"], body))
    return {name: _smallest_keys(rows, held.recipe.seed, max_tokens * encoder.dtype.itemsize)
            for name, rows in found.items()}  # fmt: skip


def _smallest_keys(rows: list[tuple[str, bytes]], seed: int, max_bytes: int) -> tuple[list[str], list[bytes]]:
    draws = keyed_uint64(seed, "heldout", key_prefix_uint64([key for key, _ in rows]))
    order = np.argsort(draws, kind="stable")
    before = np.cumsum([0, *(len(rows[i][1]) for i in order[:-1])])
    chosen = [rows[i] for i in order[before < max_bytes]]
    return [key for key, _ in chosen], [ids for _, ids in chosen]
