from __future__ import annotations

import pyarrow as pa
import pytest

from refinery.contracts.tables import CUTS, DOCUMENTS, TABLES, TEXT_COLUMNS, conform
from refinery.errors import SchemaError


def test_every_table_knows_its_documents():
    of_something_else = {"edges", "candidate_pairs", "containment"}  # pairs of documents
    of_something_else |= {"items", "frequencies", "pretokens"}  # eval items, n-grams, pieces of text
    of_something_else |= {"centroids", "cells", "compared", "guards", "pairs"}  # sentences by their own number
    for name, schema in TABLES.items():
        assert ("doc_id" in schema.names) != (name in of_something_else), name


def test_documents_have_no_unsigned_or_odd_types():
    """What Spark rejects or misreads must not stand in any table: unsigned, float16, nanoseconds, fixed-size lists."""
    for name, schema in TABLES.items():
        for field in schema:
            kind = field.type
            assert not pa.types.is_unsigned_integer(kind), (name, field.name)
            assert not pa.types.is_float16(kind), (name, field.name)
            assert not pa.types.is_fixed_size_list(kind), (name, field.name)
            assert not (pa.types.is_timestamp(kind) and kind.unit == "ns"), (name, field.name)


def test_text_columns_are_known_wherever_text_is_stored():
    """A string column of 64-bit offsets is text: it must be on the list that Spark may not read."""
    for schema in TABLES.values():
        wide = {f.name for f in schema if pa.types.is_large_string(f.type)}
        assert wide <= TEXT_COLUMNS


def test_conform_orders_and_casts():
    table = pa.table({"end": pa.array([2], pa.int32()), "start": [1], "doc_id": [7], "more": ["x"], "stage": ["s"],
                      "reason": ["r"], "because_of": pa.nulls(1, pa.string())})  # fmt: skip
    made = conform(table, CUTS)
    assert made.schema.names == CUTS.names
    assert made.schema.types == CUTS.types


def test_conform_refuses_what_does_not_fit():
    with pytest.raises(SchemaError, match="lacks columns"):
        conform(pa.table({"doc_id": [1]}), CUTS)
    values = {name: pa.nulls(1, DOCUMENTS.field(name).type) for name in DOCUMENTS.names}
    with pytest.raises(SchemaError, match="does not fit"):
        conform(pa.table(values), DOCUMENTS)
