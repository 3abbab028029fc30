from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.report import charts
from refinery.report.samples import word_diff
from refinery.report.visible import breakable, duration, number, percent, plain, plural, size, token, visible

FLOATS = st.floats(-1e12, 1e12)


@given(st.lists(st.tuples(FLOATS, FLOATS), max_size=20), st.text())
def test_line_charts_are_well_formed_and_inside_their_box(points, name):
    drawn = charts.lines([charts.Series(name, sorted(points))], "x", "y <", "a \x00 \u202e label")
    if not points:
        assert drawn == ""
        return
    tree = ET.fromstring(drawn)
    line = next(e for e in tree.iter() if e.tag == "polyline")
    for pair in line.attrib["points"].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 460
        assert 0 <= y <= 250


@given(st.lists(st.tuples(st.text(), st.floats(0, 1e9)), max_size=40), st.none() | st.floats(-5, 50))
def test_histograms_are_well_formed(bins, cut):
    drawn = charts.histogram(bins, "x", "y", "label", cut)
    if bins:
        assert len([e for e in ET.fromstring(drawn) if e.tag == "rect"]) == len(bins)


@given(FLOATS, FLOATS)
def test_ticks_span_the_range_with_round_steps(a, b):
    low, high = min(a, b), max(a, b)
    marks = charts.ticks(low, high)
    tolerance = 1e-6 * max(abs(low), abs(high), 1e-300) + 1e-11
    assert marks[0] <= low + tolerance
    assert marks[-1] >= high - tolerance
    assert 2 <= len(marks) <= 9


def test_bars_stay_in_their_track():
    assert 'width="100.000"' in charts.bar(7.0)
    assert charts.bar(math.nan).count("<rect") == 2
    bar = ET.fromstring(charts.stacked([charts.Share("a", 0.25, 0), charts.Share("b", 0.75, 1)], "asked: a, b"))
    widths = [float(e.attrib["width"]) for e in bar if e.attrib["class"].startswith("c")]
    assert sum(widths) == pytest.approx(100, abs=1)


@given(st.text())
def test_visible_text_holds_no_markup_and_nothing_hidden(text):
    shown = str(visible(text))
    assert not set(shown) & {"\u202e", "\u200b", "\x00", "\x1b", "\ufeff", "\r"}
    assert shown.count("<") == 2 * shown.count('class="code-point"')
    assert "\u202e" not in plain(text)


def test_numbers_read_well():
    assert number(1234567) == "1,234,567"
    assert number(None) == "–"
    assert [size(n) for n in (0, 999, 5_268_067, 999_999, 1.5e9)] == [
        s.replace(" ", "\u00a0") for s in ("0 bytes", "999 bytes", "5.27 MB", "1.00 MB", "1.50 GB")
    ]
    assert percent(0.2754) == "27.5\u00a0%"
    assert percent(0.00001) == "<\u00a00.1\u00a0%"
    assert percent(0.0) == "0.0\u00a0%"
    assert [duration(s) for s in (0.25, 42, 61, 3_725)] == ["0.2 s", "42 s", "1 min 01 s", "1 h 02 min"]
    assert plural(1, "row") == "1 row"
    assert plural(2000, "row") == "2,000 rows"
    assert token(" \n a") == "␣⏎␣a"
    assert breakable("a_b/c") == "a_<wbr>b/<wbr>c"
    assert breakable("a_\u202e/") == 'a_<wbr><span class="code-point">U+202E</span>/<wbr>'
    assert "<b>" not in breakable("<b>&_")


@given(st.text("ab c\n字。", max_size=60), st.text("ab c\n字。", max_size=60))
def test_word_diff_gives_both_texts_back_but_for_white_space(left, right):
    pieces = word_diff(left, right)
    if any(kind == "skipped" for kind, _ in pieces):
        return
    mine = "".join(text for kind, text in pieces if kind in ("same", "removed"))
    twin = "".join(text for kind, text in pieces if kind in ("same", "added"))
    assert mine == left
    assert twin.split() == right.split()


def test_word_diff_shortens_what_is_equal():
    same = "word " * 500
    pieces = word_diff(same + "left " + same, same + "right " + same)
    assert ("removed", "left") in pieces
    assert ("added", "right") in pieces
    assert sum(len(text) for _, text in pieces) < 500
    assert pieces[0][0] == "skipped"
    assert word_diff("中文字符", "中文子符") == [("same", "中文"), ("removed", "字"), ("added", "子"), ("same", "符")]


def test_intervals_show_name_ends_and_zero():
    rows = [charts.Interval("raw & <b>", 0.01, -0.02, 0.04), charts.Interval("rules", -0.05)]
    svg = str(charts.intervals(rows, "bits per byte", "Differences"))
    assert svg.count("<circle") == 2
    assert svg.count("<polyline") == 1
    assert svg.count('class="cut"') == 1
    assert "raw &amp; &lt;b&gt;" in svg
    assert charts.intervals([], "x", "y") == ""
