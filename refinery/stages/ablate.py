"""ablate: train the same small model on what each set of stages leaves, and measure all of them on the same text.

What is held equal: the vocabulary (made once, from the raw documents), the mix and its token budget, the number of
steps, the held-out text, and per pair the seed of weights and order. What differs is the documents. The first arm is
trained a second time with other seeds: a difference between two trainings on the same data is noise.

Folders under ``WORKDIR/ablate``: ``source`` (ingest, groups of duplicates), ``train`` and ``heldout`` (the two sides),
``stages/A-B-C`` (the last stage of that list, earlier ones linked), ``arms/NAME`` (tokens, mix, shards, runs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from refinery.contracts.manifest import StageManifest
from refinery.contracts.runs import RunRecord
from refinery.errors import ConfigError
from refinery.io import storage
from refinery.kernels.mixing import StreamSupply
from refinery.recipe import Input, Mix, Recipe, Tokenizer, Train
from refinery.stages import mix, pack, tokenize
from refinery.stages.ablate_arms import ARM_STAGES, Arm, folder_of, link_stage, recipe_with, shared_beginnings
from refinery.stages.ablate_heldout import divide, write_heldout_shards
from refinery.stages.ablate_train import HeldOut, ProxyRun, proxy_runs, train_all, with_heldout
from refinery.stages.mix_plan import plan_streams, supplies_of
from refinery.stages.pipeline import STAGES, check_recipe
from refinery.stages.workspace import Run, hold_lock, need_stage

NOISE_SEED_STEP = 1000
"""Seeds of the second training of the first arm begin this much later."""


class Sizes(Protocol):
    """How many trainings, and how they run beside each other."""

    @property
    def seeds(self) -> int: ...  # noqa: D102
    @property
    def jobs(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Ablation:
    """What to compare, and on how much."""

    arms: tuple[Arm, ...]
    preset: str = "tiny"
    seeds: int = 3
    """Trainings per arm."""
    tokens: int | None = None
    """Tokens of one training; None takes the most that every arm has under the caps on epochs."""
    heldout_rows: int = 256
    """Rows of held-out text per domain."""
    jobs: int = 1
    share_last: bool = False
    """Let the last trainings be more than `jobs` beside each other, rather than leave cores idle."""
    """Trainers beside each other."""
    threads: int = 1
    """CPU threads of one trainer."""
    own: tuple[Input, ...] = ()
    """The user's own held-out sets."""


@dataclass(frozen=True)
class Measured:
    """Losses of one training at its end."""

    arm: str
    seed: int
    again: bool
    """Second training of the first arm, for the noise."""
    record: RunRecord


@dataclass(frozen=True)
class AblationResult:
    """Everything that was measured."""

    runs: tuple[Measured, ...]
    facts: Mapping[str, Any]
    """Per arm: documents, bytes, tokens and epochs; budget, steps, held-out documents."""


def ablate_folder(recipe: Recipe) -> Path:
    """Return the folder of a recipe's ablation."""
    return storage.local_path(recipe.workdir) / "ablate"


def run_ablation(run: Run, asked: Ablation, told: Callable[[str], None] = lambda _: None) -> AblationResult:
    """Make the data of every arm, train the proxies, and return their losses.

    Args:
        run: recipe and session; the session is stopped before training.
        asked: what to compare.
        told: gets a line per step.

    Raises:
        ConfigError: sections are missing, an arm cannot give the budget, names clash.
        DataError: no clean held-out text.
    """
    recipe = checked_recipe(run.recipe, asked.own, asked)
    root = ablate_folder(recipe)
    with hold_lock(str(root)):
        try:
            folders, held = run_arm_stages(run, recipe, asked.own, asked.arms, told)
            made = _data_sets(run, recipe, root, asked, folders, held, told)
        finally:
            run.stop_session()
        return _measure(recipe, asked, made, told)


def checked_recipe(recipe: Recipe, own: Sequence[Input], asked: Sizes) -> Recipe:
    """Return the recipe with the user's sets among its inputs; check what would only fail later.

    Raises:
        ConfigError: a missing section, sizes below 1, a workdir that is not mounted, a name that the recipe has.
    """
    absent = [s for s in ("tokenizer", "mix", "pack") if getattr(recipe, s) is None]
    if absent:
        raise ConfigError(f"ablate needs section {', '.join(absent)} in recipe {recipe.name}; add what is missing")
    if asked.seeds < 1 or asked.jobs < 1 or asked.threads < 1:
        raise ConfigError(f"seeds {asked.seeds}, jobs {asked.jobs}, threads {asked.threads}: each must be at least 1")
    if not storage.is_local(recipe.workdir):
        raise ConfigError(f"ablate links folders and trains: it needs a mounted workdir, not {recipe.workdir}")
    taken = {i.domain for i in recipe.inputs} & {i.domain for i in own}
    if taken:
        raise ConfigError(f"--heldout {', '.join(sorted(taken))}: the recipe has that domain; give another name")
    check_recipe(recipe, [s for s in recipe.stages() if s in (*ARM_STAGES, "tokenize")])
    plain = mix_section(recipe.mix).model_copy(update={"upsample": {}})  # arms without duplicate groups have no copies
    return recipe.model_copy(update={"inputs": (*recipe.inputs, *own), "mix": plain})


def run_like(run: Run, recipe: Recipe) -> Run:
    """Return a run of another recipe in the same session."""
    other = Run(recipe, progress=run.progress, slice_rows=run.slice_rows)
    other.use_session(run.spark)
    return other


def run_arm_stages(
    run: Run, recipe: Recipe, own: Sequence[Input], arms: Sequence[Arm], told: Callable[[str], None]
) -> tuple[dict[tuple[str, ...], Path], Run]:
    """Run every stage that some arm has, once per beginning; return the folder of each and the held-out side."""
    root = ablate_folder(recipe)
    train, held = divide(run, root, recipe, [i.source for i in own])
    told(f"divided      {_kept(need_stage(train.workdir, 'ingest'))} to train on, without twins of held-out text")
    folders: dict[tuple[str, ...], Path] = {(): Path(train.workdir)}
    for stages in shared_beginnings(arms):
        before, folder = folders[stages[:-1]], root / "stages" / folder_of(stages)
        for stage in ("ingest", *stages[:-1]):
            link_stage(before, folder, stage)
        done = STAGES[stages[-1]](run_like(run, recipe_with(recipe, folder, stages)))
        told(f"{'+'.join(stages):<12} {_kept(done)}")
        folders[stages] = folder
    return folders, held


def _kept(done: StageManifest) -> str:
    kept = [c for c in done.counts if c.kind == "kept"]
    return f"{sum(c.docs for c in kept):,} documents, {sum(c.bytes for c in kept) / 1e6:,.1f} MB"


@dataclass(frozen=True)
class _DataSets:
    recipes: dict[str, Recipe]
    """Of each arm, in its own folder."""
    folders: dict[str, Path]
    """Data set of each arm."""
    facts: dict[str, Any]
    section: Train


def _data_sets(
    run: Run, recipe: Recipe, root: Path, asked: Ablation, folders: Mapping[tuple[str, ...], Path], held: Run,
    told: Callable[[str], None],
) -> _DataSets:  # fmt: skip
    """Tokenize, mix and pack every arm, and put the held-out streams beside each."""
    vocabulary = make_vocabulary(run, recipe, folders[()])
    given = {"tokenizer": Tokenizer(path=str(vocabulary))}
    recipes = {}
    for arm in asked.arms:
        place = root / "arms" / arm.folder
        for stage in ("ingest", *arm.stages):
            link_stage(folders[arm.stages], place, stage)
        recipes[arm.name] = recipe_with(recipe, place, arm.stages, **given)
        tokenize.run(run_like(run, recipes[arm.name]))
    budget = _budget(recipes, asked.tokens)
    section = training_section(recipe, asked.preset, budget)
    shards, entries, documents = write_heldout_shards(held, vocabulary, asked.heldout_rows)
    facts: dict[str, Any] = {"heldout_documents": documents, "budget_tokens": budget, "steps": section.steps,
                             "batch_tokens": section.batch_tokens, "arms": {}}  # fmt: skip
    data = {}
    for name, one in recipes.items():
        recipes[name] = one.model_copy(update={"mix": _with_budget(one.mix, budget)})
        made = run_like(run, recipes[name])
        mixed = mix.run(made)
        pack.run(made)
        data[name] = Path(one.workdir) / "data"
        with_heldout(pack.shards_folder(one.workdir), HeldOut(shards, entries), data[name])
        facts["arms"][name] = _arm_facts(made.workdir, mixed)
        told(f"{name:<18} {facts['arms'][name]['unique_tokens']:,} tokens to draw {budget:,} from")
    return _DataSets(recipes, data, facts, section)


def make_vocabulary(run: Run, recipe: Recipe, documents: Path) -> Path:
    """Return the vocabulary of all arms: the recipe's own, or one trained on the raw documents."""
    place = ablate_folder(recipe) / "vocabulary"
    link_stage(documents, place, "ingest")
    tokenize.run(run_like(run, recipe_with(recipe, place, ())))
    return place / "tokenize" / "tokenizer"


def _budget(recipes: Mapping[str, Recipe], asked: int | None) -> int:
    """Return the tokens that every arm trains on: as asked, or the most that the poorest arm has under the caps."""
    most = {}
    for name, recipe in recipes.items():
        whole = mix_section(recipe.mix).model_copy(update={"budget_tokens": "auto"})
        most[name] = plan_streams(whole, train_supplies(recipe.workdir)).budget_tokens
    poorest = min(most, key=most.__getitem__)
    if asked is not None and asked > most[poorest]:
        raise ConfigError(
            f"arm {poorest} holds at most {most[poorest]:,} tokens under the mix's caps on epochs, {asked:,} are asked "
            "for; lower --tokens, raise mix.max_epochs, or loosen the arm's stages"
        )
    return most[poorest] if asked is None else asked


def train_supplies(workdir: str) -> list[StreamSupply]:
    """Return what each training stream of a tokenized run has; copies by cluster size are not counted."""
    found: dict[str, int] = {}
    for row in need_stage(workdir, "tokenize").counts:
        if row.kind == "kept" and row.split == "train":
            name = mix.stream_name(row.domain, row.role, row.lang, row.split)
            found[name] = found.get(name, 0) + row.tokens
    return supplies_of(found)


def mix_section(section: Mix | None) -> Mix:
    """Return a recipe's mix.

    Raises:
        ConfigError: it has none.
    """
    if section is None:
        raise ConfigError("ablate needs section mix; add `mix: {stages: [{domains: ...}]}`")
    return section


def _with_budget(section: Mix | None, budget: int) -> Mix:
    return mix_section(section).model_copy(update={"budget_tokens": budget})


def training_section(recipe: Recipe, preset: str, budget: int) -> Train:
    """Return the trainer settings of all arms: the recipe's, with the preset asked for and the budget's steps."""
    section = recipe.train or Train()
    steps = max(1, budget // section.batch_tokens)
    changes = {"preset": preset, "init": "scratch", "steps": steps, "eval_every": 0, "eval_rows": 0}
    return section.model_copy(update=changes)


def _arm_facts(workdir: str, mixed: StageManifest) -> dict[str, Any]:
    tokens = [c for c in need_stage(workdir, "tokenize").counts if c.kind == "kept"]
    return {
        "documents": sum(c.docs for c in tokens),
        "text_bytes": sum(c.bytes for c in tokens),
        "unique_tokens": sum(c.tokens for c in tokens),
        "epochs": {s["stream"]: round(s["epochs"], 4) for s in mixed.facts["streams"]},
        "domain_tokens": _by_domain(mixed.facts["streams"]),
    }


def _by_domain(streams: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for stream in streams:
        found[stream["domain"]] = found.get(stream["domain"], 0) + stream["tokens"]
    return found


def _measure(recipe: Recipe, asked: Ablation, made: _DataSets, told: Callable[[str], None]) -> AblationResult:
    from refinery.shards.manifest import load_manifest  # noqa: PLC0415

    first = asked.arms[0].name
    seeds = list(range(1, asked.seeds + 1))
    runs: list[ProxyRun] = []
    for name, one in made.recipes.items():
        mine = [*seeds, *(s + NOISE_SEED_STEP for s in seeds)] if name == first else seeds
        folder = made.folders[name]
        runs += proxy_runs(one, name, folder, load_manifest(folder), made.section, mine, asked.threads)
    runs.sort(key=lambda r: (r.seed % NOISE_SEED_STEP, r.seed))  # a whole set of arms per seed: early numbers pair up
    needed = list({r.fingerprint: r for r in reversed(runs)}.values())[::-1]  # arms that pack the same rows share runs
    number = iter(range(1, len(needed) + 1))

    def note(done: ProxyRun, record: RunRecord, stood: bool) -> None:
        took = "stood already" if stood else f"{record.seconds:.0f} s, {record.tokens / record.seconds:,.0f} tokens/s"
        told(f"trained {next(number)}/{len(needed)}  {done.arm:<18} seed {done.seed}: {took}")

    records = train_all(needed, asked.jobs, note, share_last=asked.share_last)
    answers = dict(zip((r.fingerprint for r in needed), records, strict=True))
    measured = [
        Measured(r.arm, (r.seed - 1) % NOISE_SEED_STEP + 1, r.seed > NOISE_SEED_STEP, answers[r.fingerprint])
        for r in runs
    ]
    for name in made.facts["arms"]:
        same = [r.arm for r in needed if r.fingerprint in {o.fingerprint for o in runs if o.arm == name}]
        made.facts["arms"][name]["trained_as"] = name if name in same else same[0]
    facts = {
        **made.facts,
        "preset": asked.preset,
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "own_sets": [i.domain for i in asked.own],
        "stages": {arm.name: list(arm.stages) for arm in asked.arms},
    }
    return AblationResult(tuple(measured), facts)
