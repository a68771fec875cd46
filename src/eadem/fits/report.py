"""A fit as people read it: tables on a terminal and in a notebook, and a page with plots."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from torch import Tensor

from eadem.bind import resolved
from eadem.evidence._score_test import Table
from eadem.evidence.score import EvidenceError
from eadem.maps.base import numel
from eadem.report import page, terminal
from eadem.report.chart import Chart, Series, chart
from eadem.report.numbers import count, significant, with_error

if TYPE_CHECKING:
    from eadem.fits.fit import Fit

__all__ = ["BlockRow", "Report", "ValueRow", "report"]

#: Rows of a table, plots, and dots in a plot, that are shown.
ROWS, PLOTS, DOTS = 60, 8, 600
#: Values at the sites up to which the ties are tested for the report.
TESTED = 512
#: Correlations above this are listed.
STRONG = 0.9


#: A title, columns, rows, and which columns are numbers.
_TableOf = tuple[str, Sequence[str], list[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class ValueRow:
    """One value at a site: `free` where it is a free value's own place."""

    site: str
    value: float
    stderr: float
    free: bool


@dataclass(frozen=True)
class BlockRow:
    """One block: its residuals, their χ², and their lag-one autocorrelation, about zero where
    they are independent.
    """

    name: str
    size: int
    chi2: float
    serial: float


@dataclass(frozen=True)
class Report:
    """A fit's tables. Prints, shows itself in a notebook, and `save(path)` writes a page.

    `correlations`: pairs of free values with |r| above 0.9, the strongest first. `verdicts`:
    the score test of every tie, where the model has ties and is not large.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    values: tuple[ValueRow, ...]
    blocks: tuple[BlockRow, ...]
    correlations: tuple[tuple[str, str, float], ...]
    verdicts: Table | None
    notes: tuple[str, ...]
    residuals: dict[str, Tensor] = field(repr=False)

    def _tables(self) -> Iterator[_TableOf]:
        columns: Sequence[str]
        rows = [
            (
                r.site,
                with_error(r.value, r.stderr),
                significant(r.stderr),
                "" if r.free else "tied",
            )
            for r in self.values[:ROWS]
        ]
        yield (
            "Values",
            ("site", "value", "standard error", ""),
            _more(rows, self.values, 4),
            (1, 2),
        )
        if self.correlations:
            pairs = [(a, b, f"{r:+.4f}") for a, b, r in self.correlations[:20]]
            columns = ("free value", "with", "correlation")
            yield "Strong correlations", columns, _more(pairs, self.correlations, 3), (2,)
        if self.verdicts is not None:
            tests = [
                (
                    r.kind,
                    r.name,
                    f"{r.statistic:.4g}",
                    str(r.df),
                    f"{r.pvalue:.3g}",
                    f"{r.robust_pvalue:.3g}",
                    f"{r.change:+.3g}",
                )
                for r in self.verdicts.rows[:ROWS]
            ]
            columns = ("", "release", "χ²", "df", "p", "robust p", "expected change")
            yield "What the data say of the ties", columns, list(tests), (2, 3, 4, 5, 6)
        each = [
            (
                b.name,
                count(b.size),
                significant(b.chi2, 4),
                significant(b.chi2 / b.size if b.size else math.nan),
                f"{b.serial:+.2f}",
            )
            for b in self.blocks[:ROWS]
        ]
        columns = ("block", "residuals", "χ²", "χ² per residual", "serial correlation")
        yield "Blocks", columns, _more(each, self.blocks, 5), (1, 2, 3, 4)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = " · ".join(f"{name} {figure}" for figure, name in self.facts)
        tables = [terminal.grid(*each) for each in self._tables()]
        yield Group(f"{self.title}\n{head}\n", *tables)
        for note in self.notes:
            yield f"note: {note}"

    def __str__(self) -> str:
        return terminal.plain(self, width=110)

    def _repr_html_(self) -> str:
        facts = " · ".join(f"{escape(n)} {escape(f)}" for f, n in self.facts)
        parts = [f"<p><b>{escape(self.title)}</b><br>{facts}</p>"]
        for title, columns, rows, numeric in self._tables():
            parts.append(f"<p>{escape(title)}</p>" + page.table(columns, rows, numeric))
        return "".join(parts) + "".join(f"<p>note: {escape(n)}</p>" for n in self.notes)

    def html(self) -> str:
        """A page that needs nothing from elsewhere. Raises MissingPackage without jinja2."""
        sections = [
            page.Section(f"part-{i}", title, blocks=[page.table(columns, rows, numeric)])
            for i, (title, columns, rows, numeric) in enumerate(self._tables())
        ]
        shown = list(self.residuals.items())[:PLOTS]
        plots = [_plot(name, r) for name, r in shown if r.numel()]
        text = "Weighted residuals in order, (observed − model)/σ."
        if len(self.residuals) > PLOTS:
            text += f" The {PLOTS} blocks of {count(len(self.residuals))} with the largest χ²."
        sections.append(page.Section("residuals", "Residuals", text, plots))
        if self.notes:
            items = "".join(f"<li>{escape(n)}</li>" for n in self.notes)
            sections.append(page.Section("notes", "Notes", blocks=[f"<ul>{items}</ul>"]))
        lede = "Least squares of all blocks at once; tied values have one free value for all."
        return page.render(page.Page(self.title, "Fit", lede, self.facts, sections))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file; returns its path."""
        found = Path(path)
        found.write_text(self.html(), encoding="utf-8")
        return found


def _more(
    rows: Sequence[Sequence[str]], every: Sequence[object], columns: int
) -> list[Sequence[str]]:
    if len(rows) == len(every):
        return list(rows)
    return [*rows, (f"… and {count(len(every) - len(rows))} more", *[""] * (columns - 1))]


def _plot(name: str, residual: Tensor) -> str:
    """The residuals as dots; of many, the least and the greatest of each stretch."""
    r = residual.reshape(-1)
    at = torch.arange(len(r))
    if len(r) > DOTS:
        stretches = torch.tensor_split(at, DOTS // 2)
        ends = [(s[r[s].argmin()], s[r[s].argmax()]) for s in stretches]
        at = torch.unique(torch.stack([i for pair in ends for i in pair]))
    dots = [(float(i), float(r[i])) for i in at]
    zero = Series(
        "zero", [0.0, float(max(1, len(r) - 1))], [0.0, 0.0], dots=dots, markers=False
    )
    low, high = float(r.min()), float(r.max())
    pad = 0.05 * ((high - low) or 1.0)
    label = f"residuals of {name}"
    spec = Chart(
        label,
        f"{name}: place",
        "residual / σ",
        [zero],
        y_range=(min(low, 0.0) - pad, max(high, 0.0) + pad),
    )
    return chart(spec)


def report(fit: Fit, title: str | None = None) -> Report:
    """The report of a fit."""
    blocks = _blocks(fit)
    residuals = dict(_residuals(fit))
    shown = {b.name: residuals[b.name] for b in blocks}
    return Report(
        title=title or f"Least squares of {type(fit.model).__name__}",
        facts=tuple(_facts(fit)),
        values=tuple(_values(fit)),
        blocks=tuple(blocks),
        correlations=tuple(_correlations(fit)),
        verdicts=_verdicts(fit),
        notes=fit.notes,
        residuals=shown,
    )


def _facts(fit: Fit) -> Iterator[tuple[str, str]]:
    yield significant(fit.chi2, 6), "χ²"
    yield significant(fit.reduced_chi2, 4), "χ²/dof"
    yield count(fit.size), "residuals"
    yield count(fit.free), "free values"
    yield count(len(fit.history) - 1), "iterations"
    yield ("converged" if fit.converged else "not converged"), "outcome:"
    yield significant(fit.aic, 6), "AIC"
    yield significant(fit.bic, 6), "BIC"


def _values(fit: Fit) -> Iterator[ValueRow]:
    plan = resolved(fit.model)
    for name, value in fit.values.items():
        own = name in plan.owners and name not in plan.expressions
        errors = fit.stderr[name].reshape(-1).tolist()
        for i, (v, e) in enumerate(zip(value.reshape(-1).tolist(), errors, strict=True)):
            at = (
                torch.unravel_index(torch.tensor(i), value.shape)
                if numel(value.shape) > 1
                else ()
            )
            index = f"[{', '.join(str(int(j)) for j in at)}]" if at else ""
            yield ValueRow(name + index, v, e, own)


def _residuals(fit: Fit) -> Iterator[tuple[str, Tensor]]:
    for name, r in fit.residuals.items():
        yield name or type(fit.model).__name__, r


def _blocks(fit: Fit) -> list[BlockRow]:
    rows = []
    for name, r in _residuals(fit):
        flat = r.reshape(-1)
        squares = float(flat.square().sum())
        serial = float(flat[1:] @ flat[:-1]) / squares if squares > 0 else 0.0
        rows.append(BlockRow(name, flat.numel(), squares, serial))
    return sorted(rows, key=lambda b: -b.chi2)


def _correlations(fit: Fit) -> Iterator[tuple[str, str, float]]:
    if len(fit.theta) > TESTED or not math.isfinite(fit.reduced_chi2):
        return
    found = fit.correlation.triu(1)
    strong = (found.abs() > STRONG).nonzero().tolist()
    for i, j in sorted(strong, key=lambda at: -abs(float(found[at[0], at[1]]))):
        yield fit.names[i], fit.names[j], float(found[i, j])


def _verdicts(fit: Fit) -> Table | None:
    if not resolved(fit.model).groups or sum(v.numel() for v in fit.values.values()) > TESTED:
        return None
    try:
        return fit.score_test().table()
    except EvidenceError:
        return None
