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
from torch import Tensor, nn

import eadem
from eadem import theory
from eadem.nn import LocallyConnected1d
from eadem.recipes import Context
from eadem.recipes._ecg import ecg
from eadem.recipes._init_page import report
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["Towers", "gradients", "one_step", "report", "run", "tied", "towers"]

TAPS, CHANNELS, USES, QUICK = 24, 8, (1, 10, 1000), (1, 10, 100)
MODULES = ("windows", "positions", "layers")
STARTS = ("init", "first", "divided")
KINDS = ("independent", "same", "ecg")
RATE, DRAWS, FEW = 1e-3, 20, 3
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


@torch.no_grad()
def one_step(model: nn.Module, kind: str, uses: int) -> float:
    """The mean square of what every use gives for white input of unit variance."""
    batch = max(8, 4000 // uses)
    if kind == "layers":
        outputs = [layer(torch.randn(batch, TAPS)) for layer in model.children()]
        return float(torch.stack(outputs).square().mean())
    x = torch.randn(batch, uses + TAPS - 1)
    return float(model(x if kind == "windows" else x.unsqueeze(1)).square().mean())


class Towers(nn.Module):
    """A filter for each of several windows."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            nn.Linear(TAPS, 1, bias=False, dtype=torch.float64) for _ in range(uses)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (uses, 24) → what each tower says (uses,)."""
        return torch.cat([tower(x) for tower, x in zip(self.each, windows, strict=True)])


def towers(uses: int) -> Towers:
    """Towers that are one."""
    model = Towers(uses)
    eadem.tie(model, "each.*.weight", start="init")
    return model


def gradients(model: Towers, kind: str, draws: int, record: Tensor) -> dict[str, float]:
    """The root mean square of an entry of a tower's gradient (`one`) and of θ's (`whole`); the
    share of the towers' gradients that cancels; and the length of one step of SGD and Adam.
    """
    uses, theta = len(model.each), next(model.parameters())
    sums = {"one": 0.0, "whole": 0.0, "cancels": 0.0}
    steps: dict[str, float] = {"SGD": 0.0, "Adam": 0.0}
    for _ in range(draws):
        nn.init.uniform_(theta, -1 / math.sqrt(TAPS), 1 / math.sqrt(TAPS))
        model.zero_grad()
        with eadem.trace(model) as seen:
            _loss(model, kind, record).backward()
            sites = list(seen.sites.values())
        assert theta.grad is not None
        sums["one"] += float(torch.stack(sites).square().mean())
        sums["whole"] += float(theta.grad.square().mean())
        sums["cancels"] += next(iter(seen.conflict().values()))
        before = theta.detach().clone()
        for name, kind_of in (("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam)):
            kind_of([theta], lr=RATE).step()
            steps[name] += float((theta.detach() - before).norm())
            with torch.no_grad():
                theta.copy_(before)
    return {
        "uses": uses,
        "one": math.sqrt(sums["one"] / draws),
        "whole": math.sqrt(sums["whole"] / draws),
        "cancels": sums["cancels"] / draws,
        **{name: total / draws for name, total in steps.items()},
    }


def _loss(model: Towers, kind: str, record: Tensor) -> Tensor:
    """A sum over the towers; on the record, of half the squared error of the next sample."""
    uses = len(model.each)
    if kind == "ecg":
        windows = record.unfold(0, TAPS + 1, 1)
        some = windows[torch.randint(len(windows) - uses + 1, (1,)) :][:uses]
        error: Tensor = model(some[:, :TAPS]) - some[:, TAPS]
        return error.square().sum() / 2
    n = 1 if kind == "same" else uses
    above, x = torch.randn(n, dtype=torch.float64), torch.randn(n, TAPS, dtype=torch.float64)
    total: Tensor = (above.expand(uses) * model(x.expand(uses, TAPS))).sum()
    return total


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
            at = variance.setdefault(kind, {}).setdefault(start, {})
            at[uses] = every
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
            "variance": variance,
            "gradients": grads,
        }
    )
    report(context.out)


def _claim(
    context: Context,
    draws: Mapping[str, Mapping[str, Mapping[int, list[float]]]],
    grads: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> None:
    """Claim C07."""
    variance = {
        k: {s: {m: sum(v) / len(v) for m, v in by.items()} for s, by in at.items()}
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
        {
            "variance, windows": variance["windows"]["init"],
            "off": off,
            "divided": divided,
            "gradient off": away,
            "gradient on the ECG": grown["ecg"],
        },
        off <= FAN_IN and divided < DIVIDED / most and away <= GRADIENT,
    )
