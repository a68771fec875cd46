"""The page of the study `spoken-digits`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page
from eadem.report.heat import heat

__all__ = ["report"]


def _accuracy(right: Mapping[str, Mapping[str, list[float]]]) -> str:
    lines = [chart.repeated(arm, by, style=i) for i, (arm, by) in enumerate(right.items())]
    return chart.chart(
        chart.Chart(
            "Test accuracy, mean and range over repeats",
            "utterances of each digit",
            "accuracy",
            lines,
            True,
            x_ticks=lines[0].x,
        )
    )


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    right = metrics["right"]
    return [
        [n, *(numbers.percent(mean(by[n])) for by in right.values())]
        for n in next(iter(right.values()))
    ]


def _evidence(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    by = metrics["tests"]
    for arm in next(iter(by.values()))[0]:
        for n, tests in by.items():
            first = tests[0][arm]
            ratio = mean([t[arm]["statistic"] for t in tests]) / first["df"]
            rejected = sum(float(t[arm]["pvalue"]) < 0.05 for t in tests)
            of = f"{rejected} of {len(tests)}"
            rows.append([arm, n, f"{first['df']:,}", f"{ratio:.2f}", of])
    return rows


def _heard(table: np.ndarray[Any, np.dtype[np.float64]], caption: str) -> str:
    share = table / table.sum(1, keepdims=True)
    tips = [
        f"{i} heard as {j}: {share[i, j]:.1%}"
        for i in range(len(share))
        for j in range(len(share))
    ]
    shown = [f"{100 * p:.0f}" if p >= 0.005 else "" for p in share.reshape(-1)]
    return heat(np.sqrt(share), tips, caption, shown=shown)


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    right, free = metrics["right"], metrics["free"]
    arms = list(right)
    least, most = (list(right[arms[0]])[k] for k in (0, -1))
    gains = {n: mean(right[arms[2]][n]) - mean(right[arms[0]][n]) for n in (least, most)}
    variances = np.array(metrics["variances"][arms[0]])[..., 0]  # (digits, states)
    shared = float(np.array(metrics["variances"][arms[2]])[0, 0, 0])
    tips = [
        f"digit {i}, state {k}: {variances[i, k]:.2f}"
        for i in range(variances.shape[0])
        for k in range(variances.shape[1])
    ]
    written = [f"{v:.2f}" for v in variances.reshape(-1)]
    tables = metrics["confused"]
    whole = page.Page(
        title="Ten digits, one ear",
        eyebrow="eadem run spoken-digits",
        lede="Ten models of spoken digits share their variances. Declared so, ten small sets "
        "of utterances are one large one for what is shared.",
        facts=[
            (f"{free[arms[0]]:,} → {free[arms[2]]:,}", "free values, untied → one for all"),
            (f"{100 * gains[least]:+.1f}", f"points of accuracy from {least} of each digit"),
            (f"{100 * gains[most]:+.1f}", f"points from {most}"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "accuracy",
                "Accuracy, by how much there is to learn from",
                f"{metrics['held']} utterances of each digit to test on, {metrics['repeats']} "
                "repeats; the same utterances, starts and steps for all four.",
                [
                    _accuracy(right),
                    page.table(
                        ["utterances of each digit", *arms],
                        _rows(metrics),
                        numeric=tuple(range(len(arms) + 1)),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that each tie gives for or against itself",
                "The likelihood ratio of each tie within the model before it, over its degrees "
                "of freedom: about one where the tie is true. A tie that the data reject can "
                "still be the better recogniser, while there are few of them.",
                [
                    page.table(
                        ["tie", "utterances", "degrees of freedom", "ratio", "rejected at 5 %"],
                        _evidence(metrics),
                        numeric=(1, 2, 3, 4),
                    )
                ],
            ),
            page.Section(
                "variances",
                "What the variance tie says is one number",
                "The variance of the first coefficient, loudness, in each state (columns) of "
                f"each digit (rows), untied, from {most} utterances of each; tied it is "
                f"{shared:.2f} in all.",
                [heat(variances, tips, "Variances of the first coefficient", shown=written)],
            ),
            page.Section(
                "heard",
                "What was heard",
                f"In per cent: digits (rows) heard as digits (columns), from {most} of each.",
                [_heard(np.array(tables[arm]), arm) for arm in (arms[0], arms[2])],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
