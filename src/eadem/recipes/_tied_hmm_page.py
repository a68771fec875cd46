"""The page of the study `tied-hmm`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page
from eadem.report.heat import heat

__all__ = ["report"]

NAMES = ("tied", "untied")


def _chart(label: str, errors: Mapping[str, Mapping[str, Sequence[float]]], length: int) -> str:
    lines = [
        chart.Series(
            name,
            [length * float(n) for n in errors[name]],
            [math.log10(math.sqrt(mean(e))) for e in errors[name].values()],
            style=i,
        )
        for i, name in enumerate(NAMES)
    ]
    return chart.chart(
        chart.Chart(label, "symbols", "log₁₀ error", lines, True, x_ticks=lines[0].x)
    )


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for which, by in metrics["errors"].items():
        for n in by["tied"]:
            tied, untied = (mean(by[name][n]) for name in NAMES)
            better = sum(a < b for a, b in zip(by["tied"][n], by["untied"][n], strict=True))
            rows.append(
                [
                    which,
                    numbers.count(int(n) * metrics["length"]),
                    f"{math.sqrt(tied):.4f}",
                    f"{math.sqrt(untied):.4f}",
                    f"{tied / untied:.2f}",
                    f"{better} of {len(by['tied'][n])}",
                ]
            )
    return rows


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    errors, free, length = metrics["errors"], metrics["free"], metrics["length"]
    first = next(iter(errors["true"]["tied"]))
    share = mean(errors["true"]["tied"][first]) / mean(errors["true"]["untied"][first])
    emissions = np.array(metrics["emissions"])
    tips = [
        f"state {i}, symbol {j}: {emissions[i, j]:.2f}"
        for i in range(emissions.shape[0])
        for j in range(emissions.shape[1])
    ]
    written = [f"{p:.2f}".lstrip("0") for p in emissions.reshape(-1)]
    rejected = [
        [f"the tie is {which}", *(numbers.percent(share) for share in by.values())]
        for which, by in metrics["rejected"].items()
    ]
    whole = page.Page(
        title="Two states, one voice",
        eyebrow="eadem run tied-hmm",
        lede="Two states of a hidden Markov model emit alike. Declared so, Baum–Welch pools "
        "what it expects of both, and the same data say more.",
        facts=[
            (f"{free['tied']} → {free['untied']}", "free values, tied → untied"),
            (f"{share:.2f}", f"of the squared error at {int(first) * length:,} symbols"),
            (numbers.percent(metrics["rejected"]["wrong"]["sandwich"]), "of wrong ties found"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "model",
                "The model",
                "What each state emits; the rows of states 0 and 2 are one. State 0 lasts ten "
                "steps, state 2 two and a half.",
                [heat(emissions, tips, "Emission probabilities", shown=written)],
            ),
            page.Section(
                "error",
                "What the tie is worth, and what a wrong one costs",
                "Root mean squared error of the emissions of both states, by how many symbols "
                "there are to learn from. Where the tie is wrong the tied error cannot fall "
                f"below {math.sqrt(metrics['floor']):.3f}, half the departure in both states; "
                "with few data it is still the better estimate.",
                [
                    _chart("The tie is true", errors["true"], length),
                    _chart("The tie is wrong", errors["wrong"], length),
                    page.table(
                        ["tie", "symbols", "tied", "untied", "ratio of squares", "better in"],
                        _rows(metrics),
                        numeric=(1, 2, 3, 4, 5),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for or against itself",
                "The score test at the tied fit, from each sequence's expected counts; no "
                "untied model is fitted for it. From 60 sequences the plain test is too ready "
                "to reject a true tie.",
                [
                    page.table(
                        ["rejected at 5 %", "plain", "sandwich, by sequences"],
                        rejected,
                        numeric=(1, 2),
                    )
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
