"""The page of the study `pinn-periodic`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

KEYS = ("mismatch", "boundary", "inside")


def _spread(values: list[float]) -> str:
    middle = sorted(values)[len(values) // 2]
    if len(values) == 1:
        return f"{middle:.1e}"
    return f"{middle:.1e} ({min(values):.1e}–{max(values):.1e})"


def _rows(ways: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [way, numbers.count(found[0]["free"]), *(_spread([f[k] for f in found]) for k in KEYS)]
        for way, found in ways.items()
    ]


def _section(name: str, ways: Mapping[str, list[dict[str, Any]]]) -> page.Section:
    first = {way: found[0] for way, found in ways.items()}
    truth = first["hard"]["truth"]
    x = [2 * math.pi * i / len(truth) for i in range(len(truth))]
    lines = [chart.Series("Fourier series", x, truth, markers=False)]
    off = []
    for style, (way, one) in enumerate(first.items(), 1):
        lines.append(chart.Series(way, x, one["last"], style=style, markers=False))
        # not at t = 0, where every way has the start itself
        worse = [math.log10(max(a, b)) for a, b in zip(*one["off"], strict=True)][1:]
        off.append(chart.Series(way, one["times"][1:], worse, style=style, markers=False))
    table = page.table(
        ["way", "free values", "ends differ by", "wrong at the ends by", "error inside"],
        _rows(ways),
        numeric=(1, 2, 3, 4),
    )
    return page.Section(
        name.lower(),
        name[:1].upper() + name[1:],
        "Greatest difference of the two ends, greatest error at either end, and relative L2 "
        "error inside, against Fourier series; median of the repeats, and their range.",
        [
            table,
            chart.chart(chart.Chart("The solution at t = 1, first repeat", "x", "u", lines)),
            chart.chart(
                chart.Chart("Error at the ends, first repeat", "t", "log₁₀ of the greater", off)
            ),
        ],
    )


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    solutions = metrics["solutions"]
    cancels = [
        [name, _spread([1 - one["cancels"] for one in ways["soft"]])]
        for name, ways in solutions.items()
    ]
    hard = [one for ways in solutions.values() for one in ways["hard"]]
    soft = [one for ways in solutions.values() for one in ways["soft"]]
    whole = page.Page(
        title="Two ends that are one point",
        eyebrow="eadem run pinn-periodic",
        lede="A solution on a circle, by a network that is periodic by construction, by one "
        "shared unknown boundary value, and by a penalty.",
        facts=[
            (f"{max(o['mismatch'] for o in hard):.0e}", "ends differ by, hard"),
            (f"{max(o['mismatch'] for o in soft):.0e}", "one shared boundary value"),
            (numbers.percent(max(o["inside"] for o in hard)), "worst error inside, hard"),
        ],
        sections=[
            claims(metrics),
            *(_section(name, ways) for name, ways in solutions.items()),
            page.Section(
                "evidence",
                "What the shared boundary says of itself",
                "At the fit the two ends pull the shared boundary value opposite ways by as "
                "much; the table has the share of their gradients' energy that does not "
                "cancel. Untied, either end has a boundary value of its own, which asks "
                "nothing of the network: the rows “soft, untied” show what the tie is worth.",
                [page.table(["equation", "does not cancel"], cancels, numeric=(1,))],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
