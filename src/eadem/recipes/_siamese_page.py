"""The page of the study `siamese`, from its metrics."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

NAMES = {"tied": "tied towers", "untied": "untied towers"}


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    towers, evidence = metrics["towers"], metrics["evidence"]
    area = {key: fmean(run["auc"] for run in runs) for key, runs in towers.items()}
    lines = []
    for style, (key, name) in enumerate(NAMES.items()):
        curves = [run["curve"] for run in towers[key]]
        shares = [i / (len(curves[0]) - 1) for i in range(len(curves[0]))]
        by = {x: [c[i] for c in curves] for i, x in enumerate(shares)}
        one = chart.repeated(name, by, style)
        lines.append(
            chart.Series(one.name, one.x, one.y, one.low, one.high, style=style, markers=False)
        )
    roc = chart.Chart(
        "Pairs of people who were not seen in training, mean and range over the folds",
        "share of pairs of two people that pass",
        "share of pairs of one person that pass",
        lines,
        percent_y=True,
    )
    rows = [
        [
            name,
            numbers.count(towers[key][0]["free"]),
            f"{area[key]:.4f}",
            f"{fmean(r['between'] for r in towers[key]):.3f}",
            ", ".join(f"{r['auc']:.3f}" for r in towers[key]),
        ]
        for key, name in NAMES.items()
    ]
    pixels = metrics["pixels"]
    shown = ", ".join(f"{p:.3f}" for p in pixels)
    rows.append(["the pixels themselves", "0", f"{fmean(pixels):.4f}", "0.000", shown])
    tests = [
        [str(fold + 1), kind, f"{one[kind]['z']:.2f}", numbers.significant(one[kind]["pvalue"])]
        for fold, one in enumerate(evidence)
        for kind in ("upright", "upside down")
    ]
    cancelled = {n: [e["cancels"][n] for e in evidence] for n in evidence[0]["cancels"]}
    cancels = [
        [name.removeprefix("towers.0."), numbers.percent(fmean(shares))]
        for name, shares in cancelled.items()
    ]
    notes = sorted(
        {n for e in evidence for k in ("upright", "upside down") for n in e[k]["notes"]}
    )
    whole = page.Page(
        title="Two pictures, one network",
        eyebrow="eadem run siamese",
        lede="Each picture of a pair has a tower of its own, and one tie makes the towers one: "
        "both land in one space, where distance says whether they show one person.",
        facts=[
            (
                f"{fmean(r['auc'] for r in towers['tied']):.3f}",
                "area under the ROC curve, tied",
            ),
            (f"{area['untied']:.3f}", "untied"),
            (numbers.count(towers["tied"][0]["free"]), "free values, tied"),
            (numbers.count(towers["untied"][0]["free"]), "untied"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "roc",
                "The same person?",
                "Ten people to test on, thirty others to learn from, in every fold. The "
                "column before the last is how far apart the two towers put one picture, on a "
                "sphere of radius one.",
                [
                    chart.chart(roc),
                    page.table(
                        ["towers", "free values", "area", "one picture apart", "area by fold"],
                        rows,
                        numeric=(1, 2, 3, 4),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for and against itself",
                "Which picture goes left is chance, so the tie is true, and the mean test of "
                "the right tower at the tied fit should have nothing to say. With the right "
                "pictures upside down the towers see different things, and it should. Beside "
                "it, how much of the towers' gradients cancels in their sum at the fit, mean "
                "over the folds: noise that is independent leaves 50 %.",
                [
                    page.pair(
                        page.table(["fold", "right pictures", "z", "p"], tests, numeric=(2, 3)),
                        page.table(["tie", "cancels"], cancels, numeric=(1,)),
                    ),
                    *(f"<p>{note}</p>" for note in notes),
                    f"<p>The gradients of the two towers add up to θ's to "
                    f"{metrics['sum']:.1e} relative, in float64.</p>",
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
