"""The page of the study `init`, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

MODULES = {
    "windows": "windows of nn.Linear, Toeplitz1d",
    "positions": "positions of LocallyConnected1d",
    "layers": "layers of a stack of nn.Linear",
}
STARTS = {
    "init": "fan-in of the tie",
    "first": "as the layer was drawn",
    "divided": "divided by √uses",
}
KINDS = {
    "same": "the same in every tower",
    "ecg": "neighbouring windows of an ECG",
    "independent": "independent towers",
}


def _spread(values: Sequence[float]) -> str:
    least, most = (numbers.significant(v, 2) for v in (min(values), max(values)))
    return f"{numbers.significant(mean(values))} ({least}–{most})"


def _uses(m: str) -> str:
    return "1 use" if m == "1" else f"{int(m):,} uses"


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log10(max(v, 1e-12)) for v in values]


def _chart(label: str, y_label: str, lines: Mapping[str, Mapping[str, list[float]]]) -> str:
    series = []
    for style, (name, at) in enumerate(lines.items()):
        line = chart.repeated(name, at, style)
        y, low, high = (_logs(v or ()) for v in (line.y, line.low, line.high))
        series.append(chart.Series(name, line.x, y, low, high, style=style))
    ticks = sorted({float(m) for at in lines.values() for m in at})
    return chart.chart(
        chart.Chart(label, "uses of one value", y_label, series, True, False, ticks)
    )


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    variance, grads = metrics["variance"], metrics["gradients"]
    uses = list(variance["windows"]["init"])
    outputs = [
        [module, start, *(_spread(variance[k][s][m]) for m in uses)]
        for k, module in MODULES.items()
        for s, start in STARTS.items()
    ]
    grown: dict[str, dict[str, float]] = {
        name: {m: g["whole"] / g["one"] for m, g in grads[k].items()}
        for k, name in KINDS.items()
    }
    steps = [
        [
            KINDS[k],
            numbers.count(int(m)),
            numbers.significant(g["whole"] / g["one"]),
            numbers.percent(g["cancels"]),
            numbers.significant(g["SGD"]),
            numbers.significant(g["Adam"]),
        ]
        for k in KINDS
        for m, g in grads[k].items()
    ]
    most = uses[-1]
    whole = page.Page(
        title="A value does not start smaller for being used more",
        eyebrow="eadem run init",
        lede="What a unit gives has the variance of its fan-in times that of its weights, "
        "however often the weights are used elsewhere. What grows with the uses is the "
        "gradient: their sum.",
        facts=[
            (
                numbers.significant(mean(variance["windows"]["init"][m])),
                f"output variance, {_uses(m)}",
            )
            for m in (uses[0], most)
        ]
        + [(f"{grown[KINDS['ecg']][most]:.0f}×", f"the gradient of {int(most):,} uses, ECG")],
        sections=[
            claims(metrics),
            page.Section(
                "output",
                "One step, by the number of uses",
                "White input of unit variance; torch's uniform start, ±1/√fan-in, so theory "
                "says a third. A dense layer that becomes windows has been drawn for the "
                "whole of its "
                'input; start="init" draws it anew. The lines are those of the windows.',
                [
                    _chart(
                        "Variance of one step's output by uses of one value",
                        "log₁₀ output variance",
                        {name: variance["windows"][s] for s, name in STARTS.items()},
                    ),
                    page.table(
                        ["module", "scale", *(_uses(m) for m in uses)],
                        outputs,
                        numeric=range(2, 2 + len(uses)),
                    ),
                ],
            ),
            page.Section(
                "gradient",
                "What reuse does to a gradient step",
                "The gradient of the shared value over that of one use. Independent uses "
                "add up as √uses, equal ones as their number; windows of a real record lie "
                "between. SGD steps grow alike, so a rate that suits one use is too large "
                "for a thousand; Adam's do not. The loss is a sum over the uses; their mean "
                "would divide by it.",
                [
                    _chart(
                        "Size of the shared gradient over that of one use",
                        "log₁₀ gradient over one use's",
                        {name: {m: [v] for m, v in at.items()} for name, at in grown.items()},
                    ),
                    page.table(
                        ["uses are", "uses", "gradient", "cancels", "SGD step", "Adam step"],
                        steps,
                        numeric=(1, 2, 3, 4, 5),
                    ),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
