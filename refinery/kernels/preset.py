"""Presets: named lists of rules in YAML, every threshold with its citation.

A rule keeps a document whose signal lies in [min, max]; it cuts when the signal is strictly below `min` or strictly
above `max`, as the sources do. `langs` and `scripts` say where a rule holds:

- ``langs: [en]``: only documents of these languages. Where a document's language is not known (null), the rule holds,
  and `scripts` alone decides.
- ``scripts: spaced | cjk | any`` (default any), from the text itself: a document is *cjk* when Han and kana make up at
  least `CJK_MIN_FRAC` of its non-space characters. This keeps rules that presuppose spaces between words (English
  stop words, word lengths of 3 to 10) from cutting every Chinese document, with no language column at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from refinery.errors import ConfigError
from refinery.kernels.signals_catalog import SIGNALS
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS

CJK_MIN_FRAC = 0.3
"""Share of Han and kana from which a document counts as CJK; ChineseWebText's own bound for Chinese text is 0.30."""

_SCRIPTS = ("any", "spaced", "cjk")
_PRESET_KEYS = ("name", "doc", "rules")
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
            raise ConfigError(f"unknown preset {text!r}{_near(text, known)}; presets: {', '.join(known)}, "
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
    _unique([rule.name for rule in rules])
    return tuple(rules)


def _preset(raw: Any, where: str) -> Preset:
    if not isinstance(raw, dict):
        raise ConfigError(f"preset {where!r} must be a mapping with the keys {', '.join(_PRESET_KEYS)}")
    _check_keys(raw, _PRESET_KEYS, f"preset {where!r}")
    name, entries = raw.get("name"), raw.get("rules")
    if not isinstance(name, str) or not isinstance(entries, list) or not entries:
        raise ConfigError(f"preset {where!r} needs 'name' (text) and 'rules' (a list with at least one rule)")
    rules = tuple(_rule(entry, name, position) for position, entry in enumerate(entries))
    _unique([rule.name for rule in rules])
    return Preset(name, str(raw.get("doc", "")), rules)


def _rule(raw: Any, preset: str, position: int) -> Rule:
    where = f"rule {position} of preset {preset!r}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a mapping with the keys {', '.join(_RULE_KEYS)}")
    _check_keys(raw, _RULE_KEYS, where)
    missing = [key for key in ("name", "signal", "source") if not isinstance(raw.get(key), str)]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)} (text); every rule names its signal and its citation")
    where = f"rule {preset}.{raw['name']}"
    known = [spec.name for spec in (*SIGNALS, *DATATROVE_SIGNALS)]
    if raw["signal"] not in known:
        raise ConfigError(f"{where}: unknown signal {raw['signal']!r}{_near(raw['signal'], known)}")
    low, high = _bound(raw.get("min"), where), _bound(raw.get("max"), where)
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise ConfigError(f"{where}: min {low} and max {high} give no range to keep; set min, max, or min <= max")
    scripts = raw.get("scripts", "any")
    if scripts not in _SCRIPTS:
        raise ConfigError(f"{where}: scripts is {scripts!r}; use one of {', '.join(_SCRIPTS)}")
    langs = raw.get("langs", [])
    if not isinstance(langs, list) or not all(isinstance(lang, str) for lang in langs):
        raise ConfigError(f"{where}: langs must be a list of codes such as [en, de], not {langs!r} (quote 'no')")
    return Rule(f"{preset}.{raw['name']}", raw["signal"], low, high, raw["source"], scripts, tuple(langs))


def _bound(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 (NaN)
        raise ConfigError(f"{where}: bound {value!r} is not a number; leave the key out to have no bound")
    return float(value)


def _check_keys(raw: dict[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{_near(str(key), known)}; keys: {', '.join(known)}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (near: {', '.join(near)})" if near else ""


def _unique(names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"rule names must differ, these repeat: {', '.join(repeated)}; rename one of each")
