"""The list ``lines`` of a preset: line rules in YAML, checked key by key. `line_rules` says what they do."""

from __future__ import annotations

from typing import Any

from refinery.errors import ConfigError
from refinery.kernels.line_rules import ACTIONS, LINE_FACTS, PATTERNS, PLACES, LineRule
from refinery.kernels.preset_checks import bounds, check_keys, near, scope

LINE_KEYS = (
    "name", "action", "source", "fact", "min", "max", "phrases", "pattern", "at", "max_words", "max_chars",
    "unfinished", "blank_lines", "scripts", "langs",
)  # fmt: skip


def line_rule(raw: Any, preset: str, position: int) -> LineRule:
    """Return one line rule of a preset.

    Raises:
        ConfigError: unknown or missing keys, an unknown fact, pattern, action or place (names come with their
            neighbours), bounds that no line can meet, or a rule that looks at nothing.
    """
    where = f"line rule {position} of preset {preset!r}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a mapping with the keys {', '.join(LINE_KEYS)}")
    check_keys(raw, LINE_KEYS, where)
    missing = [key for key in ("name", "source") if not isinstance(raw.get(key), str)]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)} (text); every rule has a name and its citation")
    where = f"line rule {preset}.{raw['name']}"
    fact, low, high = _fact(raw, where)
    pattern, phrases = _pattern(raw, where, has_fact=bool(fact))
    scripts, langs = scope(raw, where)
    return LineRule(
        name=f"{preset}.{raw['name']}",
        action=_action(raw, where, pattern, has_fact=bool(fact)),
        source=raw["source"],
        fact=fact,
        min=low,
        max=high,
        phrases=phrases,
        pattern=pattern,
        at=_one_of(raw.get("at", "anywhere"), PLACES, "at", where),
        max_words=_limit(raw, "max_words", where),
        max_chars=_limit(raw, "max_chars", where),
        unfinished=_flag(raw, "unfinished", where),
        blank_lines=_flag(raw, "blank_lines", where),
        scripts=scripts,
        langs=langs,
    )


def _fact(raw: dict[Any, Any], where: str) -> tuple[str, float | None, float | None]:
    fact = raw.get("fact")
    if fact is None:
        if "min" in raw or "max" in raw:
            raise ConfigError(f"{where}: min and max bound a fact; name one of {', '.join(LINE_FACTS)}")
        return "", None, None
    if fact not in LINE_FACTS:
        known = ", ".join(LINE_FACTS)
        raise ConfigError(f"{where}: unknown fact {fact!r}{near(str(fact), LINE_FACTS)}; facts: {known}")
    low, high = bounds(raw, where)
    return fact, low, high


def _pattern(raw: dict[Any, Any], where: str, *, has_fact: bool) -> tuple[str, tuple[str, ...]]:
    pattern, phrases = raw.get("pattern", ""), raw.get("phrases", [])
    if pattern:
        _one_of(pattern, PATTERNS, "pattern", where)
    if not isinstance(phrases, list) or not all(isinstance(p, str) and p and p == p.strip() for p in phrases):
        raise ConfigError(f"{where}: phrases must be a list of texts without outer white space, not {phrases!r}")
    if any("\n" in phrase for phrase in phrases):
        raise ConfigError(f"{where}: a phrase with a line end is in no line; give its lines as phrases of their own")
    if has_fact == bool(pattern or phrases) or (pattern == "counter") > bool(phrases):
        raise ConfigError(f"{where}: a line rule looks at a fact, phrases or a pattern; `counter` needs phrases too")
    if phrases and pattern not in ("", "counter"):
        raise ConfigError(f"{where}: pattern {pattern!r} takes no phrases; make two rules of it")
    return pattern, tuple(phrases)


def _action(raw: dict[Any, Any], where: str, pattern: str, *, has_fact: bool) -> str:
    action = _one_of(raw.get("action", "cut_line"), ACTIONS, "action", where)
    if action == "cut_match" and (has_fact or pattern == "counter"):
        raise ConfigError(f"{where}: only phrases, citation and outer_space can be cut out of a line; use cut_line")
    return action


def _one_of(value: Any, known: tuple[str, ...], key: str, where: str) -> str:
    if value not in known:
        raise ConfigError(f"{where}: {key} is {value!r}{near(str(value), known)}; use one of {', '.join(known)}")
    return str(value)


def _limit(raw: dict[Any, Any], key: str, where: str) -> int | None:
    value = raw.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigError(f"{where}: {key} is {value!r}; give a whole number of at least 0, or leave the key out")
    return value


def _flag(raw: dict[Any, Any], key: str, where: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key} is {value!r}; use true or false")
    return value
