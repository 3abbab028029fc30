"""retune: what other thresholds would change, from stored signals alone.

Nothing is written and no session starts: signals are facts that lie in the run's folder, so a changed preset is decided
again in this process, compared with the decisions that stand, and counted. Committing is running the rules stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io.survivors import read_labels
from refinery.recipe import Recipe
from refinery.stages import rules, rules_facts
from refinery.stages.workspace import Run, load_stage, need_stage

_WHOLE = frozenset({"select", "dedup_documents", "dedup_sentences", "mix", "pack", "train"})
"""Stages that compare documents of all parts: their joins run again as a whole, over narrow tables."""


class Change(NamedTuple):
    """Documents of one source whose outcome changes in the same way."""

    source: str
    before: str | None
    """Drop reason that stands; None = kept."""
    after: str | None
    """Drop reason under the recipe as it is now; None = kept."""
    docs: int
    bytes: int
    tokens: int | None
    """Counted where a document has been tokenized, else estimated from its source's bytes per token; None where
    nothing of the source has been tokenized."""


class Redo(NamedTuple):
    """What a later stage that stands would have to do again."""

    stage: str
    parts: tuple[int, ...]
    """Parts whose documents change for this stage."""
    whole: bool
    """Whether its joins over all parts run again too."""


@dataclass(frozen=True)
class Retuning:
    """What the recipe as it is now would change."""

    changes: tuple[Change, ...]
    """By source, largest first; documents whose outcome stays are not listed."""
    changed_parts: tuple[int, ...]
    """Parts whose decisions table would differ, in whatever column."""
    num_parts: int
    num_docs: int
    redo: tuple[Redo, ...]

    def total(self, *, kept: bool) -> tuple[int, int]:
        """Return (documents, bytes) that would newly be kept, or newly be dropped."""
        of = [c for c in self.changes if (c.after is None) == kept and (c.before is None) != kept]
        return sum(c.docs for c in of), sum(c.bytes for c in of)


def plan_retune(recipe: Recipe) -> Retuning:
    """Decide every document again from stored signals and compare with the decisions that stand.

    Raises:
        ConfigError: the rules stage has not been run; or its signals are of another version or of other documents, so
            that text would have to be read: run the stage.
    """
    standing = need_stage(recipe.workdir, rules.NAME)
    task = rules.rules_task(Run(recipe))
    standing_parts = standing.part_hashes("signals")
    changed: list[int] = []
    counted: list[_Moved] = []
    num_docs = 0
    for part in sorted(task.upstream):
        if part not in standing_parts:
            raise ConfigError(_not_current(part))
        _check_facts(task, part)
        table = rules.decide_part(task, part).decisions
        before = part_files.read_part(recipe.workdir, rules.NAME, "decisions", part)
        num_docs += table.num_rows
        if not table.cast(before.schema).equals(before):
            changed.append(part)
            counted.extend(_moved_of_part(recipe.workdir, task, part, before, table))
    ratios = _tokens_per_byte(recipe) if counted else {}
    return Retuning(_changes(counted, ratios), tuple(changed), len(task.upstream), num_docs, _redo(recipe, changed))


def _check_facts(task: rules_facts.RulesTask, part: int) -> None:
    if _stored(task, part, "signals") != rules_facts.signals_fingerprint(task, part):
        raise ConfigError(_not_current(part))
    wanted = rules_facts.lines_fingerprint(task, part) if task.line_rules else None
    if _stored(task, part, rules_facts.LEFT) != wanted:
        raise ConfigError(
            f"part {part}: the line rules, where they hold, or what is judged behind them are not those that the run's "
            "facts were made with; what a line rule cuts is known from text alone, so run `refinery rules RECIPE`, "
            "which reads it again; thresholds of document rules can then be tried with retune"
        )


def _stored(task: rules_facts.RulesTask, part: int, table: str) -> str | None:
    return part_files.part_fingerprint(part_files.part_path(task.workdir, rules.NAME, table, part))


def _not_current(part: int) -> str:
    return (
        f"part {part} has no signals of its present documents; retune reads numbers only, "
        "so run `refinery rules RECIPE` once, then change thresholds"
    )


class _Moved(NamedTuple):
    """One group of documents of one part."""

    source: str
    before: str | None
    after: str | None
    docs: int
    bytes: int
    tokens: int
    """Of the documents that are tokenized."""
    bytes_without_tokens: int


def _moved_of_part(
    workdir: str, task: rules_facts.RulesTask, part: int, before: pa.Table, after: pa.Table
) -> Iterator[_Moved]:
    old, new = before.column("drop_reason").to_pylist(), after.column("drop_reason").to_pylist()
    moved = np.array([i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b], dtype=np.int64)
    if not len(moved):
        return
    labels = read_labels(workdir, part, ["source", "num_bytes"], task.upto)
    sources, sizes = labels.column("source").to_pylist(), labels.column("num_bytes").to_numpy()
    if task.line_rules:  # what of a document would be kept, or was
        left = part_files.read_part(workdir, rules.NAME, rules_facts.LEFT, part, ["num_bytes"]).column("num_bytes")
        sizes = np.where(left.is_valid().to_numpy(), left.fill_null(0).to_numpy(), sizes)
    tokens = _stored_tokens(workdir, part, len(old))
    groups: dict[tuple[str, str | None, str | None], list[int]] = {}
    for row in moved.tolist():
        groups.setdefault((sources[row], old[row], new[row]), []).append(row)
    for (source, was, now), rows in groups.items():
        known = tokens[rows] >= 0
        yield _Moved(source, was, now, len(rows), int(sizes[rows].sum()), int(tokens[rows][known].sum()),
                     int(sizes[rows][~known].sum()))  # fmt: skip


def _stored_tokens(workdir: str, part: int, num_rows: int) -> np.ndarray:
    """Return int64, shape (rows,): tokens per document, -1 where it has not been tokenized."""
    if part not in part_files.part_numbers(workdir, "tokenize", "tokens"):
        return np.full(num_rows, -1, dtype=np.int64)
    column = part_files.read_part(workdir, "tokenize", "tokens", part, ["num_tokens"]).column("num_tokens")
    return column.fill_null(-1).to_numpy()


def _tokens_per_byte(recipe: Recipe) -> dict[str, float]:
    """Return tokens per byte of each source that the standing tokenize stage kept something of."""
    manifest = load_stage(recipe.workdir, "tokenize")
    tokens: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in manifest.counts if manifest else ():
        if row.kind == "kept":
            tokens[row.source] += row.tokens
            sizes[row.source] += row.bytes
    return {source: tokens[source] / size for source, size in sizes.items() if size}


def _changes(moved: list[_Moved], ratios: dict[str, float]) -> tuple[Change, ...]:
    sums: dict[tuple[str, str | None, str | None], list[int]] = {}
    for group in moved:
        total = sums.setdefault(group[:3], [0, 0, 0, 0])
        for index, value in enumerate(group[3:]):
            total[index] += value
    changes = [
        Change(source, was, now, docs, size,
               None if unknown and source not in ratios else tokens + round(unknown * ratios.get(source, 0.0)))
        for (source, was, now), (docs, size, tokens, unknown) in sums.items()
    ]  # fmt: skip
    return tuple(sorted(changes, key=lambda c: (-c.bytes, c.source, c.before or "", c.after or "")))


def _redo(recipe: Recipe, changed: list[int]) -> tuple[Redo, ...]:
    order = recipe.stages()
    later = order[order.index(rules.NAME) + 1 :] if changed else []
    return tuple(
        Redo(stage, tuple(changed), stage in _WHOLE)
        for stage in later
        if stage != "report" and load_stage(recipe.workdir, stage) is not None
    )


def retuning_json(found: Retuning) -> dict[str, Any]:
    """Return a retuning as one JSON-able value."""
    return {
        "documents": found.num_docs,
        "parts": found.num_parts,
        "changed_parts": list(found.changed_parts),
        "changes": [c._asdict() for c in found.changes],
        "redo": [r._asdict() | {"parts": list(r.parts)} for r in found.redo],
    }
