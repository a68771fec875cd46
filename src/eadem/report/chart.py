"""Line charts as SVG text, drawn once wide and once narrow, coloured by the page's style.

Marks carry `data-tip`, which the page shows on hover and on keyboard focus; each series has
its own colour, dash and marker, so that no reading depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from eadem.report.numbers import percent, significant

__all__ = ["Chart", "Series", "chart", "repeated"]

#: Width of a letter of a series' name, and what all of them may take of the drawing.
LETTER, MOST_ROOM = 7.8, 330.0
_DASHES = ("", "7 4", "2 4", "10 3 2 3")


@dataclass(frozen=True)
class Series:
    """One line: `x`, `y`, its spread `low`–`high` and single observations `dots`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dots: Sequence[tuple[float, float]] = ()
    style: int = 0
    markers: bool = True


def repeated(name: str, runs: Mapping[Any, Sequence[float]], style: int = 0) -> Series:
    """A line through the means of repeated runs, by x, with a band from least to greatest.

    >>> repeated("a", {"10": [1.0, 3.0]}).y
    [2.0]
    """
    found = list(runs.values())
    return Series(
        name,
        [float(x) for x in runs],
        [sum(values) / len(values) for values in found],
        [min(values) for values in found],
        [max(values) for values in found],
        style=style,
    )


@dataclass(frozen=True)
class Chart:
    """What a chart shows. `x_ticks` are labelled as they stand; `y_range` is fitted if None."""

    label: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    percent_y: bool = False
    x_ticks: Sequence[float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Frame:
    """The plotting area in user units, and the scales that lead into it."""

    width: float
    height: float
    left: float
    right: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool
    top: float = 30.0
    bottom: float = 44.0

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / ((high - low) or 1.0)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = (value - low) / ((high - low) or 1.0)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers covering low–high.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / about
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _fitted(chart: Chart) -> tuple[float, float]:
    if chart.y_range is not None:
        return chart.y_range
    seen = [v for s in chart.series for v in (*s.y, *(s.low or ()), *(s.high or ()))]
    seen += [v for s in chart.series for _, v in s.dots]
    low, high = min(seen), max(seen)
    pad = 0.04 * ((high - low) or abs(high) or 1.0)
    step = ticks(low, high)
    low = min(low - pad, step[0]) if low < 0 or low - pad > 0 else 0.0
    return low, min(high + pad, 1.0) if chart.percent_y else high + pad


def chart(spec: Chart) -> str:
    """The chart as HTML: two drawings, of which the page's style shows the one that fits. The
    names stand at the ends of the lines where there is room for them, else below.
    """
    room = 14.0 + LETTER * max(len(s.name) for s in spec.series)
    ends = room <= MOST_ROOM
    wide = _draw(spec, 760.0, 380.0, max(132.0, room) if ends else 18.0, "wide", ends)
    narrow = _draw(spec, 400.0, 330.0, 18.0, "narrow", False)
    return f'<div class="chart">{wide}{narrow}{_legend(spec, not ends)}</div>'


def _legend(spec: Chart, shown: bool) -> str:
    keys = "".join(
        f'<li class="s{s.style}"><svg viewBox="0 0 34 12" aria-hidden="true">'
        f'<line x1="1" x2="33" y1="6" y2="6" {_dash(s)}/>{_marker(s, 17, 6)}</svg>'
        f"{escape(s.name)}</li>"
        for s in spec.series
    )
    return f'<ul class="keys{" shown" if shown else ""}">{keys}</ul>'


def _draw(spec: Chart, width: float, height: float, right: float, kind: str, ends: bool) -> str:
    xs = [v for s in spec.series for v in s.x]
    x_range, y_range = (min(xs), max(xs)), _fitted(spec)
    frame = _Frame(width, height, 54.0, right, x_range, y_range, spec.log_x)
    show = _shown(spec)
    parts = [_axes(spec, frame, show)]
    parts += [_band(s, frame) for s in spec.series]
    parts += [_line(s, frame) for s in spec.series]
    parts += [_dots(s, frame, spec, show) for s in spec.series]
    if ends:
        parts.append(_ends(spec, frame))
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="group" '
        f'aria-label="{escape(spec.label, quote=True)}">{"".join(parts)}</svg>'
    )


def _shown(spec: Chart) -> Callable[[float], str]:
    return percent if spec.percent_y else significant


def _axes(spec: Chart, f: _Frame, show: Callable[[float], str]) -> str:
    out = []
    for tick in ticks(*f.y_range, about=5):
        y = f.y(tick)
        text = f"{100 * tick:g}" if spec.percent_y else f"{tick:g}"
        out.append(
            f'<line class="grid" x1="{f.left:g}" x2="{f.width - f.right:g}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{f.left - 8:g}" y="{y + 4:.1f}" text-anchor="end">'
            f"{text}</text>"
        )
    base = f.height - f.bottom
    for tick in spec.x_ticks or _x_ticks(spec, f):
        x = f.x(tick)
        out.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base:g}" y2="{base + 5:g}"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 19:g}" text-anchor="middle">'
            f"{tick:,g}</text>"
        )
    unit = f"{spec.y_label} (%)" if spec.percent_y else spec.y_label
    out.append(
        f'<line class="axis" x1="{f.left:g}" x2="{f.width - f.right:g}" y1="{base:g}" '
        f'y2="{base:g}"/><text class="label" x="8" y="14">{escape(unit)}</text>'
        f'<text class="label" x="{f.width - f.right:g}" y="{f.height - 6:g}" '
        f'text-anchor="end">{escape(spec.x_label)}</text>'
    )
    return "".join(out)


def _x_ticks(spec: Chart, f: _Frame) -> list[float]:
    """Round numbers; whole ones where every x is whole."""
    whole = all(isinstance(x, int) for s in spec.series for x in s.x)
    return [t for t in ticks(*f.x_range, about=6) if not whole or t == round(t)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _band(s: Series, f: _Frame) -> str:
    if s.low is None or s.high is None:
        return ""
    there = [(f.x(x), f.y(y)) for x, y in zip(s.x, s.high, strict=True)]
    back = [(f.x(x), f.y(y)) for x, y in zip(s.x, s.low, strict=True)]
    return f'<path class="band s{s.style}" d="{_path(there + back[::-1])}Z"/>'


def _dash(s: Series) -> str:
    dash = _DASHES[s.style % len(_DASHES)]
    return f'stroke-dasharray="{dash}"' if dash else ""


def _line(s: Series, f: _Frame) -> str:
    points = [(f.x(x), f.y(y)) for x, y in zip(s.x, s.y, strict=True)]
    return f'<path class="line s{s.style}" {_dash(s)} d="{_path(points)}"/>'


def _marker(s: Series, x: float, y: float) -> str:
    match s.style % 4:
        case 0:
            return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case 1:
            corner = f'x="{x - 3.6:.1f}" y="{y - 3.6:.1f}"'
            return f'<rect class="mark" {corner} width="7.2" height="7.2"/>'
        case 2:
            d = f"M{x:.1f} {y - 5:.1f}l4.8 8.4h-9.6Z"
        case _:
            d = f"M{x:.1f} {y - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2Z"
    return f'<path class="mark" d="{d}"/>'


def _dots(s: Series, f: _Frame, spec: Chart, show: Callable[[float], str]) -> str:
    out = [
        f'<circle class="dot s{s.style}" cx="{f.x(x):.1f}" cy="{f.y(y):.1f}" r="2.2"/>'
        for x, y in s.dots
    ]
    for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
        tip = f"{s.name}\n{spec.x_label} {x:,g}\n{spec.y_label} {show(y)}"
        if s.low is not None and s.high is not None:
            tip += f"\nspread {show(s.low[i])} – {show(s.high[i])}"
        px, py = f.x(x), f.y(y)
        mark = _marker(s, px, py) if s.markers else ""
        out.append(
            f'<g class="point s{s.style}" tabindex="0" role="img" '
            f'aria-label="{escape(tip, quote=True)}" data-tip="{escape(tip, quote=True)}">'
            f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="9"/>{mark}</g>'
        )
    return "".join(out)


def _ends(spec: Chart, f: _Frame) -> str:
    """The series' names at the ends of their lines, pushed apart where they would meet."""
    wanted = sorted((f.y(s.y[-1]), i) for i, s in enumerate(spec.series))
    placed: list[tuple[float, int]] = []
    for y, i in wanted:
        placed.append((max(y, placed[-1][0] + 17.0) if placed else y, i))
    overflow = max(0.0, placed[-1][0] - (f.height - f.bottom)) if placed else 0.0
    return "".join(
        f'<text class="end s{spec.series[i].style}" x="{f.width - f.right + 10:g}" '
        f'y="{y - overflow + 4:.1f}">{escape(spec.series[i].name)}</text>'
        for y, i in placed
    )
