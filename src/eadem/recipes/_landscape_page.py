"""The page of the study `landscape`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page
from eadem.report.images import filters

__all__ = ["report"]

NAMES = {"untied": "48 units", "tied": "three filters"}
LEAST, SHOWN = 1e-18, 80
_COLUMNS = [
    "network",
    "activation",
    "free values",
    "accuracy",
    "exchanges tried",
    "largest change of an output",
    "hidden layer alone",
    "zero singular values",
]


def _rows(networks: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for activation, at in networks.items():
        for kind, n in at.items():
            tried = n["exchanges"]
            found.append(
                [
                    NAMES[kind],
                    {"relu": "ReLU"}.get(activation, activation),
                    numbers.count(n["free"]),
                    numbers.percent(n["accuracy"]),
                    numbers.count(tried["tried"]),
                    numbers.significant(tried["change"]),
                    numbers.significant(tried["change, hidden alone"]),
                    numbers.count(n["zero"]) if "zero" in n else "–",
                ]
            )
    return found


def _spectra(networks: Mapping[str, Any]) -> str:
    series: list[chart.Series] = []
    for activation, at in networks.items():
        for kind, n in at.items():
            if "singular" in n:
                values = [math.log10(max(v, LEAST)) for v in n["singular"][-SHOWN:][::-1]]
                xs = list(range(1, SHOWN + 1))
                name = f"{NAMES[kind]}, {activation}"
                series.append(chart.Series(name, xs, values, style=len(series), markers=False))
    label = f"The {SHOWN} smallest singular values of the Jacobian"
    return chart.chart(
        chart.Chart(label, "from the smallest on", "log₁₀ of the largest", series)
    )


def _ways(networks: Mapping[str, Any]) -> str:
    series = [
        chart.Series(
            NAMES[kind],
            [i / (len(n["way"]) - 1) for i in range(len(n["way"]))],
            n["way"],
            style=style,
        )
        for style, (kind, n) in enumerate(networks["relu"].items())
    ]
    label = "Test loss on the straight line between two settings of one function"
    return chart.chart(
        chart.Chart(label, "from a setting to its exchanged copy", "cross-entropy", series)
    )


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    networks, solutions = metrics["networks"], metrics["solutions"]
    zero = [networks["relu"][k]["zero"] for k in ("untied", "tied")]
    counted = [
        [f"{n} {what}", _big(at["relu"]), _big(at["tanh"])]
        for (n, at), what in zip(solutions.items(), ("units", "filters"), strict=True)
    ]
    drawn = min(n["tied"]["exchanges"]["off the tie, drawn"] for n in networks.values())
    whole = page.Page(
        title="One function, many settings",
        eyebrow="eadem run landscape",
        lede="48 hidden units can trade places in 48! ways and the function stays. Tied to "
        "be three filters at 16 places they have six. Of the directions along which a ReLU "
        "network can slide without a change, three are left of 48.",
        facts=[
            (f"{_big(solutions['48']['relu'])} → 6", "equal settings, 48 units → 3 filters"),
            (f"{zero[0]} → {zero[1]}", "flat directions, ReLU"),
            (
                " → ".join(numbers.count(networks["relu"][k]["free"]) for k in NAMES),
                "free values",
            ),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "units",
                "The units",
                "What each of the 48 reads, of the tied network: three filters, each at 16 "
                "places.",
                [
                    filters(
                        np.asarray(metrics["units"]),
                        columns=16,
                        caption="Weights of the hidden layer, a row for each filter",
                        width=640,
                    )
                ],
            ),
            page.Section(
                "exchanges",
                "Exchanges",
                "Units trade places in the hidden layer and in the head; with tanh they "
                "change their signs too. Of the untied network's exchanges the tie allows "
                "only those of whole filters: the nearest of the others that were drawn is "
                f"{numbers.significant(drawn)} of the weights' length away from it.",
                [
                    page.table(["exchangeable", "settings", "with tanh's signs"], counted),
                    page.table(_COLUMNS, _rows(networks), numeric=range(2, 8)),
                ],
            ),
            page.Section(
                "way",
                "Between two equal settings",
                "Both ends are the same function, and the middle is not: why weights of two "
                "networks cannot be averaged before their units are matched. Three filters "
                "have six orders to try.",
                [_ways(networks)],
            ),
            page.Section(
                "spectrum",
                "What is flat",
                "Singular values of the Jacobian of ten outputs on "
                f"{metrics['data']['jacobian']} digits by the free values, at the solution: "
                f"the {SHOWN} smallest. Zeros are directions in which nothing changes: with "
                "ReLU one for each unit, or filter; with tanh none.",
                [_spectra(networks)],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)


def _big(digits: str) -> str:
    return numbers.significant(float(digits)) if len(digits) > 6 else numbers.count(int(digits))
