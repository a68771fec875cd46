"""The pages of the recipes heartbeat, spoken and market, from their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import chart, numbers, page

__all__ = ["report"]

NAMES = {"shared": "one filter, shared over time", "unshared": "a filter for each moment"}


def _shown(value: float, percent: bool) -> str:
    said = f"{100 * value:.1f} %" if percent else f"{value:.4f}"
    return said.replace("-", "−")


def _curve(name: str, task: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    lines = [
        chart.repeated(title, task["found"][kind], i)
        for i, (kind, title) in enumerate(NAMES.items())
    ]
    label = f"{name}: {study['measure']}, mean, least and greatest of the repeats"
    log = len(lines[0].x) > 2
    percent = bool(study["percent"])
    spec = chart.Chart(
        label, study["x"], study["measure"], lines, log, percent, x_ticks=lines[0].x
    )
    return f"<p>{escape(name[0].upper() + name[1:])}</p>" + chart.chart(spec)


def _rows(tasks: Mapping[str, Any], study: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for name, task in tasks.items():
        shared, apart = (task["found"][kind] for kind in NAMES)
        for n in shared:
            both = [_shown(mean(each[n]), study["percent"]) for each in (shared, apart)]
            found.append([name, numbers.count(int(n)), *both])
    return found


def _gaps(tasks: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, f"{t['paired']['mean']:+.4f} ± {t['paired']['error']:.4f}".replace("-", "−")]
        for name, t in tasks.items()
    ]


def _verdicts(evidence: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for name, repeats in evidence.items():
        for i, part in enumerate(repeats[0]):
            each = [r[i] for r in repeats]
            found.append(
                [
                    name,
                    f"moments {part['from'] + 1}–{part['to']}",
                    f"{mean([r['statistic'] for r in each]):.2f}".replace("-", "−"),
                    numbers.significant(sorted(r["pvalue"] for r in each)[len(each) // 2]),
                    f"{sum(r['pvalue'] < 0.05 for r in each)} of {len(each)}",
                ]
            )
    return found


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    study, tasks = metrics["study"], metrics["tasks"]
    size = metrics["parameters"]
    holds = all(c["holds"] for c in metrics["claims"])
    head = ["task", study["x"], "shared", "unshared"]
    whole = page.Page(
        title=metrics["title"],
        eyebrow=f"eadem run {metrics['recipe']}",
        lede=study["lede"],
        facts=[
            (f"{numbers.count(size['shared'])}", "free values, shared"),
            (f"{numbers.count(size['unshared'])}", "a filter for each moment"),
            ("yes" if holds else "no", "all claims hold"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "found",
                "Shared and unshared",
                f"The measure is {study['measure']}. Both see the same.",
                [
                    *(_curve(name, t, study) for name, t in tasks.items()),
                    page.table(head, _rows(tasks, study), numeric=(1, 2, 3)),
                    page.table(
                        ["task", "shared − unshared, paired, ± standard error"],
                        _gaps(tasks),
                        numeric=(1,),
                    ),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence for and against the tie",
                study.get(
                    "test",
                    "At the tied fit, on what it has not seen, may the filters of these "
                    "moments go their own way? Chen and Qin's mean test; z is standard normal "
                    "where the tie holds.",
                ),
                [
                    page.table(
                        ["task", "let go", study.get("statistic", "z, mean"), "p, median",
                         "rejected at 5 %"],
                        _verdicts(metrics["evidence"]),
                        numeric=(2, 3, 4),
                    )
                ],
            ),
        ],
        footer=footer(metrics),
    )  # fmt: skip
    write(folder, whole)
