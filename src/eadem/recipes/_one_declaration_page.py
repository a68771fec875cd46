"""The page and the table of the study `one-declaration`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page, terminal

__all__ = ["grid", "report"]


def _rows(models: Mapping[str, Any]) -> list[list[str]]:
    show = numbers.significant
    return [
        [
            name,
            m["solver"],
            m["pooled"],
            f"{m['free']} → {m['expanded']}",
            show(m["discrepancy"]),
            *(_verdict(m, which) for which in ("true", "wrong")),
        ]
        for name, m in models.items()
    ]


def _verdict(model: Mapping[str, Any], which: str) -> str:
    test = model[f"{which}_tie"]
    test = test["robust"] if model["by_robust"] else test
    p = float(model[f"p_{which}"])
    shown = "< 10⁻³⁰⁰" if p < 1e-300 else f"= {numbers.significant(p)}"
    return f"χ²({test['df']}) = {numbers.significant(test['statistic'])}, p {shown}"


def _relaxed(network: Mapping[str, Any]) -> list[list[str]]:
    told = {"true": "true tie", "wrong": "wrong tie", "relaxed": "wrong tie, relaxed"}
    return [[name, f"{network['relaxed'][key]:.5f}"] for key, name in told.items()]


COLUMNS = [
    "model",
    "solver",
    "pooled by φ",
    "free → sites",
    "off oracle",
    "true tie",
    "wrong tie",
]


def grid(models: Mapping[str, Any]) -> Any:
    """The models as a terminal table."""
    return terminal.grid("One declaration, three kinds of model", COLUMNS, _rows(models))


def _curve(name: str, model: Mapping[str, Any]) -> str:
    """How far the objective was from its last value, on a logarithmic scale, by iteration."""
    history = model["history"]
    last = history[-1]
    gap = [(i, abs(h - last)) for i, h in enumerate(history) if h != last]
    x, y = [float(i) for i, _ in gap], [float(np.log10(g)) for _, g in gap]
    series = chart.Series(name, x, y, markers=len(gap) <= 30)
    label = f"{name}: distance of the objective from where it ended"
    return chart.chart(chart.Chart(label, "iteration", "log₁₀ distance", [series]))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    models = metrics["models"]
    described = [[name, m["data"], m["oracle"]] for name, m in models.items()]
    notes = [
        [name, which, note]
        for name, m in models.items()
        for which in ("true", "wrong")
        for note in m[f"{which}_tie"]["notes"]
    ]
    tests = [page.table(COLUMNS, _rows(models))]
    if notes:
        tests.append(
            page.foldout("Notes of the tests", page.table(["model", "tie", ""], notes))
        )
    whole = page.Page(
        title="One declaration, three kinds of model",
        eyebrow="eadem run one-declaration",
        lede="The same tie on a network, a hidden Markov model and a curve fit. What the sites "
        "say is pooled through one map; what pooling throws away is the evidence.",
        facts=[
            (f"{m['free']} → {m['expanded']}", f"free values → sites, {name}")
            for name, m in models.items()
        ],
        sections=[
            claims(metrics),
            page.Section(
                "models",
                "Three models",
                "Each solver uses one member of the plan, and is checked against an oracle "
                "that knows no ties.",
                [page.table(["model", "data", "oracle"], described)],
            ),
            page.Section(
                "evidence",
                "The evidence each tie gives against itself",
                "Score statistics at the tied fit, all from one function. Where the data are "
                "real the sandwich variance is used.",
                tests,
            ),
            page.Section(
                "relax",
                "What relaxing gives back",
                "The network's wrong tie is rejected, so the second tower is given a remainder "
                "of its own, shared + rank 2, and the network is fitted on.",
                [
                    page.table(
                        ["network", "mean square"], _relaxed(models["network"]), numeric=(1,)
                    )
                ],
            ),
            page.Section(
                "solvers",
                "Three solvers",
                "Each chart ends where its solver stopped.",
                [_curve(name, m) for name, m in models.items()],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
