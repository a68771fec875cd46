"""The page and the table of the study `subspace`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page, terminal
from eadem.report.bars import Bar, Bars, Group, bars
from eadem.report.images import filters

__all__ = ["report", "table"]

PARTS = ("bias²", "variance")
METHODS = ("tie", "least squares", "ridge", "lasso")
STYLES = {"tie": 1, "least squares": 0, "ridge": 2, "lasso": 3}
WORLDS = {
    "equal": "β has equal coefficients: the tie is right",
    "sparse": "β is sparse: lasso's world",
    "small": "β is many small coefficients: ridge's world",
}
_SIDE, _SPAN, _MARGIN = 520.0, 2.9, 0.5


def _total(split: Mapping[str, float]) -> float:
    return split["bias"] + split["variance"]


def _rows(splits: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    sizes = list(splits["equal"]["tie"])
    rows = [
        [world, method, *(f"{_total(splits[world][method][n]):.3f}" for n in sizes)]
        for world in WORLDS
        for method in METHODS
    ]
    return ["β", "method", *(f"{int(n):,}" for n in sizes)], rows


def table(folder: Path) -> Any:
    """The errors of a finished run as a terminal table."""
    splits = measured(folder)["splits"]
    columns, rows = _rows(splits)
    return terminal.grid("Mean squared error by observations", columns, rows, range(2, 9))


def _worlds(splits: Mapping[str, Any]) -> list[str]:
    found = []
    for world, title in WORLDS.items():
        at = splits[world]
        sizes = list(at["tie"])
        groups = [
            Group(
                f"{int(n):,} observations",
                [
                    Bar(
                        m,
                        [max(0.0, at[m][n]["bias"]), at[m][n]["variance"]],
                        numbers.significant(_total(at[m][n]), 2),
                        style=STYLES[m],
                    )
                    for m in METHODS
                ],
            )
            for n in dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        ]
        unit = "mean squared error of the prediction; the signal's power is 1"
        found += [f"<h3>{title}</h3>", bars(Bars(title, unit, groups, PARTS, end=1.1))]
    return found


def _splits(metrics: Mapping[str, Any]) -> str:
    rows = []
    for world, of in metrics["splits"].items():
        for method, at in of.items():
            for n, s in at.items():
                shown = [
                    f"{s[k]:.4f}".replace("-", "−")
                    for k in ("bias", "bias_error", "variance", "variance_error")
                ]
                rows.append([world, method, f"{int(n):,}", *shown])
    columns = ["β", "method", "observations", "bias²", "±", "variance", "±"]
    return page.table(columns, rows, range(2, 7))


def _xy(point: Sequence[float]) -> tuple[float, float]:
    """Where a pair of coefficients is in the picture of the plane."""
    unit = _SIDE / _SPAN
    return (point[0] + _MARGIN) * unit, _SIDE - (point[1] + _MARGIN) * unit


def _polygon(points: Sequence[Sequence[float]], style: str) -> str:
    d = "L".join("{:.1f} {:.1f}".format(*_xy(p)) for p in points)
    return f'<path d="M{d}Z" style="{style}"/>'


def _ellipses(plane: Mapping[str, Any]) -> str:
    """Where the residual is as large as at each of the other estimates."""
    moment = np.asarray(plane["moment"])
    centre = np.asarray(plane["found"]["least squares"])
    root = np.linalg.inv(np.linalg.cholesky(moment).T)
    turn = np.linspace(0, 2 * math.pi, 90)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    out = []
    for name in METHODS:
        if name != "least squares":
            away = np.asarray(plane["found"][name]) - centre
            points = centre[:, None] + math.sqrt(away @ moment @ away) * (root @ circle)
            out.append(
                _polygon(points.T.tolist(), "fill:none;stroke:var(--soft);stroke-dasharray:2 3")
            )
    return "".join(out)


def _plane(plane: Mapping[str, Any]) -> str:
    """Two coefficients: the line of the tie, ridge's circle, lasso's diamond."""
    ridge, lasso = (np.asarray(plane["found"][m]) for m in ("ridge", "lasso"))
    radius, edge = float(np.hypot(*ridge)), float(np.abs(lasso).sum())
    turn = np.linspace(0, 2 * math.pi, 120)
    circle = np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
    pale = "fill:var(--c);fill-opacity:.08;stroke:var(--c);stroke-width:1.4"
    diamond = [(edge, 0.0), (0.0, edge), (-edge, 0.0), (0.0, -edge)]
    (ax, ay), (bx, by), (ox, oy) = _xy((-1.0, -1.0)), _xy((3.0, 3.0)), _xy((0.0, 0.0))
    parts = [
        f'<path class="axis" d="M0 {oy:.1f}H{_SIDE:g}M{ox:.1f} 0V{_SIDE:g}"/>',
        f'<g class="s2">{_polygon(circle.tolist(), pale)}</g>',
        f'<g class="s3">{_polygon(diamond, pale)}</g>',
        _ellipses(plane),
        f'<line class="s1" x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}" '
        'style="stroke:var(--c);stroke-width:2.2"/>',
        f'<text class="tick" x="{_SIDE - 4:g}" y="{oy + 16:.1f}" text-anchor="end">β₁</text>',
        f'<text class="tick" x="{ox + 6:.1f}" y="14">β₂</text>',
    ]
    for name, point in (*plane["found"].items(), ("truth", plane["truth"])):
        x, y = _xy(point)
        tip = escape(f"{name}\nβ₁ {point[0]:.2f}\nβ₂ {point[1]:.2f}", quote=True)
        style = f"s{STYLES[name]}" if name in STYLES else "truth"
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" style="fill:var(--c,var(--ink))"/>'
        place = f'x="{x + 9:.1f}" y="{y + 4:.1f}"'
        if name == "tie":
            place = f'x="{x - 9:.1f}" y="{y - 6:.1f}" text-anchor="end"'
        if name == "truth":
            mark = (
                f'<path d="M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10" '
                'style="stroke:var(--ink);stroke-width:2"/>'
            )
        parts.append(
            f'<g class="point {style}" tabindex="0" role="img" aria-label="{tip}" '
            f'data-tip="{tip}">{mark}<text class="label" {place} style="fill:var(--ink)">'
            f"{escape(name)}</text></g>"
        )
    return (
        f'<figure style="max-width:{_SIDE:g}px"><svg viewBox="0 0 {_SIDE:g} {_SIDE:g}" '
        'style="overflow:hidden;width:100%;font-family:var(--sans)" role="group" '
        f'aria-label="Two coefficients and four estimates">{"".join(parts)}</svg></figure>'
    )


def _errors(digits: Mapping[str, Any]) -> str:
    series = [
        chart.repeated(m, digits["error"][m], STYLES[m]) for m in METHODS if digits["error"][m]
    ]
    ticks = [float(n) for n in digits["error"]["tie"]]
    label = "Test error on the digits: mean, least and greatest"
    return chart.chart(
        chart.Chart(label, "digits to learn from", "squared error", series, True, x_ticks=ticks)
    )


def _digits(digits: Mapping[str, Any]) -> list[str]:
    sizes = list(digits["pvalues"])
    rows = [
        [
            f"{int(n):,}",
            *(f"{mean(digits['error'][m][n]):.3f}" for m in METHODS),
            f"{sum(p < 0.05 for p in digits['pvalues'][n])} of {len(digits['pvalues'][n])}",
        ]
        for n in sizes
    ]
    columns = ["digits", *METHODS, "tie rejected at 5 %"]
    pictures = [
        filters(np.asarray(w)[None], columns=1, caption=m, width=120)
        for m, w in zip(METHODS, digits["weights"], strict=True)
    ]
    return [_errors(digits), page.table(columns, rows, range(1, 6)), page.row(*pictures)]


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    splits = metrics["splits"]
    equal = splits["equal"]
    least = next(iter(equal["tie"]))
    error = {m: _total(equal[m][least]) for m in METHODS}
    phi, onto = np.asarray(metrics["phi"]), np.asarray(metrics["projector"])
    rejected = [
        [world, *(numbers.percent(p, 0) for p in at.values())]
        for world, at in metrics["rejected"].items()
    ]
    sizes = [f"{int(n):,} observations" for n in equal["tie"]]
    ratios = [
        [f"{int(n):,}", f"{found:.4f}", f"{metrics['ratio_form'][n]:.4f}"]
        for n, found in metrics["ratio"].items()
    ]
    whole = page.Page(
        title="Equal coefficients are a subspace",
        eyebrow="eadem run subspace",
        lede="A tie is not a penalty. It says in which five of thirty dimensions the answer "
        "lies, and leaves the answer free there; ridge and lasso keep all thirty and pull "
        "towards zero.",
        facts=[
            ("30 → 5", "coefficients → free values"),
            (f"{error['tie']:.2f}", f"error of the tie, {least} observations"),
            (f"{error['ridge']:.2f}, {error['lasso']:.2f}", "ridge, lasso"),
            (f"{error['least squares']:.2f}", "least squares"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "geometry",
                "The geometry",
                "Two coefficients, 25 observations. The tie is the line β₁ = β₂, and its "
                "estimate is where the ellipses of equal residual about the least-squares "
                "estimate touch it. Ridge's estimate is on a circle about zero, lasso's on a "
                "diamond. Below, thirty coefficients: φ writes five values to thirty sites, "
                "φφ⁺ averages within the groups, and what is left is what lift drops.",
                [
                    _plane(metrics["plane"]),
                    page.row(
                        filters(phi[None], 1, "φ: ℝ⁵ → ℝ³⁰", 60),
                        filters(onto[None], 1, "φφ⁺: what lift keeps", 240),
                        filters((np.eye(len(onto)) - onto)[None], 1, "1 − φφ⁺: drops", 240),
                    ),
                ],
            ),
            page.Section(
                "errors",
                "Bias² and variance, in three worlds",
                f"{metrics['repeats']} repeats, the same observations for all four. A bar that "
                "ends in an arrow goes on.",
                [
                    *_worlds(splits),
                    page.foldout("All figures, with standard errors", _splits(metrics)),
                    page.foldout(
                        "Mean variance of a coefficient, tie over least squares",
                        page.table(["observations", "measured", "closed form"], ratios, (1, 2)),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for or against itself",
                "How often the score test at the tied fit rejects equal coefficients at 5 %; "
                "no unconstrained fit is made for it. With hardly more observations than "
                "coefficients it is timid.",
                [page.table(["β", *sizes], rejected, range(1, 1 + len(sizes)))],
            ),
            page.Section(
                "digits",
                "Real digits: is it an eight?",
                "48 pixels, of which the mirrored ones weigh the same under the tie: 24 free "
                "values. An eight is nearly symmetric; the other digits need not be. Weights "
                "of the last repeat, from the most digits.",
                _digits(metrics["digits"]),
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
