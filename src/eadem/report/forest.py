"""Estimates with their intervals one under another, and p-values on a line, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from eadem.report.chart import ticks
from eadem.report.numbers import significant, with_error

__all__ = ["Forest", "Row", "forests", "pvalues"]

#: An interval is drawn this many standard errors to each side.
SPREAD = 1.96
_LINE = 17.0


@dataclass(frozen=True)
class Row:
    """An estimate and its standard error; `whole` is drawn as the one to compare with."""

    name: str
    value: float
    error: float
    whole: bool = False


@dataclass(frozen=True)
class Forest:
    """The estimates of one quantity. Those that the data leave open are named, not drawn."""

    title: str
    rows: Sequence[Row]


def forests(each: Sequence[Forest]) -> str:
    """Forest plots side by side, as HTML. The shaded band is that of the row `whole`."""
    return f'<div class="panels">{"".join(_forest(f) for f in each)}</div>'


def _forest(spec: Forest) -> str:
    width, left, right, top = 252.0, 74.0, 10.0, 24.0
    known = [r for r in spec.rows if math.isfinite(r.error) and math.isfinite(r.value)]
    if not known:
        return ""
    # One hopeless estimate must not squeeze all others: three typical widths are shown.
    middle = sorted(r.value for r in known)[len(known) // 2]
    typical = sorted(r.error for r in known)[len(known) // 2]
    spread = max(max(abs(r.value - middle) for r in known), 3 * typical) * 1.15
    low = max(
        middle - spread - SPREAD * typical, min(r.value - SPREAD * r.error for r in known)
    )
    high = min(
        middle + spread + SPREAD * typical, max(r.value + SPREAD * r.error for r in known)
    )
    scale = (width - left - right) / ((high - low) or 1.0)

    def at(value: float) -> float:
        return left + scale * (min(max(value, low), high) - low)

    base = top + _LINE * len(spec.rows) + 4
    out = [f'<text class="label" x="4" y="14">{escape(spec.title)}</text>']
    for tick in ticks(low, high, 3):
        out.append(
            f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{top:g}" '
            f'y2="{base:g}"/><text class="tick" x="{at(tick):.1f}" y="{base + 14:g}" '
            f'text-anchor="middle">{tick:g}</text>'
        )
    for row in known:
        if row.whole:
            a, b = at(row.value - SPREAD * row.error), at(row.value + SPREAD * row.error)
            out.append(
                f'<rect class="band s1" x="{a:.1f}" y="{top:g}" width="{max(b - a, 1):.1f}" '
                f'height="{base - top:g}"/>'
            )
    out += [_row(r, top + _LINE * (i + 0.5), left, at) for i, r in enumerate(spec.rows)]
    return (
        f'<svg viewBox="0 0 {width:g} {base + 20:g}" role="group" '
        f'aria-label="{escape(spec.title, quote=True)}">{"".join(out)}</svg>'
    )


def _row(row: Row, y: float, left: float, at: Callable[[float], float]) -> str:
    said = with_error(row.value, row.error)
    style = 1 if row.whole else 0
    weight = ' style="font-weight:600"' if row.whole else ""
    tip = escape(f"{row.name}\n{said}", quote=True)
    out = (
        f'<text class="tick" x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end"{weight}>'
        f"{escape(row.name)}</text>"
    )
    if math.isfinite(row.error) and math.isfinite(row.value):
        a, b = at(row.value - SPREAD * row.error), at(row.value + SPREAD * row.error)
        x = at(row.value)
        shape = (
            f'<path class="mark" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z"/>'
            if row.whole
            else f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
        )
        out += f'<path class="whisker" d="M{a:.1f} {y:.1f}H{b:.1f}"/>{shape}'
    else:
        out += f'<text class="tick" x="{left + 4:g}" y="{y + 4:.1f}">not determined</text>'
    return (
        f'<g class="point s{style}" tabindex="0" role="img" aria-label="{tip}" '
        f'data-tip="{tip}">{out}</g>'
    )


def pvalues(
    label: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    tests: Sequence[str],
    level: float = 0.05,
    least: float = 1e-8,
) -> str:
    """One line for each tie with the p-value of each test on a logarithmic scale, as HTML.

    A p below `least` is drawn at the edge; one that is not given is left out.
    """
    drawn = _pvalues(label, rows, tests, (760.0, 150.0), level, least, "wide")
    drawn += _pvalues(label, rows, tests, (400.0, 104.0), level, least, "narrow")
    keys = "".join(
        f'<li class="s{i % 4}"><svg viewBox="0 0 34 12" aria-hidden="true">'
        f"{_shape(i, 17.0, 6.0)}</svg>{escape(name)}</li>"
        for i, name in enumerate(tests)
    )
    return f'<div class="chart">{drawn}<ul class="keys shown">{keys}</ul></div>'


def _pvalues(
    label: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    tests: Sequence[str],
    size: tuple[float, float],
    level: float,
    least: float,
    kind: str,
) -> str:
    width, left = size
    top, line, right = 20.0, 24.0, 16.0
    base = top + line * len(rows)

    def at(p: float) -> float:
        share = math.log(max(p, least)) / math.log(least)
        return width - right - share * (width - left - right)

    decades = range(0, round(-math.log10(least)) + 1, 2)
    out = [
        f'<line class="grid" x1="{at(10.0**-d):.1f}" x2="{at(10.0**-d):.1f}" y1="{top:g}" '
        f'y2="{base:g}"/><text class="tick" x="{at(10.0**-d):.1f}" y="{base + 17:g}" '
        f'text-anchor="middle">{"≤ " if 10.0**-d <= least * 1.01 else ""}{10.0**-d:g}</text>'
        for d in decades
    ]
    out.append(
        f'<line class="axis" x1="{at(level):.1f}" x2="{at(level):.1f}" y1="{top - 4:g}" '
        f'y2="{base:g}" stroke-dasharray="4 3"/><text class="tick" x="{at(level):.1f}" '
        f'y="{top - 8:g}" text-anchor="middle">{level:g}</text>'
    )
    for i, (name, found) in enumerate(rows):
        y = top + line * (i + 0.5)
        out.append(
            f'<text class="tick" x="{left - 10:g}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(_cut(name, int((left - 10) / 7)))}</text>"
        )
        for j, p in enumerate(found):
            if p is None or not math.isfinite(p):
                continue
            tip = escape(f"{name}\n{tests[j]}: p = {significant(p)}", quote=True)
            out.append(
                f'<g class="point s{j % 4}" tabindex="0" role="img" aria-label="{tip}" '
                f'data-tip="{tip}"><circle class="hit" cx="{at(p):.1f}" cy="{y:.1f}" r="9"/>'
                f"{_shape(j, at(p), y)}</g>"
            )
    out.append(
        f'<text class="label" x="{width - right:g}" y="{base + 34:g}" text-anchor="end">'
        "p-value</text>"
    )
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {base + 40:g}" role="group" '
        f'aria-label="{escape(label, quote=True)}">{"".join(out)}</svg>'
    )


def _cut(name: str, most: int) -> str:
    """A name's end where it is too long: what sites of one model differ in.

    >>> _cut("decoder.0.weight", 10), _cut("weight", 10)
    ('….0.weight', 'weight')
    """
    return name if len(name) <= most else "…" + name[1 - most :]


def _shape(style: int, x: float, y: float) -> str:
    match style % 4:
        case 0:
            return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case 1:
            corner = f'x="{x - 3.6:.1f}" y="{y - 3.6:.1f}"'
            return f'<rect class="mark" {corner} width="7.2" height="7.2"/>'
        case 2:
            return f'<path class="mark" d="M{x:.1f} {y - 5:.1f}l4.8 8.4h-9.6Z"/>'
        case _:
            return (
                f'<path class="mark" d="M{x:.1f} {y - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2Z"/>'
            )
