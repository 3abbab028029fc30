from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.errors import ConfigError, SchemaError
from refinery.kernels.decide import MAX_RULES, decide
from refinery.kernels.preset import LINE_SIGNALS, Rule, load_preset, load_rules, preset_names
from refinery.kernels.signals import SIGNALS, signals
from refinery.kernels.signals_datatrove import DATATROVE_SIGNALS
from refinery.kernels.text import views_of

EN = (
    "The ferry to the islands leaves at nine in the morning and comes back in the evening. It carries cars, post and "
    "people who have work on the other side. When the wind is strong the captain waits in the harbour. Nobody on the "
    "pier complains, because everyone remembers the winter that took two boats. Children count gulls with their "
    "fathers. An old woman sells bread from a basket, and she always knows which day the school will be shut.\n"
)
ZH = (
    "县里的图书馆周一不开门，其他日子孩子们放学后都会来这里看书。管理员是一位退休教师，她把新到的书放在窗边的架子上，"
    "并且记得每个人上次借走了什么。\n冬天屋里很暖和，有人在角落里写信，也有人只是坐着听雨。去年夏天，大家一起修好了屋顶，"
    "从那以后再也没有漏过水。\n"
)
FR = (
    "Le marché ouvre à sept heures et les premiers clients arrivent avant le soleil. On y trouve du pain, des pommes "
    "et parfois du miel de montagne. Une dame raconte comment son grand-père descendait du village avec deux mules. "
    "Les enfants écoutent, puis ils courent vers la fontaine. À midi tout est vendu et la place redevient calme.\n"
)
CODE = 'import sys\n\n\ndef main() -> int:\n    for name in sys.argv[1:]:\n        print({"name": name})\n    return 0\n'  # noqa: E501
SPAM = "buy now and save big today only\n" * 20


def reasons(texts: list[str], presets: list[str], langs: list[str | None] | None = None) -> list[str | None]:
    rules = load_rules(presets)
    return decide(signals(views_of(texts)), rules, langs).reasons(rules)


def test_golden_decisions() -> None:
    texts = [EN, ZH, FR, CODE, SPAM, ""]
    langs = ["en", "zh", "fr", "en", "en", None]
    assert reasons(texts, ["gopher", "fineweb"], langs) == [
        None, None, None, "gopher.top_4gram", "gopher.dup_lines", "gopher.words_min",
    ]  # fmt: skip
    assert reasons(texts, ["c4"]) == [None, None, None, "c4.sentences", "c4.sentences", "c4.sentences"]
    assert reasons([EN, CODE, "x" * 1001, "=-+ " * 20], ["code"]) == [
        "code.mean_line_length", None, "code.max_line_length", "code.alnum",
    ]  # fmt: skip
    assert reasons([ZH, ZH[:40], EN], ["fineweb2_zh"], ["zh", "zh", "en"]) == [None, "fineweb2_zh.top_4gram", None]


def test_language_unknown_leaves_the_script_to_decide() -> None:
    assert reasons([EN, ZH, FR], ["gopher"]) == [None, None, "gopher.stop_words_en"]


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
)
def test_decide_equals_plain_python(values: list[float], bounds: list[tuple[float, float]]) -> None:
    columns = {"x": np.array(values, dtype=np.float32)}
    rules = [Rule(f"t.{i}", "x", min(b), max(b), "test") for i, b in enumerate(bounds)]
    got = decide(columns, rules)
    for i, value in enumerate(columns["x"]):
        cuts = [value < np.float32(r.min) or value > np.float32(r.max) for r in rules]
        assert got.rule_bits[i] == sum(1 << j for j, cut in enumerate(cuts) if cut)
        assert got.first_rule[i] == (cuts.index(True) if any(cuts) else -1)
        assert got.keep[i] == (not any(cuts))


def test_bounds_keep_their_own_value_and_nan_passes() -> None:
    rule = Rule("t.r", "x", 0.1, 0.3, "test")
    x = np.array([0.1, 0.3, 0.29, 0.31, np.nan], dtype=np.float32)
    assert decide({"x": x}, [rule]).keep.tolist() == [True, True, True, False, True]


def test_sixty_three_rules_fit_and_sixty_four_do_not() -> None:
    columns = {"x": np.array([2.0], dtype=np.float32)}
    rules = [Rule(f"t.{i}", "x", None, 1.0, "test") for i in range(MAX_RULES)]
    assert decide(columns, rules).rule_bits[0] == 2**63 - 1
    with pytest.raises(ConfigError, match="63"):
        decide(columns, [*rules, rules[0]])


def test_missing_signal_and_unequal_columns_are_schema_errors() -> None:
    with pytest.raises(SchemaError, match="num_words"):
        decide({"num_word": np.zeros(1)}, [Rule("t.r", "num_words", 1, None, "test")])
    with pytest.raises(SchemaError, match="differ in length"):
        decide({"x": np.zeros(1), "y": np.zeros(2)}, [])


def test_every_preset_loads_and_cites() -> None:
    names = {spec.name for spec in (*SIGNALS, *DATATROVE_SIGNALS)}
    assert preset_names() == [
        "c4", "c4_fineweb", "code", "dialogue", "fineweb", "fineweb2_zh", "fineweb_datatrove", "gopher",
        "gopher_datatrove", "refinedweb_lines", "zh_lines", "zh_web",
    ]  # fmt: skip
    rules = load_rules(preset_names())
    own = {f"{name}.{signal}" for name in preset_names() for signal in LINE_SIGNALS}
    assert all(rule.signal in names | own and len(rule.source) > 3 for rule in rules)
    lines = [line for name in preset_names() for line in load_preset(name).lines]
    assert len(lines) > 20
    assert all(len(line.source) > 3 for line in lines)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("rules: [{name: a, signal: num_word, min: 1, source: s}]", "num_words"),
        ("rules: [{name: a, signal: num_words, mim: 1, source: s}]", "near: min"),
        ("rules: [{name: a, signal: num_words, source: s}]", "no range"),
        ("rules: [{name: a, signal: num_words, min: 3, max: 1, source: s}]", "no range"),
        ("rules: [{name: a, signal: num_words, min: true, source: s}]", "not a number"),
        ("rules: [{name: a, signal: num_words, min: 1}]", "source"),
        ("rules: [{name: a, signal: num_words, min: 1, source: s, scripts: latin}]", "scripts"),
        ("rules: [{name: a, signal: num_words, min: 1, source: s, langs: [no]}]", "quote"),
        ("rules: []", "at least one rule"),
        ("rules: [", "not valid YAML"),
        ("rules: [{name: a, signal: cut_word_frac, max: 1, source: s}]", "unknown signal"),
        ("lines: [{name: a, fact: num_word, min: 1, source: s}]", "near: num_words"),
        ("lines: [{name: a, fact: num_words, min: 1}]", "citation"),
        ("lines: [{name: a, fact: num_words, source: s}]", "no range"),
        ("lines: [{name: a, fact: num_words, min: 3, max: 1, source: s}]", "no range"),
        ("lines: [{name: a, min: 1, source: s}]", "bound a fact"),
        ("lines: [{name: a, source: s}]", "looks at a fact"),
        ("lines: [{name: a, fact: num_words, min: 1, phrases: [x], source: s}]", "looks at a fact"),
        ("lines: [{name: a, pattern: counter, source: s}]", "counter"),
        ("lines: [{name: a, pattern: citations, source: s}]", "near: citation"),
        ("lines: [{name: a, pattern: citation, phrases: [x], source: s}]", "two rules"),
        ("lines: [{name: a, phrases: [' x'], source: s}]", "outer white space"),
        ("lines: [{name: a, phrases: [x], at: begin, source: s}]", "at is"),
        ("lines: [{name: a, phrases: [x], action: cut, source: s}]", "near: cut_line"),
        ("lines: [{name: a, fact: num_words, min: 1, action: cut_match, source: s}]", "cut_line"),
        ("lines: [{name: a, phrases: [x], max_words: 1.5, source: s}]", "whole number"),
        ("lines: [{name: a, phrases: [x], unfinished: 1, source: s}]", "true or false"),
        ("lines: [{name: a, phrase: [x], source: s}]", "near: phrases"),
        ("lines: [{name: a, phrases: [x], scripts: latin, source: s}]", "scripts"),
        (
            "lines: [{name: a, phrases: [x], source: s}]\nrules: [{name: a, signal: num_words, min: 1, source: s}]",
            "repeat",
        ),
        (
            "rules: [{name: a, signal: num_words, min: 1, source: s}, {name: a, signal: num_words, max: 1, source: s}]",
            "repeat",
        ),
    ],
)
def test_bad_presets_name_the_remedy(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\n{body}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_preset(path)


def test_a_preset_with_line_rules_has_no_dot_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: my.own\nlines: [{name: a, phrases: [x], source: s}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="dot"):
        load_preset(path)


def test_unknown_preset_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="near: gopher"):
        load_preset("gofer")
    with pytest.raises(ConfigError, match="does not exist"):
        load_preset(tmp_path / "none.yaml")
