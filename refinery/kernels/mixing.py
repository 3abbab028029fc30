"""Turn shares into tokens: how much of which stream a training budget reads, and whether the data can give it.

Shares name domains; a domain's tokens are spread over its streams (languages, weight buckets) in proportion to size,
by temperature, or by UniMax. Repetition is capped: up to 4 epochs are nearly free (Muennighoff et al., 2305.16264), so
4 is the default cap. A mix that the data cannot give fails before any work, with numbers to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from refinery.errors import ConfigError

DEFAULT_MAX_EPOCHS = 4.0
SHARE_TOLERANCE = 1e-6
REPLAY = "replay"
"""Name under which replay is listed beside the domains."""
LANGUAGE_POLICIES = ("natural", "temperature", "unimax")
R_STAR_TOKENS = 15.387756
"""Decay of the value of repeated tokens, in epochs (2305.16264, fitted constants of its repository)."""
SHARE_CAPS: Mapping[str, tuple[float, str]] = {
    "code": (0.5, "code up to half of the tokens did no harm to text tasks, more was not shown (2305.16264)"),
    "dialogue": (
        0.1,
        "with much dialogue a model takes statements for openings of a conversation; no number is published, "
        "a tenth is this project's cautious choice",
    ),
}
"""Domain -> (most of the budget that it may have, why). A recipe's `max_shares` overrides them."""
UPSAMPLE_TABLES: Mapping[str, Mapping[int, int]] = {
    "fineweb2": {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1},
    "fineweb2_cmn_hani": {
        **{1: 1, 2: 4, 4: 6, 6: 7, 7: 8, 9: 9, 16: 8, 20: 7, 26: 6, 31: 5, 36: 4, 44: 3, 52: 2, 60: 1},
    },
}
"""Copies by cluster size, key = smallest size of the step. FineWeb-2's rehydration (2506.20920): its README's table,
and the one tuned on Chinese (`misc/rehydration/weights/up_to_10_reps.json`, cmn_Hani)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSupply:
    """What one stream has."""

    stream: str
    domain: str
    role: str
    """target, pool or replay; replay streams serve the replay share, whatever their domain."""
    unique_tokens: int
    upsample: float = 1.0
    """Factor on its size when tokens are spread inside the domain (by dedup cluster size or quality)."""
    capacity_tokens: int | None = None
    """Most tokens that may be read of it; its unique tokens times the cap on epochs if not given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixRequest:
    """What is wanted."""

    shares: Mapping[str, float]
    """Share of the budget per domain; with `replay` they add up to 1."""
    replay: float = 0.0
    max_epochs: Mapping[str, float] = field(default_factory=dict)
    """Cap per domain ("replay" for the replay streams); 4 where none is given."""
    language_policy: str = "natural"
    """How a domain's tokens are spread over its streams: natural, temperature or unimax."""
    temperature: float = 3.33
    """tau of the temperature policy; p is proportional to size**(1/tau). mT5 used 3.33."""
    max_shares: Mapping[str, float] = field(default_factory=dict)
    """Most of the budget per domain, before `SHARE_CAPS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamMix:
    """What a mix reads of one stream."""

    stream: str
    domain: str
    tokens: int
    unique_tokens: int

    @property
    def epochs(self) -> float:
        """Tokens read / unique tokens."""
        return self.tokens / self.unique_tokens


def plan_mix(supplies: Sequence[StreamSupply], budget_tokens: int, request: MixRequest) -> list[StreamMix]:
    """Spread a token budget over streams.

    Args:
        supplies: the train streams.
        budget_tokens: tokens to read, repetition included.
        request: shares, replay, caps.
    Returns: one entry per stream that is read, sorted by stream; tokens add up to the budget exactly and no stream
        passes its cap by more than one token.
    Raises: ConfigError: shares that do not add up, unknown domains, or a domain that cannot give its share; the message
        names every limiting domain, its shortfall and two remedies; a share over its cap.
    """
    groups = _groups(supplies, request)
    if budget_tokens < 1:
        raise ConfigError(f"budget_tokens is {budget_tokens}: at least 1 token is needed")
    _refuse_infeasible(groups, budget_tokens, request)
    names = sorted(groups)
    wanted = split_exactly(budget_tokens, [_share(name, request) for name in names])
    mixed = []
    for name, tokens in zip(names, wanted, strict=True):
        if tokens == 0:  # a budget of fewer tokens than domains
            continue
        cap = request.max_epochs.get(name, DEFAULT_MAX_EPOCHS)
        sizes = np.array([supply.unique_tokens for supply in groups[name]], dtype=np.float64)
        upsample = np.array([supply.upsample for supply in groups[name]], dtype=np.float64)
        weights = _stream_weights(sizes * upsample, tokens, cap, request)
        capacities = np.array([_stream_capacity(supply, cap) for supply in groups[name]])
        spread = fill_under_caps(weights, capacities, float(tokens))
        for supply, part in zip(groups[name], split_exactly(tokens, spread.tolist()), strict=True):
            if part > 0:
                mixed.append(
                    StreamMix(stream=supply.stream, domain=name, tokens=part, unique_tokens=supply.unique_tokens)
                )
    return sorted(mixed, key=lambda entry: entry.stream)


def largest_budget(supplies: Sequence[StreamSupply], request: MixRequest) -> int:
    """Return the most tokens that the caps allow at the given shares (`mix: auto`).

    Raises: ConfigError: as `plan_mix`, and for a domain with a share but no tokens.
    """
    groups = _groups(supplies, request)
    bounds = {name: int(_capacity(groups[name], name, request) / _share(name, request)) for name in groups}
    limiting = min(sorted(bounds), key=bounds.__getitem__)
    if bounds[limiting] < 1:
        raise ConfigError(f"domain {limiting} has a share of {_share(limiting, request)}, but no tokens: drop it")
    return bounds[limiting]


def natural_shares(supplies: Sequence[StreamSupply]) -> dict[str, float]:
    """Return each domain's share of all unique tokens outside replay."""
    sizes: dict[str, int] = {}
    for supply in supplies:
        if supply.role != REPLAY:
            sizes[supply.domain] = sizes.get(supply.domain, 0) + supply.unique_tokens
    total = sum(sizes.values())
    return {name: size / total for name, size in sorted(sizes.items())} if total else {}


def domain_heavy_shares(natural: Mapping[str, float], domain: str, replay: float = 0.0) -> dict[str, float]:
    """Propose shares for training on general and domain text together from the start.

    The domain gets ten times its natural share, and at least the largest natural share (a rule of practice for small
    domains; no paper states it). The other domains keep their proportions in what is left beside replay.

    Args:
        natural: shares of unique tokens per domain, adding up to 1.
        domain: the one to favour.
        replay: share of the budget that is taken already.
    Raises: ConfigError: no such domain, or nothing would be left for the others: the rule is for small domains.
    """
    if domain not in natural:
        raise ConfigError(f"domain {domain!r} is not among {', '.join(sorted(natural))}")
    heavy = max(10 * natural[domain], *natural.values())
    others = 1 - natural[domain]
    if heavy + replay >= 1 or others <= 0:
        raise ConfigError(
            f"domain_heavy {domain}: its natural share is {natural[domain]:.3g}, so the rule gives it {heavy:.3g} of "
            f"the budget and leaves nothing beside replay {replay:g}: it is for small domains; write `domains` yourself"
        )
    left = 1 - replay - heavy
    return {name: heavy if name == domain else left * share / others for name, share in natural.items()}


def copies_of_cluster(sizes: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Return how many copies a document of a duplicate cluster stands for.

    Args:
        sizes: documents in its cluster, 1 for one without duplicates, shape (N,).
        table: copies by the smallest size of each step; begins at 1.
    Returns: int64, shape (N,).
    Raises: ConfigError: a table that does not begin at 1, or copies below 1.
    """
    steps = sorted(table)
    if not steps or steps[0] != 1 or min(table.values()) < 1:
        raise ConfigError(f"copies by cluster size {dict(table)}: the first step is 1, copies are at least 1")
    copies = np.array([table[step] for step in steps], dtype=np.int64)
    return copies[np.searchsorted(np.array(steps), sizes, side="right") - 1]


def share_cap(domain: str, request: MixRequest) -> tuple[float, str]:
    """Return the most of the budget that a domain may have, and why; (1.0, "") without a cap."""
    if domain in request.max_shares:
        return request.max_shares[domain], "set by max_shares"
    return SHARE_CAPS.get(domain, (1.0, ""))


def epoch_value(epoch: int) -> float:
    """Return what the n-th reading of a token is worth against the first, from 1 down to 0.

    With R = epochs - 1, effective data is U + U R* (1 - exp(-R / R*)) (2305.16264 §3); this is its increment per epoch:
    0.97 for the 2nd, 0.80 for the 5th, 0.39 for the 16th.
    """
    if epoch < 1:
        raise ConfigError(f"epoch {epoch}: the first is 1")
    if epoch == 1:
        return 1.0
    return R_STAR_TOKENS * (math.exp(-(epoch - 2) / R_STAR_TOKENS) - math.exp(-(epoch - 1) / R_STAR_TOKENS))


def temperature_weights(sizes: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities proportional to ``size ** (1 / temperature)``; 1 keeps sizes, infinity makes them equal."""
    if temperature < 1:
        raise ConfigError(f"temperature {temperature} is below 1: it would favour the large even more")
    powered = np.asarray(sizes, dtype=np.float64) ** (1.0 / temperature)
    return powered / powered.sum()


def unimax_weights(sizes: np.ndarray, budget_tokens: float, max_epochs: float) -> np.ndarray:
    """Return UniMax probabilities (Chung et al., 2304.09151, algorithm 1).

    Small streams first: each takes an equal share of what is left of the budget, at most `max_epochs` times its size.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    left, given = float(budget_tokens), np.zeros(len(sizes))
    for done, i in enumerate(np.argsort(sizes, kind="stable")):
        given[i] = min(left / (len(sizes) - done), sizes[i] * max_epochs)
        left -= given[i]
    return given / given.sum()


def fill_under_caps(weights: np.ndarray, caps: np.ndarray, total: float) -> np.ndarray:
    """Spread `total` in proportion to weights; what a cap cuts off goes to the others in the same proportion.

    Raises: ConfigError: the caps of streams with weight add up to less than the total (beyond rounding).
    """
    out = np.zeros(len(weights))
    free = weights > 0
    if total > caps[free].sum() * (1 + 1e-9) + 1:
        raise ConfigError(f"{total:.0f} tokens do not fit under caps of {caps[free].sum():.0f}: raise max_epochs")
    left = total
    while free.any():
        proposal = left * weights[free] / weights[free].sum()
        over = proposal >= caps[free]
        if not over.any():
            out[free] = proposal
            break
        capped = np.flatnonzero(free)[over]
        out[capped] = caps[capped]
        left -= float(caps[capped].sum())
        free[capped] = False
        left = max(left, 0.0)
    return out


def split_exactly(total: int, shares: Sequence[float]) -> list[int]:
    """Split an integer in proportion to shares by largest remainder, the first among equals; adds up to total."""
    exact = [Fraction(share) for share in shares]
    whole = sum(exact)
    if whole <= 0:
        raise ConfigError(f"shares {list(shares)} leave nothing to split by: at least one must be positive")
    parts = [total * share / whole for share in exact]
    floors = [int(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda i: (floors[i] - parts[i], i))
    for i in order[: total - sum(floors)]:
        floors[i] += 1
    return floors


def _groups(supplies: Sequence[StreamSupply], request: MixRequest) -> dict[str, list[StreamSupply]]:
    """Check the request and group the streams that serve each positive share."""
    values = [*request.shares.values(), request.replay]
    if any(not 0 <= value <= 1 for value in values) or abs(sum(values) - 1) > SHARE_TOLERANCE:
        listed = ", ".join(f"{name} {value:g}" for name, value in request.shares.items())
        raise ConfigError(
            f"shares ({listed}) and replay {request.replay:g} add up to {sum(values):.9g}; each must be in 0..1, "
            "their sum 1 within 1e-6"
        )
    if request.language_policy not in LANGUAGE_POLICIES:
        raise ConfigError(f"language policy {request.language_policy!r}: choose one of {', '.join(LANGUAGE_POLICIES)}")
    for name, share in request.shares.items():
        cap, reason = share_cap(name, request)
        if share > cap + SHARE_TOLERANCE:
            raise ConfigError(
                f"{name} has a share of {share:g}, over its cap of {cap:g}: {reason}; lower the share, or say "
                f"`max_shares: {{{name}: {share:g}}}`"
            )
    if REPLAY in request.shares:
        raise ConfigError("a domain named `replay` is ambiguous: give its share as `replay`")
    groups: dict[str, list[StreamSupply]] = {}
    for supply in sorted(supplies, key=lambda entry: entry.stream):
        name = REPLAY if supply.role == REPLAY else supply.domain
        if supply.unique_tokens > 0 and _share(name, request) > 0:
            groups.setdefault(name, []).append(supply)
    wanted = {name for name, share in {**request.shares, REPLAY: request.replay}.items() if share > 0}
    missing = sorted(wanted - set(groups))
    if missing:
        known = sorted({REPLAY if supply.role == REPLAY else supply.domain for supply in supplies})
        raise ConfigError(f"no tokens for {', '.join(missing)}; the data has {', '.join(known)}: correct the shares")
    return groups


def _share(name: str, request: MixRequest) -> float:
    return request.replay if name == REPLAY else request.shares.get(name, 0.0)


def _capacity(group: Sequence[StreamSupply], name: str, request: MixRequest) -> float:
    """Tokens that a domain can give within its cap."""
    cap = request.max_epochs.get(name, DEFAULT_MAX_EPOCHS)
    if cap <= 0:
        raise ConfigError(f"max_epochs of {name} is {cap}: it must be positive")
    return sum(_stream_capacity(supply, cap) for supply in group)


def _stream_capacity(supply: StreamSupply, cap: float) -> float:
    return cap * supply.unique_tokens if supply.capacity_tokens is None else float(supply.capacity_tokens)


def _read_before(group: Sequence[StreamSupply], name: str, request: MixRequest) -> float:
    """Tokens that earlier rows took out of a domain's cap."""
    cap = request.max_epochs.get(name, DEFAULT_MAX_EPOCHS)
    return sum(cap * supply.unique_tokens for supply in group) - _capacity(group, name, request)


def _stream_weights(sizes: np.ndarray, tokens: int, cap: float, request: MixRequest) -> np.ndarray:
    if request.language_policy == "temperature":
        return temperature_weights(sizes, request.temperature)
    if request.language_policy == "unimax":
        return unimax_weights(sizes, tokens, cap)
    return sizes / sizes.sum()


def _refuse_infeasible(groups: Mapping[str, list[StreamSupply]], budget_tokens: int, request: MixRequest) -> None:
    """Raise if any domain's cap is below its share of the budget."""
    problems, largest = [], budget_tokens
    for name in sorted(groups):
        share, capacity = _share(name, request), _capacity(groups[name], name, request)
        needed = share * budget_tokens
        if needed <= capacity * (1 + 1e-12) + 1:
            continue
        unique = sum(supply.unique_tokens for supply in groups[name])
        largest = min(largest, int(capacity / share))
        problems.append(
            f"{name} is {math.ceil(needed - capacity):,} tokens short: its share {share:g} needs {round(needed):,}, "
            f"{unique:,} unique tokens at {capacity / unique:.4g} epochs give {int(capacity):,}; lower the share to "
            f"{math.floor(capacity / budget_tokens * 1e6) / 1e6:g} or raise max_epochs to "
            f"{math.ceil((needed + _read_before(groups[name], name, request)) / unique * 100) / 100:g}"
        )
    if problems:
        raise ConfigError(
            f"a budget of {budget_tokens:,} tokens is infeasible: {'; '.join(problems)}. Or set budget_tokens to "
            f"{largest:,}, the most that these shares and caps allow"
        )
