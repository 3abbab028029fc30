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
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from refinery.contracts.manifest import canonical_json
from refinery.errors import ConfigError
from refinery.hashing import sha256_hex
from refinery.recipe_sections import (
    Decontaminate,
    DedupDocuments,
    DedupSentences,
    Embeddings,
    Eval,
    Ingest,
    Input,
    Mix,
    MixStage,
    Pack,
    Report,
    Rules,
    Screen,
    Section,
    Spark,
    Tokenizer,
    Train,
)
from refinery.recipe_selection import MODEL_PRESETS, LabelledFiles, Quality, QualityClassifier, Select

__all__ = [
    "MODEL_PRESETS",
    "STAGE_ORDER",
    "Decontaminate",
    "DedupDocuments",
    "DedupSentences",
    "Embeddings",
    "Eval",
    "Ingest",
    "Input",
    "LabelledFiles",
    "Mix",
    "MixStage",
    "Pack",
    "Quality",
    "QualityClassifier",
    "Recipe",
    "Report",
    "Rules",
    "Screen",
    "Section",
    "Select",
    "Spark",
    "Tokenizer",
    "Train",
    "load_recipe",
    "parse_recipe",
]

STAGE_ORDER = (
    "ingest",
    "screen",
    "rules",
    "quality",
    "select",
    "dedup_documents",
    "dedup_sentences",
    "decontaminate",
    "tokenize",
    "mix",
    "pack",
    "train",
    "report",
)
"""Every stage, in the order in which a run takes them; a stage whose section the recipe leaves out is not run."""


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
    decontaminate: Decontaminate | None = None
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
            for domain in (*stage.domains, *([stage.domain_heavy] if stage.domain_heavy else [])):
                if domain not in known:
                    near = difflib.get_close_matches(domain, known, n=1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(f"mix names domain {domain}, inputs have {', '.join(sorted(known))}{hint}")
            if stage.replay > 0 and not any(i.role == "replay" for i in recipe.inputs):
                raise ValueError(f"mix asks for replay {stage.replay} but no input has role: replay")


def _check_names(recipe: Recipe, sources: set[str]) -> None:
    domains = {i.domain for i in recipe.inputs}
    named: dict[str, tuple[Mapping[str, Any], set[str]]] = {
        "rules.by_domain": (recipe.rules.by_domain if recipe.rules else {}, domains),
        "mix.max_epochs": (recipe.mix.max_epochs if recipe.mix else {}, domains | {"replay"}),
        "mix.max_shares": (recipe.mix.max_shares if recipe.mix else {}, domains),
        "mix.upsample": (recipe.mix.upsample if recipe.mix else {}, domains),
    }
    for where, (given, known) in named.items():
        for name in sorted(set(given) - known):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{where} names domain {name}, inputs have {', '.join(sorted(known))}{hint}")
    if recipe.quality is not None:
        unknown = sorted(recipe.quality.sources() - sources)
        if unknown:
            raise ValueError(f"quality names sources {unknown}; inputs have {', '.join(sorted(sources))}")
    for section in ("dedup_documents", "dedup_sentences"):
        given_section = getattr(recipe, section)
        if given_section is not None and "quality" in given_section.keep and recipe.quality is None:
            raise ValueError(
                f"{section}.keep names quality, but the recipe has no quality section; add it or take it out"
            )
    if recipe.mix is not None and recipe.mix.upsample and recipe.dedup_documents is None:
        raise ValueError("mix.upsample counts duplicates, but the recipe has no dedup_documents section; add it")
    if recipe.select is not None:
        targets = {i.domain for i in recipe.inputs if i.role == "target"}
        for target in recipe.select.target_shares():
            if target not in targets:
                raise ValueError(
                    f"select aims at domain {target}, but inputs of role target are of "
                    f"{', '.join(sorted(targets)) or 'no domain'}"
                )


class _OneOfEach(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while reading a mapping", node.start_mark, f"key {key_node.value} is given twice",
                        key_node.start_mark,
                    )  # fmt: skip
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_recipe(path: str | Path) -> Recipe:
    """Load and check a recipe file.

    Raises:
        ConfigError: missing file, bad YAML, an unknown key, a value out of its bounds, an unset variable.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"recipe {file} does not exist; `refinery init` writes one")
    try:
        raw = _OneOfEach(file.read_text(encoding="utf-8")).get_single_data()
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
