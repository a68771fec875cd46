"""Timing one function against another on a machine that others use too.

The two run in turn, close together, so a load that comes and goes meets both. A figure is a
ratio of the two, never a time: its median over many alternations, and how far it strayed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Ratio", "Row", "paired", "row", "seconds", "table"]


@dataclass(frozen=True)
class Ratio:
    """Time of a over time of b: the median over alternations, the lowest and the highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Row:
    """One line of the benchmark table.

    `ratio` is Eadem's time over that of `against`, `low` and `high` its spread. `limit` is the
    ratio that the project promises, or None where there is no promise. A row whose peer is
    not installed has `ratio` None and says in `against` what is missing. `unit` is "" for a
    ratio of two times and "s" for a time with a limit in seconds.
    """

    name: str
    against: str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    unit: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the promise is kept; None where there is none or nothing was measured."""
        if self.limit is None or self.ratio is None:
            return None
        return self.ratio <= self.limit


def seconds(fn: Callable[[], object], calls: int = 1) -> float:
    """Wall seconds of `calls` calls of `fn`."""
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return time.perf_counter() - start


def paired(
    fn_a: Callable[[], object],
    fn_b: Callable[[], object],
    rounds: int = 15,
    *,
    pairs: int = 8,
    calls: int | None = None,
    warmup: int = 3,
) -> Ratio:
    """Time of `fn_a` over time of `fn_b`.

    Each of `rounds` alternations runs `pairs` pairs (a, b), (b, a), (a, b), …; its ratio is
    the median over its pairs, which forgets a pair that another process disturbed. A run is
    `calls` calls; by default as many as take about a millisecond. The garbage collector
    rests meanwhile.
    """
    for _ in range(max(1, warmup)):
        fn_a()
        fn_b()
    if calls is None:
        calls = max(1, round(1e-3 / max(seconds(fn_a), seconds(fn_b), 1e-9)))
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        found = [_alternation(fn_a, fn_b, pairs, calls) for _ in range(rounds)]
    finally:
        if enabled:
            gc.enable()
    return Ratio(statistics.median(found), min(found), max(found))


def _alternation(
    fn_a: Callable[[], object], fn_b: Callable[[], object], pairs: int, calls: int
) -> float:
    ratios = []
    for i in range(pairs):
        if i % 2:
            b = seconds(fn_b, calls)
            a = seconds(fn_a, calls)
        else:
            a = seconds(fn_a, calls)
            b = seconds(fn_b, calls)
        ratios.append(a / b)
    return statistics.median(ratios)


def row(name: str, against: str, ratio: Ratio, limit: float | None = None) -> Row:
    """A `Row` from a measured `Ratio`."""
    return Row(name, against, ratio.median, ratio.low, ratio.high, limit)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| what | against | ratio | spread | limit | holds |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(r) for r in rows]
    return "\n".join(lines)


def _line(r: Row) -> str:
    ratio = "not measured" if r.ratio is None else f"{r.ratio:.3f}{' ' * bool(r.unit)}{r.unit}"
    spread = "" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
    limit = "" if r.limit is None else f"{r.limit:.2f}{' ' * bool(r.unit)}{r.unit}"
    holds = {True: "yes", False: "**no**", None: ""}[r.holds]
    return f"| {r.name} | {r.against} | {ratio} | {spread} | {limit} | {holds} |"
