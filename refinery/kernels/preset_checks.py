"""Checks that the parsers of presets share: keys, bounds, languages, and names that are near to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from refinery.errors import ConfigError

SCRIPTS = ("any", "spaced", "cjk")


def bound(value: Any, where: str) -> float | None:
    """Return a bound of a rule; None where there is none.

    Raises:
        ConfigError: it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 (NaN)
        raise ConfigError(f"{where}: bound {value!r} is not a number; leave the key out to have no bound")
    return float(value)


def bounds(raw: dict[Any, Any], where: str) -> tuple[float | None, float | None]:
    """Return (min, max) of a rule.

    Raises:
        ConfigError: neither is there, one is not a number, or they are the wrong way round.
    """
    low, high = bound(raw.get("min"), where), bound(raw.get("max"), where)
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        raise ConfigError(f"{where}: min {low} and max {high} give no range to keep; set min, max, or min <= max")
    return low, high


def scope(raw: dict[Any, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """Return (scripts, langs) of a rule.

    Raises:
        ConfigError: scripts is unknown, or langs is no list of codes.
    """
    scripts, langs = raw.get("scripts", "any"), raw.get("langs", [])
    if scripts not in SCRIPTS:
        raise ConfigError(f"{where}: scripts is {scripts!r}; use one of {', '.join(SCRIPTS)}")
    if not isinstance(langs, list) or not all(isinstance(lang, str) for lang in langs):
        raise ConfigError(f"{where}: langs must be a list of codes such as [en, de], not {langs!r} (quote 'no')")
    return scripts, tuple(langs)


def check_keys(raw: dict[Any, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse a key that is not known.

    Raises:
        ConfigError: with the known keys, near ones first.
    """
    for key in raw:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{near(str(key), known)}; keys: {', '.join(known)}")


def near(name: str, known: Iterable[str]) -> str:
    """Return `` (near: …)`` with the known names most like this one; empty if none is."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (near: {', '.join(close)})" if close else ""


def check_unique(names: list[str]) -> None:
    """Refuse names that stand twice.

    Raises:
        ConfigError: with the names.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"rule names must differ, these repeat: {', '.join(repeated)}; rename one of each")
