"""Show what a similarity threshold would do: pairs of a sample by similarity, and pairs whose right answer is known.

Runs in one process over the text as dedup_sentences sees it; nothing is cut. A person reads the pairs and picks the
threshold, `refinery.report.calibration` writes the page.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refinery.errors import ConfigError
from refinery.hashing import key_prefix_uint64, keyed_uint64, splitmix64_array
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.planted_sentences import DIFFERENT, planted_pairs
from refinery.kernels.sentence_guard import veto
from refinery.kernels.sentences import is_block, normalised_hash, sentence_spans
from refinery.kernels.text import text_views
from refinery.recipe import Embeddings, Recipe
from refinery.stages.sentence_repeats import pool_mask
from refinery.stages.workspace import decision_stages, need_stage

EDGES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.000001)
"""Bins of similarity: lower bounds, and the end of the last."""
MAX_PARTS = 16
_CELL_ROWS = 20_000


@dataclass(frozen=True)
class Sampled:
    """Sentences that were drawn, each once."""

    texts: list[str]
    num_documents: int


def calibration(recipe: Recipe, sentences: int, pairs: int) -> dict[str, Any]:
    """Embed a sample and compare it with itself.

    Args:
        recipe: its stages before dedup_sentences have run.
        sentences: most sentences of the sample.
        pairs: most pairs shown per bin.
    Returns: JSON-able: model, threshold, bins with pairs, planted pairs with verdicts and a summary.

    Raises:
        ConfigError: an earlier stage has not run, no sentence is left to compare, or the model does not fit.
    """
    from refinery.gpu.embed import worker_embedder  # noqa: PLC0415 - torch, only here
    from refinery.gpu.kmeans import assign_cells, spherical_kmeans  # noqa: PLC0415
    from refinery.gpu.neighbours import pairs_in_cells  # noqa: PLC0415

    section = recipe.dedup_sentences
    settings = section.embeddings if section is not None and section.embeddings != "off" else Embeddings()
    sample = _sampled(recipe, settings, sentences)
    if len(sample.texts) < 2:
        raise ConfigError(
            f"{len(sample.texts)} sentences of {', '.join(settings.languages)} are left to compare; look at "
            "embeddings.languages and min_words, or ingest more"
        )
    embedder = worker_embedder(settings.model, settings.device, settings.revision)
    for language in settings.languages if len(settings.languages) == 1 else ():
        embedder.check_language(language, sample.texts[:200])
    vectors = embedder.encode(sample.texts)
    cells = np.zeros((len(vectors), 1), dtype=np.int32)
    if len(vectors) > _CELL_ROWS:
        centroids = spherical_kmeans(vectors, len(vectors) // _CELL_ROWS + 1, seed=recipe.seed % 2**31)
        cells = assign_cells(vectors, centroids, num_probe=2, device=settings.device)
    found = pairs_in_cells(vectors, cells, EDGES[0], device=settings.device)
    identity = splitmix64_array(found.left.view(np.uint64) << np.uint64(32) | found.right.view(np.uint64))
    order = np.argsort(keyed_uint64(recipe.seed, "calibration", identity), kind="stable")
    bins = []
    for low, high in itertools.pairwise(EDGES):
        mine = order[(found.similarity[order] >= low) & (found.similarity[order] < high)]
        shown = [
            _shown(sample.texts[found.left[k]], sample.texts[found.right[k]], float(found.similarity[k]))
            for k in mine[:pairs].tolist()
        ]
        bins.append({"low": low, "high": min(high, 1.0), "count": len(mine), "pairs": sorted_pairs(shown)})
    return {
        "name": recipe.name, "model": settings.model, "languages": list(settings.languages),
        "similarity": settings.similarity, "num_sentences": len(sample.texts), "num_documents": sample.num_documents,
        "bins": bins, "planted": _planted(embedder, settings),
    }  # fmt: skip


def sorted_pairs(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return pairs by falling similarity; ties by text."""
    return sorted(pairs, key=lambda p: (-p["similarity"], p["left"], p["right"]))


def _shown(left: str, right: str, similarity: float) -> dict[str, Any]:
    return {"left": left, "right": right, "similarity": round(similarity, 4), "vetoed": veto(left, right)}


def _planted(embedder: Any, settings: Embeddings) -> list[dict[str, Any]]:
    """Return, per language and kind, the planted pairs with their similarity and the guard's verdict."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = planted_pairs(settings.languages)
    texts = [text for row in rows for text in (row.left, row.right)]
    vectors = embedder.encode(texts)
    for k, row in enumerate(rows):
        similarity = float(vectors[2 * k].astype(np.float64) @ vectors[2 * k + 1])
        found.setdefault((row.language, row.kind), []).append(_shown(row.left, row.right, similarity))
    told = []
    for (language, kind), pairs in found.items():
        above = [pair for pair in pairs if pair["similarity"] >= settings.similarity]
        told.append(
            {
                "language": language,
                "kind": kind,
                "same": kind not in DIFFERENT,
                "count": len(pairs),
                "above": len(above),
                "caught": sum(pair["vetoed"] > 0 for pair in above),
                "caught_of_all": sum(pair["vetoed"] > 0 for pair in pairs),
                "pairs": sorted_pairs(pairs),
            }
        )
    return told


def _sampled(recipe: Recipe, settings: Embeddings, count: int) -> Sampled:
    """Return sentences of pool documents in an order by hash of their documents, each normalised sentence once."""
    section = recipe.dedup_sentences
    exempt = {"exempt_domains": list(section.exempt_domains) if section is not None else []}
    upto = tuple(decision_stages(recipe, "dedup_sentences"))
    for stage in ("ingest", *upto):
        need_stage(recipe.workdir, stage)
    parts = np.array(part_files.part_numbers(recipe.workdir, "ingest", "documents"), dtype=np.uint64)
    parts = parts[np.argsort(keyed_uint64(recipe.seed, "calibration", parts), kind="stable")][:MAX_PARTS]
    columns = ["doc_id", "doc_key", "role", "domain", "split", "lang", "text"]
    found: list[tuple[int, str, int, str]] = []
    for part in parts.tolist():
        for piece in read_survivors(recipe.workdir, int(part), columns, upto, 4096):
            table = piece.table
            known = pc.is_in(table.column("lang"), pa.array(settings.languages, pa.string()))
            table = table.filter(pc.and_(pool_mask(exempt, table), known))
            ranks = keyed_uint64(recipe.seed, "calibration", key_prefix_uint64(table.column("doc_key").to_pylist()))
            chosen = np.sort(np.argsort(ranks, kind="stable")[:count])
            found += _sentences_of(table.take(pa.array(chosen)), ranks[chosen], settings)
    texts: dict[int, str] = {}
    documents: set[str] = set()
    for _, key, hash_, text in sorted(found, key=lambda row: row[:2]):
        if len(texts) >= count:
            break
        if texts.setdefault(hash_, text) == text:
            documents.add(key)
    return Sampled(list(texts.values()), len(documents))


def _sentences_of(table: pa.Table, ranks: np.ndarray, settings: Embeddings) -> list[tuple[int, str, int, str]]:
    views = text_views(table.column("text"))
    spans = sentence_spans(views)
    hashed = normalised_hash(views, spans)
    good = np.flatnonzero((hashed.num_words >= settings.min_words) & (hashed.num_words <= settings.max_words))
    owner = np.searchsorted(spans.doc_offsets, good, side="right") - 1
    keys = table.column("doc_key").to_pylist()
    rows = []
    for at, doc in zip(good.tolist(), owner.tolist(), strict=True):
        first = views.offsets[doc]
        text = bytes(views.data[first + spans.starts[at] : first + spans.ends[at]]).decode()
        if not is_block(text):
            rows.append((int(ranks[doc]), keys[doc], int(hashed.hashes[at]), text.strip()))
    return rows
