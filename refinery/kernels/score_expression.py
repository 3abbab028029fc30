"""Expressions over score columns: ``0.7 * edu + 0.3 * calibrated(hq)``.

Parsed with Python's own grammar and then read node by node: numbers, names of columns, ``+ - * /``, brackets, and the
calls below. Nothing else is known, so nothing can be reached, and nothing is evaluated by Python.

- ``min(a, b, …)``, ``max(a, b, …)``, ``mean(a, b, …)``: of one document's scores; missing as soon as one is missing;
- ``first(a, b, …)``: the first that the document has (classifiers of single languages);
- ``calibrated(name)``: the probability that the hold-out gives to this score of one classifier.

A missing score is NaN and makes everything missing that needs it.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from refinery.errors import ConfigError

MAX_LENGTH = 1000
MAX_DEPTH = 50

_OPERATORS: dict[type[ast.operator], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}
_CALLS = ("min", "max", "mean", "first", "calibrated")


def check_expression(text: str, names: Sequence[str]) -> tuple[set[str], set[str]]:
    """Check an expression.

    Args:
        text: the expression.
        names: columns that exist.
    Returns: (names that it reads, names that it wants calibrated).

    Raises:
        ConfigError: not an expression of the kind above, or an unknown name.
    """
    used: set[str] = set()
    calibrated: set[str] = set()
    _check(_parsed(text), text, set(names), (used, calibrated), 0)
    if not used:
        raise ConfigError(f"combine: {text!r} reads no score; use at least one of {', '.join(sorted(names))}")
    return used, calibrated


def evaluate(
    text: str, columns: Mapping[str, np.ndarray], calibrated: Mapping[str, Callable[[np.ndarray], np.ndarray]]
) -> np.ndarray:
    """Return the expression's value for each document.

    Args:
        text: an expression that `check_expression` accepts with these columns.
        columns: name -> float, shape (docs,); NaN is missing.
        calibrated: name -> scores to probabilities, for the names that the expression wants calibrated.
    Returns: float64, shape (docs,); NaN where a needed score is missing.

    Raises:
        ConfigError: as `check_expression`, or a calibration is not there.
    """
    _, wanted = check_expression(text, list(columns))
    missing = sorted(wanted - set(calibrated))
    if missing:
        raise ConfigError(
            f"combine: calibrated({missing[0]}) needs a hold-out with both classes for {missing[0]}; name positives "
            "and negatives for it, or use its plain score"
        )
    size = len(next(iter(columns.values())))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _value(_parsed(text), columns, calibrated, size)


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"combine has {len(text)} characters, at most {MAX_LENGTH} are read; write it shorter")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"combine: {text!r} is not an expression ({error}); such as 0.5 * a + 0.5 * b") from error


def _check(node: ast.expr, text: str, names: set[str], found: tuple[set[str], set[str]], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"combine is nested deeper than {MAX_DEPTH}; write it flatter")
    for child in _operands(node, text):
        _check(child, text, names, found, depth + 1)
    if isinstance(node, ast.Name):
        if node.id not in names:
            near = difflib.get_close_matches(node.id, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"combine names {node.id!r}, classifiers are {', '.join(sorted(names))}{hint}")
        found[0].add(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "calibrated":
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Name):
            raise ConfigError(f"combine: {ast.unparse(node)} wants the name of one classifier in its brackets")
        found[1].add(node.args[0].id)


def _operands(node: ast.expr, text: str) -> Sequence[ast.expr]:
    """Return the expressions inside a permitted node; refuse every other node."""
    match node:
        case ast.Name():
            return ()
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as value) if math.isfinite(value) and abs(value) < 1e12:
            return ()
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return (operand,)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return (left, right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS and args:
            return args
    raise ConfigError(
        f"combine: {ast.unparse(node)!r} in {text!r} is not allowed; use names of classifiers, numbers, + - * / and "
        f"{', '.join(_CALLS)}"
    )


def _value(
    node: ast.expr,
    columns: Mapping[str, np.ndarray],
    calibrated: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    size: int,
) -> np.ndarray:
    match node:
        case ast.Name(id=name):
            return np.asarray(columns[name], dtype=np.float64)
        case ast.Constant(value=int() | float() as value):
            return np.full(size, float(value))
        case ast.UnaryOp(op=op, operand=operand):
            value_D = _value(operand, columns, calibrated, size)
            return -value_D if isinstance(op, ast.USub) else value_D
        case ast.BinOp(left=left, op=op, right=right):
            sides = (_value(side, columns, calibrated, size) for side in (left, right))
            return _OPERATORS[type(op)](*sides)
        case ast.Call(func=ast.Name(id="calibrated"), args=[ast.Name(id=name)]):
            return _calibrated(np.asarray(columns[name], dtype=np.float64), calibrated[name])
        case ast.Call(func=ast.Name(id=name), args=args):
            values = np.stack([_value(arg, columns, calibrated, size) for arg in args])
            return _called(name, values)
    raise ConfigError(f"combine: {ast.unparse(node)!r} is not allowed")


def _calibrated(scores: np.ndarray, calibration: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    known = ~np.isnan(scores)
    out = np.full(len(scores), np.nan)
    out[known] = calibration(scores[known])
    return out


def _called(name: str, values: np.ndarray) -> np.ndarray:
    """Apply min, max, mean or first over the first axis; numpy's min, max and mean pass NaN on."""
    if name == "first":
        chosen = values[0].copy()
        for row in values[1:]:
            chosen = np.where(np.isnan(chosen), row, chosen)
        return chosen
    functions: dict[str, Callable[..., np.ndarray]] = {"min": np.min, "max": np.max, "mean": np.mean}
    return functions[name](values, axis=0)
