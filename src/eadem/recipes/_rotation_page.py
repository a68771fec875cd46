"""The page and the table of the study `rotation`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page, terminal
from eadem.report.images import filters

__all__ = ["report", "table"]

NAMES = {
    "p4": "p4",
    "p4m": "p4m",
    "p4_twin": "p4, untied",
    "p4m_twin": "p4m, untied",
    "plain": "plain",
    "augmented": "plain, augmented",
}
_DRAWN = ("p4", "p4_twin", "plain", "augmented")

At = Mapping[str, Sequence[Mapping[str, Any]]]


def _accuracy(at: At, n: str) -> list[float]:
    return [r["accuracy"] for r in at[n]]


def _columns(models: Mapping[str, At]) -> list[str]:
    sizes = list(models["p4"])
    return ["network", "free", "sites", *(f"{int(n):,} images" for n in sizes)]


def _rows(models: Mapping[str, At]) -> list[list[str]]:
    found = []
    for key, name in NAMES.items():
        at = models[key]
        one = next(iter(at.values()))[0]
        shown = []
        for n in at:
            values = _accuracy(at, n)
            spread = (
                f" ({100 * min(values):.1f}–{100 * max(values):.1f})" if len(values) > 1 else ""
            )
            shown.append(numbers.percent(mean(values)) + spread)
        found.append([name, numbers.count(one["free"]), numbers.count(one["expanded"]), *shown])
    return found


def table(folder: Path) -> Any:
    """The accuracies of a finished run as a terminal table."""
    models = measured(folder)["models"]
    return terminal.grid("Accuracy on rotated digits", _columns(models), _rows(models))


def _curves(models: Mapping[str, At]) -> str:
    series = [
        chart.repeated(NAMES[key], {n: _accuracy(models[key], n) for n in models[key]}, style)
        for style, key in enumerate(_DRAWN)
    ]
    ticks = [float(n) for n in models["p4"]]
    label = "Accuracy on rotated digits by training images: mean, least and greatest"
    return chart.chart(
        chart.Chart(label, "training images", "accuracy", series, True, True, ticks)
    )


def _errors(models: Mapping[str, At]) -> list[list[str]]:
    found = []
    for key, name in NAMES.items():
        runs = [r for at in models[key].values() for r in at]
        group = {"p4m": "8 turns and mirrors", "p4m_twin": "8 turns and mirrors"}.get(
            key, "4 turns"
        )
        worst = [
            numbers.significant(max(r[when] for r in runs)) for when in ("before", "after")
        ]
        found.append([name, group, *worst])
    return found


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    models = metrics["models"]
    least = next(iter(models["p4"]))
    gained = mean(_accuracy(models["p4"], least)) - mean(_accuracy(models["plain"], least))
    one = models["p4"][least][0]
    digits = filters(
        np.asarray(metrics["digits"]), columns=6, caption="Digits as they are shown", width=360
    )
    kernels = filters(
        np.asarray(metrics["kernels"]),
        columns=4,
        caption="The first layer of p4: each row is one kernel, turned",
        width=220,
    )
    whole = page.Page(
        title="Turned copies of one kernel",
        eyebrow="eadem run rotation",
        lede="A p4 network is a stock CNN with one tie a layer: its kernels are rotated copies "
        "of each other. No turn by 90° changes what it says, before training and after.",
        facts=[
            (
                f"{numbers.count(one['free'])} → {numbers.count(one['expanded'])}",
                "free → sites, p4",
            ),
            (f"{100 * gained:+.1f} points".replace("-", "−"), f"p4 over plain, {least} images"),
            (
                numbers.significant(
                    max(r["after"] for at in models["p4"].values() for r in at)
                ),
                "change under a turn, trained p4",
            ),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "data",
                "Digits and kernels",
                "Every digit is turned by an angle of its own.",
                [page.row(digits, kernels)],
            ),
            page.Section(
                "accuracy",
                "What the tie is worth",
                "Equal steps for all. The plain network has about as many free values as p4; "
                "the untied twin has p4's channels and its start, and four times its weights.",
                [
                    _curves(models),
                    page.table(
                        _columns(models), _rows(models), numeric=range(1, 3 + len(models["p4"]))
                    ),
                ],
            ),
            page.Section(
                "symmetry",
                "What holds exactly",
                "Largest change of a logit under an element of the group, over the largest "
                "logit, float64, on 20 test digits: the worst of all runs.",
                [
                    page.table(
                        ["network", "group", "before training", "after"],
                        _errors(models),
                        numeric=(2, 3),
                    )
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
