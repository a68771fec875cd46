"""The page of the study `unet`, from its metrics."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, images, numbers, page

__all__ = ["report"]

NAMES = {"tied": "tied", "full": "untied, same widths", "equal": "untied, equal budget"}
PICTURES = {"image": "A test tile", "mask": "Nuclei, by hand"} | {
    key: name.capitalize() for key, name in NAMES.items()
}


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    nets, evidence = metrics["nets"], metrics["evidence"]
    mean = {key: fmean(run["dice"] for run in runs) for key, runs in nets.items()}
    rows = [
        [
            name,
            numbers.count(nets[key][0]["free"]),
            f"{mean[key]:.4f}",
            ", ".join(f"{run['dice']:.3f}" for run in nets[key]),
        ]
        for key, name in NAMES.items()
    ]
    lines = []
    for style, (key, name) in enumerate(NAMES.items()):
        paths = [run["loss"] for run in nets[key]]
        step = max(1, len(paths[0]) // 15)
        by = {
            last: [fmean(path[last - step : last]) for path in paths]
            for last in range(step, len(paths[0]) + 1, step)
        }
        lines.append(chart.repeated(name, by, style))
    label = "Loss of training, mean of some steps, over the repeats"
    loss = chart.Chart(label, "updates of Adam", "cross-entropy of a pixel", lines)
    pictures = [
        images.filters(np.asarray([metrics["pictures"][key]]), 1, caption, 150)
        for key, caption in PICTURES.items()
    ]
    tests = [
        [
            "all" if site == "joint" else site.removesuffix(".weight"),
            ", ".join(f"{one[site]['z']:.2f}" for one in evidence),
            ", ".join(numbers.significant(one[site]["pvalue"]) for one in evidence),
        ]
        for site in evidence[0]
    ]
    notes = sorted({n for one in evidence for t in one.values() for n in t["notes"]})
    whole = page.Page(
        title="The way up is the way down",
        eyebrow="eadem run unet",
        lede="A U-Net that finds nuclei; every filter on its way up is the transpose of the "
        "filter opposite on its way down.",
        facts=[
            (numbers.count(nets["tied"][0]["free"]), "free values, tied"),
            (numbers.count(nets["full"][0]["free"]), "untied, same widths"),
            (f"{mean['tied']:.3f}", "Dice, tied"),
            (f"{mean['full']:.3f}", "untied, same widths"),
            (f"{mean['equal']:.3f}", "untied, equal budget"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "dice",
                "What is nucleus, what is not",
                "Four tiles to learn from, eight others to test on; the same crops in the "
                "same order for all. Dice by repeat in the last column.",
                [
                    page.row(*pictures),
                    page.table(
                        ["U-Net", "free values", "Dice", "by repeat"], rows, numeric=(1, 2, 3)
                    ),
                    chart.chart(loss),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives against itself, level by level",
                "Chen and Qin's mean test at the tied fit, on the training tiles: does a "
                "filter of the decoder want to be other than the transpose of its encoder's? "
                "Level 0 is the finest; one number for each repeat.",
                [page.table(["site", "z", "p"], tests), *(f"<p>{note}</p>" for note in notes)],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
