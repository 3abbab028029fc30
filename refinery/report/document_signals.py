"""The signals of one document, for `refinery explain`: of the text as it came in, and of what line rules left."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from refinery.contracts.tables import PART_SHIFT
from refinery.io import parts as part_files
from refinery.io import storage
from refinery.report.samples import LEFT

_ROW_MASK = (1 << PART_SHIFT) - 1
_WIDTH_CHARS = 100
_NO_BREAK = "\N{NO-BREAK SPACE}"

Signals = dict[str, dict[str, int | float]]
"""``whole`` and, where the recipe has line rules, ``left``: name -> value of what was measured."""


def signals_of(workdir: str, doc_id: int) -> Signals:
    """Return all signals that the rules stage stored of a document; empty for one that left before.

    Raises:
        IntegrityError: a part of theirs is damaged.
    """
    told: Signals = {}
    for name, table in (("whole", "signals"), ("left", LEFT)):
        if not storage.exists(part_files.part_path(workdir, "rules", table, doc_id >> PART_SHIFT)):
            continue
        part = part_files.read_part(workdir, "rules", table, doc_id >> PART_SHIFT)
        [row] = part.slice(doc_id & _ROW_MASK, 1).drop_columns(["doc_id"]).to_pylist()
        measured = {signal: value for signal, value in row.items() if value is not None}
        if measured:
            told[name] = measured
    return told


def signal_lines(told: Mapping[str, Mapping[str, int | float]], indent: int) -> list[str]:
    """Return signals as lines for people; of what line rules left, those alone that changed or were not counted before.

    Args:
        told: of `signals_of`.
        indent: blanks before every line.
    """
    whole, left = told.get("whole", {}), told.get("left", {})
    other = {name: value for name, value in left.items() if whole.get(name) != value}
    lines = _lines("signals", whole, indent)
    if left and not other:
        return [*lines, f"{'':{indent}} line rules changed none of them"]
    return [*lines, *_lines("signals of what line rules left", other, indent)]


def _lines(title: str, values: Mapping[str, int | float], indent: int) -> list[str]:
    if not values:
        return []
    told = [f"{name}{_NO_BREAK}{value:.6g}" for name, value in values.items() if value]
    nothing = [name for name, value in values.items() if not value]
    text = f"{title}: {', '.join(told)}" + ("; 0: " if nothing else "") + ", ".join(nothing)
    wrapped = textwrap.wrap(text, _WIDTH_CHARS, subsequent_indent="  ", break_on_hyphens=False)
    return [f"{'':{indent}} {line.replace(_NO_BREAK, ' ')}" for line in wrapped]
