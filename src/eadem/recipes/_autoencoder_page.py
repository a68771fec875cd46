"""The page of the study `autoencoder`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

NAMES = {"tied": "tied", "untied": "untied"}


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(r[key]) for r in runs) / len(runs)


def _rows(depth: str, by: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> list[list[str]]:
    rows = []
    for n in by["tied"]:
        for name in NAMES:
            runs = by[name][n]
            gaps = [r["gap"] for r in runs]
            rows.append(
                [
                    depth,
                    name,
                    numbers.count(int(n)),
                    numbers.count(runs[0]["free"]),
                    f"{1000 * _mean(runs, 'train'):.2f}",
                    f"{1000 * _mean(runs, 'test'):.2f}",
                    f"{1000 * _mean(runs, 'gap'):.2f}",
                    f"{1000 * min(gaps):.2f}–{1000 * max(gaps):.2f}",
                ]
            )
    return rows


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    nets, linear = metrics["nets"], metrics["linear"]
    charts = []
    for depth, by in nets.items():
        lines = [
            chart.repeated(n, {k: [1000 * r["gap"] for r in v] for k, v in by[n].items()}, i)
            for i, n in enumerate(NAMES)
        ]
        ticks = [float(n) for n in by["tied"]]
        label = f"Test error less training error, {depth} down"
        charts.append(
            chart.chart(
                chart.Chart(label, "training digits", "gap, 10⁻³", lines, True, x_ticks=ticks)
            )
        )
    rows = [row for depth, by in nets.items() for row in _rows(depth, by)]
    evidence = [
        [depth, numbers.count(int(n)), f"{r['evidence']['z']:.2f}",
         numbers.significant(r["evidence"]["pvalue"])]
        for depth, by in nets.items()
        for n, runs in by["tied"].items()
        for r in runs[:1]
    ]  # fmt: skip
    notes = sorted(
        {
            note
            for by in nets.values()
            for runs in by["tied"].values()
            for note in runs[0]["evidence"]["notes"]
        }
    )
    shown = {"penalty": "with an L2 penalty", "none": "without"}
    paths = [
        chart.Series(
            name,
            [float(i + 1) for i in range(len(linear[k]["path"]))],
            [math.log10(max(d, 1e-16)) for d in linear[k]["path"]],
            style=i,
            markers=False,
        )
        for i, (k, name) in enumerate(shown.items())
    ]
    label = "Distance of the untied linear decoder from its encoder's transpose"
    path = chart.Chart(label, "steps of Adam", "log₁₀ relative distance", paths)
    suggested = [
        [shown[k], s[0], numbers.significant(s[1]), numbers.significant(s[2])]
        for k in shown
        for s in linear[k]["suggested"]
    ]
    first = next(iter(nets["two layers"]["tied"]))
    pair = [nets["two layers"][n][first] for n in NAMES]
    whole = page.Page(
        title="A decoder that mirrors its encoder",
        eyebrow="eadem run autoencoder",
        lede="One tie a layer: the decoder's weight is the encoder's, transposed. Half the "
        "matrices; what that does to the gap between images seen and not seen depends on how "
        "many are seen.",
        facts=[
            (numbers.count(pair[0][0]["free"]), "free values, two layers, tied"),
            (numbers.count(pair[1][0]["free"]), "untied"),
            (
                f"{_mean(pair[0], 'gap') / _mean(pair[1], 'gap'):.2f}",
                f"of the untied gap at {int(first):,} digits",
            ),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "gap",
                "Training error, test error, and what lies between",
                "Squared error of a pixel in units of 10⁻³, means over the repeats; the same "
                "digits, batches and start for both.",
                [
                    *charts,
                    page.table(
                        ["depth", "model", "digits", "free", "train", "test", "gap", "spread"],
                        rows,
                        numeric=(2, 3, 4, 5, 6, 7),
                    ),
                ],
            ),
            page.Section(
                "linear",
                "The tie that nobody declared",
                "A linear autoencoder with two free matrices. With a penalty on their squares "
                "training ends where one is the transpose of the other; without, it ends "
                "anywhere on a manifold of equal error. Below, what suggest_ties finds.",
                [
                    chart.chart(path),
                    page.table(
                        ["trained", "tie", "share left over", "p"], suggested, numeric=(2, 3)
                    )
                    if suggested
                    else "<p>suggest_ties finds nothing.</p>",
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives against itself",
                "Chen and Qin's mean test of the last decoder weight at the tied fit, on the "
                "training digits: whether it wants to be other than the encoder's transpose.",
                [
                    page.table(["depth", "digits", "z", "p"], evidence, numeric=(1, 2, 3)),
                    *(f"<p>{note}</p>" for note in notes),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
