"""Where a shared value starts: its scale knows of fan-in, not of how often it is used.

A filter of 24 taps is used once, ten times and a thousand times, in stock modules tied by
Eadem with `start="init"`: as windows of an `nn.Linear` (`Toeplitz1d`), as positions of a
`LocallyConnected1d`, and as layers of a deep stack of `nn.Linear(24, 24)`. Every use is given
fresh white input of unit variance, and the variance of what comes out of that one step is
compared with theory: fan-in times the variance of torch's uniform start, 24/(3·24) = 1/3.
Two wrong scales stand beside it: that of `start="first"`, which leaves to a window what the
dense layer was drawn with, and the right one divided by the root of the number of uses.

Reuse does reach the gradient, which is the sum over the uses. A thousand towers
`nn.Linear(24, 1)` tied to be one are traced, (a) with independent windows and independent
gradients from above, (b) with the same in every tower, and (c) on real input: the 1,024
samples of the electrocardiogram that PyWavelets ships (MIT) are 1,000 windows of 24 and the
sample after each, which is to be foretold. Theory (`eadem.theory.gradient_scale`) says √uses,
uses, and something between. What it does to one step of SGD and of Adam is measured.

Claim C07, means of 20 draws of the weights (3 of the wrong scales) and of the gradients; up to
a hundred uses only when quick. Nothing is fitted, so there is no test of a tie; what the
towers' gradients say against theirs is the share of them that cancels. Expected run time: 2
minutes, 10 s when quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import eadem
from eadem import theory
from eadem.nn import LocallyConnected1d
from eadem.recipes import Context
from eadem.recipes._ecg import ecg
from eadem.recipes._init_measures import (
    CHANNELS,
    DRAWS,
    FEW,
    QUICK,
    TAPS,
    USES,
    Towers,
    gradients,
    one_step,
)
from eadem.recipes._init_page import report
from eadem.recipes._page import mean
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["Towers", "gradients", "one_step", "report", "run", "tied", "towers"]

MODULES = ("windows", "positions", "layers")
STARTS = ("init", "first", "divided")
KINDS = ("independent", "same", "ecg")
FAN_IN, DIVIDED, GRADIENT = 0.05, 2.0, 0.1


def tied(kind: str, uses: int, start: str) -> nn.Module:
    """One of the three modules; its shared values are used `uses` times."""
    how: Any = "first" if start == "first" else "init"
    if kind == "windows":
        size = uses + TAPS - 1
        model: nn.Module = nn.Linear(size, CHANNELS * uses, bias=False)
        window = eadem.Toeplitz1d(in_size=size, kernel_size=TAPS)
        eadem.tie(model, "weight", via=window, start=how)
    elif kind == "positions":
        local = LocallyConnected1d(1, CHANNELS, uses + TAPS - 1, TAPS, bias=False)
        index = eadem.Gather(local.convolution_index("weight"))
        eadem.tie(local, "weight", via=index, start=how)
        model = local
    else:
        model = nn.Sequential(*(nn.Linear(TAPS, TAPS, bias=False) for _ in range(uses)))
        eadem.tie(model, "*.weight" if uses > 1 else "0.weight", start=how)
    if start == "divided":
        with torch.no_grad():
            next(model.parameters()).div_(math.sqrt(uses))
    return model


def towers(uses: int) -> Towers:
    """Towers that are one."""
    model = Towers(uses)
    eadem.tie(model, "each.*.weight", start="init")
    return model


def run(context: Context) -> None:
    """Measure outputs and gradients by number of uses; leave metrics.json and report.html."""
    page.ready()
    counts = QUICK if context.quick else USES
    variance: dict[str, dict[str, dict[int, list[float]]]] = {}
    cases = [(k, s, m) for k in MODULES for s in STARTS for m in counts]
    with one_thread_count():
        for kind, start, uses in context.progress(cases, "outputs"):
            n = DRAWS if start == "init" else FEW
            every = [one_step(tied(kind, uses, start), kind, uses) for _ in range(n)]
            variance.setdefault(kind, {}).setdefault(start, {})[uses] = every
        grads: dict[str, dict[int, dict[str, float]]] = {k: {} for k in KINDS}
        record = ecg()
        for uses in context.progress(counts, "gradients"):
            model = towers(uses)
            for kind in KINDS:
                grads[kind][uses] = gradients(model, kind, DRAWS, record)
    _claim(context, variance, grads)
    context.write_metrics(
        {
            "data": {"source": "PyWavelets", "samples": len(record), "taps": TAPS},
            "draws": DRAWS,
        }
        | {"variance": variance, "gradients": grads}
    )
    report(context.out)


def _claim(context: Context, draws: Mapping[str, Any], grads: Mapping[str, Any]) -> None:
    """Claim C07."""
    variance = {
        k: {s: {m: mean(v) for m, v in by.items()} for s, by in at.items()}
        for k, at in draws.items()
    }
    wanted = TAPS * theory.initial_scale(TAPS, gain=1 / math.sqrt(3)) ** 2
    off = max(abs(v / wanted - 1) for at in variance.values() for v in at["init"].values())
    uses = list(grads["same"])
    most = uses[-1]
    divided = max(at["divided"][most] / at["init"][most] for at in variance.values())
    grown = {k: {m: g["whole"] / g["one"] for m, g in at.items()} for k, at in grads.items()}
    away = max(
        abs(grown[k][m] / theory.gradient_scale(m, rho) - 1)
        for k, rho in (("independent", 0.0), ("same", 1.0))
        for m in uses
    )
    context.claim(
        "C07",
        "Initial scale depends on fan-in alone, not on how many sites reuse the value; the "
        "size of one gradient step does depend on it, as a sum over the uses.",
        f"output variance of one step for 1, 10 and {USES[-1]:,} uses of one value (quick: "
        f"{QUICK[-1]}) within {FAN_IN:g} (relative) of fan-in × the variance of the weights, "
        "1/3, in all three modules; with a scale divided by √uses, at the most uses, below "
        f"{DIVIDED:g}/uses of that; the gradient over that of one use within {GRADIENT:g} "
        "(relative) of √uses where the uses are independent and of their number where they "
        "are the same",
        {"variance": wanted, "off": f"≤ {FAN_IN:g}", "gradient": f"≤ {GRADIENT:g} off"},
        {"variance, windows": variance["windows"]["init"], "off": off, "divided": divided}
        | {"gradient off": away, "gradient on the ECG": grown["ecg"]},
        off <= FAN_IN and divided < DIVIDED / most and away <= GRADIENT,
    )
