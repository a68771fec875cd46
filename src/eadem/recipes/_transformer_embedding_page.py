"""The page and the table of the study `transformer-embedding`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import bars, chart, numbers, page, terminal

__all__ = ["report", "table"]

NAMES = {
    "untied": "untied",
    "tied": "tied, equal width",
    "wide": "tied, equal parameters",
}
ROLES = {"embed.weight": "embedding", "head.weight": "classifier"}
COLUMNS = ["model", "width", "free values", "bits a character", "spread", "against untied"]


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    last = list(metrics["bits"]["untied"])[-1]
    base = metrics["bits"]["untied"][last]
    found = []
    for key, name in NAMES.items():
        bits, size = metrics["bits"][key][last], metrics["sizes"][key]
        away = [a - b for a, b in zip(bits, base, strict=True)]
        change = f"{mean(away):+.3f} ({min(away):+.3f} to {max(away):+.3f})".replace("-", "−")
        found.append(
            [
                name,
                str(size["width"]),
                numbers.count(size["free"]),
                f"{mean(bits):.3f}",
                f"{min(bits):.3f}–{max(bits):.3f}",
                "" if key == "untied" else change,
            ]
        )
    return found


def table(folder: Path) -> Any:
    """The three models as a terminal table."""
    return terminal.grid("On plays that were not read", COLUMNS, _rows(measured(folder)))


def _by_rank(metrics: Mapping[str, Any]) -> str:
    bounds = metrics["ranks"]["bounds"]
    groups = []
    for i, (a, b) in enumerate(pairwise(bounds)):
        rows = []
        for style, (key, name) in enumerate(NAMES.items()):
            bits = [one[i] for one in metrics["ranks"]["bits"][key]]
            rows.append(
                bars.Bar(
                    name.removeprefix("tied, "),
                    [mean(bits)],
                    f"{mean(bits):.2f}",
                    min(bits),
                    max(bits),
                    style + 1,
                )
            )
        groups.append(bars.Group(f"Subwords {a:,} to {b - 1:,} by frequency", rows))
    return bars.bars(bars.Bars("Bits a subword", "bits", groups))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    bits, evidence, exact = metrics["bits"], metrics["evidence"], metrics["exact"]
    last = list(bits["tied"])[-1]
    lines = [chart.repeated(n, bits[k], i) for i, (k, n) in enumerate(NAMES.items())]
    curve = chart.Chart(
        "Bits a character on two plays that were not read", "steps of AdamW", "bits", lines
    )
    steps = [float(i + 1) for i in range(len(evidence["cosines"]))]
    roles = [
        chart.Series(ROLES[n], steps, sizes, style=i, markers=False)
        for i, (n, sizes) in enumerate(evidence["norms"].items())
    ]
    sizes = chart.Chart(
        "Size of what each role adds to the gradient, at the tied fit", "batch", "norm", roles
    )
    checks = [
        ["20 steps of AdamW against a model tied by hand", f"{exact['by_hand']:.1e}"],
        ["roles' gradients added, against the parameter's", f"{exact['sum']:.1e}"],
        ["decay beyond once, read as embedding", f"{exact['embed_decay']:.1e}"],
        ["decay beyond once, read as classifier", f"{exact['head_decay']:.1e}"],
        ["scores after save and load", "equal" if exact["loaded"] else "not equal"],
        ["tensors after save and load", "one" if exact["one"] else "two"],
    ]
    test = evidence["test"]
    gap = mean(bits["tied"][last]) - mean(bits["untied"][last])
    cosine = mean(evidence["cosines"])
    whole = page.Page(
        title="One tensor, two roles",
        eyebrow="eadem run transformer-embedding",
        lede="A language model's input embedding and output classifier as one tensor: one "
        "value, one gradient, one decay, one rule.",
        facts=[
            (numbers.count(metrics["sizes"]["tied"]["free"]), "free values, tied"),
            (numbers.count(metrics["sizes"]["untied"]["free"]), "untied"),
            (f"{gap:+.3f} bits".replace("-", "−"), "a character, tied less untied"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "exact",
                "One tensor",
                "A small model in float64. Differences relative to the largest entry.",
                [
                    page.table(["what is compared", "off by"], checks, numeric=(1,)),
                    *(
                        f"<p>Two rules for two names, {escape(how)}: <q>{escape(said)}</q></p>"
                        for how, said in metrics["refused"].items()
                    ),
                ],
            ),
            page.Section(
                "text",
                "Reading Shakespeare",
                "The same windows in the same order, the same rate and decay. Equal parameters "
                "means the widest tied model with no more than the untied one has.",
                [
                    chart.chart(curve),
                    page.table(COLUMNS, _rows(metrics), numeric=(1, 2, 3, 4, 5)),
                    _by_rank(metrics),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives for and against itself",
                "At the tied fit, on other windows of the plays that were learned. In one step "
                f"{numbers.percent(evidence['cancels'])} of the energy of the two roles' "
                "gradients cancels (half, if they are at right angles and of one size), of "
                f"their means {numbers.percent(evidence['lasting'])}; the cosine between them "
                f"is {cosine:+.3f}".replace("-", "−")
                + " on average. The mean test asks "
                "whether the classifier wants other values than the embedding: "
                f"z = {test['statistic']:.2f}, p = {numbers.significant(test['pvalue'])}.",
                [chart.chart(sizes), *(f"<p>{note}</p>" for note in test["notes"])],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
