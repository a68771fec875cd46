"""The page of the recipe pair-hmm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, images, numbers, page, terminal

__all__ = ["report", "table"]

_COLUMNS = ["pairs", "model", "Viterbi", "expected accuracy"]
_TESTS = ("likelihood ratio", "score")


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    names = {"start": "as it starts", "fitted": "fitted"}
    return [
        [data, names[stage], *(numbers.percent(share[m]) for m in ("viterbi", "mea"))]
        for data, stages in found.items()
        for stage, share in stages.items()
    ]


def table(found: Mapping[str, Any]) -> Any:
    """Accuracies as a terminal table."""
    return terminal.grid("Pairs of the reference alignment found", _COLUMNS, _rows(found))


def _pvalues(drawn: Mapping[str, Any]) -> str:
    """Sorted p-values where the symmetry is true, against the uniform law."""
    series = []
    for style, test in enumerate(_TESTS):
        y = sorted(v[test]["pvalue"] for v in drawn["true"])
        x = [(i + 0.5) / len(y) for i in range(len(y))]
        series.append(chart.Series(test, x, y, style=style, markers=False))
    series.append(chart.Series("uniform", [0.0, 1.0], [0.0, 1.0], style=2, markers=False))
    label = "P-values of draws where the symmetry is true, in order"
    return chart.chart(chart.Chart(label, "share of draws", "p-value", series))


def _real(real: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            test,
            f"χ²({v[test]['df']}) = {numbers.significant(v[test]['statistic'])}",
            numbers.significant(v[test]["pvalue"]),
        ]
        for name, v in real.items()
        for test in _TESTS
    ]


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    (claim,) = metrics["claims"]
    came, shown, free = claim["measured"], metrics["posterior"], metrics["free"]
    size, power = (
        ", ".join(f"{numbers.percent(came[what][t])} ({t})" for t in _TESTS)
        for what in ("size", "power")
    )
    picture = images.filters(
        np.asarray(shown["match"])[None],
        1,
        "Posterior of each pair of letters: haemoglobin β (down) and myoglobin (across)",
        460,
    )
    swap = [[name, f"{value:.2g}"] for name, value in metrics["swap"].items()]
    whole = page.Page(
        title="Do two aligned sequences know which is first?",
        eyebrow="eadem run pair-hmm",
        lede="A pair HMM emits two sequences and how they align. That nothing changes when "
        "they are swapped is four ties; and ties can be tested.",
        facts=[
            (f"{free['tied']} of {free['untied']}", "free values under all ties"),
            (f"{came['swap']['all ties']:.1g}", "largest change by a swap under all ties"),
            (numbers.percent(came["power"]["likelihood ratio"]), "of wrong symmetries found"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "swap",
                "What a swap changes",
                "The largest change of a pair's log-likelihood over 50 pairs of copies of "
                "MADE1, each model fitted to them.",
                [page.table(["ties", "largest change"], swap, numeric=(1,))],
            ),
            page.Section(
                "tests",
                "Can the symmetry be tested?",
                f"False alarms at 5 %: {size}. Found where x opens gaps three times as often "
                f"as y: {power}.",
                [
                    _pvalues(metrics["drawn"]),
                    page.table(
                        ["MADE1, 50 pairs", "test", "statistic", "p"],
                        _real(metrics["real"]),
                        numeric=(3,),
                    ),
                ],
            ),
            page.Section(
                "alignments",
                "Are the alignments right?",
                "Share of the reference alignment's pairs of letters that are found: 25 pairs "
                "of MADE1, from 25 others; six pairs of globins, of which only the gaps are "
                "fitted.",
                [page.table(_COLUMNS, _rows(metrics["accuracy"]), numeric=(2, 3)), picture],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
