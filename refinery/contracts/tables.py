"""Arrow schemas of every table that a stage writes; `docs/data-format.md` explains them, `make schemas` exports them.

An *aligned* table has exactly its documents part's rows, in order; "not computed" is null. A *sparse* table has rows
for some documents only, sorted by ``doc_id``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from refinery.errors import SchemaError

PART_SHIFT = 32
"""``doc_id = part << PART_SHIFT | row``: an address inside one run, never an identity."""


def _schema(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in fields])


DOCUMENTS = _schema(
    ("doc_id", pa.int64(), False),
    ("doc_key", pa.string(), False),
    ("key_base", pa.string(), True),
    ("text", pa.large_string(), False),
    ("text_hash", pa.string(), False),
    ("source", pa.string(), False),
    ("domain", pa.string(), False),
    ("role", pa.string(), False),
    ("split", pa.string(), False),
    ("lang", pa.string(), True),
    ("url", pa.string(), True),
    ("date", pa.string(), True),
    ("license", pa.string(), True),
    ("meta", pa.string(), True),
    ("num_bytes", pa.int64(), False),
    ("num_chars", pa.int64(), False),
)

DECISIONS = _schema(
    ("doc_id", pa.int64(), False),
    ("keep", pa.bool_(), True),
    ("drop_reason", pa.string(), True),
    ("rule_bits", pa.int64(), False),
    ("stage", pa.string(), True),
    ("because_of", pa.string(), True),
)

CUTS = _schema(
    ("doc_id", pa.int64(), False),
    ("start", pa.int64(), False),
    ("end", pa.int64(), False),
    ("stage", pa.string(), False),
    ("reason", pa.string(), False),
    ("because_of", pa.string(), True),
)

LINE_FINDINGS = _schema(
    ("doc_id", pa.int64(), False),
    ("start", pa.int64(), False),
    ("end", pa.int64(), False),
    ("rule", pa.string(), False),
    ("action", pa.string(), False),
    ("line_rule_bits", pa.int64(), False),
)

LANGUAGE = _schema(
    ("doc_id", pa.int64(), False),
    ("lang", pa.string(), True),
    ("confidence", pa.float32(), True),
    ("second_lang", pa.string(), True),
    ("second_confidence", pa.float32(), True),
    ("han_frac", pa.float32(), True),
    ("kana_frac", pa.float32(), True),
    ("latin_frac", pa.float32(), True),
    ("cyrillic_frac", pa.float32(), True),
    ("chinese_script", pa.string(), True),
    ("other_script_frac", pa.float32(), True),
    ("chosen_lines", pa.int32(), True),
    ("other_lines", pa.int32(), True),
    ("other_lang", pa.string(), True),
)

WORDS = _schema(("doc_id", pa.int64(), False), ("boundaries", pa.large_binary(), True))

TRAINING = _schema(
    ("doc_id", pa.int64(), False), ("classifier", pa.string(), False), ("label", pa.string(), False),
    ("key", pa.int64(), False), ("line", pa.large_binary(), False),
)  # fmt: skip

QUALITY = _schema(("doc_id", pa.int64(), False), ("score", pa.float32(), True))

SCORES = _schema(("doc_id", pa.int64(), False), ("symbol_frac", pa.float32(), True))
"""And a column ``score_NAME`` per classifier: `quality_scores_schema`."""

HOLDOUT = _schema(
    ("doc_id", pa.int64(), False),
    ("source", pa.string(), False),
    ("lang", pa.string(), True),
    ("text_hash", pa.string(), False),
    ("num_bytes", pa.int64(), False),
)
"""And a column ``score_NAME`` per classifier: `quality_holdout_schema`."""

IMPORTANCE = _schema(
    ("doc_id", pa.int64(), False),
    ("log_weight", pa.float64(), True),
    ("order_key", pa.int64(), True),
    ("target", pa.string(), True),
)

SENTENCES = _schema(
    ("hash", pa.int64(), False), ("doc_id", pa.int64(), False), ("start", pa.int64(), False), ("end", pa.int64(), False)
)  # fmt: skip

LINES = _schema(
    ("hash", pa.int64(), False), ("doc_id", pa.int64(), False), ("tie", pa.int64(), False), ("rank", pa.int64(), False)
)

REPEATS = _schema(("doc_id", pa.int64(), False), ("hash", pa.int64(), False), ("because_of", pa.string(), False))

LAYOUT = _schema(
    ("doc_id", pa.int64(), False),
    ("start", pa.int64(), False),
    ("end", pa.int64(), False),
    ("hash", pa.int64(), False),
    ("words", pa.int32(), False),
    ("space", pa.int32(), False),
    ("newlines", pa.int32(), False),
    ("leans", pa.bool_(), False),
)

SENTENCE_REPEATS = _schema(
    ("doc_id", pa.int64(), False),
    ("hash", pa.int64(), False),
    ("because_of", pa.string(), False),
    ("because_doc", pa.int64(), False),
    ("because_start", pa.int64(), False),
    ("because_end", pa.int64(), False),
)

CAUSES = _schema(
    ("doc_id", pa.int64(), False),
    ("start", pa.int64(), False),
    ("end", pa.int64(), False),
    ("because_of", pa.string(), False),
    ("because_start", pa.int64(), False),
    ("because_end", pa.int64(), False),
    ("similarity", pa.float64(), False),
)

VECTORS = _schema(
    ("sentence_id", pa.int64(), False),
    ("doc_id", pa.int64(), False),
    ("start", pa.int64(), False),
    ("end", pa.int64(), False),
    ("scope", pa.int64(), False),
    ("vector", pa.large_binary(), False),
)

CENTROIDS = _schema(("cell", pa.int64(), False), ("vector", pa.large_binary(), False))

CELLS = _schema(("sentence_id", pa.int64(), False), ("cell", pa.int64(), False), ("own", pa.bool_(), False))

COMPARED = _schema(("sentence_id", pa.int64(), False))

GUARDS = _schema(("sentence_id", pa.int64(), False), ("features", pa.binary(), False))

PAIRS = _schema(("a", pa.int64(), False), ("b", pa.int64(), False), ("similarity", pa.float64(), False))

RUN_SHIFT = 55
"""In tables that join several runs, ``doc_id`` has the number of the run above this bit; the run itself is 0."""

BANDS = _schema(
    ("key", pa.int64(), False),
    ("doc_id", pa.int64(), False),
    ("tie", pa.int64(), False),
    ("scope", pa.int64(), False),
    ("held", pa.bool_(), False),
)

SIGNATURES = _schema(("doc_id", pa.int64(), False), ("signature", pa.binary(), False))

EXACT_KEYS = _schema(
    ("doc_id", pa.int64(), False),
    ("exact_key", pa.string(), False),
    ("url_key", pa.int64(), True),
    ("scope", pa.int64(), False),
    ("num_shingles", pa.int64(), False),
    ("priority", pa.int64(), False),
    ("quality", pa.float32(), True),
    ("num_bytes", pa.int64(), False),
    ("date", pa.string(), True),
    ("source", pa.string(), False),
    ("doc_key", pa.string(), False),
)

COPIES = _schema(("doc_id", pa.int64(), False), ("twin", pa.int64(), False), ("reason", pa.string(), False))

CANDIDATE_PAIRS = _schema(
    ("a", pa.int64(), False), ("b", pa.int64(), False), ("buckets", pa.int64(), False),
    ("jaccard", pa.float64(), True),
)  # fmt: skip

FLIPS = _schema(
    ("run", pa.int64(), False),
    ("doc_id", pa.int64(), False),
    ("doc_key", pa.string(), False),
    ("keep", pa.bool_(), False),
    ("drop_reason", pa.string(), True),
    ("because_of", pa.string(), True),
    ("jaccard", pa.float64(), True),
)

CANDIDATES = _schema(("doc_id", pa.int64(), False))

SHINGLES = _schema(("doc_id", pa.int64(), False), ("shingles", pa.binary(), False))

EDGES = _schema(("a", pa.int64(), False), ("b", pa.int64(), False), ("jaccard", pa.float64(), False))

CLUSTERS = _schema(
    ("doc_id", pa.int64(), False),
    ("cluster_id", pa.string(), False),
    ("size", pa.int64(), False),
    ("representative", pa.bool_(), False),
    ("drop_reason", pa.string(), True),
    ("because_of", pa.string(), True),
    ("jaccard", pa.float64(), True),
)

SAMPLED_NGRAMS = _schema(("hash", pa.int64(), False), ("doc_id", pa.int64(), False))

CONTAINMENT = _schema(
    ("a", pa.int64(), False),
    ("b", pa.int64(), False),
    ("a_key", pa.string(), False),
    ("b_key", pa.string(), False),
    ("a_split", pa.string(), False),
    ("b_split", pa.string(), False),
    ("containment", pa.float64(), False),
    ("jaccard", pa.float64(), False),
    ("a_ngrams", pa.int64(), False),
    ("b_ngrams", pa.int64(), False),
)

EVAL_ITEMS = _schema(
    ("item_number", pa.int64(), False),
    ("eval", pa.string(), False),
    ("item", pa.string(), False),
    ("field", pa.string(), False),
    ("unit", pa.string(), False),
    ("text", pa.large_string(), False),
)

MATCHES = _schema(
    ("doc_id", pa.int64(), False),
    ("word", pa.int64(), False),
    ("start", pa.int64(), False),
    ("end", pa.int64(), False),
    ("ngram", pa.int64(), False),
    ("doc_words", pa.int64(), False),
)

FREQUENCIES = _schema(("ngram", pa.int64(), False), ("num_docs", pa.int64(), False))

HITS = _schema(
    ("doc_id", pa.int64(), False),
    ("doc_key", pa.string(), False),
    ("eval", pa.string(), False),
    ("item", pa.string(), False),
    ("field", pa.string(), False),
    ("item_number", pa.int64(), False),
    ("doc_start", pa.int64(), False),
    ("doc_end", pa.int64(), False),
    ("item_start", pa.int64(), False),
    ("item_end", pa.int64(), False),
    ("item_covered_frac", pa.float64(), False),
    ("doc_covered_frac", pa.float64(), False),
    ("num_ngrams", pa.int64(), False),
    ("longest_run", pa.int64(), False),
)

TOKENS = _schema(("doc_id", pa.int64(), False), ("num_tokens", pa.int64(), True), ("ids", pa.large_binary(), True))

TOKENIZER_SAMPLE = _schema(
    ("doc_id", pa.int64(), False),
    ("domain", pa.string(), False),
    ("split", pa.string(), False),
    ("lang", pa.string(), True),
    ("text", pa.large_string(), False),
)

PRETOKENS = _schema(("pretoken", pa.large_binary(), False), ("occurrences", pa.int64(), False))

SELECTION = _schema(("doc_id", pa.int64(), False), ("stream", pa.string(), True))

TABLES: dict[str, pa.Schema] = {
    "documents": DOCUMENTS,
    "decisions": DECISIONS,
    "cuts": CUTS,
    "line_findings": LINE_FINDINGS,
    "language": LANGUAGE,
    "words": WORDS,
    "training": TRAINING,
    "quality": QUALITY,
    "scores": SCORES,
    "holdout": HOLDOUT,
    "importance": IMPORTANCE,
    "weights": IMPORTANCE,
    "sentences": SENTENCES,
    "lines": LINES,
    "layout": LAYOUT,
    "line_repeats": REPEATS,
    "sentence_repeats": SENTENCE_REPEATS,
    "causes": CAUSES,
    "vectors": VECTORS,
    "centroids": CENTROIDS,
    "cells": CELLS,
    "compared": COMPARED,
    "guards": GUARDS,
    "pairs": PAIRS,
    "bands": BANDS,
    "signatures": SIGNATURES,
    "exact_keys": EXACT_KEYS,
    "candidates": CANDIDATES,
    "shingles": SHINGLES,
    "edges": EDGES,
    "copies": COPIES,
    "candidate_pairs": CANDIDATE_PAIRS,
    "flips": FLIPS,
    "clusters": CLUSTERS,
    "sampled_ngrams": SAMPLED_NGRAMS,
    "containment": CONTAINMENT,
    "items": EVAL_ITEMS,
    "matches": MATCHES,
    "frequencies": FREQUENCIES,
    "hits": HITS,
    "sample": TOKENIZER_SAMPLE,
    "pretokens": PRETOKENS,
    "tokens": TOKENS,
    "selection": SELECTION,
}

TEXT_COLUMNS = frozenset({"text"})
"""Columns that no Spark scan may ever read."""


def quality_scores_schema(classifiers: Sequence[str]) -> pa.Schema:
    """Return the schema of ``quality/scores`` for classifiers of these names."""
    return _with_scores(SCORES, classifiers)


def quality_holdout_schema(classifiers: Sequence[str]) -> pa.Schema:
    """Return the schema of ``quality/holdout`` for classifiers of these names."""
    return _with_scores(HOLDOUT, classifiers)


def _with_scores(schema: pa.Schema, classifiers: Sequence[str]) -> pa.Schema:
    for name in classifiers:
        schema = schema.append(pa.field(f"score_{name}", pa.float32()))
    return schema


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the declared columns, order and types.

    Raises:
        SchemaError: a declared column is missing, or a value does not fit the declared type.
    """
    present = set(table.column_names)  # each look at the property makes the list anew
    missing = [name for name in schema.names if name not in present]
    if missing:
        raise SchemaError(f"table lacks columns {missing}; it has {table.column_names}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise SchemaError(f"table does not fit its schema: {error}") from error


def schema_as_json(schema: pa.Schema) -> list[dict[str, object]]:
    """Return a schema as plain JSON: one object per column, in order."""
    return [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema]
