"""Charts as SVG, written by hand: a page of them needs no library, no script and no network."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 30, 38  # of the plot, from the edges of the chart
HEALTHY = "#dff0df"


class Series(NamedTuple):
    """points: (x, y); faint: what stands behind the others (training behind held-out figures); dots: a mark at every
    point; joined: whether a line goes through them."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    dots: bool = False
    joined: bool = True
    opacity: float = 1.0


class Axis:
    """Numbers as places between two pixels; low, high: of what is shown."""

    def __init__(self, low: float, high: float, first: float, last: float, log: bool = False):
        self.low, self.high, self._first, self._last, self.log = low, high, first, last, log

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(x) for x in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return self._first + (value - low) / (high - low) * (self._last - self._first)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, about five."""
        if self.log:
            found = [base * 10**power for power in range(-32, 32) for base in (1, 2, 5)]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) > 6:
                return [tick for tick in found if f"{tick:e}".startswith("1")]
            if len(found) > 2:
                return found
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def axis(values: Iterable[float], first: float, last: float, *, log: bool = False, room: float = 0.05) -> Axis:
    """That shows all values, and some room beside them."""
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    if log:
        factor = max(high / low, 1.2) ** room
        return Axis(low / factor, high * factor, first, last, log=True)
    width = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-9)
    return Axis(low - room * width, high + room * width, first, last)


def shown(value: float) -> str:
    """A number as a person reads it."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def chart(
    title: str, series: Sequence[Series], *, x: str, y: str = "",
    healthy: tuple[float | None, float | None] = (None, None), log: bool = False, equal: bool = False,
) -> str:
    """Lines of y against x. healthy: (low, high) of the values that are, None where it has no end, drawn as a band;
    log: of y, where all is positive; equal: a unit is as long on both axes."""  # fmt: skip
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    ys = [y for _, y in points]
    log = log and min(ys) > 1e-30
    low, high = healthy
    marks = [mark for mark in healthy if mark is not None]
    across = axis((x for x, _ in points), LEFT, WIDTH - RIGHT, room=0.05 if equal else 0.02)
    up = axis([*ys, *marks], HEIGHT - BOTTOM, TOP, log=log)
    if equal:
        across, up = _equal(across, up)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    if marks:
        top, bottom = up(up.high if high is None else high), up(up.low if low is None else low)
        parts.append(_rectangle(LEFT, top, WIDTH - RIGHT - LEFT, bottom - top, HEALTHY))
    parts += _frame(title, across, up, x, y)
    parts += [_drawn(line, across, up) for line in sorted(series, key=lambda line: not line.faint)]
    return "".join([*parts, "</svg>"])


def _equal(across: Axis, up: Axis) -> tuple[Axis, Axis]:
    """The same about the same middles, the one that is too short on its pixels widened."""
    unit = max((across.high - across.low) / (WIDTH - RIGHT - LEFT), (up.high - up.low) / (HEIGHT - BOTTOM - TOP))

    def widened(low, high, first, last):
        middle, half = (low + high) / 2, unit * abs(last - first) / 2
        return Axis(middle - half, middle + half, first, last)

    return (
        widened(across.low, across.high, LEFT, WIDTH - RIGHT), widened(up.low, up.high, HEIGHT - BOTTOM, TOP),
    )  # fmt: skip


def _frame(title: str, across: Axis, up: Axis, x: str, y: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [_text(LEFT, 17, title, "title", "start")]
    for tick in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(_text(LEFT - 6, up(tick) + 4, shown(tick), "tick", "end"))
    for tick in across.ticks():
        parts.append(_text(across(tick), bottom + 15, shown(tick), "tick", "middle"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 6, x, "tick", "end"))
    if y:
        parts.append(_text(LEFT, HEIGHT - 6, y, "tick", "start"))
    return parts


def _drawn(line: Series, across: Axis, up: Axis) -> str:
    places = [(across(x), up(y)) for x, y in line.points]
    opacity = 0.5 if line.faint else line.opacity
    parts = [f"<title>{escape(line.label)}</title>"]
    if line.joined and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" stroke="{line.colour}" stroke-width="{1 if line.faint else 1.8}"/>')
    if line.dots or len(places) == 1:
        radius = 2.6 if line.joined else 1.6
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{line.colour}"/>' for x, y in places]
    return f'<g fill="none" opacity="{opacity:.2f}">{"".join(parts)}</g>'


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], unit: str) -> str:
    """A row a name of (label, value, colour) parts, one after the other on one axis from 0."""
    width, label, height = 2 * WIDTH, 150, 26
    longest = max((sum(value for _, value, _ in parts) for _, parts in rows), default=0)
    if not longest:
        return ""
    across, bottom = Axis(0, longest, label, width - 30), height * len(rows)
    found = [f'<svg viewBox="0 0 {width} {bottom + 24}" role="img" class="wide">']
    for number, (name, parts) in enumerate(rows):
        short = name if len(name) < 24 else f"…{name[-22:]}"
        found.append(_text(label - 8, number * height + 17, short, "tick", "end"))
        begun = 0.0
        for what, value, colour in parts:
            title = f"<title>{escape(what)}: {shown(value)} {escape(unit)}</title>"
            bar = _rectangle(across(begun), number * height + 4, across(value) - across(0), height - 8, colour)
            found.append(f"<g>{title}{bar}</g>")
            begun += value
    for tick in across.ticks():
        found.append(_text(across(tick), bottom + 14, f"{shown(tick)} {unit}" if tick else "0", "tick", "middle"))
    return "".join([*found, "</svg>"])


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
