"""The page of `eadem run dna-motif`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eadem.recipes._motif import BASES, FLANK, MOTIF
from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page, terminal
from eadem.report.logo import logo

__all__ = ["COLUMNS", "NAMES", "report", "table"]

NAMES = {"tied": "tied", "plain": "plain", "averaged": "plain, strands averaged"}
COLUMNS = ["windows", *NAMES.values(), "tied better than averaged in"]


def _rows(aucs: Mapping[str, Mapping[Any, list[float]]]) -> list[list[str]]:
    found = []
    for n, tied in aucs["tied"].items():
        pairs = list(zip(tied, aucs["averaged"][n], strict=True))
        won = f"{sum(a > b for a, b in pairs)} of {len(pairs)}"
        found.append([str(n), *(f"{mean(aucs[k][n]):.3f}" for k in NAMES), won])
    return found


def table(aucs: Mapping[str, Mapping[Any, list[float]]]) -> Any:
    """The areas, for the terminal."""
    return terminal.grid("Area under the ROC curve", COLUMNS, _rows(aucs))


def _curves(aucs: Mapping[str, Mapping[str, list[float]]]) -> str:
    series = [
        chart.repeated(name, aucs[key], style)
        for style, (key, name) in enumerate(NAMES.items())
    ]
    label = "AUC on windows of the unseen part of the genome: mean, least and greatest"
    ticks = [float(n) for n in aucs["plain"]]
    return chart.chart(
        chart.Chart(label, "training windows", "AUC", series, True, x_ticks=ticks)
    )


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    aucs, counts = metrics["auc"], metrics["counts"]
    sizes = list(aucs["tied"])
    least, largest = sizes[0], sizes[-1]
    untied = mean(aucs["plain"][least])
    caption = (
        f"The tied network's strongest filter, learned from {largest} windows: the bases under "
        f"it where it responded most, and {FLANK} more on either side, in test windows that "
        "have the motif"
    )
    certified = [
        [
            name,
            *(numbers.significant(metrics[key][name]) for key in ("shifted", "other_strand")),
        ]
        for name in ("tied", "plain")
    ]
    whole = page.Page(
        title="A motif, wherever it stands",
        eyebrow="eadem run dna-motif",
        lede=f"{MOTIF} is planted in a virus's genome, on either strand. One tie says that a "
        "filter and its reverse complement are the same filter.",
        facts=[
            (f"{counts[k]['free']} → {counts[k]['expanded']}", f"free values → sites, {k}")
            for k in ("tied", "plain")
        ]
        + [
            (
                f"{mean(aucs['tied'][least]):.3f}",
                f"AUC from {least} windows; {untied:.3f} plain",
            )
        ],
        sections=[
            claims(metrics),
            page.Section(
                "filter",
                "What was learned",
                "In bits, as sequence logos are drawn. On the other strand the motif reads "
                "TGTAATC.",
                [logo(torch.tensor(metrics["logo"]).double().numpy(), BASES, caption)],
            ),
            page.Section(
                "accuracy",
                "What the tie is worth",
                "The untied classifier must learn both strands from the data. Averaging its "
                "answers on both strands makes up for some of that, at twice the work.",
                [_curves(aucs), page.table(COLUMNS, _rows(aucs), numeric=(1, 2, 3, 4))],
            ),
            page.Section(
                "certificate",
                "What holds exactly",
                "Largest relative change of a logit under all cyclic shifts of a window, and "
                "on its other strand.",
                [page.table(["network", "shifts", "other strand"], certified, numeric=(1, 2))],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
