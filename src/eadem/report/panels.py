"""Observations with the curves through them, as SVG text: large with residuals, or many small.

As in `chart`, everything is coloured by the page's style, and no reading depends on colour
alone: each curve has its own dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from eadem.report.chart import ticks

__all__ = ["Curve", "Panel", "figure", "grid"]

_DASHES = ("", "6 4", "2 3", "9 3 2 3")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A named line through points, in order of x."""

    name: str
    points: Points
    style: int = 1
    dash: int = 0


@dataclass(frozen=True)
class Panel:
    """One picture: `dots` observed, `curves` through them, `residuals` in a strip below.

    `gaps` are stretches of x that were left out. `bars` are the half-lengths of error bars,
    one for each dot. Non-finite points are left out.
    """

    title: str
    x_label: str
    y_label: str
    dots: Points
    curves: Sequence[Curve] = ()
    residuals: Points = ()
    gaps: Points = ()
    bars: Sequence[float] = ()
    log_x: bool = False


@dataclass(frozen=True)
class _Scale:
    """A range of values on a stretch of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(v, 1e-300)) for v in (value, low, high))
        share = (value - low) / ((high - low) or 1.0)
        return self.start + min(max(share, -0.05), 1.05) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round values within the range."""
        if not self.log:
            return ticks(self.low, self.high, about)
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        step = max(1, (last - first + 1) // about)
        return [10.0**i for i in range(first, last + 1, step)]


def figure(panel: Panel) -> str:
    """One panel as HTML, drawn wide and narrow, with a key."""
    wide = _draw(panel, 760.0, 470.0 if panel.residuals else 360.0, "wide")
    narrow = _draw(panel, 400.0, 400.0 if panel.residuals else 300.0, "narrow")
    return f'<div class="chart">{wide}{narrow}{_keys(panel.curves)}</div>'


def grid(panels: Sequence[Panel]) -> str:
    """Many small panels in a grid, with one key for all (the curves of the first)."""
    drawn = "".join(_draw(p, 252.0, 190.0, "small") for p in panels)
    return f'<div class="panels">{drawn}</div>{_keys(panels[0].curves if panels else ())}'


def _keys(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    items = "".join(
        f'<li class="s{c.style}"><svg viewBox="0 0 34 12" aria-hidden="true">'
        f'<line x1="1" x2="33" y1="6" y2="6" {_dash(c)}/></svg>{escape(c.name)}</li>'
        for c in curves
    )
    return f'<ul class="keys shown">{items}</ul>'


def _dash(curve: Curve) -> str:
    dash = _DASHES[curve.dash % len(_DASHES)]
    return f'stroke-dasharray="{dash}"' if dash else ""


def _draw(panel: Panel, width: float, height: float, kind: str) -> str:
    small = kind == "small"
    left, right, top, bottom = (38.0, 8.0, 24.0, 34.0) if small else (62.0, 14.0, 28.0, 44.0)
    strip = 0.24 * height if panel.residuals else 0.0
    dots = _finite(panel.dots, panel.log_x)
    drawn = [q for c in panel.curves for q in _finite(c.points, panel.log_x)]
    xs = [q[0] for q in (*dots, *drawn)] or [0.0, 1.0]
    ys = [q[1] for q in (*dots, *drawn)] or [0.0, 1.0]
    x = _Scale(min(xs), max(xs), left, width - right, panel.log_x)
    low, high = min(ys), max(ys)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    floor = 0.0 if low >= 0 and low - pad < 0.12 * high else low - pad
    y = _Scale(floor, high + pad, height - bottom - strip, top)
    about = 3 if small else 6
    parts = [_gaps(panel, x, top, height - bottom)]
    parts += _frame(panel, x, y, about, height - bottom, width - right)
    parts.append(_error_bars(panel, x, y))
    parts += [
        f'<path class="line s{c.style}" {_dash(c)} d="{_path(points, x, y)}"/>'
        for c in panel.curves
        if (points := _finite(c.points, panel.log_x))
    ]
    parts.append(_dots(dots, x, y, 4.4 if small else 5.0, "s0"))
    if panel.residuals:
        parts.append(_strip(panel, x, height - bottom - strip + 22.0, height - bottom, width))
    tip = f"{panel.title}: {len(dots)} observations"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(tip, quote=True)}">{"".join(parts)}</svg>'
    )


def _finite(points: Points, log_x: bool) -> list[tuple[float, float]]:
    return [
        q
        for q in points
        if math.isfinite(q[0]) and math.isfinite(q[1]) and (q[0] > 0 or not log_x)
    ]


def _frame(
    panel: Panel, x: _Scale, y: _Scale, about: int, base: float, right: float
) -> Iterator[str]:
    yield (
        f'<text class="label" x="{4 if about < 4 else 8}" y="14">'
        f"{escape(panel.title if about < 4 else panel.y_label)}</text>"
    )
    for tick in y.ticks(about):
        at = y(tick)
        yield (
            f'<line class="grid" x1="{x.start:g}" x2="{right:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{x.start - 6:g}" y="{at + 4:.1f}" text-anchor="end">'
            f"{tick:g}</text>"
        )
    for tick in x.ticks(about):
        at = x(tick)
        yield (
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{base:g}" y2="{base + 4:g}"/>'
            f'<text class="tick" x="{at:.1f}" y="{base + 17:g}" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    yield f'<line class="axis" x1="{x.start:g}" x2="{right:g}" y1="{base:g}" y2="{base:g}"/>'
    yield (
        f'<text class="label" x="{right:g}" y="{base + (30 if about < 4 else 36):g}" '
        f'text-anchor="end">{escape(panel.x_label)}</text>'
    )


def _gaps(panel: Panel, x: _Scale, top: float, base: float) -> str:
    out = []
    for low, high in panel.gaps:
        a, b = x(max(low, x.low)), x(min(high, x.high))
        if b > a:
            out.append(
                f'<rect class="gap" x="{a:.1f}" y="{top:g}" width="{b - a:.1f}" '
                f'height="{base - top:g}"/>'
            )
    return "".join(out)


def _error_bars(panel: Panel, x: _Scale, y: _Scale) -> str:
    if not panel.bars or len(panel.dots) > 400:
        return ""
    d = "".join(
        f"M{x(px):.1f} {y(py - half):.1f}V{y(py + half):.1f}"
        for (px, py), half in zip(panel.dots, panel.bars, strict=True)
        if math.isfinite(half) and math.isfinite(py)
    )
    return f'<path class="bars s0" d="{d}"/>' if d else ""


def _dots(points: Points, x: _Scale, y: _Scale, size: float, style: str) -> str:
    """All dots as one path of points with round ends."""
    d = "".join(f"M{x(px):.1f} {y(py):.1f}h0" for px, py in points)
    return f'<path class="dots {style}" stroke-width="{size:g}" d="{d}"/>' if d else ""


def _path(points: Points, x: _Scale, y: _Scale) -> str:
    return "M" + "L".join(f"{x(px):.1f} {y(py):.1f}" for px, py in points)


def _strip(panel: Panel, x: _Scale, top: float, base: float, width: float) -> str:
    """The residuals under the picture, about zero."""
    found = _finite(panel.residuals, panel.log_x)
    most = max((abs(r) for _, r in found), default=1.0) * 1.12 or 1.0
    y = _Scale(-most, most, base, top)
    zero = y(0.0)
    step = ticks(0.0, most, 4)[-1]
    marks = "".join(
        f'<text class="tick" x="{x.start - 6:g}" y="{y(v) + 4:.1f}" text-anchor="end">'
        f"{sign}{abs(v):g}</text>"
        for sign, v in (("−", -step), ("", 0.0), ("", step))
    )
    label = f'<text class="label" x="{x.end:g}" y="{top - 2:g}" text-anchor="end">'
    return (
        f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{zero:.1f}" '
        f'y2="{zero:.1f}"/>{marks}'
        f"{label}residual / σ</text>"
        f"{_dots(found, x, y, 4.0, 's2')}"
    )
