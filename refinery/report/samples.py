"""Documents to read: for each reason a few that left, duplicates beside their twin, and a few that were just spared.

The choice is a function of the documents' keys alone, so the same run always shows the same ones. Reads are bounded:
narrow columns of at most `MAX_PARTS` parts choose, then single row groups give the text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refinery.contracts.manifest import StageManifest
from refinery.contracts.tables import PART_SHIFT
from refinery.hashing import key_prefix_uint64, keyed_uint64
from refinery.io import parts as part_files
from refinery.io import storage

MAX_EXCERPT_CHARS = 1500
MAX_DIFF_CHARS = 6000
"""Characters of each of two twins that are compared: about a thousand words, 20 ms a pair."""
LOW_SCORE = "quality.low_score"
LEFT = "signals_left"
"""Table of the signals of what line rules left."""
MAX_PARTS = 256
"""Parts looked at, spread evenly over a larger run."""
_CONTEXT_WORDS = 24
_ROW_MASK = (1 << PART_SHIFT) - 1
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|\s+|[^\w\s]|_")


@dataclass(frozen=True)
class Sample:
    """One document to read."""

    doc_id: int
    doc_key: str
    reason: str
    source: str = ""
    url: str = ""
    num_bytes: int = 0
    excerpt: str = ""
    shortened: bool = False
    because_of: str = ""
    jaccard: float | None = None
    signal: str = ""
    value: float | None = None
    """The signal's value, where a rule decided on one."""
    diff: Sequence[tuple[str, str]] = ()
    """(same | removed | added | skipped, text) from this document to its twin."""


@dataclass(frozen=True)
class RuleBound:
    """The bounds of one rule, as the rules stage applied them."""

    name: str
    signal: str
    min: float | None
    max: float | None
    citation: str = ""
    stage: str = "rules"
    table: str = "signals"
    """Where the signal stands."""


@dataclass(frozen=True)
class Spared:
    """Kept documents nearest to the bound of a rule, and how its signal is spread."""

    bound: RuleBound
    samples: Sequence[Sample]
    edges: Sequence[float]
    heights: Sequence[int]
    """Documents per bin; len(edges) - 1."""


def rule_bounds(manifest: StageManifest | None, domain: str | None = None) -> list[RuleBound]:
    """Return the bounds that a finished rules stage used, in rule order.

    Where a recipe has line rules, a bound's table says which text the rule judges in a domain; without one, it is what
    line rules left wherever any domain judges that.
    """
    if manifest is None:
        return []
    given = manifest.recipe_slice.get("rules", [])
    names = manifest.facts.get("rule_names", [r.get("name", "") for r in given])
    after = manifest.recipe_slice.get("after_lines", {})
    bits = after.get(domain, 0) if domain is not None else _union(after.values())
    return [
        RuleBound(
            name, r.get("signal", ""), r.get("min"), r.get("max"), str(r.get("source", "")),
            table=LEFT if bits >> index & 1 else "signals",
        )
        for index, (name, r) in enumerate(zip(names, given, strict=False))
    ]  # fmt: skip


def _union(masks: Iterable[int]) -> int:
    bits = 0
    for mask in masks:
        bits |= mask
    return bits


def known_bounds(manifests: Mapping[str, StageManifest]) -> dict[str, RuleBound]:
    """Return by drop reason every bound that a stage applied to a number it keeps: rules, and the quality score."""
    bounds = {bound.name: bound for bound in rule_bounds(manifests.get("rules"))}
    quality = manifests.get("quality")
    if quality is not None and quality.facts.get("threshold") is not None:
        threshold = float(quality.facts["threshold"])
        bounds[LOW_SCORE] = RuleBound(LOW_SCORE, "score", threshold, None, stage="quality", table="quality")
    return bounds


def chosen_parts(manifest: StageManifest, table: str) -> list[int]:
    """Return at most `MAX_PARTS` part numbers of a stage's table, spread evenly."""
    numbers = sorted(manifest.part_hashes(table))
    step = -(-len(numbers) // MAX_PARTS) or 1
    return numbers[::step]


def read_samples(workdir: str, manifests: Mapping[str, StageManifest], count: int) -> dict[str, list[Sample]]:
    """Return up to `count` dropped documents of each reason, the ones with the smallest hash of their key.

    Args:
        workdir: the run's folder.
        manifests: finished stages; those with a decisions table are asked.
        count: documents per reason.
    """
    best: dict[str, list[tuple[int, Sample]]] = {}
    for manifest in manifests.values() if count else ():
        for part in chosen_parts(manifest, "decisions"):
            for rank, sample in _dropped(workdir, manifest.stage, part, count):
                best.setdefault(sample.reason, []).append((rank, sample))
        for reason, found in best.items():
            best[reason] = sorted(found, key=lambda f: (f[0], f[1].doc_key))[:count]
    bounds = known_bounds(manifests)
    samples = [_with_value(workdir, s, bounds) for found in best.values() for _, s in found]
    samples = read_texts(workdir, samples)
    samples = with_twins(workdir, samples, manifests.get("ingest"))
    grouped: dict[str, list[Sample]] = {reason: [] for reason in best}
    for sample in samples:
        grouped[sample.reason].append(sample)
    return grouped


def _dropped(workdir: str, stage: str, part: int, count: int) -> list[tuple[int, Sample]]:
    columns = ["doc_id", "keep", "drop_reason", "because_of"]
    table = part_files.read_part(workdir, stage, "decisions", part, columns)
    rows = np.flatnonzero(pc.equal(table.column("keep"), False).fill_null(False).to_numpy(zero_copy_only=False))
    if not len(rows):
        return []
    table = table.take(pa.array(rows))
    keys = (
        part_files.read_part(workdir, "ingest", "documents", part, ["doc_key"]).column("doc_key").take(pa.array(rows))
    )
    ranks = keyed_uint64(0, "report", key_prefix_uint64(keys.to_pylist()))
    reasons = table.column("drop_reason").to_numpy(zero_copy_only=False)
    found: list[tuple[int, Sample]] = []
    for reason in np.unique(reasons.astype(str)):
        mine = np.flatnonzero(reasons == reason)
        for at in mine[np.argsort(ranks[mine], kind="stable")[:count]].tolist():
            because = table.column("because_of")[at].as_py() or ""
            sample = Sample(table.column("doc_id")[at].as_py(), keys[at].as_py(), str(reason), because_of=because)
            found.append((int(ranks[at]), sample))
    return found


def _with_value(workdir: str, sample: Sample, bounds: Mapping[str, RuleBound]) -> Sample:
    bound = bounds.get(sample.reason)
    if bound is None:
        return sample
    part, row = sample.doc_id >> PART_SHIFT, sample.doc_id & _ROW_MASK
    table = part_files.read_part(workdir, bound.stage, bound.table, part, [bound.signal])
    return replace(sample, signal=bound.signal, value=_number(table.column(0)[row].as_py()))


def _number(value: float | bool | None) -> float | None:
    return None if value is None else float(value)


def read_texts(workdir: str, samples: Sequence[Sample], max_chars: int = MAX_EXCERPT_CHARS) -> list[Sample]:
    """Fill in source, address and the beginning of the text (as ingested); each row group is read once."""
    wanted: dict[int, list[int]] = {}
    for sample in samples:
        wanted.setdefault(sample.doc_id >> PART_SHIFT, []).append(sample.doc_id & _ROW_MASK)
    found: dict[int, dict[str, object]] = {}
    for part, rows in sorted(wanted.items()):
        found |= _read_rows(workdir, part, sorted(set(rows)), max_chars)
    return [replace(s, **found[s.doc_id]) for s in samples]  # type: ignore[arg-type]


def _read_rows(workdir: str, part: int, rows: Sequence[int], max_chars: int) -> dict[int, dict[str, object]]:
    columns = ["text", "source", "url", "num_bytes", "num_chars"]
    found: dict[int, dict[str, object]] = {}
    with storage.open_input(part_files.part_path(workdir, "ingest", "documents", part)) as file:
        reader = pq.ParquetFile(file)
        first = 0
        for group in range(reader.num_row_groups):
            size = reader.metadata.row_group(group).num_rows
            mine = [row for row in rows if first <= row < first + size]
            if mine:
                table = reader.read_row_group(group, columns=columns).take(pa.array([row - first for row in mine]))
                short = pc.utf8_slice_codeunits(table.column("text"), 0, max_chars)
                table = table.set_column(0, "text", short)
                for row, values in zip(mine, table.to_pylist(), strict=True):
                    found[(part << PART_SHIFT) | row] = {
                        "excerpt": values["text"],
                        "shortened": values["num_chars"] > max_chars,
                        "source": values["source"],
                        "url": values["url"] or "",
                        "num_bytes": values["num_bytes"],
                    }
            first += size
    return found


def with_twins(workdir: str, samples: Sequence[Sample], ingest: StageManifest | None) -> list[Sample]:
    """Set every document that left because of another beside that one: Jaccard and word differences."""
    keys = {s.because_of for s in samples if s.because_of}
    if not keys or ingest is None:
        return list(samples)
    places = find_keys(workdir, keys, chosen_parts(ingest, "documents"))
    pairs = [s for s in samples if s.because_of in places]
    twins = read_texts(workdir, [Sample(places[s.because_of], s.because_of, "") for s in pairs], MAX_DIFF_CHARS)
    whole = read_texts(workdir, pairs, MAX_DIFF_CHARS)
    jaccards = read_jaccards(workdir, [s.doc_id for s in pairs])
    filled = {
        mine.doc_id: (word_diff(mine.excerpt, twin.excerpt), jaccards.get(mine.doc_id))
        for mine, twin in zip(whole, twins, strict=True)
    }
    return [
        replace(s, diff=filled[s.doc_id][0], jaccard=filled[s.doc_id][1]) if s.doc_id in filled else s for s in samples
    ]


def find_keys(workdir: str, keys: Iterable[str], parts: Sequence[int]) -> dict[str, int]:
    """Return doc_key -> doc_id for the keys that these parts hold; stops when all are found."""
    wanted = set(keys)
    found: dict[str, int] = {}
    for part in parts:
        table = part_files.read_part(workdir, "ingest", "documents", part, ["doc_id", "doc_key"])
        mine = table.filter(pc.is_in(table.column("doc_key"), pa.array(sorted(wanted), pa.string())))
        found |= dict(zip(mine.column("doc_key").to_pylist(), mine.column("doc_id").to_pylist(), strict=True))
        if len(found) == len(wanted):
            break
    return found


def read_jaccards(workdir: str, doc_ids: Iterable[int]) -> dict[int, float | None]:
    """Return the Jaccard over which each document was removed, from the clusters table."""
    by_part: dict[int, list[int]] = {}
    for doc_id in doc_ids:
        by_part.setdefault(doc_id >> PART_SHIFT, []).append(doc_id)
    found: dict[int, float | None] = {}
    for part in sorted(set(by_part) & set(part_files.part_numbers(workdir, "dedup_documents", "clusters"))):
        table = part_files.read_part(workdir, "dedup_documents", "clusters", part, ["doc_id", "jaccard"])
        mine = table.filter(pc.is_in(table.column("doc_id"), pa.array(by_part[part], pa.int64())))
        found |= dict(zip(mine.column("doc_id").to_pylist(), mine.column("jaccard").to_pylist(), strict=True))
    return found


def word_diff(left: str, right: str, max_chars: int = MAX_EXCERPT_CHARS) -> list[tuple[str, str]]:
    """Return how to get from `left` to `right`, word by word (Han and kana: character by character).

    Long equal stretches are shortened to what stands next to a difference; the whole is at most about `max_chars`.
    """
    a, b = _WORDS.findall(left), _WORDS.findall(right)
    pieces: list[tuple[str, str]] = []
    for kind, a0, a1, b0, b1 in _readable_opcodes(a, b):
        if kind == "equal":
            pieces += _shortened(a[a0:a1], is_first=not pieces, is_last=a1 == len(a) and b1 == len(b))
            continue
        if a1 > a0:
            pieces.append(("removed", "".join(a[a0:a1])))
        if b1 > b0:
            pieces.append(("added", "".join(b[b0:b1])))
    return _bounded(pieces, max_chars)


def _readable_opcodes(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """Return difflib's opcodes with white space taken as equal, and changes that only it parts taken together."""
    left, right = ([" " if word.isspace() else word for word in words] for words in (a, b))
    codes = difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    merged: list[tuple[str, int, int, int, int]] = []
    for index, (kind, a0, a1, b0, b1) in enumerate(codes):
        inside = 0 < index < len(codes) - 1 and all(word == " " for word in left[a0:a1])
        changed = kind != "equal" or inside
        if changed and merged and merged[-1][0] == "change":
            merged[-1] = ("change", merged[-1][1], a1, merged[-1][3], b1)
        else:
            merged.append(("change" if changed else "equal", a0, a1, b0, b1))
    return merged


def _shortened(words: Sequence[str], *, is_first: bool, is_last: bool) -> list[tuple[str, str]]:
    before, after = (0 if is_first else _CONTEXT_WORDS), (0 if is_last else _CONTEXT_WORDS)
    if is_first and is_last:
        before = 8 * _CONTEXT_WORDS  # nothing differs: show the beginning
    skipped = words[before : len(words) - after]
    if len(skipped) <= _CONTEXT_WORDS:
        return [("same", "".join(words))]
    count = sum(1 for word in skipped if not word.isspace())
    pieces = [("same", "".join(words[:before])), ("skipped", f"{count:,} words the same")]
    return [p for p in [*pieces, ("same", "".join(words[len(words) - after :]))] if p[1]]


def _bounded(pieces: Sequence[tuple[str, str]], max_chars: int) -> list[tuple[str, str]]:
    bounded: list[tuple[str, str]] = []
    left = max_chars
    for kind, text in pieces:
        if left <= 0:
            return [*bounded, ("skipped", "more differences")]
        bounded.append((kind, text if len(text) <= left else text[:left] + " …"))
        left -= len(text)
    return bounded
