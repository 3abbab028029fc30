from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinery.errors import ConfigError
from refinery.kernels.cuts import apply_cuts
from refinery.kernels.line_rules import LINE_FACTS, MAX_LINE_RULES, LineFindings, LineRule, find_lines, line_presets
from refinery.kernels.preset import load_preset
from refinery.kernels.text import TextViews, text_views, views_of
from tests.kernels import reference_line_rules as reference

ALL = (1 << 61) - 1
PRESETS = ("c4", "refinedweb_lines", "zh_lines")
RULES = tuple(rule for name in PRESETS for rule in load_preset(name).lines)
OWN = (
    LineRule("own.sale", "cut_match", "test", phrases=("big sale", "sale!"), at="anywhere"),
    LineRule("own.start", "cut_match", "test", phrases=("ad:", "广告"), at="start"),
    LineRule("own.end", "cut_match", "test", phrases=("more »",), at="end", max_chars=30),
    LineRule("own.whole", "cut_match", "test", phrases=("menu", "菜单"), at="whole"),
    LineRule("own.spam", "drop_document", "test", phrases=("CASINO",), blank_lines=True),
    LineRule("own.whole_line", "cut_line", "test", phrases=("home",), at="whole"),
    LineRule("own.long", "cut_line", "test", fact="num_chars", max=60, unfinished=True),
)
BLANK_EDGES = (
    LineRule("own.trim", "cut_match", "test", pattern="outer_space"),
    LineRule("own.deal", "cut_line", "test", phrases=(" menu", "ad: "), at="anywhere"),
    LineRule("own.c4", "cut_line", "test", fact="ends_in_c4_mark", min=1),
    LineRule("own.short", "cut_line", "test", fact="num_chars", min=3),
    LineRule("own.upper", "cut_line", "test", fact="upper_frac", max=0.4),
)
SETS = (RULES, OWN, RULES + OWN, BLANK_EDGES, BLANK_EDGES[:1] + BLANK_EDGES[2:])
PIECES = [
    "Hello world", "this is a line of text", "SHOUTING WORDS", "3 likes", "1,234 阅读", "12K", " ", "  ", "\t",
    "　", "\n", "\n\n", ".", "...", "…", "?", "\"", "'", "」", "。", "！", "[12]", "[]", "[edit]",
    "[citation needed]", "[x]", "[", "javascript", "JavaScript", "lorem ipsum", "{", "terms of use",
    "use cookies", "items in cart", "Read more...", "Sign-in", "分享到", "微信", "展开全文", "更多", "首页", "版权所有",
    "big sale", "sale!", "ad:", "广告", "more »", "menu", "菜单", "casino", "home", "é", "Ü", "Ж", "汉字", "½", "²",
    "٣", "_", "2024", "w" * 70,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join).map(
    lambda t: t.replace("\r", "").encode("utf-8", "replace").decode()
)


def bytes_of(found: LineFindings, doc: int, done: int) -> dict[int, int]:
    mine = np.flatnonzero((found.docs == doc) & (found.done == done))
    return {b: int(found.rules[k]) for k in mine for b in range(found.starts[k], found.ends[k])}


def left_of(views: TextViews, found: LineFindings) -> list[str]:
    cut = found.is_cut
    spans = (found.docs[cut], found.starts[cut], found.ends[cut])
    return apply_cuts(views, np.arange(views.num_docs), *spans).to_pylist()


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(SETS), st.integers(0, ALL))
def test_the_kernel_does_what_the_reference_does(texts, rules, mask):
    mask |= mask << 1  # most rules hold
    mask &= (1 << len(rules)) - 1
    views = views_of(texts)
    found = find_lines(views, rules, np.full(len(texts), mask, dtype=np.int64))
    left = left_of(views, found)
    for doc, text in enumerate(texts):
        want = reference.find_lines(text, rules, mask)
        assert left[doc] == want["left"]
        # a blank line behind a cut one is of its span, whichever rule would have cut it
        got = bytes_of(found, doc, 0)
        assert set(got) == set(want["cut"])
        raw = text.encode()
        blank = {k for k in got if raw[k : k + 1] == b"\n" and (k == 0 or raw[k - 1 : k] == b"\n")}
        tail = {max(got)} if got and max(got) == len(raw) - 1 else set()
        for k in set(got) - blank - tail:
            assert got[k] == want["cut"][k]
        assert bytes_of(found, doc, 1) == want["edited"]
        tripped = np.flatnonzero((found.docs == doc) & (found.done == 2))
        assert {int(found.starts[k]): int(found.rules[k]) for k in tripped} == want["tripped"]
        for k in np.flatnonzero((found.docs == doc) & (found.done == 0)).tolist():
            start = int(found.starts[k])
            assert int(found.bits[k]) == want["bits"].get(start, want["bits"].get(start + 1))
        assert found.trips[doc].tolist() == want["trips"]
        if mask:
            lines = [line for line in want["left"].split("\n") if reference.words_of(line)]
            ended = [bool(reference.facts_of(line)["ends_in_sentence_mark"]) for line in lines]
            assert found.open_lines[doc] == ended[:-1].count(False)
        presets = line_presets(rules)
        by_preset = [0] * len(presets)
        for rule, words in zip(rules, want["cut_words"], strict=True):
            by_preset[presets.index(rule.preset)] += words
        assert found.cut_words[doc].tolist() == by_preset
        if mask:
            assert found.num_words[doc] == len(reference.words_of(text))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=5))
def test_a_document_is_judged_by_itself_and_spans_are_disjoint(texts):
    masks = np.full(len(texts), (1 << len(RULES)) - 1, dtype=np.int64)
    views = views_of(texts)
    whole = find_lines(views, RULES, masks)
    for doc, text in enumerate(texts):
        alone = find_lines(views_of([text]), RULES, masks[:1])
        mine = whole.docs == doc
        for name in ("starts", "ends", "rules", "done", "bits"):
            assert np.array_equal(getattr(whole, name)[mine], getattr(alone, name))
        cut = mine & whole.is_cut
        starts, ends = whole.starts[cut], whole.ends[cut]
        assert (starts < ends).all()
        assert (starts[1:] >= ends[:-1]).all()
    sliced = text_views(pa.array(texts, pa.large_string()).slice(1))
    again = find_lines(sliced, RULES, masks[1:])
    assert np.array_equal(again.starts, whole.starts[whole.docs > 0])


@pytest.mark.parametrize(
    ("preset", "text", "left"),
    [
        ("c4", "A line that ends well.\nMenu\nAnother good line.", "A line that ends well.\nAnother good line."),
        ("c4", "One good line here.\n\nShort one.\nNo end here", "One good line here."),
        ("c4", "  Stripped on both sides.  \nIt was so.[12]", "Stripped on both sides.\nIt was so."),
        ("c4", "Please turn on JavaScript.\nWe use cookies, see the policy.\nA fine line stays.", "A fine line stays."),
        ("c4", "It goes on and on...\nHe said 'it is so'", "He said 'it is so'"),
        ("c4", "A mark after a space. [3]\nA fine line stays.", "A fine line stays."),  # as C4: no second strip
        ("refinedweb_lines", "BREAKING NEWS\n2,024\n2024\n3 likes\n1.2K Shares!\nword\nTwo words", "Two words"),
        (
            "refinedweb_lines",
            "2 items in cart now\nA short story Read more...\nSign-in to go on",
            "2 now\nA short story\nto go on",
        ),
        ("refinedweb_lines", "Read more...\n\nA blank line above stays.", "\nA blank line above stays."),
        ("zh_lines", "分享到：微信 微博 QQ空间\n今天天气很好。\n更多\n首页 > 新闻 > 国内", "今天天气很好。"),
        ("zh_lines", "分享到朋友圈的照片很美。\n首页改版了。", "分享到朋友圈的照片很美。\n首页改版了。"),
        ("zh_lines", "他们的故事从这里开始 展开全文\n1234 次阅读\n京ICP备12345号", "他们的故事从这里开始"),
    ],
)  # fmt: skip
def test_what_presets_take_out(preset, text, left):
    rules = load_preset(preset).lines
    views = views_of([text])
    found = find_lines(views, rules, np.array([(1 << len(rules)) - 1]))
    assert left_of(views, found) == [left]


def test_a_brace_on_a_line_that_is_cut_before_drops_nothing():
    rules = load_preset("c4").lines
    braces = [rule.name for rule in rules].index("c4.braces")
    texts = ["menu {x}\nA good line.", "A line with {x}, good.", "A javascript {line} here.", "Use cookies {x} now."]
    views = views_of(texts)
    found = find_lines(views, rules, np.full(4, (1 << len(rules)) - 1))
    assert found.trips[:, braces].tolist() == [0, 1, 0, 1]  # javascript is asked before braces, policies behind them


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS | st.text("aA0 .é\t\x1c[", max_size=40), min_size=1, max_size=4))
def test_facts_of_a_line_are_those_of_the_reference(texts):
    """One rule a fact and value: lines whose fact is another than the reference's are cut."""
    lines = [line for text in texts for line in text.replace("\r", "").split("\n") if line]
    for fact in LINE_FACTS:
        for line in lines:
            value = reference.facts_of(line)[fact]
            rule = LineRule("own.other", "cut_line", "test", fact=fact, min=value, max=value, blank_lines=True)
            for text in (line, line + "\n", line + " " * 9):  # at the end, before it, blanks behind
                views = views_of([text])
                found = find_lines(views, (rule,), np.array([1]))
                same = reference.facts_of(text.removesuffix("\n"))[fact] == value
                assert (len(found.docs) == 0) == same, (fact, text, value)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (" menu here", []),  # the blank that the phrase begins with is gone when it is looked for
        ("the menu here", ["own.deal"]),
        ("good ad: ", []),
        ("good ad: x", ["own.deal"]),
        ("   ab \u3000", ["own.short"]),  # two characters are left
        ("   abc", []),
        ("  Ab    ", ["own.short", "own.upper"]),
        ("  ABcde ", []),
    ],
)
def test_rules_behind_stripping_see_the_stripped_line(text, cut):
    for rules in (BLANK_EDGES[:1] + BLANK_EDGES[1:2] + BLANK_EDGES[3:], BLANK_EDGES[:1] + BLANK_EDGES[3:]):
        found = find_lines(views_of([text]), rules, np.array([(1 << len(rules)) - 1]))
        bits = int(np.bitwise_or.reduce(found.bits[found.done == 0], initial=0))
        named = [rule.name for k, rule in enumerate(rules) if bits >> k & 1]
        assert named == [name for name in cut if name in [rule.name for rule in rules]]


@settings(max_examples=100, deadline=None)
@given(st.text("abkK文 ", max_size=12), st.text("abkK文 ", min_size=1, max_size=5), st.text("abkK文 ", max_size=12))
def test_a_phrase_is_found_wherever_it_stands(before, phrase, behind):
    rule = LineRule("own.phrase", "cut_line", "test", phrases=(phrase,), blank_lines=True)
    for text in (before + phrase + behind, before + behind):
        found = find_lines(views_of([text]), (rule,), np.array([1]))
        assert (len(found.docs) > 0) == (reference.lower(phrase) in reference.lower(text))


def test_too_many_rules_are_refused():
    rules = [LineRule(f"p.r{k}", "cut_line", "x", fact="num_words", min=1) for k in range(MAX_LINE_RULES + 1)]
    with pytest.raises(ConfigError, match="61"):
        find_lines(views_of(["a"]), rules, np.array([1]))


def test_no_document_and_no_rule():
    assert len(find_lines(views_of([]), RULES, np.empty(0, np.int64)).docs) == 0
    found = find_lines(views_of(["a\nb"]), (), np.zeros(1, np.int64))
    assert (len(found.docs), found.cut_words.shape, found.num_words.tolist()) == (0, (1, 0), [2])
