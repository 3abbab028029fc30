from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels.score_expression import check_expression, evaluate

NAMES = ("edu", "hq", "zh")


def columns(**more):
    base = {name: np.array([0.25, 0.5, np.nan]) for name in NAMES}
    return base | {name: np.array(values, dtype=float) for name, values in more.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edu", [0.25, 0.5, np.nan]),
        ("0.5 * edu + hq / 2", [0.25, 0.5, np.nan]),
        ("-(edu - 1)", [0.75, 0.5, np.nan]),
        ("min(edu, 0.3)", [0.25, 0.3, np.nan]),
        ("max(edu, hq, +0.4)", [0.4, 0.5, np.nan]),
        ("mean(edu, 0.75)", [0.5, 0.625, np.nan]),
        ("first(zh, edu, 0.1)", [0.25, 0.5, 0.1]),
    ],
)
def test_values_are_those_of_arithmetic(text, expected):
    np.testing.assert_allclose(evaluate(text, columns(), {}), expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_a_weighted_mean_equals_numpys(values, share):
    scores = np.array(values)
    found = evaluate(f"{share!r} * edu + (1 - {share!r}) * hq", {"edu": scores, "hq": scores[::-1]}, {})
    np.testing.assert_allclose(found, share * scores + (1 - share) * scores[::-1])


def test_calibration_is_applied_where_there_is_a_score():
    found = evaluate("calibrated(edu)", columns(), {"edu": lambda scores: scores * 2})
    np.testing.assert_allclose(found, [0.5, 1.0, np.nan])
    assert check_expression("calibrated(edu) + hq", NAMES) == ({"edu", "hq"}, {"edu"})
    with pytest.raises(ConfigError, match="needs a hold-out"):
        evaluate("calibrated(edu)", columns(), {})


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "edu.__class__", "edu[0]", "[edu]", "lambda: 1", "edu if hq else zh",
        "edu ** 9", "edu < hq", "'a'", "True * edu", "1e400 * edu", "min(edu, key=hq)", "min()", "exec(edu)", "edu; hq",
        "", "edu @ hq", "f'{edu}'", "(edu := hq)", "min(*edu)", "calibrated(edu + hq)", "calibrated(0.5)", "edu % 2",
        "~edu", "0.5",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text):
    with pytest.raises(ConfigError, match="combine"):
        check_expression(text, NAMES)


def test_limits_and_names_are_told():
    with pytest.raises(ConfigError, match="did you mean edu"):
        check_expression("edo + 1", NAMES)
    with pytest.raises(ConfigError, match="at most 1000"):
        check_expression("edu + " * 200 + "edu", NAMES)
    with pytest.raises(ConfigError, match="combine"):
        check_expression("-" * 400 + "edu", NAMES)
