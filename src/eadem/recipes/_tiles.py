"""A convolution cut into tiles, its least-squares fit, and the test of every tile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, one_hot, pad, unfold

import eadem
from eadem.evidence.score import holm
from eadem.recipes._digits import CLASSES, Digits

__all__ = [
    "FILTERS",
    "FULL",
    "GRID",
    "QUICK",
    "SIDE",
    "SITES",
    "TILES",
    "Fit",
    "Sizes",
    "Tiles",
    "Verdict",
    "first",
    "fitted",
    "halved",
    "redrawn",
    "tested",
    "verdict",
]

SIDE, TILES, FILTERS, GRID = 14, 7, 3, 4
SITES = tuple(f"kernels.{i}" for i in range(TILES**2))


class Tiles(nn.Module):
    """The network; `kernels` holds a kernel (FILTERS, 1, 3, 3) for each tile, row by row."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        kernel = torch.randn(FILTERS, 1, 3, 3, generator=generator, dtype=torch.float64) / 3
        self.kernels = nn.ParameterList(kernel.clone() for _ in SITES)
        self.head = nn.Linear(FILTERS * GRID**2, CLASSES, dtype=torch.float64)

    def features(self, images: Tensor) -> Tensor:
        """(n, FILTERS·GRID²) of images (n, 1, SIDE, SIDE)."""
        n = len(images)
        crops = unfold(pad(images, (1, 1, 1, 1)), 4, stride=2).transpose(1, 2)
        crops = crops.reshape(n, TILES**2, 4, 4)
        found = conv2d(crops, torch.cat(list(self.kernels)), groups=TILES**2).relu()
        found = found.reshape(n, TILES, TILES, FILTERS, 2, 2).permute(0, 3, 1, 4, 2, 5)
        whole = found.reshape(n, FILTERS, SIDE, SIDE)
        return nn.functional.adaptive_avg_pool2d(whole, GRID).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """The classes' indicators, (n, CLASSES)."""
        found: Tensor = self.head(self.features(images))
        return found


@dataclass(frozen=True)
class Sizes:
    """Images learned from, splits of the digits, draws where the tie is true, evaluations."""

    images: int
    splits: int
    draws: int
    evaluations: int


FULL, QUICK = Sizes(1500, 5, 3, 80), Sizes(400, 1, 1, 24)


@dataclass(frozen=True)
class Fit:
    """Evaluations it took, and the mean squared error of what it was fitted to."""

    evaluations: int
    error: float


def fitted(model: Tiles, images: Tensor, targets: Tensor, most: int) -> Fit:
    """Least squares by L-BFGS on the kernels; the head is the best one for them throughout.

    The gradient at the best head is that of the error as a function of the kernels alone.
    """
    kernels = list(model.kernels.parameters())
    taken = 0

    def closure() -> float:
        nonlocal taken
        taken += 1
        optimizer.zero_grad()
        features = model.features(images)
        ones = pad(features.detach(), (0, 1), value=1.0)
        ridge = 1e-8 * torch.eye(ones.shape[1], dtype=ones.dtype)
        head = torch.linalg.solve(ones.T @ ones + ridge, ones.T @ targets)
        with torch.no_grad():
            model.head.weight.copy_(head[:-1].T)
            model.head.bias.copy_(head[-1])
        error = (linear(features, head[:-1].T, head[-1]) - targets).square().mean()
        error.backward()
        return float(error.detach())

    optimizer = torch.optim.LBFGS(
        kernels,
        max_iter=most,
        max_eval=most,
        history_size=30,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    return Fit(taken, closure())


@dataclass(frozen=True)
class Verdict:
    """What the test says of one tile; `pvalue` is the robust one."""

    site: str
    df: int
    statistic: float
    pvalue: float
    holm: float


def verdict(model: Tiles, images: Tensor, targets: Tensor) -> list[Verdict]:
    """The score test of every tile that the data identify, at the tied fit."""
    with torch.no_grad():
        sigma = float((model(images) - targets).square().mean().sqrt())

    def mean(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found: Tensor = m(batch[0]) / sigma
        return found

    def log_density(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -0.5 * (batch[1] / sigma - mean(m, batch)).square().sum(1)

    first = eadem.score_test(
        model, log_density, (images, targets), release=SITES[0], information=mean
    )
    found = [(site, first.again(site)) for site in SITES]
    seen = [(site, t, t.robust) for site, t in found if t.df and t.robust is not None]
    corrected = holm([robust.pvalue for _, _, robust in seen])
    return [
        Verdict(site, t.df, t.statistic, robust.pvalue, p)
        for (site, t, robust), p in zip(seen, corrected, strict=True)
    ]


@torch.no_grad()
def redrawn(model: Tiles, images: Tensor, targets: Tensor, seed: int) -> Tensor:
    """Targets of which a fit is true: its outputs, and Gaussian errors as large as its own."""
    mean, generator = model(images), torch.Generator().manual_seed(seed)
    sigma = (mean - targets).square().mean().sqrt()
    drawn = torch.randn(targets.shape, dtype=targets.dtype, generator=generator)
    found: Tensor = mean + sigma * drawn
    return found


@torch.no_grad()
def tested(model: Tiles, digits: Digits) -> dict[str, float]:
    """Free values; mean squared error and accuracy on digits that were not learned from."""
    found = model(halved(digits))
    error = (found - one_hot(digits.labels, CLASSES)).square().mean()
    return {
        "free": eadem.counts(model).free,
        "error": float(error),
        "accuracy": float((found.argmax(1) == digits.labels).double().mean()),
    }


def halved(digits: Digits) -> Tensor:
    """Images (n, 1, SIDE, SIDE), float64."""
    return nn.functional.avg_pool2d(digits.images.double().reshape(-1, 1, 28, 28), 2)


def first(digits: Digits, n: int) -> tuple[Tensor, Tensor]:
    """The first n images, halved, and the indicators of their classes."""
    return halved(digits)[:n], one_hot(digits.labels[:n], CLASSES).double()
