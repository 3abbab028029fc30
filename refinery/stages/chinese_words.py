"""Word boundaries of Chinese text for a stage: those that rules stored, or made on the spot.

The same either way, but where a cut lies inside a run of Han: there stored boundaries begin a word, and a fresh
segmentation may join what the cut left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refinery.io import parts as part_files
from refinery.io import storage
from refinery.io.survivors import WORDS, Survivors
from refinery.kernels.preparation import han_boundaries
from refinery.kernels.text import TextViews, text_views


def with_words(workdir: str, part: int, columns: Sequence[str], upto: Sequence[str], *, wanted: bool) -> list[str]:
    """Return the columns to read: with the stored boundaries where they are wanted and stand."""
    stored = wanted and "rules" in upto and storage.exists(part_files.part_path(workdir, "rules", WORDS, part))
    return [*columns, WORDS] if stored else list(columns)


def boundaries_of(piece: Survivors, mask: np.ndarray | None = None) -> tuple[TextViews, np.ndarray | None]:
    """Return the text of a slice, or of the rows of a mask, with its word boundaries; None where no row holds Han."""
    if mask is not None:
        rows = np.flatnonzero(mask)
        piece = Survivors(piece.rows[rows], piece.table.take(rows))
    views = text_views(piece.table.column("text"))
    return views, piece.boundaries(views) if WORDS in piece.table.column_names else han_boundaries(views)
