"""The page of the study `recurrent`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

NAMES = {"tied": "stack, tied over time", "stock": "nn.GRU", "untied": "stack, untied"}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for key, name in NAMES.items():
        by = metrics["bits"][key]
        last = list(by)[-1]
        spread = f"{min(by[last]):.3f}–{max(by[last]):.3f}"
        count = numbers.count(metrics["parameters"][key])
        found.append([name, count, f"{_mean(by[last]):.3f}", spread])
    return found


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    bits, evidence = metrics["bits"], metrics["evidence"]
    last = list(bits["tied"])[-1]
    lines = [chart.repeated(n, bits[k], i) for i, (k, n) in enumerate(NAMES.items())]
    label = "Bits a character on two plays that were not read"
    curve = chart.Chart(label, "steps of Adam", "bits a character", lines)
    steps = [float(t + 1) for t in range(len(evidence["norm"]))]
    norms = chart.Chart(
        "Size of what each step adds to the gradient of the recurrent weights",
        "time step",
        "norm",
        [chart.Series("tied, after training", steps, evidence["norm"])],
    )
    late = evidence["late"]
    cancels = [
        [tie.removeprefix("core.steps.0."), numbers.percent(share)]
        for tie, share in evidence["cancels"].items()
    ]
    exact = [
        [f"nn.{kind}", *(f"{e[k]:.1e}" for k in ("outputs", "gradients", "sum", "trained"))]
        for kind, e in metrics["exact"].items()
    ]
    gap = _mean(bits["untied"][last]) - _mean(bits["tied"][last])
    whole = page.Page(
        title="One rule for every time",
        eyebrow="eadem run recurrent",
        lede="A stack of cells whose layers are tied over time is a recurrent network, to "
        "rounding: outputs, gradients, and the weights that training leaves.",
        facts=[
            (numbers.count(metrics["parameters"]["tied"]), "free values, tied"),
            (numbers.count(metrics["parameters"]["untied"]), "untied"),
            (f"{gap:+.2f} bits".replace("-", "−"), "a character that untying costs"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "exact",
                "The stack against the stock module",
                "Fifty cells in float64. Largest differences, relative to the largest entry; "
                "“sum” is what the steps' traced gradients miss of the parameter's own, "
                "“trained” the weights after the same updates by Adam.",
                [
                    page.table(
                        ["module", "outputs", "gradients", "sum", "trained"],
                        exact,
                        numeric=(1, 2, 3, 4),
                    )
                ],
            ),
            page.Section(
                "text",
                "Reading Shakespeare",
                "The same windows in the same order. Untied, every step must learn the "
                "language from what it alone has seen.",
                [
                    chart.chart(curve),
                    page.table(
                        ["model", "free values", "bits a character", "spread"],
                        _rows(metrics),
                        numeric=(1, 2, 3),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for and against itself",
                "What each step adds to the gradient at the tied fit, on plays it has not "
                "read, and how much of the steps' gradients cancels in the sum. The mean test "
                "asks whether steps 17 to 32 want other recurrent weights than the rest: "
                f"z = {late['statistic']:.2f}, p = {numbers.significant(late['pvalue'])}.",
                [
                    chart.chart(norms),
                    page.table(["tie", "cancels"], cancels, numeric=(1,)),
                    *(f"<p>{note}</p>" for note in late["notes"]),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
