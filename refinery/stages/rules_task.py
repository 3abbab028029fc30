"""What a recipe's rules are, domain by domain, and what the part tasks of the rules stage need to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from refinery.contracts.manifest import fingerprint_of
from refinery.errors import ConfigError
from refinery.kernels.line_rules import LineRule
from refinery.kernels.preset import Preset, Rule, load_preset
from refinery.kernels.preset_checks import check_unique
from refinery.kernels.segmentation import ALGORITHM_VERSION as SEGMENTATION_VERSION
from refinery.kernels.segmentation_dictionary import dictionary_identity
from refinery.kernels.signals import NGRAM_SIGNALS, Passes
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS
from refinery.recipe import Recipe

NOTHING_LEFT = Rule(
    "rules.nothing_left", "num_nonblank_lines", 1.0, None, "Refinery: line rules took every line that holds text"
)
"""Holds wherever line rules do."""


class RecipeRules(NamedTuple):
    """The rules of all presets that a recipe names."""

    rules: tuple[Rule, ...]
    """Rules that drop documents, in the order that gives the reason."""
    masks: dict[str, int]
    """Domain -> which of them hold for it, one bit a rule."""
    after: dict[str, int]
    """Domain -> which of those judge what line rules left; the others judge the text as it came in."""
    line_rules: tuple[LineRule, ...]
    """In the order in which a line meets them."""
    line_masks: dict[str, int]
    """Domain -> which of them hold for it."""

    def decided_by(self) -> dict[str, Any]:
        """Return everything that decides, as JSON-able values."""
        rules = [rule._asdict() | {"langs": list(rule.langs)} for rule in self.rules]
        told: dict[str, Any] = {"rules": rules, "masks": self.masks}
        if self.line_rules:
            lines = [r._asdict() | {"langs": list(r.langs), "phrases": list(r.phrases)} for r in self.line_rules]
            told |= {"after_lines": self.after, "line_rules": lines, "line_masks": self.line_masks}
        return told


@dataclass(frozen=True)
class RulesTask:
    """Everything one part task needs."""

    workdir: str
    given: RecipeRules
    upto: tuple[str, ...]
    slice_rows: int
    upstream: dict[int, str]
    """Part -> hash of its documents and of the decisions before this stage."""
    segmentation: str | None
    """What word boundaries are a function of besides the text; None = none are made."""

    @property
    def line_rules(self) -> tuple[LineRule, ...]:
        """Line rules in order."""
        return self.given.line_rules

    @property
    def line_masks(self) -> dict[str, int]:
        """Domain -> line rules that hold for it."""
        return self.given.line_masks

    @property
    def rules_identity(self) -> str:
        """Names the rules and where they hold."""
        return fingerprint_of(self.given.decided_by())

    @property
    def wants_datatrove(self) -> bool:
        """Whether a rule asks for a signal over datatrove's words, which cost more than all others together."""
        named = {spec.name for spec in DATATROVE_SIGNALS}
        return any(rule.signal in named for rule in self.given.rules)

    @property
    def passes_before(self) -> Passes:
        """How far the text as it came in is counted.

        All the way, unless every rule judges what line rules left: then those signals are whole, and these are what
        line rules themselves need. Counting both texts through would take half as long again.
        """
        masks = self.given.masks
        judges = not self.line_rules or any(masks[d] & ~self.given.after.get(d, 0) for d in masks)
        return "ngrams" if judges else "characters"

    @property
    def passes_left(self) -> Passes:
        """How far what line rules left is counted: with n-grams where a rule asks, or no other signals have them."""
        after = self.given.after.values()
        wanted = {rule.signal for i, rule in enumerate(self.given.rules) if any(mask >> i & 1 for mask in after)}
        return "ngrams" if self.passes_before == "characters" or wanted & NGRAM_SIGNALS else "words"


def recipe_rules(recipe: Recipe) -> RecipeRules:
    """Return the rules of a recipe.

    Raises:
        ConfigError: no rules section, an unknown preset or signal.
    """
    section = recipe.rules
    if section is None:
        raise ConfigError("the recipe has no rules section; `rules: {presets: [gopher]}` is enough")
    wanted = {i.domain: section.by_domain.get(i.domain, section.presets) for i in recipe.inputs}
    names = list(dict.fromkeys([*section.presets, *(n for presets in section.by_domain.values() for n in presets)]))
    presets = {name: load_preset(name) for name in names}
    rules, owners = [], []
    for name, preset in presets.items():
        mine = [*(_tripping(line) for line in preset.lines if line.action == "drop_document"), *preset.rules]
        rules += mine
        owners += [name] * len(mine)
    lines = tuple(line for preset in presets.values() for line in preset.lines)
    line_owners = [name for name, preset in presets.items() for _ in preset.lines]
    rules += [NOTHING_LEFT] if lines else []
    check_unique([rule.name for rule in rules])
    check_unique([line.name for line in lines])
    masks, after, line_masks = {}, {}, {}
    for domain, listed in sorted(wanted.items()):
        behind = _behind_lines(listed, presets)
        masks[domain] = _bits(owners, listed) | ((1 << len(owners)) if behind else 0)
        after[domain] = _bits(owners, behind) | ((1 << len(owners)) if behind else 0)
        line_masks[domain] = _bits(line_owners, listed)
    return RecipeRules(tuple(rules), masks, after, lines, line_masks)


def _tripping(line: LineRule) -> Rule:
    """Return the rule that drops a document over a line: no line may trip over it."""
    return Rule(line.name, line.name, None, 0.0, line.source)


def _behind_lines(listed: Sequence[str], presets: dict[str, Preset]) -> Sequence[str]:
    """Return the presets from the first one on that cuts lines."""
    first = next((i for i, name in enumerate(listed) if presets[name].lines), len(listed))
    return listed[first:]


def _bits(owners: Sequence[str], presets: Sequence[str]) -> int:
    return sum(1 << i for i, name in enumerate(owners) if name in presets)


def segmentation_identity(recipe: Recipe) -> str | None:
    """Return what identifies the segmentation that a recipe stores: its version and its dictionary; None for none.

    Raises:
        ConfigError: the package with the dictionary is not installed.
    """
    wanted = recipe.rules is not None and recipe.rules.segment_chinese
    return fingerprint_of("words", SEGMENTATION_VERSION, dictionary_identity()) if wanted else None
