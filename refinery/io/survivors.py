"""How a stage sees text: the documents of a part that earlier stages kept, with earlier cuts taken out.

This is the one way to text after ingest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from refinery.errors import SchemaError
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.kernels.boundaries import cut_boundaries, pack_boundaries, unpack_boundaries
from refinery.kernels.cuts import kept_bytes, without_bytes
from refinery.kernels.text import TextViews, text_views

WORDS = "words"
"""Column name under which `read_survivors` hands out stored word boundaries."""


@dataclass(frozen=True)
class Survivors:
    """A slice of one part's surviving documents."""

    rows: np.ndarray
    """int64: row numbers inside the part."""
    table: pa.Table
    """The columns asked for, text included, cuts applied; row i belongs to ``rows[i]``."""
    is_cut: bool = False
    """Whether earlier cuts took something out of a text of the slice: `text_hash` is that of the text as ingested."""

    def boundaries(self, views: TextViews) -> np.ndarray | None:
        """Return the word boundaries of the text, for `words.word_spans`, `signals.signals` and their like.

        Args:
            views: of the table's text column.
        Returns: uint8, shape of `views.data`; None where the column ``words`` was not asked for, or no document of
            the slice holds Han: then every Han and kana character is a word.
        """
        if WORDS not in self.table.column_names:
            return None
        packed = self.table.column(WORDS)
        return unpack_boundaries(views, packed) if packed.null_count < len(packed) else None


def keep_mask(workdir: str, part: int, num_rows: int, upto: Sequence[str]) -> np.ndarray:
    """Return bool, shape (rows,): True where no stage of `upto` dropped the document."""
    mask = np.ones(num_rows, dtype=bool)
    for stage in upto:
        keep = part_files.read_part(workdir, stage, "decisions", part, ["keep"]).column("keep")
        mask &= keep.fill_null(True).to_numpy(zero_copy_only=False)
    return mask


def read_labels(workdir: str, part: int, columns: Sequence[str], upto: Sequence[str]) -> pa.Table:
    """Read narrow document columns of a whole part as a stage sees them.

    ``lang`` is the detected language once `screen` has run; ``num_bytes`` is what earlier cuts left.
    """
    table = part_files.read_part(workdir, "ingest", "documents", part, columns)
    table = _with_language(workdir, part, table, upto)
    cuts = read_cuts(workdir, part, upto) if "num_bytes" in columns else None
    if cuts is None:
        return table
    left = table.column("num_bytes").to_numpy().copy()
    lengths = cuts.column("end").to_numpy() - cuts.column("start").to_numpy()
    np.subtract.at(left, cuts.column("doc_id").to_numpy() & 0xFFFFFFFF, lengths)
    return table.set_column(table.column_names.index("num_bytes"), "num_bytes", pa.array(left))


def _with_language(
    workdir: str, part: int, table: pa.Table, upto: Sequence[str], rows: np.ndarray | None = None
) -> pa.Table:
    if "screen" not in upto or "lang" not in table.column_names:
        return table
    lang = part_files.read_part(workdir, "screen", "language", part, ["lang"]).column("lang")
    lang = lang if rows is None else lang.take(pa.array(rows))
    return table.set_column(table.column_names.index("lang"), "lang", lang)


def read_survivors(
    workdir: str, part: int, columns: Sequence[str], upto: Sequence[str], slice_rows: int
) -> Iterator[Survivors]:
    """Read a part's surviving documents in slices of at most `slice_rows` rows.

    Args:
        workdir: the run's folder.
        part: part number.
        columns: document columns; ``text`` comes with every earlier cut applied, and beside it ``num_bytes`` is what
            they left; ``lang`` as `read_labels` has it, ``text_hash`` and ``num_chars`` as ingested.
            ``words`` beside ``text``: the bitmaps of its word boundaries that rules stored (large_binary, null for
            documents without Han), cuts applied, the first byte after a cut starting a word.
        upto: deciding stages before the caller, in order.
        slice_rows: documents per slice; bounds memory, never changes results.
    Raises:
        IntegrityError: the part is missing or damaged, or a cut does not fit. SchemaError: a column is missing, or
            ``words`` is asked for without ``text``.
    """
    if WORDS in columns and "text" not in columns:
        raise SchemaError("word boundaries come with the text that they belong to; ask for the column text too")
    stored = [c for c in columns if c != WORDS]
    words = part_files.read_part(workdir, "rules", WORDS, part, ["boundaries"]) if WORDS in columns else None
    num_rows = part_files.read_part(workdir, "ingest", "documents", part, ["num_bytes"]).num_rows
    mask = keep_mask(workdir, part, num_rows, upto)
    cuts = read_cuts(workdir, part, upto)
    start = 0
    for batch in part_files.read_batches(workdir, "ingest", "documents", part, stored, slice_rows):
        rows = np.flatnonzero(mask[start : start + batch.num_rows])
        if len(rows):
            table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
            if len(rows) < batch.num_rows:
                table = table.take(rows)
            table = _with_language(workdir, part, table.select(stored), upto, rows + start)
            if words is not None:
                mine = words.column("boundaries").take(pa.array(rows + start))
                table = table.append_column(WORDS, mine).select(list(columns))
            yield _with_cuts(Survivors(rows + start, table), cuts)
        start += batch.num_rows


def read_cuts(workdir: str, part: int, upto: Sequence[str]) -> pa.Table | None:
    """Return the cuts (doc_id, start, end) that stages of `upto` made in a part; None where there are none."""
    tables = [
        part_files.read_part(workdir, stage, "cuts", part, ["doc_id", "start", "end"])
        for stage in upto
        if storage.exists(part_files.part_path(workdir, stage, "cuts", part))
    ]
    whole = pa.concat_tables(tables) if tables else None
    return whole if whole is not None and whole.num_rows else None


def _with_cuts(survivors: Survivors, cuts: pa.Table | None) -> Survivors:
    if cuts is None or "text" not in survivors.table.column_names:
        return survivors
    rows = cuts.column("doc_id").to_numpy() & 0xFFFFFFFF
    spans = (cuts.column("start").to_numpy(), cuts.column("end").to_numpy())
    views = text_views(survivors.table.column("text"))
    kept = kept_bytes(views, survivors.rows, rows, *spans)
    if kept is None:
        return survivors
    text = without_bytes(views, *kept)
    index = survivors.table.column_names.index("text")
    table = survivors.table.set_column(index, "text", text)
    if "num_bytes" in table.column_names:
        table = table.set_column(table.column_names.index("num_bytes"), "num_bytes", pa.array(kept[1]))
    flags = survivors.boundaries(views)
    if flags is not None:
        begin, end = int(views.offsets[0]), int(views.offsets[-1])
        left = cut_boundaries(flags[begin:end], kept[0])
        present = survivors.table.column(WORDS).is_valid().to_numpy()
        packed = pack_boundaries(text_views(text), left, present)
        table = table.set_column(table.column_names.index(WORDS), WORDS, packed)
    return Survivors(survivors.rows, table, is_cut=True)
