"""The page of the study `depth`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]


def _networks(metrics: Mapping[str, Any]) -> str:
    rows = []
    for name, by in metrics["networks"].items():
        for n, runs in by.items():
            right = [r["accuracy"] for r in runs]
            spread = f"{numbers.percent(min(right))}–{numbers.percent(max(right))}"
            loss = f"{mean([r['loss'] for r in runs]):.3f}"
            free = numbers.count(runs[0]["free"])
            rows.append([name, free, n, numbers.percent(mean(right)), spread, loss])
    rows.sort(key=lambda r: int(r[2]))
    columns = ["hidden layers", "free values", "digits learned from", "right", "spread", "loss"]
    return page.table(columns, rows, numeric=(1, 2, 3, 4, 5))


def _limit(metrics: Mapping[str, Any]) -> str:
    limit = metrics["limit"]
    lines = [
        chart.Series(name, limit["depths"], [math.log10(e) for e in errors], style=i)
        for i, (name, errors) in enumerate(limit["errors"].items())
    ]
    label = "Distance from the differential equation"
    return chart.chart(
        chart.Chart(
            label,
            "depth L",
            "log₁₀ of the relative error",
            lines,
            log_x=True,
            x_ticks=limit["depths"],
        )
    )


def _memory(metrics: Mapping[str, Any]) -> str:
    depths = metrics["limit"]["depths"]
    rows = [
        [str(depth), *(numbers.count(kept[i]) for kept in metrics["memory"].values())]
        for i, depth in enumerate(depths)
    ]
    return page.table(["depth", *metrics["memory"]], rows, numeric=(0, 1, 2, 3))


def _evidence(metrics: Mapping[str, Any]) -> list[str]:
    by = metrics["networks"]["wide, tied"]
    last = by[list(by)[-1]]
    norms = [r["evidence"]["norm"] for r in last]
    each = [mean(column) for column in zip(*norms, strict=True)]
    layers = [float(i + 1) for i in range(len(each))]
    picture = chart.Chart(
        "Size of what each layer adds to the gradient of the shared weights",
        "layer",
        "norm",
        [chart.Series("wide, tied, after training", layers, each)],
    )
    rows = [
        [
            str(i + 1),
            numbers.percent(r["evidence"]["cancels"]),
            f"{r['evidence']['statistic']:.2f}".replace("-", "−"),
            numbers.significant(r["evidence"]["pvalue"]),
        ]
        for i, r in enumerate(last)
    ]
    table = page.table(["repeat", "cancels", "z", "p"], rows, numeric=(1, 2, 3))
    return [chart.chart(picture), table]


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    slopes, kept = metrics["limit"]["slopes"], metrics["memory"]
    order = numbers.significant(-slopes["output"])
    exact = ", ".join(f"{k} {numbers.significant(v)}" for k, v in metrics["exact"].items())
    whole = page.Page(
        title="Depth that costs no parameters",
        eyebrow="eadem run depth",
        lede="One layer applied over and over is a recurrent network; with ever smaller steps "
        "it becomes a differential equation, at first order in one over the depth.",
        facts=[
            (order, "order of convergence of the output"),
            (numbers.significant(-slopes["gradient"]), "of the gradient"),
            (
                numbers.ratio(kept["plain"][-1], kept["adjoint"][-1]),
                "less kept by the adjoint, L = 256",
            ),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "width",
                "Width for depth",
                "Eight hidden layers, untied and narrow, or tied and as wide as the same "
                "number of free values allows. Fifty tied layers are nn.RNN, largest relative "
                f"differences: {exact}.",
                [_networks(metrics)],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for and against itself",
                "How much of the layers' gradients cancels in their sum at the tied fit, on "
                "test digits (eight independent ones of one size: 87.5 %), and the mean test "
                "of whether layers 5 to 8 want other weights.",
                _evidence(metrics),
            ),
            page.Section(
                "limit",
                "Depth to time",
                "The same trained block, L times with step 1/L, against the solution of the "
                "differential equation; its gradient against the adjoint method's. The "
                "gradient extrapolated from the two greatest depths is the adjoint's to "
                f"{numbers.significant(metrics['limit']['extrapolated'])} relative.",
                [_limit(metrics)],
            ),
            page.Section(
                "memory",
                "What the backward pass needs kept",
                "Bytes for 100 digits, each saved tensor once, parameters left out. With "
                "checkpoints: a state for every √L layers, and one segment computed again.",
                [_memory(metrics)],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
