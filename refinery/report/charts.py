"""Pictures as inline SVG, drawn here: no library, no script, colours from the page's style sheet.

Bars stretch to the width they get and carry no text (the table around them does), so they read the same on a phone;
line charts and histograms scale as a whole and are drawn small enough that their text stays legible at 340 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from refinery.report.visible import number, plain

NUM_COLOURS = 8
"""Classes ``c0`` to ``c7`` of the style sheet; further series begin again with another dash."""
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 42


@dataclass(frozen=True)
class Series:
    """One line: a name and its (x, y) points, x ascending."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Share:
    """One piece of a stacked bar; the shares of a bar add up to at most 1."""

    name: str
    frac: float
    colour: int


def bar(kept_frac: float, dropped_frac: float = 0.0, label: str = "") -> Markup:
    """Return a bar over the range 0 to 1: what stayed, then what left."""
    kept, dropped = _unit(kept_frac), _unit(dropped_frac)
    body = f'<rect class="kept" x="0" y="0" width="{kept * 100:.3f}" height="10"/>'
    if dropped:
        body += f'<rect class="left" x="{kept * 100:.3f}" y="0" width="{dropped * 100:.3f}" height="10"/>'
    return _stretched(body, label)


def stacked(shares: Sequence[Share], label: str) -> Markup:
    """Return one bar of shares, left to right in the given order."""
    body, x = [], 0.0
    for share in shares:
        width = _unit(share.frac) * 100
        gap = min(0.4, width / 2)
        colour = share.colour % NUM_COLOURS
        body.append(f'<rect class="c{colour}" x="{x:.3f}" y="0" width="{width - gap:.3f}" height="10"/>')
        x += width
    return _stretched("".join(body), label)


def _stretched(body: str, label: str) -> Markup:
    shown = f'role="img" aria-label="{escape(plain(label))}"' if label else 'aria-hidden="true"'
    return Markup(  # noqa: S704 - numbers and an escaped label
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" {shown}>'
        f'<rect class="track" x="0" y="0" width="100" height="10"/>{body}</svg>'
    )


def lines(
    series: Sequence[Series], x_name: str, y_name: str, label: str, dots: Sequence[Series] = ()
) -> Markup:
    """Return a line chart with both axes; a series of one point is drawn as a dot, those of `dots` as dots alone."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return Markup("")
    xs = [x for s in (*drawn, *dots) for x, _ in s.points]
    ys = [y for s in (*drawn, *dots) for _, y in s.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, y_low, y_high = min(xs), y_ticks[0], y_ticks[-1]
    x_span = (max(xs) - x_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / x_span * (_WIDTH - _LEFT - _RIGHT)
        down = (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _TOP + down

    body = [_grid_line(place(x_low, y)[1], _tick_text(y, y_ticks)) for y in y_ticks]
    body += [
        f'<text x="{place(x, y_low)[0]:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
        f"{_tick_text(x, x_ticks)}</text>"
        for x in x_ticks
        if x_low <= x <= x_low + x_span
    ]
    for index, one in enumerate(drawn):
        at = [place(x, y) for x, y in one.points]
        look = f"line c{index % NUM_COLOURS} d{index // NUM_COLOURS % 3}"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        body.append(f'<polyline class="{look}" points="{path}"/>')
        marks = at if len(at) <= 12 and not dots else []
        body += [_dot(index, x, y) for x, y in marks]
    body += [_dot(index, *place(x, y)) for index, one in enumerate(dots) for x, y in one.points]
    return _chart("".join(body), x_name, y_name, label)


def histogram(
    bins: Sequence[tuple[str, float]], x_name: str, y_name: str, label: str, cut: float | None = None
) -> Markup:
    """Return a column chart.

    Args:
        bins: (name, height) from left to right; every few names are written below.
        x_name: name of the horizontal axis.
        y_name: name of the vertical axis.
        label: what a screen reader says.
        cut: place of a threshold, in bins from the left (2.5 = the middle of the third); drawn as a dashed line.
    """
    if not bins:
        return Markup("")
    y_ticks = ticks(0.0, max(4.0, *(height for _, height in bins)))
    step = (_WIDTH - _LEFT - _RIGHT) / len(bins)
    per_unit = (_HEIGHT - _TOP - _BOTTOM) / y_ticks[-1]
    floor = _HEIGHT - _BOTTOM
    body = [_grid_line(floor - y * per_unit, _tick_text(y, y_ticks)) for y in y_ticks]
    every = math.ceil(len(bins) / 6)
    for index, (name, height) in enumerate(bins):
        x, tall = _LEFT + index * step, height * per_unit
        if height > 0:
            tall = max(tall, 1.0)
        body.append(
            f'<rect class="c0" x="{x + step * 0.08:.2f}" y="{floor - tall:.2f}" width="{step * 0.84:.2f}" '
            f'height="{tall:.2f}"/>'
        )
        if index % every == 0:
            middle = x + step / 2
            body.append(f'<text x="{middle:.1f}" y="{floor + 16}" text-anchor="middle">{escape(plain(name))}</text>')
    if cut is not None:
        x = _LEFT + min(max(cut, 0.0), len(bins)) * step
        body.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{floor}"/>')
    return _chart("".join(body), x_name, y_name, label)


@dataclass(frozen=True)
class Interval:
    """A named value with its interval; without ends it is a bare dot."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def intervals(rows: Sequence[Interval], x_name: str, label: str) -> Markup:
    """Return one row per interval: its name, a line from end to end, a dot at the value; a dashed line at 0."""
    if not rows:
        return Markup("")
    ends = [x for r in rows for x in (r.value, r.low, r.high) if x is not None]
    x_ticks = ticks(min(0.0, *ends), max(0.0, *ends), about=4)
    left, step, top = 150, 22, 14
    floor = top + step * len(rows)
    span = _WIDTH - left - _RIGHT

    def across(x: float) -> float:
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * span

    body = [
        f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{top}" y2="{floor}"/>'
        f'<text x="{across(x):.1f}" y="{floor + 16}" text-anchor="middle">{_tick_text(x, x_ticks)}</text>'
        for x in x_ticks
    ]
    body.append(f'<line class="cut" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{top - 8}" y2="{floor}"/>')
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        body.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(plain(row.name[:24]))}</text>')
        if row.low is not None and row.high is not None:
            ends_at = f"{across(row.low):.1f},{y:.1f} {across(row.high):.1f},{y:.1f}"
            body.append(f'<polyline class="line c0 d0" points="{ends_at}"/>')
        body.append(f'<circle class="dot c0" cx="{across(row.value):.1f}" cy="{y:.1f}" r="3.2"/>')
    axis = f'<text class="axis" x="{left + span / 2:.1f}" y="{floor + 34}" text-anchor="middle">{escape(x_name)}</text>'
    return Markup(  # noqa: S704 - numbers and escaped names
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {floor + 40}" role="img" aria-label="{escape(plain(label))}">'
        f"{''.join(body)}{axis}</svg>"
    )


def _dot(colour: int, x: float, y: float) -> str:
    return f'<circle class="dot c{colour % NUM_COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'


def _grid_line(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _chart(body: str, x_name: str, y_name: str, label: str) -> Markup:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    axes = (
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text class="axis" transform="translate(11 {(_HEIGHT - _BOTTOM + _TOP) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_name)}</text>'
    )
    return Markup(  # noqa: S704 - numbers and escaped names
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(plain(label))}">'
        f"{body}{axes}</svg>"
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers that span [low, high]: 1, 2 or 5 times a power of ten apart.

    A range too narrow to be told from one value is widened upwards.
    """
    if not math.isfinite(low) or not math.isfinite(high):
        return [0.0, 1.0]
    if high - low <= max(abs(low), abs(high), 1e-90) * 1e-9:
        high = low + (abs(low) * 0.1 if abs(low) > 1e-90 else 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """Return a number in at most about six characters: ``0.25``, ``525``, ``1.05 k``, ``3.1 M``."""
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return f"{value / bound:.3g} {unit}"
    return f"{value:.3g}"


def _tick_text(value: float, among: Sequence[float]) -> str:
    step = among[1] - among[0] if len(among) > 1 else 1.0
    if abs(value) >= 10_000 or step >= 1_000:
        return short_number(value)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return number(value, min(digits, 6))


def _unit(frac: float) -> float:
    return min(max(frac, 0.0), 1.0) if math.isfinite(frac) else 0.0
