"""The stage manifest ``_stage.json``: written last, so its presence says that the stage is complete.

``fingerprint`` says what the stage was asked to do (its slice of the recipe, its algorithm version, the content of its
inputs); ``content_hash`` says what came out. What may differ between two equal runs (seconds, memory, hosts, commit)
stands under ``volatile`` and enters neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import xxhash

from refinery.errors import IntegrityError

STAGE_MANIFEST_VERSION = 1


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and plain UTF-8: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint_of(*fields: Any) -> str:
    """Return the 128-bit hex fingerprint of JSON-able fields."""
    return xxhash.xxh3_128_hexdigest(canonical_json(list(fields)).encode())


@dataclass(frozen=True)
class PartEntry:
    """One part of one table."""

    table: str
    part: int
    rows: int
    content_hash: str
    num_bytes: int


@dataclass(frozen=True)
class CountRow:
    """Documents, bytes and tokens that left a stage one way: kept, dropped with a reason, or cut out of kept text.

    ``kind`` is ``kept``, ``dropped`` or ``cut``; ``reason`` is empty for kept. For ``cut``, ``docs`` counts the
    documents that were shortened and does not enter conservation; bytes and tokens do.
    """

    kind: str
    reason: str
    source: str
    domain: str
    role: str
    lang: str
    split: str
    docs: int
    bytes: int
    tokens: int = 0


@dataclass(frozen=True)
class StageManifest:
    """What one stage did."""

    stage: str
    fingerprint: str
    algorithm_version: int
    recipe_slice: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Upstream stage -> its content_hash."""
    parts: Sequence[PartEntry]
    counts: Sequence[CountRow]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Stage-specific results that are a function of the input (thresholds found, tables for the report)."""
    volatile: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, memory, commit, hosts: outside every hash."""
    content_hash: str = ""

    def sealed(self) -> StageManifest:
        """Return the manifest with its content hash computed over parts, counts and facts."""
        return StageManifest(**{**self.__dict__, "content_hash": self.compute_content_hash()})

    def compute_content_hash(self) -> str:
        """Return the hash over everything the stage put out."""
        return fingerprint_of(
            [asdict(p) for p in self.parts], [asdict(c) for c in self.counts], json.loads(canonical_json(self.facts))
        )

    def part_hashes(self, table: str) -> dict[int, str]:
        """Return part number -> content hash of one table."""
        return {p.part: p.content_hash for p in self.parts if p.table == table}

    def to_json(self) -> str:
        """Return the manifest as indented JSON."""
        body = {"format": "refinery.stage", "version": STAGE_MANIFEST_VERSION, **self.__dict__}
        body["parts"] = [asdict(p) for p in self.parts]
        body["counts"] = [asdict(c) for c in self.counts]
        return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def stage_manifest_from_json(text: str, path: str) -> StageManifest:
    """Parse and check a stage manifest.

    Raises:
        IntegrityError: not JSON, another version, missing fields, or its content hash does not match.
    """
    try:
        body = json.loads(text)
        if body.pop("format") != "refinery.stage" or body.pop("version") != STAGE_MANIFEST_VERSION:
            raise IntegrityError(
                f"{path}: not a stage manifest of version {STAGE_MANIFEST_VERSION}; run the stage again with --force"
            )
        body["parts"] = [PartEntry(**p) for p in body["parts"]]
        body["counts"] = [CountRow(**c) for c in body["counts"]]
        manifest = StageManifest(**body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: damaged stage manifest ({error}); run the stage again with --force") from error
    if manifest.compute_content_hash() != manifest.content_hash:
        raise IntegrityError(f"{path}: content hash does not match its parts and counts; run the stage with --force")
    return manifest


def merge_counts(groups: Iterable[Iterable[Mapping[str, Any]]]) -> list[CountRow]:
    """Add up count rows of many parts; the result is sorted, so it does not depend on the order of parts."""
    total: dict[tuple[str, ...], list[int]] = {}
    names = ("kind", "reason", "source", "domain", "role", "lang", "split")
    for group in groups:
        for row in group:
            sums = total.setdefault(tuple(row[n] for n in names), [0, 0, 0])
            sums[0] += row["docs"]
            sums[1] += row["bytes"]
            sums[2] += row.get("tokens", 0)
    return [
        CountRow(**dict(zip(names, key, strict=True)), docs=sums[0], bytes=sums[1], tokens=sums[2])
        for key, sums in sorted(total.items())
    ]
