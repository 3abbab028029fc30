"""remix: another plan over the same shards, in seconds, or which tokens would have to be packed first.

What is packed bounds what a plan may read: of a stream that was packed in part, a plan reads at most what is packed,
because repeating packed documents while fresh ones lie unpacked is a waste that nobody asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from refinery.errors import ConfigError
from refinery.kernels.mixing import DEFAULT_MAX_EPOCHS, StreamSupply
from refinery.recipe import Mix
from refinery.shards.manifest import ShardManifest
from refinery.shards.plan import MixPlan, check_plan, draws_at, load_plan, plan_bytes
from refinery.shards.verify import verify_dataset
from refinery.shards.writer import lock_folder, write_together
from refinery.stages.mix_plan import PlannedMix, mix_lines, plan_streams, supplies_of
from refinery.stages.row_plan import continued_plan, mix_domain, new_plan, realised_facts

RESERVED = "main"
"""The plan that pack writes."""


@dataclass(frozen=True, kw_only=True)
class Remix:
    """A plan that was written."""

    path: Path
    plan: MixPlan
    facts: Mapping[str, Any]
    """Asked and natural shares, caps, and what the plan makes of every stream and domain."""

    def lines(self) -> list[str]:
        """Return what a person wants to know, one line each."""
        facts = self.facts
        lines = [f"{self.plan.total_rows:,} rows in {len(self.plan.stages)} stages: {self.path}"]
        for name, entry in facts["domains"].items():
            row = entry["first_repeat_row"]
            wrap = f"first repeated row {row:,}" if row >= 0 else "no repeat"
            natural = facts["natural_shares"].get(name)
            beside = "" if natural is None else f", natural {natural:.2%}"
            lines.append(
                f"  {name}: {entry['share']:.2%} of predicted tokens{beside}; {entry['epochs']:.2f} epochs, {wrap}"
            )
        return lines + [f"  {line}" for line in mix_lines(facts)]


def read_mix(path: Path) -> Mix:
    """Read a plan request: YAML with the keys of a recipe's `mix` section, or a recipe's `mix` section by itself.

    Raises:
        ConfigError: not readable, unknown keys, shares that do not add up.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}); write a recipe's mix section") from error
    if isinstance(values, dict) and isinstance(values.get("mix"), dict):
        values = values["mix"]
    try:
        return Mix.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'mix'}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from error


def remix(
    root: Path,
    mix: Mix,
    name: str,
    *,
    base: str = RESERVED,
    at_row: int | None = None,
    seed: int | None = None,
    force: bool = False,
) -> Remix:
    """Write ``plan/NAME.json``: a new plan, or `base` up to `at_row` and then the new mix.

    Args:
        root: folder of the manifest.
        mix: shares, caps and budget; with `at_row` the budget counts from that row on, the caps over the whole plan.
        name: of the plan file; not `main`, which pack writes.
        base: plan that is continued.
        at_row: first row of the new mix.
        seed: of a new plan's order; the shards' own if not given. A continued plan keeps its seed.
        force: replace a plan of this name.
    Raises:
        ConfigError: an infeasible mix; one beyond what is packed (tokens missing per domain and the command that packs
            them); a name that is taken. IntegrityError: the data set or the base plan is damaged or of other data.
    """
    manifest = verify_dataset(root, "start")
    _check_name(name)
    if mix.upsample:
        raise ConfigError("upsample is packed into weight buckets: change it in the recipe and run mix and pack again")
    before: MixPlan | None = None
    if at_row is not None:
        before = load_plan(root / "plan" / f"{base}.json")
        check_plan(before, manifest)
        if not 0 < at_row <= before.total_rows:
            raise ConfigError(f"--at-row {at_row}: plan {base} has rows 1..{before.total_rows} where a stage may begin")
        if seed is not None and seed != before.seed:
            raise ConfigError(f"seed {seed}: a continued plan keeps its seed {before.seed}; leave --seed out")
    planned = _plan(manifest, mix, draws_at(before, at_row) if before and at_row else {})
    phases = planned.stream_shares()
    if before is not None and at_row is not None:
        plan = continued_plan(before, at_row, manifest, phases, planned.budget_tokens, mix.max_epochs)
    else:
        plan = new_plan(
            manifest, manifest.packing.seed if seed is None else seed, phases, planned.budget_tokens, mix.max_epochs
        )
    path = root / "plan" / f"{name}.json"
    data = plan_bytes(plan)
    with lock_folder(root):
        if path.exists() and path.read_bytes() != data and not force:
            raise ConfigError(f"{path} is another plan: choose another --name, or --force to replace it")
        write_together(path.parent, name, {".json": memoryview(data)})
    return Remix(path=path, plan=plan, facts={**planned.facts(), **realised_facts(plan, manifest)})


def _check_name(name: str) -> None:
    if name == RESERVED:
        raise ConfigError("the plan `main` is written by pack: choose another --name")
    if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
        raise ConfigError(f"plan name {name!r}: letters, digits, dot, dash and underscore only")


def _plan(manifest: ShardManifest, mix: Mix, drawn: Mapping[str, int]) -> PlannedMix:
    """Plan tokens over what there is, and refuse what is not packed."""
    chosen = manifest.unhashed.get("packed_tokens") or {}  # before a cropping packer dropped tails
    packed = {s.name: int(chosen.get(s.name, s.total("tokens"))) for s in manifest.streams if s.key.split == "train"}
    known = manifest.unhashed.get("available_tokens") or {}
    available = {name: max(int(known.get(name, 0)), tokens) for name, tokens in packed.items()}
    available |= {str(n): int(t) for n, t in known.items() if n not in packed and str(n).endswith("/train") and t}
    read = {name: drawn.get(name, 0) * packed[name] // manifest.stream(name).rows for name in packed}
    caps = {
        s.name: mix.max_epochs.get(mix_domain(s.key), DEFAULT_MAX_EPOCHS)
        for s in manifest.streams
        if s.key.split == "train"
    }
    inside, whole = [], []
    for supply in supplies_of(available):
        name, there = supply.stream, packed.get(supply.stream, 0)
        cap = caps.get(name, DEFAULT_MAX_EPOCHS)
        part = there < available[name]
        left = max(0, int(there if part else cap * there) - read.get(name, 0))
        inside.append(dataclasses.replace(supply, capacity_tokens=left))
        if name not in caps:  # nothing of it is packed, so a cap may be its replay's
            cap = mix.max_epochs.get("replay" if supply.role == "replay" else supply.domain, DEFAULT_MAX_EPOCHS)
        room = max(0, int(cap * available[name]) - read.get(name, 0))
        whole.append(dataclasses.replace(supply, capacity_tokens=room))
    if mix.budget_tokens == "auto":
        return plan_streams(mix, [s for s in inside if s.capacity_tokens])
    planned = plan_streams(mix, whole)
    _refuse_unpacked(planned, mix, packed, available, read)
    return plan_streams(mix, _shifted(inside, planned))


def _shifted(inside: list[StreamSupply], planned: PlannedMix) -> list[StreamSupply]:
    """Leave room for what rounding adds: the plan is inside the ceiling, token by token."""
    tokens = {e.stream: e.tokens for e in planned.streams}
    return [
        dataclasses.replace(s, capacity_tokens=max(s.capacity_tokens or 0, tokens.get(s.stream, 0))) for s in inside
    ]


def _refuse_unpacked(
    planned: PlannedMix, mix: Mix, packed: Mapping[str, int], available: Mapping[str, int], read: Mapping[str, int]
) -> None:
    """Raise if the plan needs documents that exist but are not packed."""
    missing: dict[str, int] = {}
    there: dict[str, int] = {}
    largest = planned.budget_tokens
    for entry in planned.streams:
        have = packed.get(entry.stream, 0)
        lacking = min(read.get(entry.stream, 0) + entry.tokens, available[entry.stream]) - have
        there[entry.domain] = there.get(entry.domain, 0) + have
        if lacking > 0:
            missing[entry.domain] = missing.get(entry.domain, 0) + lacking
            room = max(0, have - read.get(entry.stream, 0))
            largest = min(largest, planned.budget_tokens * room // entry.tokens)
    if missing:
        listed = "; ".join(f"{d} lacks {n:,} tokens ({there[d]:,} are packed)" for d, n in sorted(missing.items()))
        raise ConfigError(
            f"the plan reads more than is packed: {listed}. Put these mix settings into the recipe and run "
            f"`refinery run RECIPE --from mix --to pack`, or lower budget_tokens to {largest:,}"
        )
