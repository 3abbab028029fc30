"""Presets: named lists of rules in YAML, every threshold with its citation.

A rule keeps a document whose signal lies in [min, max]; it cuts when the signal is strictly below `min` or strictly
above `max`, as the sources do. `langs` and `scripts` say where a rule holds:

- ``langs: [en]``: only documents of these languages. Where a document's language is not known (null), the rule holds,
  and `scripts` alone decides.
- ``scripts: spaced | cjk | any`` (default any), from the text itself: a document is *cjk* when Han and kana make up at
  least `CJK_MIN_FRAC` of its non-space characters. This keeps rules that presuppose spaces between words (English
  stop words, word lengths of 3 to 10) from cutting every Chinese document, with no language column at all.

A preset may also list line rules under ``lines`` (`line_preset`): they cut single lines. Its document rules then judge
what the lines left. Two signals are theirs alone: `LINE_SIGNALS`, of what the same preset's line rules took out.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from refinery.errors import ConfigError
from refinery.kernels.line_preset import line_rule
from refinery.kernels.line_rules import LineRule
from refinery.kernels.preset_checks import bounds, check_keys, check_unique, near, scope
from refinery.kernels.signals_catalog import SIGNALS
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS

CJK_MIN_FRAC = 0.3
"""Share of Han and kana from which a document counts as CJK; ChineseWebText's own bound for Chinese text is 0.30."""

LINE_SIGNALS: dict[str, str] = {
    "cut_word_frac": "words between white space that the preset's line rules took out, of all of the document's",
    "cut_byte_frac": "bytes that they took out, of all",
}
"""Signals of a preset's own line rules; stored under ``PRESET.SIGNAL``."""

_PRESET_KEYS = ("name", "doc", "lines", "rules")
_RULE_KEYS = ("name", "signal", "min", "max", "source", "scripts", "langs")


class Rule(NamedTuple):
    """One rule; `name` is unique among the rules that are decided together."""

    name: str
    """``preset.rule``: the drop reason."""
    signal: str
    min: float | None
    """Lowest value that is kept."""
    max: float | None
    """Highest value that is kept."""
    source: str
    scripts: str = "any"
    langs: tuple[str, ...] = ()
    """Empty: every language."""


class Preset(NamedTuple):
    """A named list of rules, in the order in which the first one to cut gives the reason."""

    name: str
    doc: str
    rules: tuple[Rule, ...]
    lines: tuple[LineRule, ...] = ()
    """Line rules, in the order in which a line meets them."""


def preset_names() -> list[str]:
    """Return the names of the presets that come with Refinery."""
    folder = resources.files("refinery.kernels") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_path: str | Path) -> Preset:
    """Load a preset by name, or a user's own from a path that ends in .yaml or .yml.

    Raises:
        ConfigError: no such preset or file, not YAML, unknown or missing keys, unknown signal, bounds that no value
            can meet. Names come with their nearest neighbours.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise ConfigError(f"preset file {text!r} does not exist; give a path to a YAML file or one of "
                              f"{', '.join(preset_names())}")  # fmt: skip
        content = path.read_text(encoding="utf-8")
    else:
        known = preset_names()
        if text not in known:
            raise ConfigError(f"unknown preset {text!r}{near(text, known)}; presets: {', '.join(known)}, "
                              "or a path that ends in .yaml")  # fmt: skip
        content = (resources.files("refinery.kernels") / "presets" / f"{text}.yaml").read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ConfigError(f"preset {text!r} is not valid YAML: {error}") from error
    return _preset(raw, text)


def load_rules(names_or_paths: Iterable[str | Path]) -> tuple[Rule, ...]:
    """Return the rules of several presets in order.

    Raises:
        ConfigError: as `load_preset`, or two rules share a name.
    """
    rules: list[Rule] = []
    for name_or_path in names_or_paths:
        rules.extend(load_preset(name_or_path).rules)
    check_unique([rule.name for rule in rules])
    return tuple(rules)


def _preset(raw: Any, where: str) -> Preset:
    if not isinstance(raw, dict):
        raise ConfigError(f"preset {where!r} must be a mapping with the keys {', '.join(_PRESET_KEYS)}")
    check_keys(raw, _PRESET_KEYS, f"preset {where!r}")
    name, entries, lines = raw.get("name"), raw.get("rules", []), raw.get("lines", [])
    if not isinstance(name, str) or not all(isinstance(e, list) for e in (entries, lines)) or not (entries or lines):
        raise ConfigError(
            f"preset {where!r} needs 'name' (text), and 'rules' or 'lines' (a list with at least one rule)"
        )
    if lines and "." in name:
        raise ConfigError(f"preset {name!r} has line rules, whose columns are named PRESET.SIGNAL; leave the dot out")
    line_rules = tuple(line_rule(entry, name, position) for position, entry in enumerate(lines))
    rules = tuple(_rule(entry, name, position, has_lines=bool(lines)) for position, entry in enumerate(entries))
    check_unique([*(rule.name for rule in rules), *(line.name for line in line_rules)])
    return Preset(name, str(raw.get("doc", "")), rules, line_rules)


def _rule(raw: Any, preset: str, position: int, *, has_lines: bool) -> Rule:
    where = f"rule {position} of preset {preset!r}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a mapping with the keys {', '.join(_RULE_KEYS)}")
    check_keys(raw, _RULE_KEYS, where)
    missing = [key for key in ("name", "signal", "source") if not isinstance(raw.get(key), str)]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)} (text); every rule names its signal and its citation")
    where = f"rule {preset}.{raw['name']}"
    known = [*(spec.name for spec in SIGNALS), *(spec.name for spec in DATATROVE_SIGNALS)]
    known += LINE_SIGNALS if has_lines else ()
    signal = raw["signal"]
    if signal not in known:
        raise ConfigError(f"{where}: unknown signal {signal!r}{near(signal, known)}")
    low, high = bounds(raw, where)
    scripts, langs = scope(raw, where)
    stored = f"{preset}.{signal}" if signal in LINE_SIGNALS else signal
    return Rule(f"{preset}.{raw['name']}", stored, low, high, raw["source"], scripts, langs)
