"""The page of the recipe verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, heat, images, numbers, page, terminal

__all__ = ["report", "table"]

_NAMES = {
    "tied": "tied: one kernel",
    "most": "the most blamed tiles relaxed",
    "least": "the least blamed tiles relaxed",
    "untied": "a kernel for every tile",
}
_COLUMNS = ["network", "free values", "test error", "against tied", "accuracy"]
_SIDE = 7


def _rows(splits: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    found = []
    for key, name in _NAMES.items():
        each = [s["models"][key] for s in splits]
        ratios = [
            e["error"] / s["models"]["tied"]["error"] for e, s in zip(each, splits, strict=True)
        ]
        change = f"{100 * (statistics.mean(ratios) - 1):+.2f} %".replace("-", "−")
        if len(ratios) > 1 and key != "tied":
            change += f" ± {100 * statistics.stdev(ratios) / len(ratios) ** 0.5:.2f}"
        found.append(
            [
                name,
                numbers.count(each[0]["free"]),
                numbers.significant(statistics.mean(e["error"] for e in each)),
                "" if key == "tied" else change,
                numbers.percent(statistics.mean(e["accuracy"] for e in each)),
            ]
        )
    return found


def table(splits: Sequence[Mapping[str, Any]]) -> Any:
    """The four networks as a terminal table."""
    return terminal.grid("Mean over splits, on other digits", _COLUMNS, _rows(splits))


def _map(verdicts: Sequence[Mapping[str, Any]], marked: Sequence[str]) -> str:
    """The statistic over its degrees of freedom, tile by tile."""
    of = {int(v["site"].rpartition(".")[2]): v for v in verdicts}
    tips, shown, values = [], [], np.full(_SIDE**2, np.nan)
    for i in range(_SIDE**2):
        where = f"tile in row {i // _SIDE + 1}, column {i % _SIDE + 1} (kernels.{i})"
        if i not in of:
            tips.append(f"{where}\nsees no ink: not identified")
            shown.append("")
            continue
        v = of[i]
        values[i] = v["statistic"] / v["df"]
        tips.append(
            f"{where}\nχ²({v['df']}) = {numbers.significant(v['statistic'])}\n"
            f"robust p = {numbers.significant(v['pvalue'])}\n"
            f"Holm {numbers.significant(v['holm'])}"
        )
        shown.append(f"{values[i]:.1f}")
    return heat.heat(
        values.reshape(_SIDE, _SIDE),
        tips,
        "χ² over its degrees of freedom (1 where the tie holds); framed: the tiles relaxed",
        marked=[int(site.rpartition(".")[2]) for site in marked],
        shown=shown,
    )


def _pvalues(drawn: Sequence[Any], verdicts: Sequence[Any]) -> str:
    """Sorted p-values against the quantiles of a uniform law."""
    series = []
    both = {"the tie is true": [v for each in drawn for v in each], "digits": verdicts}
    for style, (name, found) in enumerate(both.items()):
        y = sorted(v["pvalue"] for v in found)
        x = [(i + 0.5) / len(y) for i in range(len(y))]
        series.append(chart.Series(name, x, y, style=style, markers=len(y) < 60))
    series.append(chart.Series("uniform", [0.0, 1.0], [0.0, 1.0], style=2, markers=False))
    label = "Robust p-values of the tiles, in order"
    return chart.chart(chart.Chart(label, "share of tiles", "p-value", series))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    splits, drawn = metrics["splits"], metrics["drawn"]
    verdicts = splits[0]["verdicts"]
    (claim,) = metrics["claims"]
    came = claim["measured"]
    ink = images.filters(
        np.asarray(metrics["mean_digit"])[None], 1, "The mean of the digits learned from", 210
    )
    whole = page.Page(
        title="Is translation sharing true of digits?",
        eyebrow="eadem run verdict",
        lede="A convolution is one kernel for every place. Cut into 49 tiles that one tie "
        "makes equal, it can be asked tile by tile, without fitting anything again, whether "
        "the data agree; and where they do not, the tie is relaxed.",
        facts=[
            ("27 → 1,323", "free values → kernels' values"),
            (f"{came['rejected']} of {len(verdicts)}", "tiles rejected at 1 % after Holm"),
            (numbers.percent(came["false"]), "rejected at 5 % where the tie is true"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "map",
                "Where sharing fails",
                "The score test of each tile at the tied fit. A tile without ink is empty, "
                "as the data say nothing of it.",
                [page.pair(_map(verdicts, splits[0]["relaxed"]["most"]), ink)],
            ),
            page.Section(
                "size",
                "Can the p-values be trusted?",
                "With targets drawn from the tied fit the tie is true, and p-values should lie "
                "on the diagonal. Those of the digits lie below it.",
                [_pvalues(drawn, verdicts)],
            ),
            page.Section(
                "remedy",
                "What relaxing is worth",
                f"Six of {_SIDE**2} tiles are given a remainder of rank 1 each (a kernel is "
                "then the shared one plus a matrix of rank 1), once those that the test blames "
                "most and once those that it blames least; all are fitted to "
                f"{metrics['images']:,} digits and tested on 1,000 others. Mean over splits, "
                "with the standard error of the paired difference.",
                [page.table(_COLUMNS, _rows(splits), numeric=(1, 2, 3, 4))],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
