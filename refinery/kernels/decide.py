"""Decisions from stored signals: a cheap pass over numbers, with no text in sight."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.preset import CJK_MIN_FRAC, Rule

MAX_RULES = 63
"""`rule_bits` is an int64 with its sign bit unused."""


class Decisions(NamedTuple):
    """What the rules say about each of D documents."""

    keep: np.ndarray
    """bool, shape (D,)."""
    rule_bits: np.ndarray
    """int64, shape (D,): bit r is set when rule r would cut, whether or not an earlier rule does."""
    first_rule: np.ndarray
    """int16, shape (D,): the first rule in order that cuts; -1 = kept."""

    def reasons(self, rules: Sequence[Rule]) -> list[str | None]:
        """Return the drop reason of each document (the name of its first rule), None where kept."""
        names = [rule.name for rule in rules]
        return [None if first < 0 else names[first] for first in self.first_rule.tolist()]


def decide(
    signals: Mapping[str, np.ndarray], rules: Sequence[Rule], langs: Sequence[str | None] | None = None
) -> Decisions:
    """Apply rules to signals.

    A document is cut when a signal is below `min` or above `max` of a rule that holds for its script and language.
    A float32 signal is compared with the bound rounded to float32, so that a ratio of exactly 3/10 meets 0.3.
    A signal that is not a number (a missing fact) is neither below nor above a bound.

    Args:
        signals: columns of equal length D, at least those that the rules name, and ``han_kana_frac`` when a rule has
            `scripts`.
        rules: at most `MAX_RULES`, in the order that gives the reason.
        langs: language code of each document, None where unknown; None = no document's language is known.

    Raises:
        ConfigError: too many rules.
        SchemaError: a signal is missing, or lengths differ.
    """
    if len(rules) > MAX_RULES:
        raise ConfigError(f"{len(rules)} rules are decided together; the bound is {MAX_RULES}; use fewer presets")
    num_docs = _num_docs(signals, langs)
    rule_bits = np.zeros(num_docs, dtype=np.int64)
    first_rule = np.full(num_docs, -1, dtype=np.int16)
    for index, rule in enumerate(rules):
        cuts = _outside(_signal(signals, rule.signal, rule.name), rule)
        if rule.scripts != "any":
            cjk = _signal(signals, "han_kana_frac", rule.name) >= np.float32(CJK_MIN_FRAC)
            cuts &= cjk if rule.scripts == "cjk" else ~cjk
        if rule.langs and langs is not None:
            cuts &= np.fromiter((lang is None or lang in rule.langs for lang in langs), dtype=bool, count=num_docs)
        rule_bits[cuts] |= np.int64(1 << index)
        first_rule[cuts & (first_rule < 0)] = index
    return Decisions(first_rule < 0, rule_bits, first_rule)


def _outside(values: np.ndarray, rule: Rule) -> np.ndarray:
    cast = values.dtype.type if values.dtype.kind == "f" else np.float64
    outside = np.zeros(len(values), dtype=bool)
    if rule.min is not None:
        outside |= values < cast(rule.min)
    if rule.max is not None:
        outside |= values > cast(rule.max)
    return outside


def _signal(signals: Mapping[str, np.ndarray], name: str, rule: str) -> np.ndarray:
    if name not in signals:
        near = difflib.get_close_matches(name, list(signals), n=3, cutoff=0.5)
        raise SchemaError(f"rule {rule} needs the signal {name!r}, the table has no such column"
                          f"{f' (near: {near})' if near else ''}; compute the signals again")  # fmt: skip
    return signals[name]


def _num_docs(signals: Mapping[str, np.ndarray], langs: Sequence[str | None] | None) -> int:
    lengths = {len(column) for column in signals.values()} | ({len(langs)} if langs is not None else set())
    if len(lengths) > 1:
        raise SchemaError(f"signal and language columns differ in length: {sorted(lengths)}; pass one table's columns")
    return lengths.pop() if lengths else 0
