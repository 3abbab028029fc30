"""From the mix section to tokens per stream: shares, caps, the budget; the same for `mix` and for `refinery remix`.

Nothing here reads documents: what a stream has comes as `StreamSupply`, from counts of documents or a shard manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refinery.kernels.mixing import (
    DEFAULT_MAX_EPOCHS,
    REPLAY,
    UPSAMPLE_TABLES,
    MixRequest,
    StreamMix,
    StreamSupply,
    domain_heavy_shares,
    epoch_value,
    largest_budget,
    natural_shares,
    plan_mix,
    share_cap,
)
from refinery.recipe import Mix, MixStage

SHOWN_EPOCHS = range(5, 17)
"""Epochs whose worth is shown: up to four are nearly free, about sixteen are useful (2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class PlannedMix:
    """A mix in tokens."""

    budget_tokens: int
    request: MixRequest
    """Shares over all phases, as resolved."""
    phases: tuple[tuple[float, Mapping[str, float]], ...]
    """(share of the budget, {domain or `replay`: share of the phase's tokens})."""
    streams: tuple[StreamMix, ...]
    natural: Mapping[str, float]
    heavy: tuple[str, ...]
    """Domains whose shares follow from `domain_heavy`."""

    def stream_shares(self) -> list[tuple[float, dict[str, float]]]:
        """Return (share of the budget, {stream: token share}) per phase; a domain's streams keep their proportions."""
        of_domain: dict[str, int] = {}
        for entry in self.streams:
            of_domain[entry.domain] = of_domain.get(entry.domain, 0) + entry.tokens
        return [
            (
                share,
                {
                    e.stream: wanted[e.domain] * e.tokens / of_domain[e.domain]
                    for e in self.streams
                    if wanted.get(e.domain, 0.0) > 0
                },
            )
            for share, wanted in self.phases
        ]

    def facts(self) -> dict[str, Any]:
        """Return what a stage manifest and a report say about it."""
        caps = {d: share_cap(d, self.request) for d in sorted(self.request.shares)}
        return {
            "budget_tokens": self.budget_tokens,
            "phases": [{"share": share, "streams": streams} for share, streams in self.stream_shares()],
            "natural_shares": dict(self.natural),
            "asked_shares": {**self.request.shares, REPLAY: self.request.replay},
            "domain_heavy": list(self.heavy),
            "share_caps": [
                {"domain": d, "share": self.request.shares[d], "cap": cap, "reason": reason}
                for d, (cap, reason) in caps.items()
                if reason
            ],
            "max_epochs": {e.domain: _cap(self.request, e.domain) for e in self.streams},
            "epoch_values": {str(n): round(epoch_value(n), 4) for n in SHOWN_EPOCHS},
            "streams": [
                {
                    "stream": e.stream,
                    "domain": e.domain,
                    "tokens": e.tokens,
                    "unique_tokens": e.unique_tokens,
                    "epochs": e.epochs,
                }
                for e in self.streams
            ],
        }


def plan_streams(mix: Mix, supplies: Sequence[StreamSupply]) -> PlannedMix:
    """Plan tokens per stream over all phases.

    Raises:
        ConfigError: infeasible shares, caps or budget; a share over its cap.
    """
    natural = natural_shares(supplies)
    phases = tuple((stage.share, {**phase_domains(stage, natural), REPLAY: stage.replay}) for stage in mix.stages)
    names = sorted({d for _, wanted in phases for d in wanted} - {REPLAY})
    request = MixRequest(
        shares={d: sum(share * wanted.get(d, 0.0) for share, wanted in phases) for d in names},
        replay=sum(share * wanted.get(REPLAY, 0.0) for share, wanted in phases),
        max_epochs=mix.max_epochs,
        language_policy=mix.language_policy,
        temperature=mix.temperature,
        max_shares=mix.max_shares,
    )
    budget = largest_budget(supplies, request) if mix.budget_tokens == "auto" else mix.budget_tokens
    return PlannedMix(
        budget_tokens=budget,
        request=request,
        phases=phases,
        streams=tuple(plan_mix(supplies, budget, request)),
        natural=natural,
        heavy=tuple(sorted({s.domain_heavy for s in mix.stages if s.domain_heavy})),
    )


def supplies_of(available: Mapping[str, int]) -> list[StreamSupply]:
    """Return the supply of each train stream from tokens by stream; a weight bucket is its number of copies."""
    supplies = []
    for name, tokens in sorted(available.items()):
        domain, role, _, bucket, split = name.rsplit("/", 4)
        if split == "train" and tokens:
            supplies.append(
                StreamSupply(
                    stream=name, domain=domain, role=role, unique_tokens=tokens, upsample=max(1, int(bucket[1:]))
                )
            )
    return supplies


def phase_domains(stage: MixStage, natural: Mapping[str, float]) -> dict[str, float]:
    """Return {domain: token share} of one phase; `domain_heavy` is resolved by natural shares.

    Raises:
        ConfigError: as `domain_heavy_shares`.
    """
    if stage.domain_heavy is None:
        return dict(stage.domains)
    return domain_heavy_shares(natural, stage.domain_heavy, stage.replay)


def upsample_tables(mix: Mix) -> dict[str, dict[int, int]]:
    """Return domain -> copies by cluster size, presets looked up."""
    return {
        domain: dict(UPSAMPLE_TABLES[table]) if isinstance(table, str) else dict(table)
        for domain, table in sorted(mix.upsample.items())
    }


def mix_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of a planned mix, one line each: natural shares, caps, worth of late epochs."""
    lines = []
    for domain in facts["domain_heavy"]:
        shares = facts["asked_shares"]
        lines.append(
            f"domain_heavy gives {domain} {shares[domain]:.2%} of the budget; its natural share is "
            f"{facts['natural_shares'][domain]:.2%}, the largest is {max(facts['natural_shares'].values()):.2%}"
        )
    lines += [
        f"{entry['domain']} has {entry['share']:.2%}, at most {entry['cap']:.0%}: {entry['reason']}"
        for entry in facts["share_caps"]
    ]
    for entry in facts["streams"]:
        if entry["epochs"] > DEFAULT_MAX_EPOCHS:
            last = min(max(SHOWN_EPOCHS), int(-(-entry["epochs"] // 1)))
            worth = ", ".join(f"{n}th {facts['epoch_values'][str(n)]:.2f}" for n in SHOWN_EPOCHS if n <= last)
            lines.append(
                f"{entry['stream']} is read {entry['epochs']:.1f} times; worth of an epoch against the first: {worth}"
            )
    return lines


def _cap(request: MixRequest, domain: str) -> float:
    return request.max_epochs.get(domain, DEFAULT_MAX_EPOCHS)
