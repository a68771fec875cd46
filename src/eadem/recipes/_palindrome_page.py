"""The page of `eadem run palindrome`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eadem.recipes._disturbed import SHIFT, TAPS
from eadem.recipes._page import claims, footer, measured, write
from eadem.report import chart, numbers, page, terminal

__all__ = ["COLUMNS", "NAMES", "report", "table"]

NAMES = {"palindrome": "palindromic", "plain": "unconstrained"}
COLUMNS = ["windows", *NAMES.values(), "difference", "better in"]


def _rows(gains: Mapping[str, Mapping[Any, list[float]]]) -> list[list[str]]:
    found = []
    for n, tied in gains["palindrome"].items():
        plain = gains["plain"][n]
        pairs = [a - b for a, b in zip(tied, plain, strict=True)]
        mean = sum(pairs) / len(pairs)
        shown = [f"{sum(g) / len(g):.2f}" for g in (tied, plain)]
        won = f"{sum(p > 0 for p in pairs)} of {len(pairs)}"
        found.append([str(n), *shown, f"{mean:+.2f}".replace("-", "−"), won])
    return found


def table(gains: Mapping[str, Mapping[Any, list[float]]]) -> Any:
    """The gains, for the terminal."""
    return terminal.grid("SNR gain in dB", COLUMNS, _rows(gains))


def _gains(gains: Mapping[str, Mapping[str, list[float]]]) -> str:
    series = [
        chart.repeated(name, gains[key], style)
        for style, (key, name) in enumerate(NAMES.items())
    ]
    label = "SNR gain by number of windows: mean, least and greatest of the repeats"
    ticks = [float(n) for n in gains["plain"]]
    return chart.chart(
        chart.Chart(label, "windows to learn from", "gain, dB", series, True, x_ticks=ticks)
    )


def _lines(label: str, y_label: str, curves: Mapping[str, list[float]], start: int) -> str:
    series = [
        chart.Series(name, [float(start + i) for i in range(len(y))], y, style=s, markers=False)
        for s, (name, y) in enumerate(curves.items())
    ]
    return chart.chart(chart.Chart(label, "samples from the middle", y_label, series))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    middle, gains, tests = -(TAPS // 2), metrics["gain_db"], metrics["tests"]
    taps = {name: metrics["taps"][key] for key, name in NAMES.items()}
    record = [
        chart.Series("ECG", [float(i) for i in range(1024)], metrics["record"], markers=False)
    ]
    least = next(iter(gains["plain"]))
    better = [a - b for a, b in zip(*(gains[k][least] for k in NAMES), strict=True)]
    shown = [
        [which, f"χ²({t['df']}) = {numbers.significant(t['statistic'])}", _p(t["pvalue"])]
        for which, t in (
            ("antisymmetric disturbance: the tie is right", tests["right"]),
            (f"its middle {SHIFT} samples early: the tie is wrong", tests["wrong"]),
        )
    ]
    whole = page.Page(
        title="A filter that reads the same both ways",
        eyebrow="eadem run palindrome",
        lede="A palindromic filter is one tie on one stock convolution: 17 free values at 33 "
        "taps. It hears nothing that is antisymmetric about its middle, and it needs fewer "
        "windows to learn from.",
        facts=[
            ("17 → 33", "free values → taps"),
            (f"{sum(better) / len(better):+.1f} dB", f"gained by the tie at {least} windows"),
            (numbers.significant(max(metrics["heard"]["palindrome"])), "heard of odd windows"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "signal",
                "The signal",
                "An electrocardiogram, and one window of it as the filters are given it. The "
                "sample in the middle is to be recovered.",
                [
                    chart.chart(chart.Chart("The record", "sample", "scaled", record)),
                    _lines("One window", "scaled", metrics["window"], middle),
                ],
            ),
            page.Section(
                "gain",
                "What the tie is worth",
                "Both filters learn from the same windows and are tested on the second half of "
                "the record. The fewer the windows, the more the 16 values count that the tie "
                "need not learn.",
                [_gains(gains), page.table(COLUMNS, _rows(gains), numeric=(1, 2, 3, 4))],
            ),
            page.Section(
                "filters",
                "What was learned",
                f"The taps of the last repeat, from {least} windows.",
                [_lines("Taps", "weight", taps, middle)],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives against itself",
                f"The score test at the tied fit of {metrics['verdict']} windows, sandwich "
                "variance. No unconstrained filter is fitted for it.",
                [page.table(["disturbance", "statistic", "p"], shown)],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)


def _p(p: float) -> str:
    return "< 10⁻³⁰⁰" if p < 1e-300 else numbers.significant(p)
