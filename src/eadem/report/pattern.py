"""Diffraction patterns: observed, calculated, difference and tick marks, to zoom into.

A drawing in one piece that needs nothing but a browser; with the page's script it zooms: the
wheel, + and − or a pinch about the pointer, dragging or arrows along 2θ, a double click or 0
back to the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from eadem.report.chart import ticks

__all__ = ["Pattern", "pattern"]

WIDTH, LEFT, RIGHT, TOP = 960, 62, 12, 26
MAIN, MARKS, DIFFERENCE, GAP, FOOT = 330, 16, 90, 8, 40


@dataclass(frozen=True)
class Pattern:
    """What is drawn: `x` (points,) ascending, in degrees; `marks` are (position, name)."""

    label: str
    x: Sequence[float]
    observed: Sequence[float]
    calculated: Sequence[float]
    marks: Sequence[tuple[float, str]] = ()
    x_label: str = "2θ / °"
    y_label: str = "counts"


def pattern(spec: Pattern) -> str:
    """The drawing as HTML.

    >>> found = pattern(Pattern("p", [1.0, 2.0], [3.0, 5.0], [3.0, 4.0], [(1.5, "1 0 0")]))
    >>> found.count("<svg"), 'data-x="1 2"' in found
    (4, True)
    """
    low, high = spec.x[0], spec.x[-1]
    top = 1.04 * max(*spec.observed, *spec.calculated)
    base = min(0.0, *spec.observed, *spec.calculated)
    apart = [o - c for o, c in zip(spec.observed, spec.calculated, strict=True)]
    far = 1.04 * max(1e-300, *(abs(d) for d in apart))
    width = WIDTH - LEFT - RIGHT
    y_marks = TOP + MAIN + GAP
    y_apart = y_marks + MARKS + GAP
    height = y_apart + DIFFERENCE + FOOT
    dots = "".join(f"M{x:g} {-y:g}h0" for x, y in zip(spec.x, spec.observed, strict=True))
    names = "|".join(f"{x:.3f} {name}" for x, name in spec.marks)
    marks = "".join(f"M{x:.4g} 0v1" for x, _ in spec.marks)
    parts = [
        f'<text class="label" x="8" y="14">{escape(spec.y_label)}</text>'
        f'<text class="label" x="{WIDTH - RIGHT}" y="{height - 6}" text-anchor="end">'
        f"{escape(spec.x_label)}</text>",
        f'<g class="axes">{_axes(low, high, base, top, y_apart + DIFFERENCE)}</g>',
        _plot(
            "main",
            TOP,
            MAIN,
            (low, -top, high - low, top - base),
            f'<path class="seen" d="{dots}"/>'
            f'<path class="fitted" d="{_path(spec.x, spec.calculated)}"/>',
        ),
        _plot(
            "marks",
            y_marks,
            MARKS,
            (low, 0, high - low, 1),
            f'<path class="mark" d="{marks}"/>',
        ),
        _plot(
            "apart",
            y_apart,
            DIFFERENCE,
            (low, -far, high - low, 2 * far),
            f'<path class="zero" d="M{low:g} 0H{high:g}"/>'
            f'<path class="apart" d="{_path(spec.x, apart)}"/>',
        ),
    ]
    keys = "".join(
        f'<li><i class="{kind}"></i>{name}</li>'
        for kind, name in (
            ("seen", "observed"),
            ("fitted", "calculated"),
            ("mark", "reflections"),
            ("apart", "observed − calculated"),
        )
    )
    return (
        f'<figure class="pattern" tabindex="0" data-x="{low:g} {high:g}" '
        f'data-box="{LEFT} {TOP} {width} {MAIN} {y_apart + DIFFERENCE}" '
        f'data-marks="{escape(names, quote=True)}">'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(spec.label, quote=True)}">{"".join(parts)}</svg>'
        f"<ul>{keys}</ul><figcaption>{escape(spec.label)} <small>Wheel or + and − to zoom, "
        "drag or arrows to move, double click or 0 for the whole.</small></figcaption></figure>"
    )


def _plot(kind: str, y: int, height: int, box: Iterable[float], inside: str) -> str:
    view = " ".join(f"{v:g}" for v in box)
    return (
        f'<svg class="{kind}" x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{height}" viewBox="{view}" preserveAspectRatio="none">{inside}</svg>'
    )


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{a:g} {-b:g}" for a, b in zip(x, y, strict=True))


def _axes(low: float, high: float, base: float, top: float, foot: int) -> str:
    width = WIDTH - LEFT - RIGHT
    out = []
    for tick in ticks(base, top, about=5):
        y = TOP + MAIN * (top - tick) / (top - base)
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{tick:g}</text>"
        )
    for tick in ticks(low, high, about=8):
        x = LEFT + width * (tick - low) / (high - low)
        out.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 5}"/>'
            f'<text class="tick" x="{x:.1f}" y="{foot + 19}" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
    return "".join(out)
