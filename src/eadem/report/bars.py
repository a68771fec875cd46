"""Horizontal bars as SVG text, in groups, each bar made of one part or several end to end.

As in `chart`, marks carry `data-tip`, one drawing is wide and one narrow, and no reading
depends on colour: the first part of a bar is solid, the second pale with an outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from eadem.report.chart import ticks
from eadem.report.numbers import significant

__all__ = ["Bar", "Bars", "Group", "bars"]

_LINE, _GAP, _HEAD = 19.0, 12.0, 20.0
#: Width of a letter of a bar's name.
LETTER = 7.2


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its parts end to end, and what it is to say (by default the sum).

    `low`–`high` is the spread of the sum, drawn as a whisker.
    """

    name: str
    parts: Sequence[float]
    said: str = ""
    low: float | None = None
    high: float | None = None
    style: int = 1

    @property
    def total(self) -> float:
        """The length of the bar."""
        return float(sum(self.parts))


@dataclass(frozen=True)
class Group:
    """Bars under one heading."""

    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Bars:
    """What is shown. `parts` names the parts of every bar; `mark` is where a line stands, and
    `end` the length at which bars are cut off, with an arrow, where one would dwarf the rest.
    """

    label: str
    unit: str
    groups: Sequence[Group]
    parts: Sequence[str] = ()
    mark: float | None = None
    end: float | None = None


def bars(spec: Bars) -> str:
    """The bars as HTML: two drawings, of which the page's style shows the one that fits."""
    names = 14.0 + LETTER * max(len(bar.name) for group in spec.groups for bar in group.bars)
    wide = _draw(spec, 760.0, min(max(150.0, names), 320.0), "wide")
    narrow = _draw(spec, 400.0, min(max(104.0, names), 210.0), "narrow")
    drawings = wide + narrow
    return f'<div class="chart">{drawings}{_keys(spec)}</div>'


def _keys(spec: Bars) -> str:
    if len(spec.parts) < 2:
        return ""
    items = "".join(
        f'<li class="s1"><svg viewBox="0 0 34 12" aria-hidden="true">'
        f'<rect x="1" y="1" width="32" height="10" style="{_paint(i)}"/></svg>'
        f"{escape(name)}</li>"
        for i, name in enumerate(spec.parts)
    )
    return f'<ul class="keys" style="display:flex">{items}</ul>'


def _paint(part: int) -> str:
    return "fill:var(--c)" + (";fill-opacity:.22;stroke:var(--c);stroke-width:1" * (part > 0))


def _draw(spec: Bars, width: float, left: float, kind: str) -> str:
    right = 74.0
    every = [bar for group in spec.groups for bar in group.bars]
    longest = max(max(bar.total, bar.high or 0.0) for bar in every)
    most = spec.end or max(longest, spec.mark or 0.0) or 1.0
    scale = (width - left - right) / most
    top, out = 8.0, []
    for group in spec.groups:
        out.append(
            f'<text class="label" x="0" y="{top + 13:g}" style="font-weight:600">'
            f"{escape(group.title)}</text>"
        )
        top += _HEAD
        for bar in group.bars:
            out.append(_bar(bar, spec, top, left, scale, most))
            top += _LINE
        top += _GAP
    under = [_rule(t, left + scale * t, top) for t in ticks(0.0, most)]
    if spec.mark is not None:
        x = left + scale * spec.mark
        under.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{top:g}"/>')
    unit = (
        f'<text class="label" x="{width - 8:g}" y="{top + 34:g}" text-anchor="end">'
        f"{escape(spec.unit)}</text>"
    )
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {top + 40:g}" role="group" '
        f'aria-label="{escape(spec.label, quote=True)}">{"".join(under + out)}{unit}</svg>'
    )


def _rule(value: float, x: float, bottom: float) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bottom:g}"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle">'
        f"{value:g}</text>"
    )


def _bar(bar: Bar, spec: Bars, top: float, left: float, scale: float, most: float) -> str:
    said = bar.said or significant(bar.total)
    lines = [f"{bar.name}: {said}"]
    if len(bar.parts) > 1:
        named = zip(spec.parts, bar.parts, strict=True)
        lines += [f"{name} {significant(part)}" for name, part in named]
    if bar.low is not None and bar.high is not None:
        lines.append(f"spread {significant(bar.low)} – {significant(bar.high)}")
    tip = escape("\n".join(lines), quote=True)
    middle, x, out = top + 7.0, left, []
    for i, part in enumerate(bar.parts):
        long = max(0.0, min(scale * part, left + scale * most - x))
        out.append(
            f'<rect x="{x:.1f}" y="{top:g}" width="{long:.1f}" height="13" '
            f'style="{_paint(i)}"/>'
        )
        x += long
    if bar.low is not None and bar.high is not None:
        ends = [left + scale * min(v, most) for v in (bar.low, bar.high)]
        out.append(
            f'<path d="M{ends[0]:.1f} {middle:g}L{ends[1]:.1f} {middle:g}" '
            'style="stroke:var(--ink);stroke-width:1.4"/>'
        )
        x = max(x, ends[1])
    arrow = " →" if bar.total > most * 1.0001 else ""
    return (
        f'<g class="point s{bar.style}" tabindex="0" role="img" aria-label="{tip}" '
        f'data-tip="{tip}"><text class="tick" x="{left - 8:g}" y="{middle + 4:g}" '
        f'text-anchor="end">{escape(bar.name)}</text>{"".join(out)}'
        f'<text class="tick" x="{x + 6:.1f}" y="{middle + 4:g}">{escape(said)}{arrow}</text>'
        "</g>"
    )
