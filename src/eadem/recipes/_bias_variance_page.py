"""The page and the table of the study `bias-variance`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page, terminal
from eadem.report.bars import Bar, Bars, Group, bars
from eadem.report.images import filters

__all__ = ["report", "table"]

PARTS = ("bias²", "variance")
WORLDS = {
    "right": ("The tie is right: one filter at all places", 0.03),
    "approximate": ("The tie is nearly right: the filter drifts along the signal", 0.03),
    "wrong": ("The tie is wrong: the pixels are shuffled", 1.15),
}
NETWORKS = {
    "shared": "CNN",
    "local": "CNN, untied",
    "MLP": "MLP",
    "logistic": "logistic",
}
PUBLISHED = {
    "right": {"shared": 94, "MLP": 68, "logistic": 32},
    "shuffled": {"shared": 56, "MLP": 68},
}
HOW = {"right": "in order", "shuffled": "shuffled"}


def _bar(name: str, split: Mapping[str, float], style: int) -> Bar:
    total = split["bias"] + split["variance"]
    parts = [max(0.0, split["bias"]), split["variance"]]
    return Bar(name, parts, numbers.significant(total, 2), style=style)


def _worlds(splits: Mapping[str, Any]) -> list[str]:
    found = []
    for name, (title, end) in WORLDS.items():
        at = splits[name]
        sizes = list(at["shared"])
        groups = [
            Group(
                f"{int(n):,} signals",
                [_bar(plan, at[plan][n], style) for style, plan in enumerate(at)],
            )
            for n in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
        ]
        unit = "mean squared error of the output"
        found += [f"<h3>{title}</h3>", bars(Bars(title, unit, groups, PARTS, end=end))]
    return found


_COLUMNS = ["world", "plan", "signals", "bias²", "±", "variance", "±", "closed form"]


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for world, of in metrics["splits"].items():
        for plan, at in of.items():
            for n, s in at.items():
                form = metrics["closed_form"][plan][n]
                predicted = world == "right" or (world, plan) == ("wrong", "connected")
                predicted |= world == "approximate" and plan != "shared"
                shown = [
                    f"{s[k]:.5f}".replace("-", "−")
                    for k in ("bias", "bias_error", "variance", "variance_error")
                ]
                last = f"{form:.5f}" if predicted else "–"
                found.append([world, plan, f"{int(n):,}", *shown, last])
    return found


def _accuracies(networks: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    sizes = networks["sizes"]
    largest = max(sizes, key=int)
    columns = ["pixels", "network", "free"]
    columns += [f"{int(n):,} signals" for n in sizes] + ["published"]
    rows = []
    for how, shown in HOW.items():
        for key, name in NETWORKS.items():
            one = sizes[largest][how][key]
            cells = []
            for n in sizes:
                at = sizes[n][how].get(key)
                if at is None:
                    cells.append("")
                    continue
                low, high = (100 * f(at["accuracy"]) for f in (min, max))
                cells.append(f"{100 * mean(at['accuracy']):.1f} ({low:.1f}–{high:.1f})")
            known = PUBLISHED[how].get(key)
            said = "" if known is None else str(known)
            rows.append([shown, name, numbers.count(one["free"]), *cells, said])
    return columns, rows


def table(folder: Path) -> Any:
    """The accuracies of a finished run as a terminal table."""
    metrics = measured(folder)
    return terminal.grid("Test accuracy in %", *_accuracies(metrics["networks"]))


def _networks(networks: Mapping[str, Any]) -> str:
    groups = [
        Group(
            f"{int(n):,} signals, {HOW[how]}",
            [
                _bar(NETWORKS[key], of[how][key]["split"], style)
                for style, key in enumerate(NETWORKS)
                if key in of[how]
            ],
        )
        for n, of in networks["sizes"].items()
        for how in HOW
    ]
    unit = "squared error of the probabilities"
    return bars(Bars("Networks", unit, groups, PARTS))


def _lines(label: str, data: Mapping[str, Any], order: list[int]) -> str:
    series = [
        chart.Series(
            f"a {label_}",
            [float(i) for i in range(40)],
            [signal[i] for i in order],
            style=s,
            markers=False,
        )
        for s, (label_, signal) in enumerate(
            zip(data["labels"][:3], data["signals"][:3], strict=True)
        )
    ]
    return chart.chart(chart.Chart(label, "sample", "scaled", series))


def _filters(metrics: Mapping[str, Any]) -> str:
    each = np.asarray(metrics["filters"])
    taps = [float(i) for i in range(each.shape[1])]
    average = [float(v) for v in each.mean(0)]
    series = [
        chart.Series("shared", taps, metrics["shared"]["approximate"], style=1),
        chart.Series(
            "average",
            taps,
            average,
            low=[float(v) for v in each.min(0)],
            high=[float(v) for v in each.max(0)],
            style=2,
        ),
    ]
    label = "The shared filter, and the average and range of the places' own"
    return chart.chart(chart.Chart(label, "tap", "weight", series))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    splits, networks = metrics["splits"], metrics["networks"]
    least, most = (f(splits["right"]["shared"], key=int) for f in (min, max))
    data = metrics["data"]
    right, near = (splits[w] for w in ("right", "approximate"))
    saved = right["local"][least]["variance"] / right["shared"][least]["variance"]
    largest = networks["sizes"][max(networks["sizes"], key=int)]
    score = {how: mean(largest[how]["shared"]["accuracy"]) for how in HOW}
    truths = filters(
        np.asarray(metrics["truths"]),
        columns=3,
        caption="W in the three worlds: right, approximate, wrong",
        width=620,
        gap=4,
    )
    rejected = [[w, numbers.percent(p)] for w, p in metrics["rejected"].items()]
    columns, rows = _accuracies(networks)
    whole = page.Page(
        title="A right tie, a nearly right one, and a wrong one",
        eyebrow="eadem run bias-variance",
        lede="A tie takes variance away. What it gives in return depends on the world: no bias "
        "where it is right, a little where it is nearly right, and more than it saves where "
        "it is wrong.",
        facts=[
            (f"1/{saved:.0f}", f"of the variance, right tie, {least} signals"),
            (f"{near['shared'][most]['bias']:.4f}", "bias² of the nearly right one"),
            (f"{splits['wrong']['shared'][most]['bias']:.2f}", "bias² of the wrong one"),
            (
                f"{100 * score['right']:.0f} → {100 * score['shuffled']:.0f} %",
                "CNN, in order → shuffled",
            ),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "data",
                "The signals and the worlds",
                "Three of the signals, as they are and with their pixels shuffled. One layer "
                "without a bias, 40 → 36, is to learn W from them.",
                [
                    page.pair(
                        _lines("Signals in order", data, list(range(40))),
                        _lines("Signals, shuffled", data, data["order"]),
                    ),
                    truths,
                ],
            ),
            page.Section(
                "split",
                "Bias² and variance",
                f"Least squares from {metrics['repeats']} training sets, drawn anew for each "
                "bar. The signal's power is 1; a bar that ends in an arrow goes on.",
                [
                    *_worlds(splits),
                    page.foldout(
                        "All figures, with standard errors",
                        page.table(_COLUMNS, _rows(metrics), range(2, len(_COLUMNS))),
                    ),
                ],
            ),
            page.Section(
                "average",
                "What a shared filter learns where every place has its own",
                "Close to their average: each place weighs in by the power that it sees.",
                [_filters(metrics)],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for or against itself",
                "How often the score test at the shared fit rejects one window for all places "
                f"at 5 %, from {metrics['evidence']} signals; no untied layer is fitted.",
                [page.table(["world", "rejected"], rejected, (1,))],
            ),
            page.Section(
                "networks",
                "Networks",
                "Test accuracy in %, mean (least–greatest) over disjoint training sets, "
                f"{networks['steps']:,} steps for all; and the squared error of their "
                "probabilities. What a network cannot know counts as bias².",
                [
                    page.table(columns, rows, range(2, len(columns))),
                    _networks(networks),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
