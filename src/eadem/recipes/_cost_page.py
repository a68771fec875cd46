"""The page and the table of the study `cost`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import numbers, page, terminal
from eadem.report.bars import Bar, Bars, Group, bars
from eadem.report.mosaic import mosaic
from eadem.report.sites import site_views

__all__ = ["draw", "table"]

NAMES = {
    "free": "free values",
    "optimizer": "Adam's state",
    "peak": "peak memory",
    "operations": "operations",
}
_COLUMNS = ["pair", "", "free", "gradient", "Adam", "peak", "operations", "a step"]
_MOSAICS = ("autoencoder", "quarter turns", "the same through its map")


def _size(n: int) -> str:
    for unit, each in (("MB", 1e6), ("kB", 1e3)):
        if n >= each:
            return f"{n / each:,.3g} {unit}"
    return f"{n} B"


def _operations(n: int) -> str:
    return f"{n / 1e6:,.3g} M"


def _rows(models: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for name, pair in models.items():
        for key in ("tied", "untied"):
            m = pair[key]
            sizes = [_size(m[k]) for k in ("gradient", "optimizer", "peak")]
            found.append(
                [
                    name if key == "tied" else "",
                    key,
                    numbers.count(m["free"]),
                    *sizes,
                    _operations(m["operations"]),
                    numbers.seconds(pair["seconds"][key]),
                ]
            )
    return found


def table(folder: Path) -> Any:
    """The counts of a finished run as a terminal table."""
    models = measured(folder)["models"]
    return terminal.grid("A training step", _COLUMNS, _rows(models), range(2, len(_COLUMNS)))


def _ratio(pair: Mapping[str, Any], key: str) -> float:
    return float(pair["tied"][key] / pair["untied"][key])


def _said(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.01 else f"1/{1 / ratio:,.0f}"


def _group(name: str, pair: Mapping[str, Any]) -> Group:
    counted = [
        Bar(
            shown,
            [_ratio(pair, key)],
            _said(_ratio(pair, key)),
            style=1 + (key == "operations"),
        )
        for key, shown in NAMES.items()
    ]
    ratios = pair["ratios"]
    tenth = len(ratios) // 10
    clock = Bar(
        "time",
        [median(ratios)],
        _said(median(ratios)),
        ratios[tenth],
        ratios[-1 - tenth],
        style=0,
    )
    return Group(name, [*counted, clock])


def _chain(layers: Mapping[str, Any]) -> str:
    rows = [
        [name, numbers.count(m["free"]), _operations(m["operations"])]
        for name, m in layers.items()
    ]
    return page.table(["layer", "free values", "operations in a step"], rows, (1, 2))


def draw(folder: Path, tied: Mapping[str, nn.Module]) -> None:
    """Write the page of a finished run from its metrics.json; `tied` are the tied models."""
    metrics = measured(folder)
    models = metrics["models"]
    conv = models["a filter over positions"]
    ratios = [_ratio(pair, "operations") for pair in models.values()]
    groups = [_group(name, pair) for name, pair in models.items()]
    pictures = "".join(
        f'<div class="model"><header><h3>{name}</h3></header>'
        f"{mosaic(site_views(tied[name]))}</div>"
        for name in _MOSAICS
    )
    whole = page.Page(
        title="What sharing saves, and what it does not",
        eyebrow="eadem run cost",
        lede="A tie saves what is kept: free values, gradients, the optimizer's state. It "
        "spares no operation, because every site is still multiplied with its own input.",
        facts=[
            (numbers.ratio(conv["untied"]["free"], conv["tied"]["free"]), "fewer values, conv"),
            (f"{max(ratios):.2f}", "operations, tied over untied, at most"),
            (_said(median(conv["ratios"])), "time of a step, conv over local"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "ratios",
                "Tied over untied",
                "Equal input, layers and start; one training step. The line is where nothing "
                "is saved. Time is the processor's, of steps alternated in one process: median "
                f"ratio and the middle 80 % of {metrics['rounds']} rounds. It falls where less "
                "memory is moved, and it is a machine's, not a claim's.",
                [bars(Bars("Tied over untied", "tied / untied", groups, mark=1.0, end=1.25))],
            ),
            page.Section(
                "counts",
                "The counts",
                "Bytes of float32 on the CPU. Operations are those of products and "
                "convolutions, forward and backward, two for a multiplication and an addition. "
                "Peak memory: parameters, Adam's state and all tensors alive.",
                [page.table(_COLUMNS, _rows(models), range(2, len(_COLUMNS)))],
            ),
            page.Section(
                "chain",
                "Where a convolution's savings are from",
                "From 3 × 16 × 16 to 8 × 14 × 14. Being local takes the operations; being "
                "shared takes the free values that are left.",
                [_chain(metrics["chain"])],
            ),
            page.Section(
                "sites",
                "What is tied",
                "Every parameter, coloured by the free value that each of its entries uses.",
                [f'<div class="models">{pictures}</div>'],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
