"""The error tree. Every message says what is wrong, the value, the bound and the remedy.

    RefineryError            exit code 1
    ├── ConfigError          2   the recipe or the command line is wrong: fix it and run again
    ├── SchemaError          3   an input table does not have the declared columns or types
    ├── IntegrityError       4   a hash or a count does not match: refuse to go on
    ├── DataError            5   more input was bad than the recipe allows
    └── TransientError      75   try again (storage, network); nothing is lost

An exception raised inside a Spark worker reaches the driver as a plain ``PythonException``, so bad rows travel as
data with a reason, and kernels raise only for broken contracts.
"""

from __future__ import annotations


class RefineryError(Exception):
    """Root of all errors that Refinery raises on purpose."""

    exit_code = 1


class ConfigError(RefineryError):
    """The recipe or the command line cannot be carried out as written."""

    exit_code = 2


class SchemaError(RefineryError):
    """A table lacks a declared column, or a column has another type."""

    exit_code = 3


class IntegrityError(RefineryError):
    """Stored bytes, counts or hashes contradict each other."""

    exit_code = 4


class DataError(RefineryError):
    """The share of bad or missing input is over the recipe's bound."""

    exit_code = 5


class TransientError(RefineryError):
    """An outside resource failed in a way that may pass."""

    exit_code = 75


def exit_code_of(error: BaseException) -> int:
    """Return the process exit code for an error, looking through Spark's wrapping.

    A ``RefineryError`` raised in a worker arrives as text in the driver's exception; its class name is searched
    there so that the promised exit code survives.
    """
    if isinstance(error, RefineryError):
        return error.exit_code
    text = str(error)
    for kind in (ConfigError, SchemaError, IntegrityError, DataError, TransientError):
        if f"refinery.errors.{kind.__name__}" in text:
            return kind.exit_code
    return 1
