"""The page of a shared model: which layers are alike, what each method costs, what suffers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from eadem._share.mosaic import kept, mosaic
from eadem._share.run import MOST, Shared
from eadem.report import bars, heat, numbers, page
from eadem.report.chart import Chart, Series, chart

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

_COLUMNS = ("matrices", "layers", "method", "rank", "of", "kept", "loss added")
_NUMERIC = (3, 4, 5, 6)
#: Ties that are shown at once.
_FIRST = 12


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
    by_ties = {", ".join(e.sites): e for e in found.plan.entries}
    rows = []
    for sites, cost in found.evidence:
        e = by_ties[sites]
        group = [by_site[s] for s in e.sites]
        layers = ", ".join(str(x) for x in sorted({m.layer for m in group}))
        kinds = ", ".join(dict.fromkeys(m.kind for m in group))
        side = group[0].shape[0] if group[0].narrow else group[0].shape[1]
        full = min(side, sum(m.size for m in group) // side)
        if e.method == "tied":
            full = min(group[0].shape)
        share = numbers.percent(kept(e, group), 0)
        rows.append([kinds, layers, e.method, str(e.rank), str(full), share, f"{cost:.5f}"])
    return rows


def _against_count(found: Shared) -> list[str]:
    """Loss against parameters: estimated along the shares, measured where it was."""
    if not found.curves:
        return []
    lines = [
        Series(
            f"{_SHORT.get(name, name)}, estimated",
            [100 * (1 - x) for x, _ in curve],
            [y for _, y in curve],
            style=i + 1,
            markers=False,
        )
        for i, (name, curve) in enumerate(found.curves.items())
    ]
    most = 1.2 * max(max(s.y) for s in lines)
    points: dict[tuple[float, float], str] = {}  # methods that came to one plan are one point
    for m in sorted(found.methods, key=lambda m: m.choose):
        at = 100 * (1 - m.free / found.full), max(m.choose - found.chosen, 0.0)
        if at[1] <= most:
            points.setdefault(at, _SHORT.get(m.plan.name, m.plan.name))
    best = [
        Series(f"{name}, measured", [x], [y], style=3 + i % 3)
        for i, ((x, y), name) in enumerate([*points.items()][:3])
    ]
    label = f"{found.quantity}, above the original's"
    spec = Chart(label, "fewer weights in the blocks (%)", "loss added", [*lines, *best])
    return [chart(spec)]


def _spreads(found: Shared, costs: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    return [
        [name, numbers.amount(a), numbers.amount(b), f"{b / a:.3f}" if a else ""]
        for name, (a, b) in costs.items()
    ]


def _embeddings(found: Shared) -> list[page.Section]:
    one = found.embeddings
    if one is None:
        return []
    cost = (one.test or 0.0) - found.original
    text = (
        f"They are two matrices of {numbers.count(one.free)} numbers each. As one, the mean "
        "weighed by what the output embedding reads and by the gradients where the input's is "
        f"looked up, they would cost {cost:+.4f} of loss on the test text. This is beside the "
        "blocks' budget, and not done; the card says how to have it."
    )
    return [page.Section("embeddings", "Input and output embedding", text)]


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
    if found.methods:
        drawn = [
            bars.Bar(
                _SHORT.get(m.plan.name, m.plan.name),
                [max(m.choose - found.chosen, 0.0)],
                f"{m.choose - found.chosen:+.4f}",
                style=int(i > 0),
            )
            for i, m in enumerate(found.methods)
        ]
        label = f"{found.quantity} above the original's ({found.chosen:.4f})"
        methods = [bars.bars(bars.Bars(label, "", [bars.Group("", drawn)]))]
    methods.append(page.table(["method", "loss", "weights"], rows, numeric=(1, 2)))
    methods += _against_count(found)
    evidence, ties = dict(found.evidence), _ties(found)
    sections = [
        page.Section(
            "methods",
            "What each way of sharing costs",
            "Every method with the same number of weights, measured on text that no statistics "
            "were taken from; the first counts two full factors, as it is published. The best "
            "of the others was taken. Below, what ranks by loss would cost at other numbers of "
            "weights, estimated to second order, beside what was measured.",
            methods,
        ),
        page.Section(
            "mosaic",
            "What is kept, layer by layer",
            "Matrices filled in one colour are one tie: they share a basis, or are one matrix. "
            "Grey ones are by themselves.",
            [mosaic(found.matrices, found.plan, evidence)],
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
            "The ties, and the evidence against each",
            f"Before sharing: {found.standing}. What a tie costs of the loss is estimated to "
            "second order where it is a basis, and measured where matrices are one; the worst "
            "come first.",
            [page.table(_COLUMNS, ties[:_FIRST], _NUMERIC)]
            + (
                [
                    page.foldout(
                        f"{len(ties) - _FIRST} more",
                        page.table(_COLUMNS, ties[_FIRST:], _NUMERIC),
                    )
                ]
                if len(ties) > _FIRST
                else []
            ),
        ),
        *_embeddings(found),
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
