"""The page of the recipe earthquakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page, terminal

__all__ = ["report", "table"]

_COLUMNS = ["states", "log-likelihood", "known", "free values", "AIC", "BIC", "rates"]
_BELIEF = ["belief", "free values", "log-likelihood", "score χ²", "p", "ratio χ²", "p"]


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{r:.2f}" for r in rates)


def _rows(fits: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            str(f["states"]),
            f"{f['log_likelihood']:.3f}".replace("-", "−"),
            f"{f['known']:.3f}".replace("-", "−"),
            str(f["free"]),
            f"{f['aic']:.1f}",
            f"{f['bic']:.1f}",
            _rates(f["rates"]),
        ]
        for f in fits
    ]


def table(fits: Sequence[Mapping[str, Any]]) -> Any:
    """The fits as a terminal table."""
    return terminal.grid("Earthquakes by year, 1900 to 2006", _COLUMNS, _rows(fits))


def _beliefs(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            name,
            str(v["free"]),
            f"{v['log_likelihood']:.3f}".replace("-", "−"),
            numbers.significant(v["score"]),
            numbers.significant(v["score_p"]),
            numbers.significant(v["ratio"]),
            numbers.significant(v["ratio_p"]),
        ]
        for name, v in found.items()
    ]


def _series(metrics: Mapping[str, Any]) -> str:
    years = [float(1900 + i) for i in range(len(metrics["counts"]))]
    three = metrics["fits"][-1]["decoded"]
    label = "Earthquakes of magnitude 7 or greater, and the rate of each year's likeliest state"
    lines = [
        chart.Series("counted", years, metrics["counts"], style=0, markers=False),
        chart.Series("rate of the state", years, three, style=1, markers=False),
    ]
    return chart.chart(chart.Chart(label, "year", "earthquakes", lines))


def _histories(fits: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        chart.Series(
            f"{f['states']} states",
            [float(i) for i in range(len(f["history"]))],
            f["history"],
            style=i,
            markers=False,
        )
        for i, f in enumerate(fits)
        if len(f["history"]) > 3
    ]
    return chart.chart(chart.Chart("EM from its best start", "step", "log-likelihood", lines))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    fits = metrics["fits"]
    whole = page.Page(
        title="How many kinds of year does the earth have?",
        eyebrow="eadem run earthquakes",
        lede="Years of few, of some and of many great earthquakes follow each other as a "
        "Markov chain. The greatest likelihoods of this series are known, so the fits can be "
        "checked; and what one believes of the years is a tie that the series can judge.",
        facts=[
            ("107", "years"),
            (_rates(fits[-1]["rates"]), "earthquakes a year in the three states"),
            ("0", "EM steps that lowered the likelihood"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "series",
                "The series, and its states",
                "The most likely sequence of three states (Viterbi).",
                [_series(metrics)],
            ),
            page.Section(
                "fits",
                "One, two and three states",
                "Free values are counted by rank, the sums of rows taken off.",
                [page.table(_COLUMNS, _rows(fits), numeric=(0, 1, 2, 3, 4, 5))],
            ),
            page.Section(
                "beliefs",
                "Two beliefs, judged",
                "Ties on the model of two states: the score test at the tied fit, and twice "
                "the difference of log-likelihoods once the untied model is fitted too.",
                [page.table(_BELIEF, _beliefs(metrics["beliefs"]), numeric=(1, 2, 3, 4, 5, 6))],
            ),
            page.Section("em", "Every step gains", "", [_histories(fits)]),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
