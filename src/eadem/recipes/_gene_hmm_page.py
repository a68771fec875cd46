"""The page of the study `gene-hmm`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

NAMES = {"tied": "strands tied", "untied": "untied"}
STATES = [f"{strand}, position {p}" for strand in ("forwards", "backwards") for p in (1, 2, 3)]


def _table(metrics: Mapping[str, Any]) -> str:
    found, rows = metrics["correlations"], []
    for n in found["tied"]:
        row = [numbers.count(int(n))]
        for name in NAMES:
            row += [f"{mean(found[name][n]):.3f}", _spread(found[name][n])]
        rows.append(row)
    last = metrics["everything"]
    rows.append(
        [numbers.count(last["bases"]), f"{last['tied']:.3f}", "", f"{last['untied']:.3f}", ""]
    )
    columns = ["bases learned from", "strands tied", "spread", "untied", "spread"]
    return page.table(columns, rows, numeric=(0, 1, 2, 3, 4))


def _spread(values: list[float]) -> str:
    return f"{min(values):.2f}–{max(values):.2f}".replace("-", "−")


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    found, evidence = metrics["correlations"], metrics["evidence"]
    first = next(iter(found["tied"]))
    lines = [chart.repeated(n, found[k], i) for i, (k, n) in enumerate(NAMES.items())]
    picture = chart.Chart(
        "Matthews correlation with the annotation, on sequence not learned from",
        "bases learned from",
        "correlation",
        lines,
        log_x=True,
        x_ticks=[float(n) for n in found["tied"]],
    )
    shares = [
        [state, *(numbers.percent(v) for v in row)]
        for state, row in zip(STATES, evidence["shares"], strict=True)
    ]
    tests = [
        [
            kind,
            f"{evidence[kind]['statistic']:.1f}",
            numbers.significant(evidence[kind]["pvalue"]),
        ]
        for kind in ("plain", "robust")
    ]
    whole = page.Page(
        title="Genes on two strands",
        eyebrow="eadem run gene-hmm",
        lede="A hidden Markov model of coding and non-coding bases in a chloroplast. What a "
        "codon position is on one strand, its complement read backwards is on the other.",
        facts=[
            (
                f"{mean(found['tied'][first]):.2f}",
                f"correlation from {int(first):,} bases, tied",
            ),
            (f"{mean(found['untied'][first]):.2f}", "untied"),
            (numbers.percent(metrics["coding"]), "of the bases code"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "amount",
                "By how much there is to learn from",
                f"{metrics['free']['tied']} free values tied, {metrics['free']['untied']} "
                "untied. The answer “all coding” has a correlation of 0. The last row is all "
                "that there is to learn from.",
                [chart.chart(picture), _table(metrics)],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for and against itself",
                f"The score test on {evidence['bases']:,} annotated bases, {evidence['df']} "
                "degrees of freedom: the plain one takes the bases as independent, the robust "
                f"one the {evidence['genes']} coding sequences. Below, the shares of the bases "
                "at each position.",
                [
                    page.table(["test", "χ²", "p"], tests, numeric=(1, 2)),
                    page.table(["state", "A", "C", "G", "T"], shares, numeric=(1, 2, 3, 4)),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
