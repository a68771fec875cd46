"""The page of the recipe global-fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import forest, numbers, page, panels, terminal

__all__ = ["report", "table"]

_TESTS = ("F test", "likelihood ratio", "score test", "score test, robust")
_KEYS = ("f_pvalue", "ratio_pvalue", "score_pvalue", "robust_pvalue")
_COLUMNS = (
    "parameter",
    "joint",
    "best alone",
    "ratio",
    "to the median",
    "with each one's own σ",
)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def table(studies: Mapping[str, Any]) -> Any:
    """The tests of every tie as a terminal table."""
    rows = [
        [f"{key} {name}", f"{t['f']:.3g}", f"{t['df']}, {t['dof']}", *(_p(t[k]) for k in _KEYS)]
        for key, study in studies.items()
        for name, t in study["ties"].items()
    ]
    columns = ["one for all curves", "F", "df", "p (F)", "p (LR)", "p (score)", "p (robust)"]
    return terminal.grid("Which sharing do the data accept?", columns, rows)


def _pictures(study: Mapping[str, Any]) -> str:
    names = {"separate": "separate fits", "joint": "joint fit, accepted sharing"}
    (x, y), every = study["labels"], []
    for name, data in study["curves"].items():
        lines = [
            panels.Curve(names[kind], _points(fits[name]), style=2 if i else 1, dash=i)
            for i, (kind, fits) in enumerate(study["fits"].items())
        ]
        every.append(panels.Panel(name, x, y, _points(data), lines, log_x=study["log_x"]))
    if len(every) > 2:
        return panels.grid(every)
    return page.pair(*(panels.figure(_titled(p)) for p in every))


def _titled(panel: panels.Panel) -> panels.Panel:
    return panels.Panel(
        panel.title,
        panel.x_label,
        f"{panel.title}: {panel.y_label}",
        panel.dots,
        panel.curves,
        log_x=panel.log_x,
    )


def _points(data: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    return list(zip(data["x"], data["y"], strict=True))


def _forests(study: Mapping[str, Any]) -> str:
    shown = []
    for parameter in study["parameters"]:
        rows = [
            forest.Row(name, *values[parameter]) for name, values in study["separate"].items()
        ]
        if parameter in study["shared"]:
            p = study["precision"][parameter]
            rows.append(forest.Row("joint", p["value"], p["error"], whole=True))
        title = f"{parameter}" + ("" if parameter in study["shared"] else " (not shared)")
        shown.append(forest.Forest(title, rows))
    return forest.forests(shown)


def _section(key: str, study: Mapping[str, Any]) -> page.Section:
    shared = ", ".join(study["shared"]) or "none"
    joint = study["accepted"]
    text = f"One value for all curves is accepted of: {shared}."
    if joint is not None:
        text += (
            f" All of these together against separate fits: F({joint['df']}, {joint['dof']}) = "
            f"{joint['statistic']:.3g}, p = {_p(joint['pvalue'])}."
        )
    text += (
        f" Every parameter one for all: p = {_p(study['all']['pvalue'])}. Residual standard "
        f"deviation of the separate fits {numbers.significant(study['sigma'])}, lag-one "
        f"autocorrelation of the residuals {study['serial']:+.2f}."
    )
    ties = forest.pvalues(
        f"p-values of the ties of {key}",
        [(name, [t[k] for k in _KEYS]) for name, t in study["ties"].items()],
        _TESTS,
    )
    notes = [f"{n}: {note}" for n, t in study["ties"].items() for note in t["notes"]]
    blocks = [_pictures(study), _forests(study), ties]
    if study["precision"]:
        blocks.append(_precision(study))
    if notes:
        blocks.append(page.foldout("Notes of the fits", *(f"<p>{_safe(n)}</p>" for n in notes)))
    return page.Section(key.replace(".", "-").lower(), study["title"], text, blocks)


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _precision(study: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            numbers.with_error(p["value"], p["error"]),
            numbers.significant(p["error"] / p["ratio"]),
            f"{p['ratio']:.2f}",
            f"{p['ratio_median']:.2f}",
            f"{p['ratio_own']:.2f}",
        ]
        for name, p in study["precision"].items()
    ]
    return page.table(_COLUMNS, rows, range(1, 6))


def report(folder: Path) -> None:
    """The page of a finished run, from its metrics.json alone."""
    metrics = measured(folder)
    studies = metrics["studies"]
    ratios = [p["ratio"] for s in studies.values() for p in s["precision"].values()]
    tests = sum(len(s["ties"]) for s in studies.values())
    rejected = sum(t["f_pvalue"] < 0.05 for s in studies.values() for t in s["ties"].values())
    facts = [
        (str(sum(len(s["curves"]) for s in studies.values())), "curves in four studies"),
        (f"{rejected} of {tests}", "ties that the F test rejects at 5 %"),
        (f"{min(ratios):.2f}–{max(ratios):.2f}", "standard error, joint over best alone"),
    ]
    lede = (
        "Where the data accept that curves share a parameter, it is estimated from all of "
        "them, more precisely than from any one. Where they reject it, they say so."
    )
    sections = [claims(metrics), *(_section(k, s) for k, s in studies.items())]
    sections.append(_published(studies))
    whole = page.Page(
        metrics["title"],
        "Global fits",
        lede,
        facts,
        sections,
        [_source(metrics), *footer(metrics)],
    )
    write(folder, whole)


def _published(studies: Mapping[str, Any]) -> page.Section:
    rows = [
        [f"{key}, {curve}", f"{name}, {what}", printed, f"{found:.8g}"]
        for key, study in studies.items()
        for curve, name, what, printed, found in study["published"]
    ]
    columns = ("curve", "number", "R's documentation", "found")
    return page.Section(
        "published",
        "Against published numbers",
        "Fits of single curves, each with its own residual variance.",
        [page.table(columns, rows, (2, 3))],
    )


def _source(metrics: Mapping[str, Any]) -> str:
    return (
        f"Data: {metrics['data']['source']} ({metrics['data']['license']}), read at run time."
    )
