"""The page of the study `sample-size`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page
from eadem.report.images import filters

__all__ = ["report"]

WORTH = {
    "independent noise": "digits, independent noise in the answers",
    "own errors, were they independent": "digits, own errors, were they independent",
    "own errors": "digits, own errors",
    "own errors, measured": "the same, measured by resampling",
}


def _curves(metrics: Mapping[str, Any]) -> str:
    mse, data = metrics["mse"], metrics["data"]
    rows, noise = data["taps"] ** 2 + 1, data["noise"]
    series = []
    for style, (name, uses) in enumerate((("shared", data["positions"]), ("unshared", 1))):
        runs = {n: mse[name][n] for n in sorted(mse[name], key=float)}
        line = chart.repeated(name, runs, style)
        y, low, high = (
            [math.log10(v) for v in values]
            for values in (line.y, line.low or (), line.high or ())
        )
        series.append(chart.Series(name, line.x, y, low, high, style=style))
        theory = [math.log10(noise / (int(n) * uses - rows)) for n in runs]
        xs = [float(n) for n in runs]
        series.append(
            chart.Series(f"theory, {name}", xs, theory, style=style + 2, markers=False)
        )
    label = "Error of the filter by number of images: mean, least and greatest of the repeats"
    ticks = [1.0, 10.0, 100.0, 1000.0, 7600.0]
    return chart.chart(
        chart.Chart(label, "images", "log₁₀ mean squared error", series, True, x_ticks=ticks)
    )


def _windows(values: Any, columns: int, caption: str, width: int) -> str:
    grid = np.asarray(values, dtype=np.float64)
    return filters(grid.reshape(-1, 5, 5), columns=columns, caption=caption, width=width)


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    found, real, drawn = metrics["claims"][0]["measured"], metrics["digits"], metrics["filters"]
    worth, positions = real["worth"], metrics["data"]["positions"]
    tests = [
        [
            {"white": "independent pixels: the tie is right", "digits": "digits"}[k],
            f"χ²({t['df']}) = {numbers.significant(t['statistic'])}",
            numbers.significant(t["pvalue"]),
        ]
        for k, t in metrics["tests"].items()
    ]
    values = [["independent pixels, measured", found["ratio"]]] + [
        [name, worth[key]] for key, name in WORTH.items()
    ]
    window = real["window"]
    whole = page.Page(
        title="Ten images instead of 7,600",
        eyebrow="eadem run sample-size",
        lede="A filter that is used at 784 positions learns from all of them. Tied, ten images "
        "say as much about it as 7,600 do when every position has a filter of its own; on real "
        "digits the positions are not independent, and sharing is worth less.",
        facts=[
            (numbers.significant(found["ratio"]), f"images for one, {positions} by theory"),
            (numbers.significant(worth["own errors, measured"]), "on noisy digits"),
            ("25 → 19,600", "free values → sites"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "curve",
                "The error of the filter, by images",
                "The two lines are one line, moved by the number of positions. Without a tie "
                "there is no estimate below 26 images: 25 coefficients, one answer an image.",
                [_curves(metrics)],
            ),
            page.Section(
                "filters",
                "What was learned",
                "At every second position, of 28 × 28.",
                [
                    page.row(
                        _windows(drawn["true"], 1, "The filter", 90),
                        _windows(drawn["one"], 1, "Shared, 10 images", 90),
                    ),
                    page.pair(
                        *(
                            _windows(each, 14, f"Unshared, {int(n):,} images", 340)
                            for n, each in drawn["each"].items()
                        )
                    ),
                ],
            ),
            page.Section(
                "digits",
                "On real images",
                "A filter of 5×5 is to take the noise off digits. What 784 positions are "
                "worth, in independent ones: the images that untied filters need for each "
                "image of the tied one, at the same error. Where the noise of the answers "
                "is independent, overlapping windows cost nothing, and sharing lends to "
                "poorly lit positions what the others know. The filter's own errors are not "
                "independent: windows that overlap err together.",
                [
                    page.row(
                        filters(
                            np.asarray(window["noisy"]), 3, "Digits as they are given", 300
                        ),
                        filters(np.asarray(window["clean"]), 3, "As they are wanted", 300),
                    ),
                    page.table(
                        ["setting", "worth, positions"],
                        [[name, numbers.significant(v)] for name, v in values],
                        numeric=(1,),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives against itself",
                "The score test at the tied fit of 1,000 images, against a filter for each of "
                "16 regions, clustered by image. On digits one filter for all places is wrong, "
                "as the regions' expected filters show: at the rim there is no ink to recover.",
                [
                    page.table(["images", "statistic", "p"], tests),
                    page.row(
                        _windows(real["filters"]["one"], 1, "Shared, digits", 90),
                        _windows(real["filters"]["regions"], 4, "By region, expected", 300),
                    ),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
