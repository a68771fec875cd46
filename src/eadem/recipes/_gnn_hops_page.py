"""The page of the recipe gnn-hops, from its metrics."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import bars, chart, numbers, page

__all__ = ["report"]

NAMES = {
    "hop": "HopConv, shared",
    "tag": "TAGConv, per hop",
    "gcn": "GCNConv",
    "appnp": "APPNP",
}


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def _rows(sets: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for name, one in sets.items():
        for kind, title in NAMES.items():
            model = one["models"][kind]
            spread = f"{100 * statistics.stdev(model['accuracy']):.1f}"
            setting = model["setting"]
            found.append(
                [
                    name.title(),
                    title,
                    numbers.count(model["parameters"]),
                    f"{100 * mean(model['accuracy']):.1f} ± {spread}",
                    ", ".join(f"{setting[key]:g}" for key in ("dropout", "decay", "rate")),
                ]
            )
    return found


def _accuracies(sets: Mapping[str, Any]) -> str:
    groups = []
    for name, one in sets.items():
        each = []
        for kind, title in NAMES.items():
            right = [100 * a for a in one["models"][kind]["accuracy"]]
            said = f"{mean(right):.1f} %"
            style = 0 if kind == "hop" else 1
            each.append(bars.Bar(title, [mean(right)], said, min(right), max(right), style))
        groups.append(bars.Group(name.title(), each))
    label = "Accuracy on papers not learned from: mean, least and greatest of the repeats"
    return bars.bars(bars.Bars(label, "%", groups))


def _hops(sets: Mapping[str, Any], layer: int) -> str:
    lines = []
    for style, (name, one) in enumerate(sets.items()):
        each = [h[layer] for h in one["models"]["hop"]["hops"]]
        by = {str(k): [h[k] for h in each] for k in range(len(each[0]))}
        lines.append(chart.repeated(name.title(), by, style))
    where = ("first", "second")[layer]
    ticks = list(range(len(each[0])))
    label = f"What each hop counts in the {where} layer; a quarter is where all start"
    spec = chart.Chart(label, "hop", "share", lines, x_ticks=ticks, y_range=(0.0, 0.5))
    return chart.chart(spec)


def _verdicts(tests: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for name, test in tests.items():
        for hop in test["hops"]:
            found.append(
                [
                    name.title(),
                    f"hop {hop['site'].split('.')[1]}",
                    f"{hop['statistic']:.1f}",
                    str(hop["df"]),
                    numbers.significant(hop["pvalue"]),
                ]
            )
        found.append(
            [
                name.title(),
                "all hops",
                f"{test['statistic']:.1f}",
                str(test["df"]),
                numbers.significant(test["robust"]),
            ]
        )
    return found


def _scalars(tests: Mapping[str, Any]) -> str:
    lines = [
        chart.Series(name.title(), [float(k) for k in range(len(t["scalars"]))], t["scalars"],
                     style=i)
        for i, (name, t) in enumerate(tests.items())
    ]  # fmt: skip
    ticks = lines[0].x
    label = "Fitted scalars of the regression, their sizes adding up to one"
    return chart.chart(chart.Chart(label, "hop", "share", lines, x_ticks=ticks))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    sets, tests = metrics["sets"], metrics["evidence"]
    cora = sets["cora"]
    size = {k: cora["models"][k]["parameters"] for k in ("hop", "tag")}
    true = ", ".join(numbers.significant(p) for p in tests["cora"]["true"])
    gaps = [
        [
            name.title(),
            f"{_signed(one['paired']['mean'])} ± {100 * one['paired']['error']:.2f}",
        ]
        for name, one in sets.items()
    ]
    whole = page.Page(
        title="One transform for all hops",
        eyebrow="eadem run gnn-hops",
        lede="A network on a graph looks at neighbours, their neighbours, and so on. TAGConv "
        "learns a matrix for each distance; under one tie it is one matrix and a number for "
        "each distance.",
        facts=[
            (f"{size['tag'] / size['hop']:.1f}×", "fewer parameters than TAGConv on Cora"),
            (f"{gaps[0][1]} %", "accuracy against TAGConv on Cora"),
            (numbers.significant(tests["cora"]["robust"]), "p-value of the tie on Cora"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "accuracy",
                "Four networks, three sets",
                "Two layers, 16 hidden units, the same splits and seeds. Each model has the "
                "best of the same settings by validation accuracy on a repeat not counted.",
                [
                    _accuracies(sets),
                    page.table(
                        ["set", "network", "parameters", "accuracy, %", "dropout, decay, rate"],
                        _rows(sets),
                        numeric=(2, 3, 4),
                    ),
                    page.table(["set", "shared − per hop, %, paired"], gaps, numeric=(1,)),
                ],
            ),
            page.Section(
                "hops",
                "How much each hop counts",
                "The scalars after training, their sizes adding up to one: mean, least and "
                "greatest of the repeats; the first layer above, the second below. All start "
                "at a quarter. Hop 0 is the paper itself.",
                [_hops(sets, 0), _hops(sets, 1)],
            ),
            page.Section(
                "evidence",
                "The evidence for and against the tie",
                "In a regression on 16 principal components, whose likelihood has one maximum, "
                "the score test asks whether a hop wants a matrix of its own. p-values are the "
                "robust ones. Where labels are drawn from the tied fit, so that the tie is "
                f"true, all hops together have p = {true}.",
                [
                    page.table(
                        ["set", "let go", "χ²", "df", "p"], _verdicts(tests), numeric=(2, 3, 4)
                    ),
                    _scalars(tests),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
