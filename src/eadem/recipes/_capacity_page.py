"""The page of the study `capacity`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem import theory
from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page
from eadem.report.images import filters

__all__ = ["report", "samples_for"]

NAMES = {
    "shared": "one filter",
    "unshared": "a filter at each position",
    "dense": "one filter, dense head",
}
BOUND = 0.1


def samples_for(capacity: int) -> int:
    """The examples after which `theory.generalization_bound` is at most BOUND."""
    low, high = capacity + 1, 2 * capacity + 2
    while theory.generalization_bound(capacity, high) > BOUND:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        good = theory.generalization_bound(capacity, middle) <= BOUND
        low, high = (low, middle) if good else (middle, high)
    return high


def _grown(models: Mapping[str, Any]) -> str:
    series = [
        chart.repeated(
            name, {str(int(s) ** 2): m["fitted"] for s, m in models[k].items()}, style
        )
        for style, (k, name) in enumerate(NAMES.items())
    ]
    ticks = [float(int(s) ** 2) for s in models["shared"]]
    label = "Examples with random labels that are fitted, by pixels: mean, least and greatest"
    return chart.chart(
        chart.Chart(label, "pixels of an image", "examples fitted", series, x_ticks=ticks)
    )


def _cover(models: Mapping[str, Any]) -> str:
    """How often labels are fitted, by their number over the capacity, measured and counted."""
    series = []
    for style, kind in enumerate(("shared", "unshared")):
        at = list(models[kind].values())[-1]
        rank, most = at["rank"], at["fitted"]
        ns = sorted({round(rank * (0.8 + 0.1 * i)) for i in range(25)})
        share = [sum(m >= n for m in most) / len(most) for n in ns]
        xs = [n / rank for n in ns]
        wanted = [theory.separable(n, rank) for n in ns]
        series.append(chart.Series(f"{NAMES[kind]}, {rank}", xs, share, style=style))
        series.append(
            chart.Series(f"counted, {rank}", xs, wanted, style=style + 2, markers=False)
        )
    label = "How often random labels are fitted, by examples for each free value"
    spec = chart.Chart(
        label, "examples / capacity", "fitted", series, percent_y=True, y_range=(0.0, 1.0)
    )
    return chart.chart(spec)


def _rows(models: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for kind, name in NAMES.items():
        for side, m in models[kind].items():
            spread = f"{min(m['fitted'])}–{max(m['fitted'])}"
            found.append(
                [
                    name,
                    f"{side}×{side}",
                    numbers.count(m["free"]),
                    numbers.count(m["rank"]),
                    numbers.count(2 * m["rank"]),
                    f"{mean(m['fitted']):.1f}",
                    spread,
                    numbers.count(samples_for(m["rank"])),
                ]
            )
    return found


_COLUMNS = [
    "model",
    "image",
    "free values",
    "capacity",
    "twice",
    "fitted, mean",
    "spread",
    f"examples for a bound of {BOUND:g}",
]


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    models, inputs = metrics["models"], metrics["inputs"]
    ends = [list(models["shared"])[i] for i in (0, -1)]
    tests = [
        [
            {"random": "random labels: the tie is right", "real": "is the digit above four"}[k],
            f"χ²({t['df']}) = {numbers.significant(t['statistic'])}",
            numbers.significant(t["pvalue"]),
        ]
        for k, t in metrics["tests"].items()
    ]
    whole = page.Page(
        title="A shared filter learns no more by heart from larger images",
        eyebrow="eadem run capacity",
        lede="How many random labels can a model fit? With a filter at each position, "
        "averaged, more and more as the images grow. With one filter for all positions, "
        "about twenty, for ever.",
        facts=[
            (
                " → ".join(f"{mean(models[k][s]['fitted']):.0f}" for s in ends),
                f"labels fitted, {NAMES[k]}, {ends[0]}×{ends[0]} → {ends[1]}×{ends[1]}",
            )
            for k in NAMES
        ],
        sections=[
            claims(metrics),
            page.Section(
                "inputs",
                "The examples",
                "Digits at the sizes that were tried. The labels are drawn.",
                [
                    page.row(
                        *(
                            filters(
                                np.asarray(x).reshape(-1, int(s), int(s)),
                                columns=4,
                                caption=f"{s}×{s}",
                                width=40 + 14 * int(s),
                            )
                            for s, x in inputs.items()
                        )
                    )
                ],
            ),
            page.Section(
                "fitted",
                "What is learned by heart",
                "The largest number of examples whose random labels are all fitted, decided "
                "by linear programming. The last column is what the capacity asks of data: "
                "examples until test error exceeds training error by no more than that, in "
                "the worst case, with 95 % confidence. With the dense head the filter is "
                "held fixed, so its figures are what that model can do at least.",
                [_grown(models), page.table(_COLUMNS, _rows(models), numeric=range(2, 8))],
            ),
            page.Section(
                "cover",
                "Cover's count",
                "How often random labels are fitted, at the largest size, and how often they "
                "should be: always up to the capacity, in half of the draws at twice of it.",
                [_cover(models)],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for and against itself",
                "The score test of one filter for all positions at its logistic fit. Random "
                "labels know of no place, so the tie is right; real ones do.",
                [page.table(["labels", "statistic", "p"], tests)],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
