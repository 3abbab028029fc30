"""ablate --mix: train the same small model on many mixtures of one set of documents.

The documents are those that all of the recipe's stages keep. They are packed once, of each domain as much as its
highest share needs; a mixture is a plan over the same shards, so mixtures differ in shares and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refinery.errors import ConfigError
from refinery.kernels.mixing import DEFAULT_MAX_EPOCHS, MixRequest, StreamSupply, natural_shares, share_cap
from refinery.recipe import Input, Mix, MixStage, Recipe, Tokenizer, Train
from refinery.shards.manifest import ShardManifest
from refinery.shards.plan import MixPlan, first_plan
from refinery.stages import mix, pack, tokenize
from refinery.stages.ablate import (
    Measured,
    ablate_folder,
    checked_recipe,
    make_vocabulary,
    mix_section,
    run_arm_stages,
    run_like,
    train_supplies,
    training_section,
)
from refinery.stages.ablate_arms import ARM_STAGES, Arm, link_stage, recipe_with
from refinery.stages.ablate_heldout import write_heldout_shards
from refinery.stages.ablate_train import HeldOut, proxy_run, train_all, with_heldout
from refinery.stages.mix_plan import phase_domains
from refinery.stages.workspace import Run, hold_lock

REPLAY = "replay"
"""Share of everything of role replay."""
LOWEST_SHARE = 0.02
HIGHEST_SHARE = 0.8


@dataclass(frozen=True)
class MixSearch:
    """How to search for a mix."""

    tokens: int
    """Tokens of one training."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Domain -> lowest and highest share; 0.02 to 0.8 where nothing is said, less where tokens are few."""
    preset: str = "tiny"
    seeds: int = 1
    """Trainings per mixture."""
    heldout_rows: int = 256
    jobs: int = 1
    share_last: bool = False
    """As of `refinery.stages.ablate.Ablation`."""
    threads: int = 1
    own: tuple[Input, ...] = ()


@dataclass(frozen=True)
class MixtureData:
    """Documents packed for every mixture within the bounds."""

    recipe: Recipe
    folder: Path
    manifest: ShardManifest
    bounds: dict[str, tuple[float, float]]
    """Domain -> lowest and highest share, capped by the tokens that there are."""
    recipe_shares: dict[str, float]
    """The mix that the recipe has, over all its phases."""
    streams: dict[str, dict[str, float]]
    """Domain -> stream -> share of the domain."""
    unique_tokens: dict[str, int]
    section: Train
    targets: tuple[str, ...]
    """Domains of role target."""


def mixture_data(run: Run, asked: MixSearch, told: Callable[[str], None] = lambda _: None) -> MixtureData:
    """Run the recipe's stages once and pack what any mixture within the bounds needs.

    Raises:
        ConfigError: bounds of unknown domains, or without a mix; sections are missing.
        DataError: no clean held-out text.
    """
    recipe = checked_recipe(run.recipe, asked.own, asked)
    root = ablate_folder(recipe)
    stages = tuple(s for s in recipe.stages() if s in ARM_STAGES)
    with hold_lock(str(root)):
        try:
            folders, held = run_arm_stages(run, recipe, asked.own, [Arm("all", stages)], told)
            place = root / "mixtures"
            for stage in ("ingest", *stages):
                link_stage(folders[stages], place, stage)
            vocabulary = make_vocabulary(run, recipe, folders[()])
            one = recipe_with(recipe, place, stages, tokenizer=Tokenizer(path=str(vocabulary)))
            tokenize.run(run_like(run, one))
            return _packed(run, one, asked, held, vocabulary)
        finally:
            run.stop_session()


def _packed(run: Run, recipe: Recipe, asked: MixSearch, held: Run, vocabulary: Path) -> MixtureData:
    section = mix_section(recipe.mix)
    unique: dict[str, int] = {}
    supplies = train_supplies(recipe.workdir)
    for supply in supplies:
        name = REPLAY if supply.role == REPLAY else supply.domain
        unique[name] = unique.get(name, 0) + supply.unique_tokens
    shares = _recipe_shares(section, supplies)
    bounds = _bounds(asked, section, unique, shares)
    highest = {name: high for name, (_, high) in bounds.items()}
    total = sum(highest.values())
    phase = MixStage(
        domains={d: high / total for d, high in highest.items() if d != REPLAY}, replay=highest.get(REPLAY, 0.0) / total
    )
    wide = Mix(budget_tokens=int(total * asked.tokens), stages=(phase,), max_epochs=section.max_epochs)
    made = run_like(run, recipe.model_copy(update={"mix": wide}))
    mixed = mix.run(made)
    pack.run(made)
    shards, entries, _ = write_heldout_shards(held, vocabulary, asked.heldout_rows)
    folder = Path(recipe.workdir) / "data"
    manifest = with_heldout(pack.shards_folder(recipe.workdir), HeldOut(shards, entries), folder)
    streams: dict[str, dict[str, float]] = {}
    for stream, share in mixed.facts["phases"][0]["streams"].items():
        domain, role = stream.split("/")[:2]
        streams.setdefault(REPLAY if role == REPLAY else domain, {})[stream] = share
    for found in streams.values():
        whole = sum(found.values())
        found |= {stream: share / whole for stream, share in found.items()}
    targets = tuple(sorted({i.domain for i in recipe.inputs if i.role == "target"}))
    return MixtureData(
        made.recipe, folder, manifest, bounds, shares, streams, unique,
        training_section(recipe, asked.preset, asked.tokens), targets,
    )  # fmt: skip


def _recipe_shares(section: Mix, supplies: Sequence[StreamSupply]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for stage in section.stages:
        for domain, share in (*phase_domains(stage, natural_shares(supplies)).items(), (REPLAY, stage.replay)):
            if share:
                shares[domain] = shares.get(domain, 0.0) + stage.share * share
    return shares


def _bounds(
    asked: MixSearch, section: Mix, unique: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return the bounds of every domain of the mix, the highest share no more than its tokens give."""
    unknown = sorted(set(asked.bounds) - set(shares))
    if unknown:
        raise ConfigError(f"bounds name {', '.join(unknown)}; the recipe's mix has {', '.join(sorted(shares))}")
    found = {}
    for domain in sorted(shares):
        low, high = asked.bounds.get(domain, (LOWEST_SHARE, HIGHEST_SHARE))
        most = section.max_epochs.get(domain, DEFAULT_MAX_EPOCHS) * unique.get(domain, 0) / asked.tokens
        cap, _ = share_cap(domain, MixRequest(shares={}, max_shares=section.max_shares))
        if low > most:
            raise ConfigError(
                f"domain {domain} has {unique.get(domain, 0):,} tokens, at most {most:.4f} of {asked.tokens:,} under "
                f"its cap on epochs, and {low} is the lowest share; lower --tokens or the bound"
            )
        found[domain] = (low, min(high, cap, 0.98 * most))  # padding and row starts take up to two hundredths
    if sum(high for _, high in found.values()) < 1:
        text = ", ".join(f"{d} {high:.3f}" for d, (_, high) in found.items())
        raise ConfigError(f"highest shares sum to under 1 ({text}); raise bounds or mix.max_epochs, or lower --tokens")
    return found


def train_mixtures(
    data: MixtureData,
    asked: MixSearch,
    mixtures: Mapping[str, Mapping[str, float]],
    told: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Train the proxies of some mixtures and return their losses, mixtures in order, seeds inside.

    Raises:
        ConfigError: a share outside the bounds that were packed for.
    """
    rows = (data.section.steps or 1) * (data.section.batch_tokens // data.manifest.sequence_length)
    runs = []
    for name, shares in mixtures.items():
        for domain, share in shares.items():
            low, high = data.bounds[domain]
            if not low - 1e-6 <= share <= high + 1e-6:
                raise ConfigError(f"mixture {name} has {share:.4f} of {domain}; packed for {low:.4f} to {high:.4f}")
        for seed in range(1, asked.seeds + 1):
            plan = _plan(data, shares, rows, seed)
            folder = Path(data.recipe.workdir) / "runs" / f"{asked.preset}-{name}-seed-{seed}"
            runs.append(proxy_run(data.recipe, data.section, (name, seed, asked.threads), (data.folder, plan), folder))
    number = iter(range(1, len(runs) + 1))

    def note(done: object, record: object, stood: bool) -> None:
        told(f"trained {next(number)}/{len(runs)}  {getattr(done, 'arm', '')}{': stood already' if stood else ''}")

    with hold_lock(str(ablate_folder(data.recipe))):
        records = train_all(runs, asked.jobs, note, share_last=asked.share_last)
    return [Measured(r.arm, r.seed, False, record) for r, record in zip(runs, records, strict=True)]


def _plan(data: MixtureData, shares: Mapping[str, float], rows: int, seed: int) -> MixPlan:
    by_stream = {s: share * part for d, share in shares.items() for s, part in data.streams[d].items()}
    total = sum(by_stream.values())
    return first_plan(data.manifest, seed, [(rows, {s: share / total for s, share in by_stream.items()})])


def mixture_names(count: int) -> Sequence[str]:
    """Return names of mixtures: the recipe's first."""
    return ["recipe", *(f"mix-{n:03d}" for n in range(1, count))]
