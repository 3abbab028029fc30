"""What a report knows about a run: plain values, filled by `collect`, read by the page and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refinery.contracts.manifest import StageManifest
from refinery.contracts.runs import LossPoint, RunRecord


@dataclass(frozen=True)
class Amount:
    """An amount of text."""

    docs: int = 0
    bytes: int = 0
    tokens: int = 0
    """Estimated where `Flow.estimated` says so."""

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.docs + other.docs, self.bytes + other.bytes, self.tokens + other.tokens)


@dataclass(frozen=True)
class Flow:
    """What entered one stage and how it left."""

    stage: str
    entered: Amount
    kept: Amount
    dropped: Amount
    cut: Amount
    estimated: bool
    """True where tokens are bytes times the survivors' tokens per byte: the stage ran before the tokenizer."""
    balanced: bool
    """documents and bytes in = kept + dropped + cut."""


@dataclass(frozen=True)
class Drop:
    """One reason for which documents left (or, for cuts, parts of documents)."""

    stage: str
    reason: str
    kind: str
    amount: Amount
    estimated: bool
    """As `Flow.estimated`."""
    by: Mapping[str, Mapping[str, Amount]]
    """Dimension -> value -> amount."""


@dataclass(frozen=True)
class RuleOverlap:
    """How often one rule would cut, and how often it alone would."""

    rule: str
    docs: int
    docs_alone: int


@dataclass(frozen=True)
class Timing:
    """Time and speed of one stage."""

    stage: str
    seconds: float
    core_seconds: float | None
    """CPU seconds inside part tasks; null where the stage does not measure them."""
    bytes_in: int
    peak_rss_bytes: int | None
    finished_at: str
    host: str
    git_commit: str

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes of text that came in, by wall clock (session start included)."""
        return self.bytes_in / self.seconds if self.bytes_in and self.seconds else None

    @property
    def bytes_per_core_second(self) -> float | None:
        """Bytes of text that came in, per CPU second of part tasks."""
        return self.bytes_in / self.core_seconds if self.bytes_in and self.core_seconds else None


@dataclass(frozen=True)
class MixRow:
    """One mixture component: what was asked, planned and written."""

    name: str
    asked_frac: float
    planned_frac: float
    written_frac: float | None
    """Share of predicted tokens in the rows of the plan; null before packing."""
    planned_tokens: int
    written_tokens: int | None
    unique_tokens: int
    epochs: float
    """Epochs over what was packed where known, else over all unique tokens."""
    first_repeat_row: int | None = None
    """Row of the plan at which a stream of it begins again, -1 if none does; null before packing."""


@dataclass(frozen=True)
class Mix:
    """The mixture."""

    budget_tokens: int
    num_phases: int
    rows: Sequence[MixRow]
    natural_fracs: Mapping[str, float]
    streams: Sequence[Mapping[str, Any]]
    """As the pack stage realised them, one per train stream."""
    notes: Sequence[str] = ()
    """Natural shares beside a proposed one, caps on shares with their reasons, what late epochs are worth."""


@dataclass(frozen=True)
class PackedStream:
    """Rows of one stream."""

    stream: str
    rows: int
    docs: int
    tokens: int
    padding_tokens: int
    utf8_bytes: int

    @property
    def fill_frac(self) -> float:
        """Share of positions that hold a token of a document."""
        return self.tokens / (self.tokens + self.padding_tokens) if self.tokens else 0.0


@dataclass(frozen=True)
class Packing:
    """Rows and shards."""

    policy: str
    sequence_length: int
    documents_cut: int
    dropped_tokens: int
    content_hash: str
    streams: Sequence[PackedStream]
    concat_rows: int | None = None
    """Rows that cutting one stream of tokens anywhere would need."""

    @property
    def total(self) -> PackedStream:
        """All streams together."""
        columns = ("rows", "docs", "tokens", "padding_tokens", "utf8_bytes")
        return PackedStream("all", **{c: sum(getattr(s, c) for s in self.streams) for c in columns})


@dataclass(frozen=True)
class Training:
    """One training run."""

    record: RunRecord
    curve: Sequence[tuple[int, float]]
    """(step, training loss in nats), thinned."""
    forgetting: Mapping[str, Mapping[str, Any]]
    num_anomalies: int
    tokens_per_second: float | None
    """Median over the steps."""

    def streams(self) -> dict[str, list[LossPoint]]:
        """Return the validation points of each stream, in order of steps."""
        found: dict[str, list[LossPoint]] = {}
        for point in self.record.points:
            found.setdefault(point.stream, []).append(point)
        return found


@dataclass(frozen=True)
class RunFacts:
    """Everything about one run."""

    name: str
    workdir: str
    recipe_sha256: str
    flows: Sequence[Flow]
    drops: Sequence[Drop]
    labels: Mapping[str, Mapping[str, tuple[Amount, Amount, Amount]]]
    """Dimension -> value -> (came in, kept by filters and deduplication, taken by the mix where there is one)."""
    bytes_per_token: float | None
    overlaps: Sequence[RuleOverlap]
    bad_records: Mapping[str, Mapping[str, int]]
    bad_listed: Sequence[Sequence[Any]]
    pii_masked: Mapping[str, int]
    clusters: Mapping[str, Any] | None
    mix: Mix | None
    packing: Packing | None
    health: Mapping[str, Any] | None
    training: Training | None
    timings: Sequence[Timing]
    missing: Sequence[str]
    """Stages of the recipe that have not been run."""
    manifests: Mapping[str, StageManifest] = field(repr=False, default_factory=dict)

    @property
    def first(self) -> Amount:
        """What was read."""
        return self.flows[0].entered if self.flows else Amount()

    @property
    def last(self) -> Amount:
        """What the last stage kept."""
        return self.flows[-1].kept if self.flows else Amount()
