"""The report page of a fitted project."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

import torch

from eadem.errors import EademError
from eadem.project.block import Block, CurveBlock
from eadem.project.fit import Outcome, correlation
from eadem.report import forest, page, panels
from eadem.report.numbers import count, significant, with_error

__all__ = ["report"]

#: Data sets with a large picture each; more of them are drawn small.
LARGE = 6
ROWS, STRONG, LINE = 400, 0.5, 400


def report(outcome: Outcome) -> str:
    """The page as HTML. Raises MissingPackage without jinja2."""
    fit = outcome.fit
    sections = [
        page.Section("curves", "Data and curves", blocks=list(_pictures(outcome))),
        _values(outcome),
    ]
    if outcome.verdicts:
        sections.append(_ties(outcome))
    sections += [_correlations(outcome), _data(outcome)]
    if len(outcome.stages) > 1:
        sections.append(_stages(outcome))
    if outcome.notes:
        items = "".join(f"<li>{escape(n)}</li>" for n in outcome.notes)
        sections.insert(
            0, page.Section("notes", "To be read first", blocks=[f"<ul>{items}</ul>"])
        )
    text = f"<pre><code>{escape(outcome.project.document.text)}</code></pre>"
    asked = page.foldout("The project file", text)
    sections.append(page.Section("project", "What was asked", blocks=[asked]))
    facts = [
        (significant(fit.reduced_chi2, 4), "χ² per degree of freedom"),
        (f"{count(fit.size)} − {count(fit.free)}", "observations less free values"),
        (count(len(outcome.built.joint)), "data sets"),
        ("yes" if fit.converged else "no", "converged"),
    ]
    lede = "Least squares of all data sets at once; tied values have one free value for all."
    if not fit.converged:
        lede = f"This fit did not converge: {fit.message}."
    footer = [f"{outcome.project.document.file}; values.csv and fit.json hold the same figures"]
    whole = page.Page(outcome.project.title, "Fit", lede, facts, sections, footer)
    return page.render(whole)


def _pictures(outcome: Outcome) -> Iterator[str]:
    shown = [p for name in outcome.built.joint if (p := _panel(outcome, name)) is not None]
    if len(shown) <= LARGE:
        for panel in shown:
            yield f"<h3>{escape(panel.title)}</h3>"
            yield panels.figure(panel)
        return
    yield panels.grid(shown)


def _panel(outcome: Outcome, name: str) -> panels.Panel | None:
    block = outcome.built.joint[name]
    if not isinstance(block, Block):
        return None
    data = next(d for d in outcome.project.data if d.name == name)
    with torch.no_grad():
        x, y, sigma = (v.reshape(-1) for v in block.observed())
        order = x.argsort()
        if isinstance(block, CurveBlock):
            grid = torch.cat([torch.linspace(float(x.min()), float(x.max()), LINE), x])
            grid = grid.double().sort().values
            curve = block.at(grid)
        else:
            grid, curve = x[order], block.model().reshape(-1)[order]
        residual = block.residual().reshape(-1)
    weighted = data.observed is None or data.observed.errors != "no weights"
    gaps = [] if data.observed is None else _inner(data.observed.gaps, x)
    return panels.Panel(
        name,
        "x" if data.observed is None else data.observed.x_label,
        "y" if data.observed is None else data.observed.y_label,
        list(zip(x.tolist(), y.tolist(), strict=True)),
        [panels.Curve("fitted curve", list(zip(grid.tolist(), curve.tolist(), strict=True)))],
        list(zip(x[order].tolist(), residual[order].tolist(), strict=True)),
        gaps,
        sigma.tolist() if weighted else (),
    )


def _inner(gaps: tuple[tuple[float, float], ...], x: torch.Tensor) -> list[tuple[float, float]]:
    low, high = float(x.min()), float(x.max())
    return [(max(a, low), min(b, high)) for a, b in gaps if b > low and a < high]


def _values(outcome: Outcome) -> page.Section:
    fit = outcome.fit
    rows = []
    for site, state in list(outcome.state.items())[:ROWS]:
        value, error = (float(v[site].reshape(-1)[0]) for v in (fit.values, fit.stderr))
        start = outcome.built.starts.get(site)
        rows.append(
            [
                site,
                state,
                with_error(value, error),
                significant(value, 6),
                "" if state == "fixed" else significant(error),
                "" if start is None else significant(start, 4),
            ]
        )
    columns = ("parameter", "", "value(esd)", "value", "standard error", "start")
    source = "those of the errors given" if fit.absolute_sigma else "scaled by √(χ²/dof)"
    text = (
        "The digits in brackets are the standard error (esd) in units of the last digits. "
        f"Standard errors are {source}; a tied value's is that of what it is tied to."
    )
    if len(outcome.state) > ROWS:
        text += f" The first {ROWS} of {len(outcome.state)}; values.csv has all."
    table = page.table(columns, rows, (2, 3, 4, 5))
    return page.Section("values", "Values", text, [table])


def _ties(outcome: Outcome) -> page.Section:
    cluster = outcome.project.options.cluster
    rows = []
    for v in outcome.verdicts:
        change = ""
        if v.changes:
            site, most = max(v.changes.items(), key=lambda item: abs(item[1]))
            change = f"{site} {most:+.3g}".replace("-", "−")
        known = not math.isnan(v.pvalue)
        rows.append(
            [
                _short(v.tie, 44),
                v.word(cluster is not None),
                change if known else "",
                f"{significant(v.statistic)} ({v.df})" if known else "",
                significant(v.pvalue) if known else "",
                significant(v.robust_pvalue) if not math.isnan(v.robust_pvalue) else "",
            ]
        )
    columns = ("tie", "the data say", "expected change", "χ² (df)", "p", "robust p")
    how = f"over pieces of {cluster} residuals" if cluster else "over single residuals"
    text = (
        "The score test of every tie, let go alone, from this fit without another: how much "
        "the data pull against it, and which value would move by how much if it were let go. "
        f"Robust p-values are from the sandwich variance {how}."
    )
    blocks = [page.table(columns, rows, (3, 4, 5))]
    tested = [(_short(v.tie), (v.pvalue, v.robust_pvalue)) for v in outcome.verdicts]
    if any(not math.isnan(p[0]) for _, p in tested):
        blocks.append(forest.pvalues("p-values of the ties", tested, ("score test", "robust")))
    if outcome.clusters:
        sizes = [
            [
                significant(float(c["size"])),
                count(int(c["clusters"])),
                significant(float(c["statistic"])),
                significant(float(c["pvalue"])),
            ]
            for c in outcome.clusters
        ]
        head = ("residuals in a piece", "pieces", "robust χ²", "p")
        blocks.append("<h3>All ties at once, by the length of the pieces</h3>")
        blocks.append(page.table(head, sizes, range(4)))
    return page.Section("ties", "What the data say of the ties", text, blocks)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _correlations(outcome: Outcome) -> page.Section:
    names = [n for n in outcome.fit.names if outcome.state.get(n) == "free"]
    try:
        matrix = correlation(outcome.fit, names)
    except EademError:
        matrix = []
    pairs = [
        (abs(matrix[i][j]), names[i], names[j], matrix[i][j])
        for i in range(len(matrix))
        for j in range(i + 1, len(matrix))
        if abs(matrix[i][j]) >= STRONG
    ]
    pairs.sort(reverse=True)
    rows = [[a, b, f"{r:+.3f}".replace("-", "−")] for _, a, b, r in pairs[:40]]
    if not rows:
        text = f"No two free values are correlated by more than {STRONG}."
        return page.Section("correlations", "Correlations", text)
    text = f"Pairs of free values above {STRONG}, the strongest first; fit.json has all."
    blocks = []
    if 2 < len(matrix) <= 8:
        blocks.append(_square(names, matrix))
    blocks.append(page.table(("free value", "with", "correlation"), rows, (2,)))
    return page.Section("correlations", "Correlations", text, blocks)


def _square(names: list[str], matrix: list[list[float]]) -> str:
    rows = [
        [name, *(f"{r:+.2f}".replace("-", "−") if j < i else "" for j, r in enumerate(row))]
        for i, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return page.table(
        ("", *names[:-1]), [r[: len(names)] for r in rows[1:]], range(1, len(names))
    )


def _data(outcome: Outcome) -> page.Section:
    rows = []
    for d in outcome.project.data:
        r = outcome.fit.residuals[d.name]
        n, chi2 = r.numel(), float(r.square().sum())
        out = "" if d.observed is None else count(len(d.observed.left_out[0]))
        rows.append(
            [
                d.name,
                "" if d.observed is None else d.observed.file,
                "" if d.observed is None else d.observed.errors,
                count(n),
                out,
                significant(chi2, 4),
                significant(chi2 / n),
                f"{outcome.serial[d.name]:+.2f}".replace("-", "−"),
            ]
        )
    columns = (
        "data set",
        "file",
        "weights",
        "observations",
        "left out",
        "χ²",
        "χ² per observation",
        "lag-one autocorrelation",
    )
    text = (
        "The autocorrelation is that of residuals one after another; about zero where they are "
        "independent, as standard errors and plain p-values suppose."
    )
    curves = [
        [d.name, _short(d.curve.text, 110)] for d in outcome.project.data if d.curve is not None
    ]
    blocks = [page.table(columns, rows, (3, 4, 5, 6, 7))]
    if curves:
        blocks.append(page.table(("data set", "curve"), curves))
    return page.Section("data", "Data sets", text, blocks)


def _stages(outcome: Outcome) -> page.Section:
    rows = [
        [
            str(i),
            ", ".join(s.free),
            significant(s.chi2, 6),
            count(s.dof),
            count(s.iterations),
            "converged" if s.converged else s.message,
        ]
        for i, s in enumerate(outcome.stages, 1)
    ]
    columns = ("stage", "free", "χ²", "degrees of freedom", "iterations", "")
    return page.Section("stages", "Stages", blocks=[page.table(columns, rows, (2, 3, 4))])
