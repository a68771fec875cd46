"""The page of a shared model: which layers are alike, what each method costs, what suffers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from eadem._share.run import MOST, Shared
from eadem.report import bars, heat, numbers, page

__all__ = ["write_page"]

#: What a bar is called: on a narrow page there is little room beside it.
_SHORT = {
    "per-layer SVD": "SVD",
    "per-layer SVD, compact": "SVD, compact",
    "per-layer, ranks by loss": "ranks by loss",
    "bases within layers": "within layers",
    "bases within and across layers": "across layers",
    "layers tied, low-rank remainder": "layers tied",
    "keys and values of neighbours tied": "k and v tied",
}


def _title(found: Shared) -> str:
    return f"{type(found.model).__name__} at {numbers.percent(found.free / found.full)}"


def _alike(found: Shared) -> list[str]:
    blocks = []
    for kind, grid in found.alike.items():
        n = len(grid)
        layers = [m.layer for m in found.matrices if f"{m.stack} {m.kind}".strip() == kind]
        shown = [
            layers[i] for i in sorted({round(x) for x in np.linspace(0, len(layers) - 1, MOST)})
        ]
        tips = [
            f"layers {shown[i]} and {shown[j]}: {grid[i, j]:.2f}"
            for i in range(n)
            for j in range(n)
        ]
        blocks.append(heat.heat(grid, tips, f"{kind}, {n} layers"))
    return blocks


def _ties(found: Shared) -> list[list[str]]:
    by_site = {m.site: m for m in found.matrices}
    rows = []
    for e in found.plan.entries:
        group = [by_site[s] for s in e.sites]
        layers = ", ".join(str(x) for x in sorted({m.layer for m in group}))
        kinds = ", ".join(dict.fromkeys(m.kind for m in group))
        side = group[0].shape[0] if group[0].narrow else group[0].shape[1]
        full = min(side, sum(m.size for m in group) // side)
        if e.method == "tied":
            full = min(group[0].shape)
        rows.append([kinds, layers, e.method, str(e.rank), str(full)])
    return rows


def _spreads(found: Shared, costs: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    return [
        [name, f"{a:,.6g}", f"{b:,.6g}", f"{b / a:.3f}" if a else ""]
        for name, (a, b) in costs.items()
    ]


def write_page(found: Shared, path: Path) -> None:
    """Write the page. Raises MissingPackage without jinja2."""
    rows = [[m.plan.name, f"{m.choose:.4f}", numbers.count(m.free)] for m in found.methods]
    facts = [
        (numbers.percent(found.free / found.full), "of the blocks' weights"),
        (f"{found.original:.4f}", f"{found.quantity}, original"),
        (f"{found.test:.4f}", "shared"),
    ]
    if found.baseline is not None:
        facts.append((f"{found.baseline:.4f}", "per-layer whitened SVD"))
    if found.recovered is not None:
        facts.append((f"{found.recovered:.4f}", "after recovery"))
    methods: list[str] = []
    least = min((m.choose for m in found.methods), default=0.0)
    if found.methods:
        drawn = [
            bars.Bar(
                _SHORT.get(m.plan.name, m.plan.name),
                [max(m.choose - least, 0.0)],
                f"{m.choose:.4f}",
                style=int(i > 0),
            )
            for i, m in enumerate(found.methods)
        ]
        label = f"{found.quantity} above the least of them ({least:.4f})"
        methods = [bars.bars(bars.Bars(label, "", [bars.Group("", drawn)]))]
    methods.append(page.table(["method", "loss", "weights"], rows, numeric=(1, 2)))
    sections = [
        page.Section(
            "methods",
            "What each way of sharing costs",
            "Every method with the same number of weights, measured on text that no statistics "
            "were taken from; the first counts two full factors, as it is published. The best "
            "of the others was taken. Bars start at the least loss.",
            methods,
        ),
        page.Section(
            "alike",
            "Which layers want the same basis",
            "For each kind of matrix, how much the directions that matter to one layer's loss "
            "are those of another's: the cosine between their weighed second moments. Layers "
            "that are alike share a basis at little cost.",
            [page.row(*_alike(found))],
        ),
        page.Section(
            "ties",
            "The ties",
            f"Before sharing: {found.standing}.",
            [page.table(["matrices", "layers", "method", "rank", "of"], _ties(found), (3, 4))],
        ),
        page.Section(
            "worst",
            "Where it hurts most",
            "The estimated loss of each tie, to second order: the evidence against it.",
            [
                page.table(
                    ["sites", "estimated loss"],
                    [[s, f"{v:.5f}"] for s, v in found.worst],
                    numeric=(1,),
                )
            ],
        ),
        page.Section(
            "running",
            "What it takes to run",
            "The dense model and the shared one, measured in turn in one process.",
            [
                page.table(
                    ["", "dense", "shared", "ratio"],
                    _spreads(found, found.cost),
                    numeric=(1, 2, 3),
                )
            ],
        ),
    ]
    whole = page.Page(
        title=_title(found),
        eyebrow="eadem share",
        lede="A pretrained model whose weight matrices share their bases, chosen by measured "
        "loss under one count of free parameters.",
        facts=facts,
        sections=sections,
        footer=[escape(f"plan: {found.plan.name}; {len(found.plan.entries)} ties")],
    )
    path.write_text(page.render(whole), encoding="utf-8")
