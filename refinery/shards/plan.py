"""Mix plans: which share of the rows comes from which stream, as integers, hashed, apart from the shards.

A plan is a list of stages. Changing the mix during training appends a stage at row k; every stream goes on where it
was, because the rows drawn before k are known in closed form (`draws_at`), so nothing is lost or repeated (the open
complaint Megatron-LM#457). A plan names the content hash of its data: over a changed data set it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.manifest import ShardManifest, canonical_json
from refinery.shards.order import MAX_ROWS, MAX_TOTAL_WEIGHT, ORDER_VERSION, check_same_data, draws_before

PLAN_FORMAT = "refinery-mix-plan"
PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class PlanStage:
    """Rows start_row .. start_row + num_rows - 1 are drawn by these weights."""

    start_row: int
    num_rows: int
    weights: tuple[tuple[str, int], ...]
    """(stream name, positive integer) sorted by name; row shares, sum at most 2**20."""

    def descending(self) -> tuple[list[str], list[int]]:
        """Return names and weights, heaviest first (ties by name): the order that keeps prefixes within one row."""
        ordered = sorted(self.weights, key=lambda item: (-item[1], item[0]))
        return [name for name, _ in ordered], [weight for _, weight in ordered]

    def check(self) -> None:
        """Raise ConfigError if the stage cannot be drawn."""
        names = [name for name, _ in self.weights]
        total = sum(weight for _, weight in self.weights)
        if self.num_rows < 1 or self.start_row < 0 or self.start_row + self.num_rows > MAX_ROWS:
            raise ConfigError(f"stage of {self.num_rows} rows at {self.start_row}: 1..{MAX_ROWS} rows are needed")
        if not names or sorted(set(names)) != names or min(weight for _, weight in self.weights) < 1:
            raise ConfigError(f"stage weights {self.weights}: sorted names, each once, each weight >= 1")
        if total > MAX_TOTAL_WEIGHT:
            raise ConfigError(f"stage weights add up to {total}, over {MAX_TOTAL_WEIGHT}: divide them")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixPlan:
    """A complete training order, together with the manifest."""

    seed: int
    sequence_length: int
    content_hash: str
    """Of the manifest whose streams are drawn."""
    stages: tuple[PlanStage, ...]
    order_version: int = ORDER_VERSION

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0].start_row != 0:
            raise ConfigError("a plan needs at least one stage, the first at row 0")
        following = 0
        for stage in self.stages:
            stage.check()
            if stage.start_row != following:
                raise ConfigError(f"a stage begins at row {stage.start_row}, the one before ends at {following}")
            following += stage.num_rows

    @property
    def total_rows(self) -> int:
        """Rows of all stages."""
        return self.stages[-1].start_row + self.stages[-1].num_rows

    @property
    def plan_hash(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(_plan_values(self))).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class RealisedStream:
    """What a plan makes of one stream."""

    stream: str
    rows: int
    loss_tokens: int
    """Expected from the stream's mean per row: the rows of a broken-off epoch are a random draw."""
    full_epochs: int
    rows_of_last_epoch: int
    epochs: float
    """rows / rows of the stream."""
    first_repeat_row: int
    """Row k of the plan at which the stream is read for the second time; -1 if never."""


def weights_from_shares(shares: Mapping[str, float], manifest: ShardManifest) -> tuple[tuple[str, int], ...]:
    """Turn shares of predicted tokens into integer row weights that add up to 2**20.

    Padding and document starts differ by stream, so a row share is token share / mean loss tokens per row. Exact
    fractions and the largest remainder: the same integers on every machine.

    Args:
        shares: by stream name; must add up to 1 within 1e-6; zeros are left out.
        manifest: the data set.
    Raises: ConfigError: shares that do not add up or are negative, unknown or validation streams, streams with
        nothing to predict, shares below one part in 2**20.
    """
    total = sum(shares.values())
    if abs(total - 1) > 1e-6 or any(share < 0 for share in shares.values()):
        raise ConfigError(f"shares add up to {total:.9g} or one is negative: they must add up to 1 within 1e-6")
    rates: dict[str, Fraction] = {}
    for name in sorted(shares):
        if shares[name] == 0:
            continue
        stream = manifest.stream(name)
        loss_tokens = stream.total("loss_tokens")
        if stream.key.split != "train" or loss_tokens == 0:
            raise ConfigError(f"stream {name} cannot be trained on ({loss_tokens} predicted tokens): drop its share")
        rates[name] = Fraction(shares[name]) * stream.rows / loss_tokens
    return integer_weights(rates)


def integer_weights(rates: Mapping[str, Fraction]) -> tuple[tuple[str, int], ...]:
    """Scale positive rates to integers that add up to 2**20, by largest remainder, ties by name."""
    whole = sum(rates.values())
    exact = {name: rate * MAX_TOTAL_WEIGHT / whole for name, rate in rates.items()}
    floors = {name: int(value) for name, value in exact.items()}
    missing = MAX_TOTAL_WEIGHT - sum(floors.values())
    by_remainder = sorted(exact, key=lambda name: (floors[name] - exact[name], name))
    for name in by_remainder[:missing]:
        floors[name] += 1
    for name, weight in floors.items():
        if weight == 0:
            raise ConfigError(
                f"stream {name} would get {float(exact[name]):.3g} of {MAX_TOTAL_WEIGHT} rows: raise or drop its share"
            )
    return tuple(sorted(floors.items()))


def draws_at(plan: MixPlan, k: int) -> dict[str, int]:
    """Return the rows drawn from every stream before row k of the plan; they add up to k."""
    cursor: dict[str, int] = {}
    for stage in plan.stages:
        inside = min(max(k - stage.start_row, 0), stage.num_rows)
        names, weights = stage.descending()
        for name, drawn in zip(names, draws_before(weights, inside), strict=True):
            cursor[name] = cursor.get(name, 0) + drawn
    return cursor


def append_stage(plan: MixPlan, start_row: int, num_rows: int, weights: Mapping[str, int]) -> MixPlan:
    """Return the plan with another mix from `start_row` on; what was planned from there is replaced.

    Raises: ConfigError: `start_row` beyond the plan's end (rows in between would have no mix).
    """
    if not 0 <= start_row <= plan.total_rows:
        raise ConfigError(f"a stage cannot begin at row {start_row}: the plan has rows 0..{plan.total_rows - 1}")
    kept = [
        replace(stage, num_rows=min(stage.num_rows, start_row - stage.start_row))
        for stage in plan.stages
        if stage.start_row < start_row
    ]
    return replace(plan, stages=(*kept, PlanStage(start_row, num_rows, tuple(sorted(weights.items())))))


def check_plan(plan: MixPlan, manifest: ShardManifest) -> None:
    """Refuse a plan that the data set cannot serve.

    Raises: IntegrityError: made for other data. ConfigError: names streams that are unknown or not for training.
    """
    check_same_data(plan, manifest)
    for stage in plan.stages:
        for name, _ in stage.weights:
            if manifest.stream(name).key.split != "train":
                raise ConfigError(f"the plan trains on {name}, which is not a train stream: remove it")


def realise(plan: MixPlan, manifest: ShardManifest) -> list[RealisedStream]:
    """Compute rows, tokens, epochs and the first repeated row of every stream, in closed form, sorted by name."""
    check_plan(plan, manifest)
    rows = draws_at(plan, plan.total_rows)
    out = []
    for name in sorted(rows):
        stream = manifest.stream(name)
        full_epochs, rest = divmod(rows[name], stream.rows)
        loss_tokens = rows[name] * stream.total("loss_tokens") // stream.rows
        out.append(
            RealisedStream(
                stream=name,
                rows=rows[name],
                loss_tokens=loss_tokens,
                full_epochs=full_epochs,
                rows_of_last_epoch=rest,
                epochs=rows[name] / stream.rows,
                first_repeat_row=row_of_draw(plan, name, stream.rows),
            )
        )
    return out


def row_of_draw(plan: MixPlan, stream: str, number: int) -> int:
    """Return the row k at which draw `number` (from 0) of a stream happens, -1 if the plan ends before.

    Binary search over the closed form: O(streams * log rows).
    """
    if draws_at(plan, plan.total_rows).get(stream, 0) <= number:
        return -1
    low, high = 0, plan.total_rows  # draws_at(low) <= number < draws_at(high)
    while high - low > 1:
        middle = (low + high) // 2
        if draws_at(plan, middle).get(stream, 0) > number:
            high = middle
        else:
            low = middle
    return low


def plan_bytes(plan: MixPlan) -> bytes:
    """Return the bytes of a plan file: canonical JSON with the plan's own hash."""
    return canonical_json({**_plan_values(plan), "plan_hash": plan.plan_hash}) + b"\n"


def load_plan(path: Path) -> MixPlan:
    """Read a plan file.

    Raises: IntegrityError: missing, not a plan of this version, or edited (its hash does not match).
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: no such plan: make one with `refinery remix`") from error
    return parse_plan(raw, str(path))


def parse_plan(raw: bytes, path: str) -> MixPlan:
    """Read the bytes of a plan file; `path` names it in errors.

    Raises: IntegrityError: not a plan of this version, or edited (its hash does not match).
    """
    try:
        document = orjson.loads(raw)
        if document["format"] != PLAN_FORMAT or document["version"] != PLAN_VERSION:
            raise IntegrityError(f"{path}: {document['format']} version {document['version']} is not read by this code")
        stages = tuple(
            PlanStage(stage["start_row"], stage["num_rows"], tuple(sorted(stage["weights"].items())))
            for stage in document["stages"]
        )
        plan = MixPlan(
            seed=document["seed"],
            sequence_length=document["sequence_length"],
            content_hash=document["content_hash"],
            order_version=document["order_version"],
            stages=stages,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{path}: not a mix plan of version {PLAN_VERSION}: {error!r}") from error
    if plan_bytes(plan) != canonical_json(document) + b"\n":
        raise IntegrityError(f"{path}: plan_hash says {document.get('plan_hash')}, its content gives {plan.plan_hash}")
    return plan


def first_plan(manifest: ShardManifest, seed: int, stages: Sequence[tuple[int, Mapping[str, float]]]) -> MixPlan:
    """Make a plan from token shares.

    Args:
        manifest: the data set.
        seed: of the order.
        stages: (rows, {stream name: share of predicted tokens}) in training order.
    """
    planned, start_row = [], 0
    for num_rows, shares in stages:
        planned.append(PlanStage(start_row, num_rows, weights_from_shares(shares, manifest)))
        start_row += num_rows
    return MixPlan(
        seed=seed,
        sequence_length=manifest.sequence_length,
        content_hash=manifest.content_hash,
        stages=tuple(planned),
    )


def _plan_values(plan: MixPlan) -> dict[str, Any]:
    return {
        "format": PLAN_FORMAT,
        "version": PLAN_VERSION,
        "order_version": plan.order_version,
        "seed": plan.seed,
        "sequence_length": plan.sequence_length,
        "content_hash": plan.content_hash,
        "stages": [
            {"start_row": stage.start_row, "num_rows": stage.num_rows, "weights": dict(stage.weights)}
            for stage in plan.stages
        ],
    }
